"""What the accelerator does to weights and features: quantize, then fail.

The order at every site is compute → quantize → fault → saturate. Gradients pass straight through
all of it, faulty positions included (§5.1 found masking them to make no difference).

Weights are quantized per tensor. Features are quantized, per tensor and batch, wherever hardware
writes them back: the input image, every convolution after the BatchNorm that is folded into it and
before the activation, pooled features, and the sum at every node of a cell. Only convolution
outputs are sites of feature faults; the logits stay in the accumulators of the classifier.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ftnas_jax.faults import FaultModel, inject
from ftnas_jax.fixed_point import (
    FixedPoint,
    fraction_length,
    from_codes,
    quantize,
    straight_through,
    to_codes,
)

_EIGHT_BITS = FixedPoint(8, "twos_complement")


@dataclasses.dataclass(frozen=True)
class Hardware:
    """Number formats and faults of an accelerator; hashable where its rates are Python numbers.

    Attributes:
        weights: format of weights; None leaves them in float32.
        features: format of features; None leaves them in float32.
        faults: fault models, all of which act in a faulty pass.

    Raises:
        ValueError: faults act on codes, and the site of a model has none.
    """

    weights: FixedPoint | None = _EIGHT_BITS
    features: FixedPoint | None = _EIGHT_BITS
    faults: tuple[FaultModel, ...] = ()

    def __post_init__(self):
        for model in self.faults:
            if getattr(self, model.site) is None:
                raise ValueError(f"{model.name}: faults need {model.site} in fixed point")

    def faults_at(self, site: str) -> tuple[FaultModel, ...]:
        """The models that act on `weights` or on `features`."""
        return tuple(model for model in self.faults if model.site == site)


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


def hold_weights(w: jax.Array, hardware: Hardware, draw: Draw) -> jax.Array:
    """The weights that the hardware holds for `w`: quantized and, in a faulty pass, faulty.

    Args:
        w: float32, one layer's tensor.

    Returns:
        float32 like `w`; its gradient is passed to `w` as it is.
    """
    return _write(w, hardware.weights, hardware.faults_at("weights"), draw, macs=1)


def write_features(f: jax.Array, hardware: Hardware, draw: Draw, *, macs: int) -> jax.Array:
    """Pre-activation features as the hardware computes them.

    Args:
        f: float32 [B, H, W, C], a convolution's output after its BatchNorm.
        macs: M_l, multiply-accumulates behind one feature.

    Returns:
        float32 like `f`; its gradient is passed to `f` as it is.
    """
    return _write(f, hardware.features, hardware.faults_at("features"), draw, macs=macs)


def store_features(x: jax.Array, hardware: Hardware) -> jax.Array:
    """Features written to memory without a computation that may fail: quantized only."""
    return x if hardware.features is None else quantize(x, hardware.features)


def _write(x, fmt: FixedPoint | None, models: tuple[FaultModel, ...], draw: Draw, *, macs: int):
    if fmt is None:
        return x
    length = fraction_length(jax.lax.stop_gradient(x), fmt)
    codes = to_codes(x, length, fmt)
    if models and draw.faulty is not False:
        codes = _fail(codes, fmt, models, draw, macs)
    return straight_through(x, from_codes(codes, length))


def _fail(codes, fmt: FixedPoint, models: tuple[FaultModel, ...], draw: Draw, macs: int):
    def faulty(codes):
        return inject(models, codes, fmt, draw.key, macs=macs)

    if draw.faulty is True:
        return faulty(codes)
    return jax.lax.cond(jnp.asarray(draw.faulty), faulty, lambda codes: codes, codes)
