"""The machine that is measured: what it is, and its rate of float32 matrix multiplication."""

import importlib.metadata
import importlib.util
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.turns import Side
from experiments import devices
from ftnas_jax import machine

_SIDE = 2048
_RUNS = 12


class Host:
    """To be asked in a process of its own: some devices are one process's at a time."""

    def describe(self) -> tuple[str, str]:
        """The platform of the devices that the experiments take, and the machine in words."""
        devices.make_cpu_devices(0)
        taken = devices.take(0)
        return taken[0].platform, machine.describe(taken)


def describe() -> tuple[bool, str]:
    """Whether the peer can be measured, and the machine in words, with the peer's version if so."""
    with Side(Host, environment={}) as side:
        platform, described = side.call("describe")
    if platform != "cpu" or importlib.util.find_spec("torch") is None:
        return False, described
    return True, f"{described}, torch {importlib.metadata.version('torch')}"


def matmul_rate() -> float:
    """Billions of multiplications and additions a second: what convolutions could reach at most.

    The median of some square products.
    """
    a = jax.random.normal(jax.random.key(0), (_SIDE, _SIDE))
    product = jax.jit(lambda a: jnp.dot(a, a, precision=jax.lax.Precision.HIGHEST))
    product(a).block_until_ready()
    seconds = []
    for _ in range(_RUNS):
        began = time.perf_counter()
        product(a).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 2 * _SIDE**3 / float(np.median(seconds)) / 1e9
