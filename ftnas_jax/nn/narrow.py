"""Dense convolutions of few channels, with columns of pixels in the place of channels (for CPU).

XLA's kernels for CPU fill vectors of 16 numbers with output channels and, where there are 4 or 8 of
them, leave most of each empty: a convolution of 4 channels runs at a twentieth of the rate of one
of 40. So the outputs of several neighbouring columns are computed at once, as channels of one
convolution. Its kernel is wider, and has the taps of each column at another place with zeros around
them: several times the arithmetic in a fraction of the time.

Those zeros are multiplied with pixels of neighbouring windows: one that is not finite makes NaN of
further outputs of its row, too.
"""

import jax
import jax.numpy as jnp
from jax import lax

LAYOUT = ("NHWC", "HWIO", "NHWC")

EXACT = lax.Precision.HIGHEST
"""Matrix units that round codes to fewer bits would compute another network."""

_FEW = 16
"""Of up to so many channels, in and out, more than one column is computed at once."""

_ALIGNED = 4
"""Input channels that XLA's kernels read at a time; a number that this does not divide is slow.

(Gradients of kernels have images for channels: that few of them fit in the cache is worth more.)
"""

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
    wide = lax.conv_general_dilated(
        jnp.transpose(x, (3, 1, 2, 0)),
        jnp.transpose(g, (1, 2, 0, 3)),
        (1, 1),
        padding,
        rhs_dilation=(1, together),
        dimension_numbers=LAYOUT,
        precision=EXACT,
    )
    of_column = wide.reshape(inputs, rows, -1, together, outputs)
    total = sum(of_column[:, :, j : j + columns, j] for j in range(together))
    return jnp.transpose(total, (1, 2, 0, 3))


def _together(channels: int, width: int) -> int:
    """How many of `width` columns of outputs to compute at once: a power of two, or 1."""
    together = 1
    while together * channels <= _FEW and width % (2 * together) == 0:
        together *= 2
    return together


def _for_columns(kernel: jax.Array, together: int, stride: int) -> jax.Array:
    """The kernel whose channels are those of `together` columns, one after the other.

    Args:
        kernel: [rows, columns, I, O].
        together: how many.
        stride: pixels between the taps of one column and those of the next.

    Returns:
        [rows, columns + stride (together - 1), I, together · O].
    """
    own = ((stride * j, stride * (together - 1 - j)) for j in range(together))
    return jnp.concatenate([jnp.pad(kernel, ((0, 0), o, (0, 0), (0, 0))) for o in own], axis=3)


def _pad(x: jax.Array, axis: int, count: int) -> jax.Array:
    """x with `count` zeros behind an axis."""
    widths = [(0, count if a == axis else 0) for a in range(x.ndim)]
    return jnp.pad(x, widths) if count else x
