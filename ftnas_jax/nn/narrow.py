"""Dense convolutions of few channels, with columns of pixels in the place of channels (for CPU).

XLA's kernels for CPU take 16 channels at a time and, where there are 4 or 8, do little with most of
what they load: a convolution of 4 channels runs at a twentieth of the rate of one of 40. So what is
computed here are the outputs of several neighbouring columns at once, as channels of one
convolution. Its kernel is wider and has the taps of each column at another place, with zeros around
them: two to six times less time for up to three times the arithmetic (`python -m benchmarks
kernels`).
"""

import jax
import jax.numpy as jnp
from jax import lax

LAYOUT = ("NHWC", "HWIO", "NHWC")

EXACT = lax.Precision.HIGHEST
"""Matrix units that round codes to fewer bits would compute another network."""

_FEW = 16
"""Up to so many channels columns are worth more than the arithmetic that they cost."""

_ALIGNED = 4
"""XLA's kernels read so many channels at a time; others are copied one by one."""

Padding = tuple[tuple[int, int], tuple[int, int]]
"""Pixels before and after the rows, and the columns; hashable."""


def convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """float32 [B, h, w, O] of x [B, H, W, I] and a kernel [rows, columns, I, O]."""
    missing = -x.shape[3] % _ALIGNED
    x, kernel = _pad(x, 3, missing), _pad(kernel, 2, missing)
    columns = kernel.shape[1]
    width = (x.shape[2] + sum(padding[1]) - columns) // stride + 1
    together = _together(kernel.shape[3], width) if x.shape[3] <= _FEW else 1
    y = lax.conv_general_dilated(
        x,
        _for_columns(kernel, together, stride),
        (stride, stride * together),
        padding,
        dimension_numbers=LAYOUT,
        precision=EXACT,
        preferred_element_type=jnp.float32,
    )
    return y.reshape(*y.shape[:2], width, kernel.shape[3])


def correlate(x: jax.Array, g: jax.Array, shape: tuple[int, ...], padding: Padding) -> jax.Array:
    """The gradient of a kernel of `shape` [rows, columns, I, O] at stride 1.

    It is a convolution in which channels are the images, images the channels, and g the kernel.

    Args:
        x: float32 [B, H, W, I], a few images.
        g: float32 [B, h, w, O], the gradient of the output.
        shape: of the kernel.
        padding: of x.
    """
    rows, columns, inputs, outputs = shape
    together = _together(outputs, g.shape[2])
    g = g.reshape(*g.shape[:2], g.shape[2] // together, together * outputs)
    found = lax.conv_general_dilated(
        jnp.transpose(x, (3, 1, 2, 0)),
        jnp.transpose(g, (1, 2, 0, 3)),
        (1, 1),
        padding,
        rhs_dilation=(1, together),
        dimension_numbers=LAYOUT,
        precision=EXACT,
    )
    found = jnp.transpose(found, (1, 2, 0, 3))  # as the kernel of `together` columns
    narrow = jax.ShapeDtypeStruct((rows, columns, inputs, outputs), found.dtype)
    (gradient,) = jax.linear_transpose(lambda k: _for_columns(k, together, 1), narrow)(found)
    return gradient


def _together(channels: int, width: int) -> int:
    """How many of `width` columns to compute at once: a power of two, 1 for enough channels."""
    together = 1
    while together * channels <= _FEW and width % (2 * together) == 0:
        together *= 2
    return together


def _for_columns(kernel: jax.Array, together: int, stride: int) -> jax.Array:
    """The kernel whose channels are those of `together` columns.

    Args:
        kernel: [rows, columns, I, O].
        together: how many.
        stride: between them.

    Returns:
        [rows, columns + stride (together - 1), I, together · O], where the taps of every column
        begin `stride` after those of the one before it.
    """
    rows, columns, inputs, outputs = kernel.shape
    wide = columns + stride * (together - 1)
    # Copies of the taps, each followed by zeros, read in rows that are shorter by a stride.
    spaced = _pad(kernel, 1, wide + stride - columns)
    copies = jnp.broadcast_to(spaced[:, None], (rows, together, *spaced.shape[1:]))
    flat = copies.reshape(rows, -1, inputs, outputs)[:, : together * wide]
    shifted = flat.reshape(rows, together, wide, inputs, outputs)
    return jnp.transpose(shifted, (0, 2, 3, 1, 4)).reshape(rows, wide, inputs, -1)


def _pad(x: jax.Array, axis: int, count: int) -> jax.Array:
    """x with `count` zeros behind an axis."""
    widths = [(0, count if a == axis else 0) for a in range(x.ndim)]
    return jnp.pad(x, widths) if count else x
