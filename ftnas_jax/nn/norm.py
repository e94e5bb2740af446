"""BatchNorm as a pure function of features and, in the running mode, of stored statistics."""

import jax
import jax.numpy as jnp

from ftnas_jax.split_batch import Axis, mean_of_parts

EPSILON = 1e-5
MOMENTUM = 0.9
"""Share of the old value that a running average keeps at an update."""


def batch_norm(
    x: jax.Array,
    running: jax.Array | None,
    scale: jax.Array | None = None,
    offset: jax.Array | None = None,
    *,
    batch_axis: Axis = None,
) -> tuple[jax.Array, jax.Array]:
    """Normalize every channel.

    Args:
        x: [B, H, W, C].
        running: [2, C] mean and variance to normalize with; None takes those of `x` itself.
        scale: [C] or None.
        offset: [C] or None.
        batch_axis: mesh axis that splits the batch.

    Returns:
        The normalized features, and the statistics used, [2, C] (no gradient flows into them).
    """
    if running is None:
        mean = mean_of_parts(jnp.mean(x, (0, 1, 2)), batch_axis)
        squares = jnp.square(x - mean[None, None, None])
        variance = mean_of_parts(jnp.mean(squares, (0, 1, 2)), batch_axis)
    else:
        mean, variance = running[0], running[1]
    factor = jax.lax.rsqrt(variance + EPSILON)
    factor = factor if scale is None else factor * scale
    shift = -mean * factor if offset is None else offset - mean * factor
    statistics = jax.lax.stop_gradient(jnp.stack([mean, variance]))
    return x * factor[None, None, None] + shift[None, None, None], statistics


def update_running(running: jax.Array, statistics: jax.Array) -> jax.Array:
    """Running statistics after one more batch, any common shape."""
    return MOMENTUM * running + (1 - MOMENTUM) * statistics
