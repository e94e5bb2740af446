"""What benchmarks report: rows of samples, as one table and as JSON."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


@dataclasses.dataclass
class Row:
    """One workload, measured in turns with a peer.

    Attributes:
        workload: what was run.
        ours: seconds of every turn.
        peer: what it is compared with; empty for nothing.
        theirs: the peer's seconds, turn by turn; as many as `ours`, or none.
        facts: more numbers, by name with unit.
    """

    workload: str
    ours: list[float]
    peer: str = ""
    theirs: list[float] = dataclasses.field(default_factory=list)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        """How many times as fast as the peer we were, turn by turn."""
        return [b / a for a, b in zip(self.ours, self.theirs, strict=True)] if self.theirs else []

    def to_json(self) -> dict[str, Any]:
        """All samples, and the ratios' median and range."""
        ratios = self.ratios
        summary = [float(f(ratios)) for f in (np.median, np.min, np.max)] if ratios else None
        return dataclasses.asdict(self) | {"n": len(self.ours), "ratio_median_min_max": summary}


def table(rows: Sequence[Row]) -> str:
    """The rows as text, medians with [least-most]; a ratio above 1 says that ours is faster."""
    head = ("workload", "ours, s", "peer", "peer, s", "peer / ours", "n", "")
    lines = [head]
    for row in rows:
        facts = ", ".join(f"{name} {_short(value)}" for name, value in row.facts.items())
        own, theirs, ratio = (_spread(x) for x in (row.ours, row.theirs, row.ratios))
        lines.append((row.workload, own, row.peer, theirs, ratio, str(len(row.ours)), facts))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    padded = (
        " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in lines
    )
    return "\n".join(line.rstrip(" |") for line in padded)


def write_json(path: Path, machine: str, command: str, rows: Sequence[Row]) -> None:
    """Write what was measured, on what machine, and by what command."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine, "command": command, "rows": [row.to_json() for row in rows]}
    path.write_text(json.dumps(content, indent=1) + "\n")


def _spread(samples: Sequence[float]) -> str:
    if not samples:
        return ""
    middle, least, most = (f(samples) for f in (np.median, np.min, np.max))
    return f"{_short(middle)} [{_short(least)}-{_short(most)}]"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float | np.floating) else str(value)
