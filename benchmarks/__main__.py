"""What steps and chips of fault campaigns cost, beside peers measured in the same run.

    python -m benchmarks                              # all of it
    python -m benchmarks steps kernels --rounds 24 --json results/benchmarks/cpu.json
    python -m benchmarks training --network resnet18:width=0.25
    python -m benchmarks accuracy --help                # of whole trainings: a command of its own

The peer is the same work in PyTorch eager, tuned for CPU; on a GPU or TPU, or without PyTorch
(`pip install -r requirements-benchmarks.txt`), ours is measured alone.
"""

import argparse
import functools
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import accuracy
from benchmarks.campaigns import campaigns
from benchmarks.host import describe
from benchmarks.kernels import kernels
from benchmarks.routes import routes
from benchmarks.rows import Row, table, write_json
from benchmarks.search_steps import Size, steps
from benchmarks.start import start
from benchmarks.training_steps import Job, training
from experiments.cli import one_line_errors


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
    "routes": routes,
    "training": training,
    "growth": _growth,
}
"""By name; a search of the paper's size, its layers' kernels, process start to first step, chips of
fault campaigns, the same one by one or several at once, final training, a search of other sizes."""

_ACCURACY = "accuracy"


def main() -> None:
    """Measure, print a table, write JSON where asked."""
    if sys.argv[1:2] == [_ACCURACY]:
        accuracy.main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__.split("\n")[0],
        epilog=f"Accuracies of whole trainings: python -m benchmarks {_ACCURACY} --help",
    )
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(SUITES))
    parser.add_argument("--rounds", type=int, default=12, help="turns of each workload")
    parser.add_argument("--json", type=Path, help="where to write all samples")
    parser.add_argument("--network", default=Job.network, help="of training (%(default)s)")
    parser.add_argument("--batch", type=int, default=Job.batch, help="of training (%(default)s)")
    args = parser.parse_args()
    unknown = set(args.suites) - set(SUITES)
    if unknown:
        parser.error(f"there is no suite {sorted(unknown)[0]!r}; take of {', '.join(SUITES)}")
    for name in ("rounds", "batch"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    with one_line_errors():
        _run(args.suites or list(SUITES), args.rounds, args.json, Job(args.network, args.batch))


def _run(suites: list[str], rounds: int, path: Path | None, job: Job) -> None:
    job.check()
    peer, described = describe()
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    rows: list[Row] = []
    for suite in suites:
        run = functools.partial(training, job=job) if suite == "training" else SUITES[suite]
        for row in run(rounds, peer):
            rows.append(row)
            print(table([row]).splitlines()[1], file=sys.stderr, flush=True)
            if path:  # after every row: what is measured is not lost
                write_json(path, described, command, rows)
    print(f"\n{described}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
