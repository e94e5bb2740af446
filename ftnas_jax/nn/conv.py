"""Convolutions whose gradients are fast inside control flow, on every platform.

One definition: y[o] = sum over taps t of x[stride · o + dilation · t - padding] · kernel[t], odd
square kernels, padding dilation · (k - 1) / 2 on every side (as in PyTorch, not XLA's SAME, which
pads differently at stride 2).

On GPU and TPU these are XLA's convolutions with XLA's gradients. On CPU XLA runs gradient
convolutions in a naive loop once they stand inside a scan or a switch, 50 times slower, and
depthwise ones everywhere. There, the gradients are written as forward convolutions and depthwise
convolutions as sums of shifted slices; dense ones are those of `ftnas_jax.nn.narrow`, for which few
channels are no obstacle. The choice is made while tracing.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ftnas_jax.nn.narrow import EXACT, LAYOUT, Padding, convolve, correlate

_CACHE_POSITIONS = 8192
"""Image positions that a loop over images works on at a time (CPU)."""

_GRADIENT_POSITIONS = 2048
"""The same where gradients of dense kernels are added up, whose copies of x are large."""


def conv2d(x: jax.Array, kernel: jax.Array, *, stride: int = 1) -> jax.Array:
    """Dense convolution.

    Args:
        x: [B, H, W, I]; float32, or bfloat16 without a gradient.
        kernel: [k, k, I, O], k odd, of the same type.
        stride: step of the output grid.

    Returns:
        float32 [B, ceil(H / stride), ceil(W / stride), O], summed in float32.
    """
    if kernel.shape[0] == 1:
        x, dimensions = x[:, ::stride, ::stride], (((3,), (0,)), ((), ()))
        return lax.dot_general(
            x, kernel[0, 0], dimensions, precision=EXACT, preferred_element_type=jnp.float32
        )
    return (_conv2d_cpu if on_cpu() else conv2d_native)(x, kernel, stride)


def depthwise_conv2d(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, dilation: int = 1
) -> jax.Array:
    """Depthwise convolution: every channel with a kernel of its own.

    Args:
        x: [B, H, W, C]; float32, or bfloat16 without a gradient.
        kernel: [k, k, C], k odd, of the same type.
        stride: step of the output grid.
        dilation: distance between taps.

    Returns:
        float32 [B, ceil(H / stride), ceil(W / stride), C], summed in float32.
    """
    form = _depthwise_cpu if on_cpu() else depthwise_conv2d_native
    return form(x, kernel, stride, dilation)


def on_cpu() -> bool:
    """Whether programs traced now will run on CPU."""
    return jax.default_backend() == "cpu"


def conv2d_native(x: jax.Array, kernel: jax.Array, stride: int, dilation: int = 1, groups: int = 1):
    """XLA's own convolution with the padding of this module."""
    pad = dilation * (kernel.shape[0] - 1) // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(pad, pad)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=LAYOUT,
        feature_group_count=groups,
        precision=EXACT,
        preferred_element_type=jnp.float32,
    )


def depthwise_conv2d_native(x: jax.Array, kernel: jax.Array, stride: int, dilation: int):
    """XLA's own grouped convolution with the padding of this module."""
    return conv2d_native(x, kernel[:, :, None, :], stride, dilation, groups=x.shape[-1])


# On CPU: forward at any stride, gradients by convolutions at stride 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv2d_cpu(x, kernel, stride):
    pad = (kernel.shape[0] - 1) // 2
    return convolve(x, kernel, stride, ((pad, pad), (pad, pad)))


def _conv2d_cpu_forward(x, kernel, stride):
    return _conv2d_cpu(x, kernel, stride), (x, kernel)


def _conv2d_cpu_backward(stride, residuals, g):
    by_phases = functools.partial(_by_phases, _dense_at_stride_1, stride, 1)
    return jax.vjp(by_phases, *residuals)[1](g)


_conv2d_cpu.defvjp(_conv2d_cpu_forward, _conv2d_cpu_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise_cpu(x, kernel, stride, dilation):
    pad = dilation * (kernel.shape[0] - 1) // 2
    return _depthwise_sum(x, kernel, ((pad, pad), (pad, pad)), stride, dilation)


def _depthwise_cpu_forward(x, kernel, stride, dilation):
    return _depthwise_cpu(x, kernel, stride, dilation), (x, kernel)


def _depthwise_cpu_backward(stride, dilation, residuals, g):
    by_phases = functools.partial(_by_phases, _depthwise_at_stride_1, stride, dilation)
    return jax.vjp(by_phases, *residuals)[1](g)


_depthwise_cpu.defvjp(_depthwise_cpu_forward, _depthwise_cpu_backward)


class _Phase(NamedTuple):
    """Along one dimension, taps that read every `stride`-th pixel, beginning with `start`.

    On this grid of pixels they are a convolution at stride 1. Computed grid by grid, no gradient
    needs zeros between the pixels of another, which would be most of its work.
    """

    start: int
    taps: slice
    dilation: int
    padding: tuple[int, int]


def _phases(size: int, k: int, stride: int, dilation: int) -> list[_Phase]:
    common, phases = math.gcd(stride, dilation), []
    step, apart = stride // common, dilation // common
    for first in range(min(k, step)):
        begin = dilation * (first - (k - 1) // 2)
        start, taps = begin % stride, len(range(first, k, step))
        if start >= size:
            continue  # these taps read nothing but padding
        pixels, outputs = len(range(start, size, stride)), -(-size // stride)
        before = (start - begin) // stride
        after = outputs + apart * (taps - 1) - before - pixels
        phases.append(_Phase(start, slice(first, None, step), apart, (before, after)))
    return phases


def _by_phases(at_stride_1: Callable[..., Any], stride: int, dilation: int, x, kernel):
    """A convolution as the sum of those of its phases."""
    rows, columns = (_phases(n, kernel.shape[0], stride, dilation) for n in x.shape[1:3])
    parts = [
        at_stride_1(
            x[:, r.start :: stride, c.start :: stride],
            kernel[r.taps, c.taps],
            (r.padding, c.padding),
            r.dilation,
        )
        for r in rows
        for c in columns
    ]
    return functools.reduce(jnp.add, parts)


def _back(padding: Padding, taps: Sequence[int], dilation: int) -> Padding:
    """The padding of an output's gradient that gives the one of the input."""
    rows, columns = (
        (dilation * (t - 1) - before, dilation * (t - 1) - after)
        for t, (before, after) in zip(taps, padding, strict=True)
    )
    return rows, columns


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _dense_at_stride_1(x, kernel, padding, dilation):
    del dilation  # 1: dense convolutions have none
    return convolve(x, kernel, 1, padding)


def _dense_forward(x, kernel, padding, dilation):
    return _dense_at_stride_1(x, kernel, padding, dilation), (x, kernel)


def _dense_backward(padding, dilation, residuals, g):
    x, kernel = residuals
    flipped = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    dx = _dense_at_stride_1(g, flipped, _back(padding, kernel.shape[:2], 1), dilation)
    return dx, _dense_kernel_gradient(x, g, kernel.shape, padding)


_dense_at_stride_1.defvjp(_dense_forward, _dense_backward)


def _dense_kernel_gradient(x: jax.Array, g: jax.Array, shape, padding: Padding) -> jax.Array:
    """[rows, columns, I, O] of `shape`: correlation of x [B, H, W, I] with g [B, h, w, O]."""
    rows, columns, inputs, outputs = shape
    if inputs > outputs:  # the other way round is the same, backwards, and its products are wider
        turned = (rows, columns, outputs, inputs)
        gradient = _dense_kernel_gradient(g, x, turned, _back(padding, shape[:2], 1))
        return jnp.swapaxes(gradient[::-1, ::-1], 2, 3)

    of_chunk = functools.partial(correlate, shape=shape, padding=padding)
    return _sum_of_chunks(of_chunk, x, g, positions=_GRADIENT_POSITIONS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise_at_stride_1(x, kernel, padding, dilation):
    return _depthwise_sum(x, kernel, padding, 1, dilation)


def _depthwise_forward(x, kernel, padding, dilation):
    return _depthwise_at_stride_1(x, kernel, padding, dilation), (x, kernel)


def _depthwise_backward(padding, dilation, residuals, g):
    x, kernel = residuals
    back = _back(padding, kernel.shape[:2], dilation)
    dx = _depthwise_sum(g, kernel[::-1, ::-1], back, 1, dilation)
    of_chunk = functools.partial(
        _depthwise_kernel_gradient, shape=kernel.shape, padding=padding, dilation=dilation
    )
    return dx, _sum_of_chunks(of_chunk, x, g)


_depthwise_at_stride_1.defvjp(_depthwise_forward, _depthwise_backward)


def _depthwise_sum(x, kernel, padding: Padding, stride: int, dilation: int) -> jax.Array:
    """Of shifted slices of x [B, H, W, C], each times its tap of a kernel [rows, columns, C]."""
    taps = kernel.astype(jnp.float32).reshape(-1, 1, 1, 1, kernel.shape[-1])

    def some_images(x):
        x = x.astype(jnp.float32)
        slices = shifted_slices(x, kernel.shape[:2], padding, stride, dilation)
        return functools.reduce(jnp.add, [s * t for s, t in zip(slices, taps, strict=True)])

    return in_loop(some_images, x)


def _depthwise_kernel_gradient(x, g, shape, padding: Padding, dilation: int) -> jax.Array:
    """[rows, columns, C] of `shape`: for every tap the shifted x times g, summed over positions."""
    padded = _pad(x, padding)
    batch, height, width, channels = g.shape
    starts = [(i * dilation, j * dilation) for i in range(shape[0]) for j in range(shape[1])]
    zero, size = jnp.uint32(0), (batch, 1, width, channels)  # an unsigned index needs no check

    def tap(start):
        # Row by row: a product of all rows, or a reduction by XLA, would be stored on the way.
        rows = [
            lax.dynamic_slice(padded, (zero, start[0] + jnp.uint32(i), start[1], zero), size)
            for i in range(height)
        ]
        return functools.reduce(jnp.add, [row * g[:, i : i + 1] for i, row in enumerate(rows)])

    by_tap = lax.map(tap, jnp.asarray(starts, jnp.uint32))
    return jnp.sum(by_tap, (1, 2, 3)).reshape(shape)


# Shared by convolutions and pooling on CPU


def shifted_slices(
    x: jax.Array,
    taps: Sequence[int],
    padding: Padding,
    stride: int = 1,
    dilation: int = 1,
    fill: float = 0.0,
) -> list[jax.Array]:
    """What the taps of a window, rows times columns, read of x [B, H, W, C], padded with `fill`."""
    padded = _pad(x, padding, fill)
    spans = [dilation * (t - 1) for t in taps]
    height, width = (n - span for n, span in zip(padded.shape[1:3], spans, strict=True))
    return [
        padded[:, top : top + height : stride, left : left + width : stride]
        for top in range(0, spans[0] + 1, dilation)
        for left in range(0, spans[1] + 1, dilation)
    ]


def _pad(x: jax.Array, padding: Padding, fill: float = 0.0) -> jax.Array:
    """x with the border that a window reaches into, without one, if negative, that it does not."""
    widths = [(before, after, 0) for before, after in ((0, 0), *padding, (0, 0))]
    return lax.pad(x, jnp.asarray(fill, x.dtype), widths)


def spread(g: jax.Array, shape: tuple[int, ...], stride: int, fill: float = 0) -> jax.Array:
    """g at every `stride`-th position of a [B, H, W, C] tensor of `shape`, `fill` between them."""
    if stride == 1:
        return g
    config = [(0, 0, 0)] * 4
    for axis in (1, 2):
        length = stride * (g.shape[axis] - 1) + 1
        config[axis] = (0, shape[axis] - length, stride - 1)
    return lax.pad(g, jnp.asarray(fill, g.dtype), config)


def in_loop(function, *xs: jax.Array) -> jax.Array:
    """`function` on a few images at a time, out of arrays that all begin with the batch.

    Beside keeping the data in cache, a loop keeps XLA from fusing the many slices of a window into
    every user of them: reductions made of such slices run one number at a time. Off CPU it is one
    call on all images.
    """
    if not on_cpu():
        return function(*xs)
    batch = xs[0].shape[0]
    out = lax.map(lambda chunk: function(*chunk), _in_chunks(*xs))
    return out.reshape(batch, *out.shape[2:])


def _sum_of_chunks(function, *xs: jax.Array, positions: int = _CACHE_POSITIONS) -> jax.Array:
    """The sum of what `function` returns for a few images at a time."""
    chunks, one = _in_chunks(*xs, positions=positions), jax.eval_shape(function, *xs)

    def add_chunk(total, chunk):
        return total + function(*chunk), None

    return lax.scan(add_chunk, jnp.zeros(one.shape, one.dtype), chunks)[0]


def _in_chunks(*xs: jax.Array, positions: int = _CACHE_POSITIONS) -> tuple[jax.Array, ...]:
    """All tensors as [chunks, images, ...], at least two chunks where there are two images."""
    batch, height, width = xs[0].shape[:3]
    images = max(1, min(batch // 2, positions // (height * width)))
    while batch % images:
        images -= 1
    return tuple(a.reshape(batch // images, images, *a.shape[1:]) for a in xs)
