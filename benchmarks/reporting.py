"""What the timings of search steps share: their workloads and flags, and how they are told."""

import argparse
import json
from pathlib import Path
from types import ModuleType

import numpy as np

from configs import adsaf, mibb

CONFIGS: dict[str, ModuleType] = {"mibb": mibb, "adsaf": adsaf}
"""Configs of the paper's size by name of their faults."""


def steps_parser(doc: str, steps: int) -> argparse.ArgumentParser:
    """Flags for the size of a workload, by default the paper's, and for where results go."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--faults", choices=sorted(CONFIGS), default="mibb")
    parser.add_argument("--channels", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--json", type=Path)
    return parser


def spread(seconds: list[float], digits: int) -> str:
    """As in "2.34 [1.90-3.18]": the median, the least and the most."""
    times = np.array(seconds)
    median, least, most = (f"{t:.{digits}f}" for t in (np.median(times), times.min(), times.max()))
    return f"{median} [{least}-{most}]"


def write_json(path: Path | None, machine: str, rows: list[dict]) -> None:
    """Write what was measured, and on what, where a path is given."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
