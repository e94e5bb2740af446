"""How programs are compiled for the devices that run them."""

from collections.abc import Sequence
from typing import Any

_EVERY_CPU_DEVICE_ON_ITS_OWN = {"xla_disable_hlo_passes": "cpu-parallel-task-assigner"}
"""Elementwise kernels of several CPU devices, each on its device's thread alone.

Split over the threads that XLA has for all devices (jax 0.10.2), a kernel may be done before the
other threads begin with their part of it, which then waits as a task with nothing to do. Where all
threads are busy with devices, such tasks pile up, and once Eigen's queue of 1024 is full it runs
new ones at once, which its convolutions are not made for: they compute with the wrong operands.
"""


def compiler_options(devices: Sequence[Any]) -> dict[str, str] | None:
    """Options of `jax.jit` for a program that runs on these devices."""
    several = len(devices) > 1 and devices[0].platform == "cpu"
    return _EVERY_CPU_DEVICE_ON_ITS_OWN if several else None
