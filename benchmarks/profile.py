"""Where the time of a weight step goes: seconds in every kind of work, out of a profile.

    python -m benchmarks.profile --faults mibb --out results/profile/mibb

writes mibb.json and mibb.png. It is for CPUs, where a profile has an event for every instruction of
the compiled program; what several threads do is added up, and what they wait is the rest.
"""

import argparse
import collections
import glob
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt

from benchmarks.search_steps import CONFIGS, OurSteps, Size
from benchmarks.turns import Side
from experiments import large_pages
from ftnas_jax import machine

_SCOPES = {
    "window_gradients": "gradients of convolutions and pooling",
    "window": "convolutions and pooling",
    "write": "normalize, quantize, fail features",
    "batch_norm": "sums and gradients of BatchNorm",
    "fault_maps": "draw fault maps",
    "weights": "quantize and fail weights",
    "optimizer": "optimizer",
}
"""Kinds of work by named scope; the innermost scope counts."""

_MOVES = "copies and zeros"
_REST = "all other instructions"
_CONTAINERS = ("while", "conditional", "call")
"""Instructions whose time is that of others."""

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = .*?(?<=[\]})]) ([a-z][a-z\-]*)\(")
"""Name and opcode of an instruction in a compiled program's text."""


def work_of(opcode: str, path: str) -> str | None:
    """The kind of work of an instruction; None where its time is that of others.

    Args:
        opcode: as in the compiled program's text.
        path: of the functions, scopes and primitives in which it was traced.
    """
    if opcode in _CONTAINERS:
        return None
    for part in reversed(re.findall(r"\w+", path)):
        if part in _SCOPES:
            return _SCOPES[part]
    return _MOVES if opcode in ("copy", "broadcast") else _REST


def works(program: str) -> dict[str, str | None]:
    """The kind of work of every instruction of a compiled program, by name."""
    found = {}
    for line in program.splitlines():
        instruction = _INSTRUCTION.match(line)
        if instruction:
            path = re.search(r'op_name="([^"]*)"', line)
            found[instruction[1]] = work_of(instruction[2], path[1] if path else "")
    return found


def seconds_by_instruction(folder: str) -> collections.Counter[str]:
    """Seconds of every instruction in the one profile under `folder`, all threads added up."""
    (path,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
    seconds: collections.Counter[str] = collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(path).planes:
        for line in plane.lines:
            for event in line.events:
                name = dict(event.stats).get("hlo_op")
                if name:
                    seconds[name] += event.duration_ns * 1e-9
    return seconds


class Profiled(OurSteps):
    """A search of ours, to look into."""

    def profile(self, steps: int) -> dict[str, Any]:
        """Seconds of a weight step: of the whole, and of every kind of work."""
        kinds = works(self.search.compile()["train_weights"].as_text())
        self.turn("weights", steps)
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            with jax.profiler.trace(folder):
                self.turn("weights", steps)
                seconds = time.perf_counter() - began
            by_instruction = seconds_by_instruction(folder)
        work: collections.Counter[str] = collections.Counter()
        for name, own in by_instruction.items():
            kind = kinds.get(name, _REST)
            if kind:
                work[kind] += own / steps
        threads = machine.cores()
        return {
            "machine": machine.describe(self.search.mesh.devices),
            "steps": steps,
            "seconds_a_step": seconds / steps,
            "threads": threads,
            "thread_seconds_a_step": dict(work.most_common()),
        }


def draw(result: dict[str, Any], title: str, path: Path) -> None:
    """A bar for every kind of work, in percent of what the threads had time for."""
    work, available = result["thread_seconds_a_step"], result["seconds_a_step"] * result["threads"]
    bars = dict(work) | {"threads wait, or the profile's own work": available - sum(work.values())}
    names, seconds = zip(*reversed(bars.items()), strict=True)
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    drawn = axes.barh(names, [100 * s / available for s in seconds], color="#4477aa")
    axes.bar_label(drawn, [f"{s:.2f} s" for s in seconds], padding=3, fontsize=8)
    axes.set(xlabel=f"% of {result['threads']} threads' time")
    figure.suptitle(title, fontsize=10)
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Profile, write JSON and a picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--faults", choices=sorted(CONFIGS), default="mibb")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--out", type=Path, required=True, help="path without .json and .png")
    args = parser.parse_args()
    size = Size(args.faults)
    with Side(Profiled, size, environment=large_pages.ENVIRONMENT) as side:
        result = side.call("profile", args.steps)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    title = f"A weight step, {size}: {result['seconds_a_step']:.2f} s with the profiler"
    draw(result, title, args.out.with_suffix(".png"))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
