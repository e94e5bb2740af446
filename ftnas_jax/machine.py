"""The machine in words, as stands beside every number."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax


def describe(devices: Sequence[Any] | None = None) -> str:
    """As in "AMD EPYC, 2 cores as 2 devices, jax 0.10.2, Python 3.11.7"; names accelerators.

    Args:
        devices: of the job, where it was given any; by default all that there are.
    """
    there = devices or jax.devices()
    if there[0].platform == "cpu":
        hardware = f"{_processor()}, {_count(cores(), 'core')}"
        if devices and (cores(), len(devices)) != (1, 1):
            hardware += f" as {_count(len(devices), 'device')}"
    else:
        hardware = f"{len(there)} x {there[0].device_kind}"
    return f"{hardware}, jax {jax.__version__}, Python {platform.python_version()}"


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not everywhere
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("s" if number != 1 else "")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def free_memory(devices: Sequence[Any]) -> float:
    """Bytes that one of the devices may still take, with a tenth left over."""
    known = devices[0].memory_stats() if devices[0].platform != "cpu" else None
    if known:
        return 0.9 * (known["bytes_limit"] - known["bytes_in_use"])
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.exists() else []
    kilobytes = [line.split()[1] for line in lines if line.startswith("MemAvailable")]
    return 0.9 * 1024 * int(kilobytes[0]) / len(devices) if kilobytes else float("inf")
