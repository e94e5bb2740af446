"""3x3 pooling with padding 1, fast on CPU where XLA's pooling gradients are not."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftnas_jax.nn.conv import in_loop, shifted_slices, spread


def _neighbours(x: jax.Array, stride: int = 1, fill: float = 0.0) -> list[jax.Array]:
    """The nine inputs of every window, row by row; `fill` stands outside the image."""
    return shifted_slices(x, (3, 3), ((1, 1), (1, 1)), stride, fill=fill)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(x: jax.Array, stride: int = 1) -> jax.Array:
    """Largest of the 3x3 neighbours, [B, H, W, C] → [B, ceil(H/stride), ceil(W/stride), C].

    The gradient goes to the first of equal neighbours in row-major order. Ties are common among
    8-bit codes, so the rule matters; PyTorch and XLA have the same.
    """

    def some_images(x):
        return functools.reduce(jnp.maximum, _neighbours(x, stride, -jnp.inf))

    return in_loop(some_images, x)


def _max_pool_forward(x, stride):
    y = max_pool(x, stride)
    return y, (x, y)


def _max_pool_backward(stride, residuals, g):
    x, y = residuals
    spread_y = spread(y, x.shape, stride, fill=jnp.inf)
    return (in_loop(_first_winners, x, spread_y, spread(g, x.shape, stride)),)


def _first_winners(x, y, g):
    """Gradient of x where window centres hold y and its gradient g; others hold infinity and 0."""
    winner = jnp.full(y.shape, -1, jnp.int8)
    slices = _neighbours(x, fill=-jnp.inf)
    for place in reversed(range(len(slices))):
        winner = jnp.where(slices[place] == y, jnp.int8(place), winner)
    # Position i was neighbour `place` of the window centred on the mirrored neighbour of i.
    gs, winners = _neighbours(g), _neighbours(winner, fill=-1)
    last = len(slices) - 1
    parts = [
        jnp.where(winners[last - place] == place, gs[last - place], 0)
        for place in range(len(slices))
    ]
    return functools.reduce(jnp.add, parts)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def avg_pool(x: jax.Array, stride: int = 1) -> jax.Array:
    """Mean of the 3x3 neighbours that lie inside the image; padding is left out of the mean.

    [B, H, W, C] → [B, ceil(H/stride), ceil(W/stride), C].
    """
    counts = _neighbour_counts(x.shape[1], stride)[:, None] * _neighbour_counts(x.shape[2], stride)
    total: Any = _window_sum(x, stride)
    return total * jnp.asarray(1 / counts[None, :, :, None], x.dtype)


def _neighbour_counts(length: int, stride: int) -> np.ndarray:
    centres = np.arange(0, length, stride)
    return np.minimum(centres + 1, length - 1) - np.maximum(centres - 1, 0) + 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _window_sum(x, stride):
    def some_images(x):
        return functools.reduce(jnp.add, _neighbours(x, stride))

    return in_loop(some_images, x)


def _window_sum_forward(x, stride):
    return _window_sum(x, stride), x.shape


def _window_sum_backward(stride, shape, g):
    return (_window_sum(spread(g, shape, stride), 1),)


_window_sum.defvjp(_window_sum_forward, _window_sum_backward)
