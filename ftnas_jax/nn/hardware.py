"""What the accelerator does to weights and features: quantize, then fail.

The order at every site is compute → quantize → fault → saturate. Gradients pass straight through
all of it, faulty positions included (§5.1 found masking them to make no difference).

Weights are quantized per tensor. Features are quantized, per tensor and batch, wherever hardware
writes them back: the input image, every convolution after the BatchNorm that is folded into it and
before the activation, pooled features, and the sum at every node of a cell. Only convolution
outputs are sites of feature faults; the logits stay in the accumulators of the classifier.

Biases, those of conv_1x1 and of the classifier, stay in float32: they are added in the wide
accumulators, before features are quantized. The paper does not say how it holds them.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ftnas_jax.faults import FaultModel, Site, apply_maps
from ftnas_jax.fixed_point import (
    FixedPoint,
    fraction_length,
    from_codes,
    length_for_range,
    straight_through,
    to_codes,
)
from ftnas_jax.nn.conv import on_cpu
from ftnas_jax.split_batch import Axis, own_part, whole_count

_EIGHT_BITS = FixedPoint(8, "twos_complement")


@dataclasses.dataclass(frozen=True)
class Hardware:
    """Number formats and faults of an accelerator; hashable where its rates are Python numbers.

    Attributes:
        weights: format of weights; None leaves them in float32.
        features: format of features; None leaves them in float32.
        faults: fault models, all of which act in a faulty pass.
        batch_axis: mesh axis, or axes, over which the batch is split; ranges of features,
            statistics of BatchNorm and fault maps are those of the whole batch.

    Raises:
        ValueError: faults act on codes, and the site of a model has none.
    """

    weights: FixedPoint | None = _EIGHT_BITS
    features: FixedPoint | None = _EIGHT_BITS
    faults: tuple[FaultModel, ...] = ()
    batch_axis: Axis = None

    def __post_init__(self):
        for model in self.faults:
            if getattr(self, model.site) is None:
                raise ValueError(f"{model.name}: faults need {model.site} in fixed point")

    def faults_at(self, site: str) -> tuple[FaultModel, ...]:
        """The models that act on `weights` or on `features`."""
        return tuple(model for model in self.faults if model.site == site)

    @property
    def operands(self) -> Any:
        """The type in which convolutions take features and weights, without loss.

        Matrix units of GPUs and TPUs multiply bfloat16 several times faster than float32. Its 8
        significant bits hold every code of up to 8 bits, times a power of two; sums are float32
        in either case. A CPU gains nothing.
        """
        formats = (self.weights, self.features)
        held = all(fmt is not None and fmt.bits <= 8 for fmt in formats)
        return jnp.bfloat16 if held and not on_cpu() else jnp.float32


class Draw(NamedTuple):
    """One pass through faulty hardware, or through sound hardware.

    Attributes:
        key: typed key; every site folds its own indices into it.
        faulty: False for a pass without faults; a traced bool lets one program do both.
    """

    key: jax.Array
    faulty: bool | jax.Array = True

    def at(self, *place: int | jax.Array) -> "Draw":
        """The draw of a part of the network, named by stable integers."""
        if self.faulty is False:
            return self
        key = self.key
        for index in place:
            key = jax.random.fold_in(key, index)
        return Draw(key, self.faulty)


CLEAN = Draw(key=None, faulty=False)  # pyright: ignore[reportArgumentType]
"""A pass without faults, known as such while tracing."""

Maps = tuple[jax.Array, ...] | None
"""Fault maps of one tensor, one for each model that acts on it; None where there are no faults."""


@jax.named_scope("fault_maps")
def draw_maps(
    hardware: Hardware,
    site: Site,
    draw: Draw,
    shape: tuple[int, ...],
    exposures,
    active: bool | jax.Array = True,
) -> Maps:
    """Fault maps for a tensor of `shape`; sound ones in a traced pass without faults.

    Where the batch is split, every device draws the maps of all of it and keeps those of its part:
    the faults do not depend on the number of devices.

    Args:
        hardware: the models.
        site: `weights` or `features`.
        draw: its key is consumed, one fold of it for each model.
        shape: of the tensor.
        exposures: for each model that of the site; see `exposures_at`.
        active: False (traced or not) gives sound maps without drawing.
    """
    models, fmt = hardware.faults_at(site), getattr(hardware, site)
    if not models or draw.faulty is False:
        return None

    axis = hardware.batch_axis if site == "features" else None
    whole = (whole_count(shape[0], axis), *shape[1:])

    def sample():
        keys = [jax.random.fold_in(draw.key, place) for place in range(len(models))]
        maps = (
            model.sample(key, whole, fmt, exposure)
            for model, key, exposure in zip(models, keys, exposures, strict=True)
        )
        return tuple(own_part(m, axis) for m in maps)

    if draw.faulty is True and active is True:
        return sample()
    wanted = jnp.logical_and(draw.faulty, active)
    sound = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(sample))
    return jax.lax.cond(wanted, sample, lambda: sound)


def exposures_at(hardware: Hardware, site: Site, macs: int) -> tuple[Any, ...]:
    """For each model that acts on `site`, its exposure behind `macs` multiply-accumulates."""
    return tuple(model.exposure(macs) for model in hardware.faults_at(site))


@jax.named_scope("weights")
def hold_weights(w: jax.Array, hardware: Hardware, maps: Maps) -> jax.Array:
    """The weights that the hardware holds for `w`, one layer's float32 tensor.

    Returns:
        float32 like `w`, quantized and with the faults of `maps`; its gradient is passed to `w` as
        it is.
    """
    return _write(w, hardware.weights, hardware.faults_at("weights"), maps, None)


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
    return from_codes(apply_maps(codes, hardware.faults_at("weights"), maps, fmt), length)


def write_features(f: jax.Array, hardware: Hardware, maps: Maps) -> jax.Array:
    """Pre-activation features, float32 [B, H, W, C], as the hardware computes them.

    Args:
        f: a convolution's output after its BatchNorm.
        hardware: number formats and faults.
        maps: faults of the logic behind these features; None where they are only stored.

    Returns:
        float32 like `f`; its gradient is passed to `f` as it is.
    """
    models = hardware.faults_at("features")
    return _write(f, hardware.features, models, maps, hardware.batch_axis)


def _write(x, fmt: FixedPoint | None, models: tuple[FaultModel, ...], maps: Maps, axis: Axis):
    if fmt is None:
        return x
    length = fraction_length(jax.lax.stop_gradient(x), fmt, axis)
    codes = apply_maps(to_codes(x, length, fmt), models, maps, fmt)
    return straight_through(x, from_codes(codes, length))
