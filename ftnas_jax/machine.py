"""The machine in words, as stands beside every number."""

import os
import platform
from pathlib import Path

import jax


def describe() -> str:
    """As in "AMD EPYC, 2 cores, jax 0.10.2, Python 3.11.7"; names the accelerators where any."""
    devices = jax.devices()
    if devices[0].platform == "cpu":
        hardware = f"{_processor()}, {cores()} cores"
    else:
        hardware = f"{len(devices)} x {devices[0].device_kind}"
    return f"{hardware}, jax {jax.__version__}, Python {platform.python_version()}"


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not everywhere
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
