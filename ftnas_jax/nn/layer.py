"""One layer on hardware: ReLU, window, BatchNorm, fixed point, faults; forward and backward.

    values → ReLU → window → f → BatchNorm or bias → y → codes → faults → codes

The gradient is written by hand, for two reasons. A traced architecture chooses its windows inside a
loop, where autodiff would keep the residuals of all of them. And a layer is bound by memory as much
as by arithmetic: here it goes over some images at a time, whose features stay in the cache between
the window, the statistics that BatchNorm and fixed point need, and the gradients.

BatchNorm and bias are one form, y = (f - mean) · slope + offset. The range of y, which sets its
fraction length, follows from that of f, channel by channel.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ftnas_jax.faults import apply_maps
from ftnas_jax.fixed_point import (
    FixedPoint,
    fraction_length,
    length_for_range,
    power_of_two,
    to_codes,
)
from ftnas_jax.nn.conv import on_cpu
from ftnas_jax.nn.hardware import Hardware, Maps
from ftnas_jax.nn.norm import EPSILON
from ftnas_jax.split_batch import Axis, largest_of_parts, mean_of_parts

_CACHE_ELEMENTS = 2**18
"""Features that a loop over images works on at a time (CPU): a megabyte in float32."""

_ROW = 256
"""Channels and positions that a reduction takes as one row, about, to fill vector registers."""


class Window(NamedTuple):
    """What a layer computes on windows of its input; see `ftnas_jax.nn.window`.

    Attributes:
        apply: (images [b, H, W, C], flat kernel [n]) → f [b, h, w, C'].
        differentiate: (images, flat kernel, gradient of f) → gradients of the first two.
    """

    apply: Callable[[jax.Array, jax.Array], jax.Array]
    differentiate: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class Features(NamedTuple):
    """Features as the hardware holds them: codes times a step, which is a power of two.

    Attributes:
        codes: [B, H, W, C], int8 or int16; float32 values where there is no fixed point.
        step: float32 scalar.
    """

    codes: jax.Array
    step: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, H, W, C)."""
        return self.codes.shape

    @property
    def values(self) -> jax.Array:
        """float32 [B, H, W, C]."""
        return self.codes.astype(jnp.float32) * self.step

    def images(self, start: jax.Array | int, count: int) -> jax.Array:
        """The values of some images."""
        return self._replace(codes=lax.dynamic_slice_in_dim(self.codes, start, count)).values


class Memory(NamedTuple):
    """Features of equal shapes, stacked.

    Attributes:
        codes: [S, B, H, W, C]; see `Features`.
        steps: float32 [S].
    """

    codes: jax.Array
    steps: jax.Array

    def read(self, slot) -> Features:
        """The features in a slot."""
        return Features(
            lax.dynamic_index_in_dim(self.codes, slot, keepdims=False), self.steps[slot]
        )

    def write(self, slot, features: Features) -> "Memory":
        """With other features in a slot."""
        codes = lax.dynamic_update_index_in_dim(self.codes, features.codes, slot, 0)
        return Memory(codes, lax.dynamic_update_index_in_dim(self.steps, features.step, slot, 0))


class Slot(NamedTuple):
    """The features in a slot of a memory, of which only some images are read at a time."""

    memory: Memory
    slot: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, H, W, C)."""
        return self.memory.codes.shape[1:]

    def images(self, start, count: int) -> jax.Array:
        """The values of some images."""
        return self.memory.steps[self.slot] * images_in_slot(
            self.memory.codes, self.slot, start, count
        ).astype(jnp.float32)


def images_in_slot(stack: jax.Array, slot, start, count: int) -> jax.Array:
    """[count, H, W, C] out of a stack [S, B, H, W, C]."""
    begin = [jnp.asarray(i, jnp.int32) for i in (slot, start, 0, 0, 0)]
    return lax.dynamic_slice(stack, begin, (1, count, *stack.shape[2:]))[0]


class Moments(NamedTuple):
    """Mean, variance and range of the features f of every channel, float32 [C].

    The variance is the mean of (f - mean)². E[f²] - E[f]², Flax's default, needs one pass less, but
    loses digits where the mean is larger than the deviation.
    """

    mean: jax.Array
    variance: jax.Array
    high: jax.Array
    low: jax.Array


class Norm(NamedTuple):
    """y = (f - mean) · slope + offset in one pass; float32 [C].

    Attributes:
        mean: of the batch or a running one; 0 without BatchNorm.
        inverse: 1/√(variance + ε); 1 without BatchNorm.
        slope: `inverse` times the scale.
        offset: of BatchNorm, or the bias.
        by_batch: bool scalar: whether mean and variance are those of the batch at hand.
    """

    mean: jax.Array
    inverse: jax.Array
    slope: jax.Array
    offset: jax.Array
    by_batch: jax.Array

    def __call__(self, f: jax.Array) -> jax.Array:
        """float32 like f [B, H, W, C]."""
        return (f - _across(self.mean)) * _across(self.slope) + _across(self.offset)


# Forward


@jax.named_scope("batch_norm")
def run_window(
    window: Window,
    kernel: jax.Array,
    x: Features | Slot,
    floor: jax.Array | float,
    operands: Any,
    store: Callable[[Any, jax.Array, jax.Array | int], Any],
    tape: Any,
) -> tuple[Any, Moments]:
    """The window of a layer, some images at a time.

    Args:
        window: what to compute.
        kernel: flat.
        x: input.
        floor: 0 for a ReLU before the window, -inf for none.
        operands: the type of images and kernel as the window takes them.
        store: (tape, f of some images, number of their first image) → tape.
        tape: what `store` writes to.

    Returns:
        The tape after all images, and the moments of f over this device's part of the batch.
    """
    some = images_at_a_time(x.shape)
    turns = x.shape[0] // some

    kernel = kernel.astype(operands)

    def part(turn):
        images = jnp.maximum(x.images(turn * some, some), floor)
        with jax.named_scope("window"):
            return window.apply(images.astype(operands), kernel)

    def add_part(turn, carry):
        tape, moments = carry
        f = part(turn)
        return store(tape, f, turn * some), _join(moments, turn, _moments(f))

    channels = jax.eval_shape(part, 0).shape[-1]
    start = Moments(*(jnp.full(channels, v, jnp.float32) for v in (0, 0, -jnp.inf, jnp.inf)))
    return _loop(turns, add_part, (tape, start))


def over_devices(own: Moments, axis: Axis) -> Moments:
    """Moments of the whole batch out of those of this device's part."""
    mean = mean_of_parts(own.mean, axis)
    variance = mean_of_parts(own.variance + jnp.square(own.mean - mean), axis)
    high, low = largest_of_parts(own.high, axis), -largest_of_parts(-own.low, axis)
    return Moments(mean, variance, high, low)


def normalization(moments: Moments, running, scale, offset, normalize) -> Norm:
    """How a layer normalizes.

    Args:
        moments: of the whole batch.
        running: [2, C] mean and variance to take in place of the batch's, or None.
        scale: [C].
        offset: [C], of BatchNorm, or a bias.
        normalize: whether there is a BatchNorm; a bool that may be traced.
    """
    mean, variance = (moments.mean, moments.variance) if running is None else running
    mean = jnp.where(normalize, mean, 0.0)
    inverse = jnp.where(normalize, lax.rsqrt(variance + EPSILON), 1.0)
    by_batch = jnp.logical_and(running is None, normalize)
    return Norm(mean, inverse, inverse * scale, offset, by_batch)


@jax.named_scope("write")
def write(
    f: jax.Array,
    norm: Norm,
    moments: Moments,
    hardware: Hardware,
    maps: Maps,
    length: jax.Array | None = None,
) -> Features:
    """A layer's features as the hardware holds them: normalized, quantized, with their faults.

    The fraction length that follows the batch is that of `ftnas_jax.fixed_point.fraction_length`,
    except that a channel has no say in it once any of its features is not finite.

    Args:
        f: float32 [B, h, w, C].
        norm: how to normalize them.
        moments: their range.
        hardware: number formats and faults.
        maps: faults of the features, or None.
        length: the frozen fraction length, int32; None for that of the batch.
    """
    fmt = hardware.features
    if fmt is None:
        return Features(norm(f), jnp.float32(1))
    if length is None:
        ends = jnp.stack([norm(end[None, None, None]) for end in (moments.high, moments.low)])
        ends = jnp.where(jnp.isfinite(ends), ends, 0.0)
        length = length_for_range(jnp.max(ends, initial=0.0), jnp.min(ends, initial=0.0), fmt)
    return _stored(norm(f), length, hardware, fmt, maps)


@jax.named_scope("write")
def encode(x: jax.Array, hardware: Hardware, maps: Maps) -> Features:
    """Values [B, H, W, C] as the hardware stores them: quantized, with the faults of `maps`."""
    fmt = hardware.features
    if fmt is None:
        return Features(x, jnp.float32(1))
    length = fraction_length(x, fmt, hardware.batch_axis)
    return _stored(x, length, hardware, fmt, maps)


def _stored(x: jax.Array, length: jax.Array, hardware: Hardware, fmt: FixedPoint, maps: Maps):
    codes = apply_maps(to_codes(x, length, fmt), hardware.models("features"), maps, fmt)
    return Features(codes.astype(code_dtype(fmt)), power_of_two(-length))


def code_dtype(fmt: FixedPoint | None):
    """The narrowest type that holds all codes of a format; float32 for None."""
    if fmt is None:
        return jnp.float32
    return jnp.int8 if fmt.bits <= 8 else jnp.int16


# Backward


class Gradients(NamedTuple):
    """Of a layer: its input [B, H, W, C], flat kernel [n], scale [C] and offset or bias [C]."""

    x: jax.Array
    kernel: jax.Array
    scale: jax.Array
    offset: jax.Array


@jax.named_scope("batch_norm")
def layer_gradients(
    window: Window,
    kernel: jax.Array,
    x: Features | Slot,
    floor: jax.Array | float,
    f_part: Callable[[jax.Array | int, int], jax.Array],
    g: jax.Array,
    norm: Norm,
    axis: Axis,
) -> Gradients:
    """Gradients of a layer, straight through fixed point and faults, some images at a time.

    Args:
        window: as in `run_window`, like the next three.
        kernel: flat.
        x: input.
        floor: 0 or -inf.
        f_part: (first image, how many) → f of some images; anything finite without BatchNorm.
        g: float32 [B, h, w, C], the gradient of the layer's output.
        norm: of the forward pass.
        axis: mesh axis that splits the batch.
    """
    some = images_at_a_time(x.shape)
    turns = g.shape[0] // some
    in_place = g.shape == x.shape

    def parts(turn, g):
        return f_part(turn * some, some), lax.dynamic_slice_in_dim(g, turn * some, some)

    def add_sums(turn, total):
        f, own = parts(turn, g)
        # Σ g·(f - mean), not Σ g·f - mean·Σ g, which cancels where the mean is far from 0.
        centered = f - _across(norm.mean)
        own = (_over_rows(jnp.sum, _itself, own), _over_rows(jnp.sum, jnp.multiply, own, centered))
        return total + jnp.stack(own)

    total, with_centered = _loop(turns, add_sums, jnp.zeros((2, g.shape[-1]), jnp.float32))
    own = jnp.stack([total, with_centered * norm.inverse])
    means = mean_of_parts(own, axis) / (g.size // g.shape[-1])
    level, tilt = jnp.where(norm.by_batch, means, 0.0) * norm.slope[None]
    tilt = tilt * norm.inverse

    def add_part(turn, carry):
        dx, d_kernel = carry
        f, own = parts(turn, dx if in_place else g)
        df = own * _across(norm.slope) - _across(level) - (f - _across(norm.mean)) * _across(tilt)
        values = x.images(turn * some, some)
        with jax.named_scope("window_gradients"):
            d_values, d_own = window.differentiate(jnp.maximum(values, floor), kernel, df)
        d_values = jnp.where(values > floor, d_values, 0.0)
        return lax.dynamic_update_slice_in_dim(dx, d_values, turn * some, 0), d_kernel + d_own

    # In place, a part of g is read before the same part of dx takes its room.
    start = g if in_place else jnp.zeros(x.shape, jnp.float32)
    dx, d_kernel = _loop(turns, add_part, (start, jnp.zeros_like(kernel)))
    return Gradients(dx, d_kernel, own[1], own[0])


# Some images at a time


def images_at_a_time(shape: tuple[int, ...]) -> int:
    """How many images of x [B, H, W, C] stay in the cache: a divisor of B; all of them off CPU."""
    batch = shape[0]
    if not on_cpu():
        return batch
    images = max(1, min(batch, _CACHE_ELEMENTS // math.prod(shape[1:])))
    while batch % images:
        images -= 1
    return images


def _loop(turns: int, body: Callable[[Any, Any], Any], carry: Any) -> Any:
    return body(0, carry) if turns == 1 else lax.fori_loop(0, turns, body, carry)


def _moments(f: jax.Array) -> Moments:
    positions = f.size // f.shape[-1]
    mean = _over_rows(jnp.sum, _itself, f) / positions
    variance = _over_rows(jnp.sum, jnp.square, f - _across(mean)) / positions
    return Moments(mean, variance, _over_rows(jnp.max, _itself, f), _over_rows(jnp.min, _itself, f))


def _join(before: Moments, turns: jax.Array | int, new: Moments) -> Moments:
    """Moments of `turns` parts joined with those of one more of the same size (Chan et al.)."""
    share = 1 / (1 + jnp.asarray(turns, jnp.float32))
    away = new.mean - before.mean
    return Moments(
        before.mean + share * away,
        before.variance + share * (new.variance - before.variance + (1 - share) * jnp.square(away)),
        jnp.maximum(before.high, new.high),
        jnp.minimum(before.low, new.low),
    )


def _rows(x: jax.Array) -> jax.Array:
    """[B, H, W, C] as rows of some positions each, which fill the vector registers."""
    channels = x.shape[-1]
    wide = math.gcd(x.size // channels, 2 ** max(0, round(math.log2(_ROW / channels))))
    return x.reshape(-1, wide * channels)


def _over_rows(
    reduce: Callable[..., jax.Array], of: Callable[..., jax.Array], *xs: jax.Array
) -> jax.Array:
    """[C] out of one or more [B, H, W, C]: `of` of their elements, by `reduce`, as `jnp.sum`."""
    row = reduce(of(*map(_rows, xs)), axis=0)
    return reduce(row.reshape(-1, xs[0].shape[-1]), axis=0)


def _itself(x: jax.Array) -> jax.Array:
    return x


def _across(per_channel: jax.Array) -> jax.Array:
    return per_channel[None, None, None]
