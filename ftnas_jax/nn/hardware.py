"""What the accelerator does to weights and features: quantize, then fail.

The order at every place is compute → quantize → fault → saturate. Gradients pass straight through
all of it, faulty positions included, or are masked there (§5.1 found no difference).

Weights are quantized per tensor. Features are quantized, per tensor and batch, wherever hardware
writes them back: the input image, every convolution after the BatchNorm that is folded into it and
before the activation, pooled features, and the sum at every node of a cell. Faults of logic hit
convolution outputs; faults of the feature buffer hit all of these but the image. The logits stay in
the accumulators of the classifier, whose weights fail like others. A network's ReLUs stand before
its convolutions, so that the buffer holds a feature before the ReLU of those that read it.

Biases, those of conv_1x1 and of the classifier, stay in float32: they are added in the wide
accumulators, before features are quantized. The paper does not say how it holds them.
"""

import dataclasses
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from ftnas_jax.faults import FaultModel, Place, Site, apply_maps, faulty_positions
from ftnas_jax.fixed_point import (
    FixedPoint,
    fraction_length,
    from_codes,
    length_for_range,
    straight_through,
    to_codes,
)
from ftnas_jax.nn.conv import on_cpu
from ftnas_jax.split_batch import Axis, first_of_part

_EIGHT_BITS = FixedPoint(8, "twos_complement")
_BY_FAULTS = FixedPoint(8, "twos_complement")
"""The default format of weights, known by its identity: the faults decide on the encoding."""


class Watch(Protocol):
    """Who is told what the hardware makes of every tensor."""

    def __call__(
        self, name: str, path: str, kind: "Kind", macs: int, x: Any, held: Any, maps: "Maps"
    ) -> None:
        """A tensor at its layer's path, as computed, as held, and its fault maps."""
        ...


class Frozen(Protocol):
    """Who knows the fraction lengths of features that are frozen."""

    def __call__(self, name: str) -> jax.Array | None:
        """That of the tensor of a name, int32; None for one that follows the batch."""
        ...


Kind = Literal["weights", "features", "computed", "stored"]
"""What a tensor is to the hardware: weights; features that logic computes and a buffer stores;
features that are computed but not stored before more is done to them; or features that are only
stored, as pooled ones and sums are taken to be."""

SITES: dict[Kind, tuple[Site, ...]] = {
    "weights": ("weights",),
    "features": ("features", "activations"),
    "computed": ("features",),
    "stored": ("activations",),
}
"""The sites of faults that a kind of tensor has."""


@dataclasses.dataclass(frozen=True)
class Hardware:
    """Number formats and faults of an accelerator; hashable where its rates are Python numbers.

    Attributes:
        weights: format of weights; None leaves them in float32. By default 8 bits, in two's
            complement, or in sign-magnitude where a fault is one of crossbars.
        features: format of features; None leaves them in float32.
        faults: fault models, all of which act in a faulty pass, in this order.
        gradients: whether they pass `straight_through` faults, or are `masked` where a fault hits.
        batch_axis: mesh axis, or axes, over which the batch is split; ranges of features and
            statistics of BatchNorm are those of the whole batch.
        watch: told of every tensor of a network of one architecture while it is traced; see
            `Watch`. Such a network has no gradient.
        frozen: asked once for every tensor of features of a network of one architecture while it is
            traced, in order; None where fraction lengths follow the batch.

    Raises:
        ValueError: faults act on codes, and those that a model needs are not there.
    """

    weights: FixedPoint | None = _BY_FAULTS
    features: FixedPoint | None = _EIGHT_BITS
    faults: tuple[FaultModel, ...] = ()
    gradients: Literal["straight_through", "masked"] = "straight_through"
    batch_axis: Axis = None
    watch: "Watch | None" = dataclasses.field(default=None, compare=False, repr=False)
    frozen: "Frozen | None" = dataclasses.field(default=None, compare=False, repr=False)

    def __post_init__(self):
        if isinstance(self.faults, FaultModel):
            object.__setattr__(self, "faults", (self.faults,))
        if self.weights is _BY_FAULTS and any(model.crossbar for model in self.faults):
            object.__setattr__(self, "weights", FixedPoint(8, "sign_magnitude"))
        if self.gradients not in ("straight_through", "masked"):
            raise ValueError(f"gradients is {self.gradients!r}; choose straight_through or masked")
        for place, model in enumerate(self.faults):
            self._check(model, self.faults[:place])

    def _check(self, model: FaultModel, before: tuple[FaultModel, ...]) -> None:
        fmt = self.weights if model.site == "weights" else self.features
        if fmt is None:
            where = "weights" if model.site == "weights" else "features"
            raise ValueError(f"{model.name}: faults need {where} in fixed point")
        if model.crossbar and fmt.encoding != "sign_magnitude":
            raise ValueError(
                f"{model.name}: crossbars hold signs apart; weights need a sign_magnitude encoding"
            )
        analog = [other.name for other in before if other.analog]
        if analog and not model.analog and model.site == "weights":
            raise ValueError(
                f"{model.name}: after {analog[0]} weights are no codes any more; name it before"
            )
        model.check(fmt)

    def note(
        self, name: str, path: str, kind: Kind, macs: int, x: Any, held: Any, maps: "Maps"
    ) -> None:
        """Tell `watch`, if anyone watches."""
        if self.watch is not None:
            self.watch(name, path, kind, macs, x, held, maps)

    def length(self, name: str) -> jax.Array | None:
        """The frozen fraction length of features, None where it follows the batch."""
        return None if self.frozen is None else self.frozen(name)

    def models(self, kind: Kind) -> tuple[FaultModel, ...]:
        """The models that act on weights, or on features: those of logic, then of the buffer."""
        sites = ("weights",) if kind == "weights" else ("features", "activations")
        return tuple(m for site in sites for m in self.faults if m.site == site)

    @property
    def buffer_fails(self) -> bool:
        """Whether stored features fail, whatever computed them."""
        return any(model.site == "activations" for model in self.faults)

    def format(self, kind: Kind) -> FixedPoint | None:
        """The number format of a kind of tensor."""
        return self.weights if kind == "weights" else self.features

    @property
    def operands(self) -> Any:
        """The type in which convolutions take features and weights, without loss.

        Matrix units of GPUs and TPUs multiply bfloat16 several times faster than float32. Its sign
        and 8 significant bits hold every code of up to 9 bits, times a power of two; sums are
        float32 in either case. A CPU gains nothing.
        """
        formats = (self.weights, self.features)
        held = all(fmt is not None for fmt in formats) and not self.needs_float32
        return jnp.bfloat16 if held and not on_cpu() else jnp.float32

    @property
    def needs_float32(self) -> bool:
        """Whether bfloat16 would round what the hardware holds: wide codes, conductances."""
        formats = (self.weights, self.features)
        wide = any(fmt is not None and fmt.bits > 9 for fmt in formats)
        return wide or any(model.analog for model in self.faults)


DRAWS = 2
"""Number of the way from keys to faults, which grows where it changes: by another way the same chip
has other faults, so that what is begun by one is not gone on with by another."""


class Draw(NamedTuple):
    """One pass through faulty hardware, or through sound hardware.

    Attributes:
        key: typed key of a chip; every place folds its own indices into it.
        faulty: False for a pass without faults; a traced bool lets one program do both.
        first: number of the first image of the pass; may be traced. Faults that are drawn for
            every image depend on the image's number, those drawn for every batch on this one.
    """

    key: jax.Array
    faulty: bool | jax.Array = True
    first: int | jax.Array = 0

    def at(self, *place: int | jax.Array) -> "Draw":
        """The draw of a part of the network, named by stable integers."""
        if self.faulty is False:
            return self
        key = self.key
        for index in place:
            key = jax.random.fold_in(key, index)
        return self._replace(key=key)


CLEAN = Draw(key=None, faulty=False)  # pyright: ignore[reportArgumentType]
"""A pass without faults, known as such while tracing."""

Maps = tuple[jax.Array | None, ...] | None
"""Fault maps of one tensor, for each model that acts on it one, or None where it does not act; None
where there are no faults. Maps of features that do not differ between images have one image."""


@jax.named_scope("fault_maps")
def draw_maps(
    hardware: Hardware,
    kind: Kind,
    draw: Draw,
    shape: tuple[int, ...],
    exposures: tuple[Any, ...],
    active: bool | jax.Array = True,
) -> Maps:
    """Fault maps for a tensor of `shape`; sound ones in a traced pass without faults.

    Where the batch is split, every device draws the maps of its own images: the faults do not
    depend on the number of devices.

    Args:
        hardware: the models.
        kind: of the tensor; its first dimension is the batch but for weights.
        draw: its key is consumed, one fold of it for each model.
        shape: of the tensor.
        exposures: for each model that of the place; see `exposures_at`.
        active: False (traced or not) gives sound maps without drawing.
    """
    models = hardware.models(kind)
    if not models or draw.faulty is False:
        return None

    def sample():
        return tuple(
            None
            if exposure is None
            else _sample(hardware, kind, model, draw.at(place), shape, exposure)
            for place, (model, exposure) in enumerate(zip(models, exposures, strict=True))
        )

    if draw.faulty is True and active is True:
        return sample()
    wanted = jnp.logical_and(draw.faulty, active)
    sound = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(sample))
    return jax.lax.cond(wanted, sample, lambda: sound)


def _sample(hardware: Hardware, kind: Kind, model: FaultModel, draw: Draw, shape, exposure):
    """One model's map; of one image where it does not differ between images."""
    fmt = hardware.format(kind)
    assert fmt is not None  # see Hardware._check
    if model.per == "image":
        first = draw.first + first_of_part(shape[0], hardware.batch_axis)
        numbers = first + jnp.arange(shape[0], dtype=jnp.int32)
        keys = jax.vmap(lambda number: jax.random.fold_in(draw.key, number))(numbers)
        return model.sample(keys, shape[1:], fmt, exposure)
    key = draw.key if model.per == "chip" else jax.random.fold_in(draw.key, draw.first)
    of_image = shape if kind == "weights" else shape[1:]
    maps = model.sample(key[None], of_image, fmt, exposure)
    return maps[0] if kind == "weights" else maps


def exposures_at(hardware: Hardware, kind: Kind, place: Place) -> tuple[Any, ...]:
    """For each model that acts on tensors of a kind, its exposure at a place.

    A layer that a model leaves out is exposed at a rate of 0, so that all places are alike. Faults
    of logic have None where features are only stored, those of the buffer where they are not.
    """
    return tuple(
        model.at(place.path).exposure(place) if model.site in SITES[kind] else None
        for model in hardware.models(kind)
    )


@jax.named_scope("weights")
def hold_weights(w: jax.Array, hardware: Hardware, maps: Maps) -> jax.Array:
    """The weights that the hardware holds for `w`, one layer's float32 tensor.

    Returns:
        float32 like `w`, quantized and with the faults of `maps`; its gradient is passed to `w` as
        `Hardware.gradients` says.
    """
    return _write(w, hardware, "weights", maps, None)


@jax.named_scope("weights")
def hold_segments(flat: jax.Array, ends: jax.Array, hardware: Hardware, maps: Maps) -> jax.Array:
    """As `hold_weights`, for kernels that lie flat one after the other.

    Args:
        flat: float32 [n], the kernels and anything behind them.
        ends: int32 [kernels], where each ends.
        hardware: number formats and faults.
        maps: each [n].

    Returns:
        float32 [n].
    """
    fmt = hardware.weights
    if fmt is None or flat.size == 0:
        return flat
    places = jnp.arange(flat.size, dtype=ends.dtype)[None]
    starts = jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:-1]])
    inside = (places >= starts[:, None]) & (places < ends[:, None])
    own = jnp.where(inside & jnp.isfinite(flat)[None], flat[None], 0.0)
    lengths = length_for_range(jnp.max(own, 1), jnp.min(own, 1), fmt)
    length = jnp.sum(jnp.where(inside, lengths[:, None], 0), 0)
    codes = to_codes(flat, length, fmt)
    return from_codes(apply_maps(codes, hardware.models("weights"), maps, fmt), length)


def write_features(
    f: jax.Array, hardware: Hardware, maps: Maps, length: jax.Array | None = None
) -> jax.Array:
    """Features, float32 [B, ...], as the hardware holds them.

    Args:
        f: as computed, pre-activation features after their BatchNorm.
        hardware: number formats and faults.
        maps: their faults, or None.
        length: int32 fraction length; None for that of `f` (minimal overflow).

    Returns:
        float32 like `f`; its gradient is passed to `f` as `Hardware.gradients` says.
    """
    return _write(f, hardware, "features", maps, hardware.batch_axis, length)


def masked_positions(hardware: Hardware, kind: Kind, maps: Maps) -> jax.Array | None:
    """Bool array: where no gradient passes; None for nowhere."""
    if hardware.gradients != "masked":
        return None
    return faulty_positions(hardware.models(kind), maps)


def mask(gradient: jax.Array, masked: jax.Array | None) -> jax.Array:
    """A gradient with zeros where it is masked."""
    return gradient if masked is None else jnp.where(masked, 0.0, gradient)


def _write(x, hardware: Hardware, kind: Kind, maps: Maps, axis: Axis, length=None):
    fmt = hardware.format(kind)
    if fmt is None:
        return x
    if length is None:
        length = fraction_length(jax.lax.stop_gradient(x), fmt, axis)
    codes = apply_maps(to_codes(x, length, fmt), hardware.models(kind), maps, fmt)
    masked = masked_positions(hardware, kind, maps)
    if masked is not None:
        x = jnp.where(masked, jax.lax.stop_gradient(x), x)
    return straight_through(x, from_codes(codes, length))
