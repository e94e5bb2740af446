"""From the start of the process to the end of a search's first step, with and without programs."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rows import Row

_LATEST = 1200.0
"""Seconds after which a search is taken to hang."""


def start() -> Iterator[Row]:
    """A search of the paper's size on data that need no download: compiled anew, then again."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cold", "warm"):
            seconds = _first_step(Path(folder) / name, Path(folder) / "programs")
            yield Row(f"process start to first step, {name} compilation cache", [seconds])


def _first_step(workdir: Path, cache: Path) -> float:
    """Seconds until a search has saved its first call, which is one weight step."""
    command = (
        *(sys.executable, "-m", "experiments.search", "--config", "configs/mibb.py"),
        *("--workdir", str(workdir), "--compilation_cache", str(cache)),
        *("--config.data.name=digits", "--config.data.size=32"),
        "--config.checkpoint_minutes=1e-6",
    )
    with tempfile.TemporaryFile("w+") as errors:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            while not (workdir / "timing.jsonl").exists():
                if process.poll() is not None or time.perf_counter() - began > _LATEST:
                    errors.seek(0)
                    raise RuntimeError(f"the search made no step: {errors.read()}")
                time.sleep(0.05)
            return time.perf_counter() - began
        finally:
            process.kill()
            process.wait()
