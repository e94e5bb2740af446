"""Constants of BatchNorm, and its running statistics; see `ftnas_jax.nn.layer` for the rest."""

import jax

EPSILON = 1e-5
MOMENTUM = 0.9
"""Share of the old value that a running average keeps at an update."""


def update_running(running: jax.Array, statistics: jax.Array) -> jax.Array:
    """Running statistics after one more batch, any common shape."""
    return MOMENTUM * running + (1 - MOMENTUM) * statistics
