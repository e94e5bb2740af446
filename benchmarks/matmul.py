"""The machine's rate of float32 matrix multiplication: what a convolution could reach at most."""

import time

import jax
import jax.numpy as jnp
import numpy as np

_SIDE = 2048
_RUNS = 12


def matmul_rate() -> float:
    """Billions of multiplications and additions a second, the median of some square products."""
    a = jax.random.normal(jax.random.key(0), (_SIDE, _SIDE))
    product = jax.jit(lambda a: jnp.dot(a, a, precision=jax.lax.Precision.HIGHEST))
    product(a).block_until_ready()
    seconds = []
    for _ in range(_RUNS):
        began = time.perf_counter()
        product(a).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 2 * _SIDE**3 / float(np.median(seconds)) / 1e9
