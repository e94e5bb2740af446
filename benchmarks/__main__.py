"""What a search step and a chip of a fault campaign cost, beside peers measured in the same run.

    python -m benchmarks                              # all of it
    python -m benchmarks steps kernels --rounds 24 --json results/benchmarks/cpu.json

The peer is the same work in PyTorch eager, tuned for CPU; on a GPU or TPU, or without PyTorch
(`pip install -r requirements-benchmarks.txt`), ours is measured alone.
"""

import argparse
import importlib.metadata
import importlib.util
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.campaigns import campaigns
from benchmarks.host import Host
from benchmarks.kernels import kernels
from benchmarks.rows import Row, table, write_json
from benchmarks.search_steps import Size, steps
from benchmarks.start import start
from benchmarks.turns import Side


def _steps(rounds: int, with_peer: bool) -> Iterator[Row]:
    for faults in ("mibb", "adsaf"):
        yield from steps(Size(faults), rounds, with_peer)


def _growth(rounds: int, with_peer: bool) -> Iterator[Row]:
    sizes = [Size(batch=b) for b in (16, 256)] + [Size(channels=c) for c in (10, 40)]
    for size in [*sizes, Size(cells=5), Size(cells=14)]:
        yield from steps(size, min(rounds, 6), with_peer)


def _start(_rounds: int, _with_peer: bool) -> Iterator[Row]:
    yield from start()


SUITES: dict[str, Callable[[int, bool], Iterator[Row]]] = {
    "steps": _steps,
    "kernels": kernels,
    "start": _start,
    "campaigns": campaigns,
    "growth": _growth,
}
"""By name; the paper's size, its layers' kernels, process start to first step, chips of fault
campaigns, other sizes."""


def main() -> None:
    """Measure, print a table, write JSON where asked."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.split("\n")[0]
    )
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(SUITES))
    parser.add_argument("--rounds", type=int, default=12, help="turns of each workload")
    parser.add_argument("--json", type=Path, help="where to write all samples")
    args = parser.parse_args()
    unknown = set(args.suites) - set(SUITES)
    if unknown:
        parser.error(f"there is no suite {sorted(unknown)[0]!r}; take of {', '.join(SUITES)}")
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    _run(args.suites or list(SUITES), args.rounds, args.json)


def _run(suites: list[str], rounds: int, path: Path | None) -> None:
    with Side(Host, environment={}) as side:
        platform, described = side.call("describe")
    peer = platform == "cpu" and importlib.util.find_spec("torch") is not None
    if peer:
        described += f", torch {importlib.metadata.version('torch')}"
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    rows: list[Row] = []
    for suite in suites:
        for row in SUITES[suite](rounds, peer):
            rows.append(row)
            print(table([row]).splitlines()[1], file=sys.stderr, flush=True)
            if path:  # after every row: what is measured is not lost
                write_json(path, described, command, rows)
    print(f"\n{described}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
