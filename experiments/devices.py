"""The devices of a job."""

import os
from typing import Any

import jax

from ftnas_jax import machine
from ftnas_jax.errors import InputError

_CPU_DEVICES = 2
"""A CPU's share of work by default: one runs the clean pass, the other the faulty one."""


def make_cpu_devices(wanted: int) -> None:
    """Before JAX first looks at its devices: a CPU as `wanted` ones, or by default up to two."""
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        count = min(wanted or _CPU_DEVICES, machine.cores())
        jax.config.update("jax_num_cpu_devices", count)


def take(wanted: int) -> list[Any]:
    """`wanted` devices of this process, or for 0 all accelerators, or a CPU as up to two.

    Raises:
        InputError: there are fewer.
    """
    there = jax.local_devices()
    if not wanted and there[0].platform == "cpu":
        wanted = min(_CPU_DEVICES, len(there))
    if wanted > len(there):
        raise InputError(f"--devices is {wanted}, and there are {len(there)}")
    return there[: wanted or None]
