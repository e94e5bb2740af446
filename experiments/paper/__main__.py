"""The paper's tables: `python -m experiments.paper --table 4 --scale S --workdir W`.

    python -m experiments.paper --table 4 --scale configs/paper_small.py --workdir runs/paper-small
    python -m experiments.paper --table 1,2,4,5,6,7,fig9,primitives,weights --list ...
    python -m experiments.paper --table 5 --rows ResNet-18 --rows 'W-FTT-*' ...
    python -m experiments.paper --table 5 --collect ...

Searches, trainings and campaigns that a table needs are run one after the other, each in a
directory of its own under the workdir and by a command that is printed; what is done is not done
again. The same command goes on after an interruption. Runs that fail are named at the end, and stop
none but those that need them. Then the table is written beside the paper's numbers: table-4.md,
table-4.csv, and curves where rates were swept. Fields of the scale are overridden as
--scale.epochs=2.
"""

import dataclasses
import fnmatch
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from absl import flags
from ml_collections import config_flags

from configs import paper_full, search_defaults, train_defaults
from experiments import cli
from experiments.configuration import check_fields, search_config
from experiments.paper import report
from experiments.paper.runs import Plan, Run
from experiments.paper.tables import TABLES, Recipe, Table
from experiments.train_configuration import training_config
from ftnas_jax.checkpoints import explain_os_errors
from ftnas_jax.errors import InputError, as_input_error
from ftnas_jax.faults import parse
from ftnas_jax.models import by_name
from ftnas_jax.run import differences, read_json, write_json, write_text

_TABLE = flags.DEFINE_list("table", [], f"Which tables, of {', '.join(TABLES)}.")
_SCALE = config_flags.DEFINE_config_file(
    "scale", "configs/paper_small.py", "Python file with get_config(); see configs/paper_full.py."
)
_ROWS = flags.DEFINE_multi_string(
    "rows", [], "Run only what rows of this architecture need, as in W-FTT-*; may be repeated."
)
_COLLECT = flags.DEFINE_bool("collect", False, "Run nothing; write the tables of what is there.")
_LIST = flags.DEFINE_bool("list", False, "Run nothing; print the commands that are left to run.")

Mode = Literal["run", "collect", "list"]

_SCALED = "scale.json"
"""In the folder of all runs: their scale."""

_OTHER_NAMES = {"rates.epochs": "scale.trial_epochs", "rates.tried": "scale.p_m"}
"""Fields of a training that have another name in a scale."""

_MAY_CHANGE = ("seeds", "chips", "found", "data.data_dir", "data.cache_dir")
"""Fields of a scale that change no run but those whose arguments tell."""


def make(
    tables: list[Table],
    scale: Mapping[str, Any],
    workdir: str,
    mode: Mode = "run",
    devices: int = 0,
    rows: Sequence[str] = (),
) -> int:
    """Run what tables need, or go on, and write them; returns an exit code.

    Args:
        tables: which.
        scale: fields as in `configs/paper_full.py`.
        workdir: the folder of all runs.
        mode: whether to `run` what is left to run and write the tables, to `collect` what is there,
            or to `list` what is left.
        devices: for the runs; 0 leaves it to them.
        rows: patterns of the architectures to run, as `fnmatch` takes them; empty for all. Tables
            are written whole.

    Raises:
        InputError: for bad input.
    """
    folder = Path(workdir)
    with explain_os_errors(f"use {folder} as a folder of runs"):
        folder.mkdir(parents=True, exist_ok=True)
    _keep_to(scale, folder, keep=mode == "run")
    plan = Plan(scale, folder)
    for table in tables:
        for file, text in plan.genotypes(table).items():
            write_text(folder / file, text + "\n")
    wanted = _only(tables, rows)
    runs = list(dict.fromkeys(run for table in wanted for run in plan.runs(table)))
    left = [run for run in runs if not run.is_done(folder)]
    if mode == "list":
        print("\n".join(f"python {shlex.join(run.command(folder))}" for run in left))
        return 0
    code = _run_all(left, folder, devices) if mode == "run" else 0
    if not _is_signal(code):
        for table in tables:
            print(report.write(table, plan))
    return code


def _only(tables: list[Table], patterns: Sequence[str]) -> list[Table]:
    """Tables with the rows that a pattern fits; all of them without patterns."""
    if not patterns:
        return tables
    labels = [row.label for table in tables for row in table.rows]
    for pattern in patterns:
        if not fnmatch.filter(labels, pattern):
            known = ", ".join(dict.fromkeys(labels))
            raise InputError(f"--rows is {pattern!r}, and no row is; there are {known}")
    return [
        dataclasses.replace(
            table,
            rows=tuple(r for r in table.rows if any(fnmatch.fnmatch(r.label, p) for p in patterns)),
        )
        for table in tables
    ]


def _keep_to(scale: Mapping[str, Any], folder: Path, keep: bool) -> None:
    """Refuse another scale than that of the runs that are there; `keep` it for those to come.

    Tables say how long trainings were and how wide networks, which their rows do not tell.
    """
    before = read_json(folder / _SCALED)
    if before is None and keep:
        write_json(folder / _SCALED, scale)
    others = differences(before, scale, _MAY_CHANGE) if before is not None else []
    if others:
        raise InputError(
            f"{folder} has runs of another scale: {', '.join(others)}; name theirs by --scale, or "
            "another --workdir"
        )


def _run_all(runs: list[Run], folder: Path, devices: int) -> int:
    """The exit code of the run that a signal ended, of the first one that failed, or 0."""
    failed: dict[str, int] = {}
    for number, run in enumerate(runs, 1):
        command = run.command(folder) + ([f"--devices={devices}"] if devices else [])
        print(f"[{number}/{len(runs)}] python {shlex.join(command)}", flush=True)
        before = run.needs and run.needs.name
        if before in failed:
            print(f"left out: {before} failed", flush=True)
            failed[run.name] = failed[before]
            continue
        code = _call([sys.executable, *command])
        if _is_signal(code):
            return code
        if code:
            failed[run.name] = code
            continue
        run.mark_done(folder)
    if failed:
        print(f"failed: {', '.join(failed)}; the same command tries them again", file=sys.stderr)
    return next(iter(failed.values()), 0)


def _is_signal(code: int) -> bool:
    """Whether an exit code says that somebody wanted a process to end."""
    return code - 128 in (signal.SIGTERM, signal.SIGINT)


def _call(command: list[str]) -> int:
    """Run a command, which gets the signals that come meanwhile; its exit code."""
    with subprocess.Popen(command) as process:
        before = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            # Ctrl-C reaches the command by itself, as one of the terminal's group.
            own = number == signal.SIGTERM
            handler = (lambda n, _: process.send_signal(n)) if own else signal.SIG_IGN
            before[number] = signal.signal(number, handler)
        try:
            code = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return 128 - code if code < 0 else code


def _mode() -> Mode:
    if _COLLECT.value and _LIST.value:
        raise InputError("--collect and --list are two things; name one")
    return "collect" if _COLLECT.value else "list" if _LIST.value else "run"


def _scale() -> dict[str, Any]:
    scale = _SCALE.value.to_dict()
    _check_scale(scale)
    return scale


def _check_scale(scale: Mapping[str, Any]) -> None:
    check_fields(scale, paper_full.get_config().to_dict())
    for name in ("channels", "seeds", "epochs", "batch_size", "chips", "trial_epochs"):
        if scale[name] < 1:
            raise InputError(f"scale.{name} is {scale[name]}; it is at least 1")
    if not scale["width"] > 0:
        raise InputError(f"scale.width is {scale['width']}; it is above 0")
    for name in ("images", "calibrate", "recalibrate"):
        if scale[name] < 0:
            meant = "all" if name == "images" else "none"
            raise InputError(f"scale.{name} is {scale[name]}; it counts images, 0 for {meant}")
    try:
        parse("+".join(f"mibb:p_m={rate}" for rate in scale["p_m"].split(",")))
    except ValueError as error:
        raise InputError(f"scale.p_m is {scale['p_m']!r}: {error}") from error
    _check_runs(Plan(scale, Path()))


def _check_runs(plan: Plan) -> None:
    """Refuse a scale whose trainings or searches would be refused when their turn comes."""
    try:
        for recipe in get_args(Recipe):
            training_config(_overridden(train_defaults, plan.training_fields(recipe)))
    except InputError as error:
        text = str(error)
        for theirs, ours in _OTHER_NAMES.items():
            text = text.replace(theirs, ours)
        raise InputError(f"scale: no training can be so: {text}") from error
    try:
        search_config(_overridden(search_defaults, plan.search_fields()))
    except InputError as error:
        raise InputError(f"scale.search: no search can be so: {error}") from error
    for search in plan.found:
        with as_input_error():
            by_name(plan.network(f"found:{search}"), num_classes=2)


def _overridden(module: ModuleType, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a module with some of its fields set."""
    config = module.get_config()
    config.update_from_flattened_dict(fields)
    return config.to_dict()


def _check_flags() -> None:
    _only(_tables(), _ROWS.value)
    _scale()
    _mode()


def _tables() -> list[Table]:
    unknown = [name for name in _TABLE.value if name not in TABLES]
    if unknown or not _TABLE.value:
        said = f"there is no table {unknown[0]!r}" if unknown else "name a table"
        raise InputError(f"{said}: --table takes some of {','.join(TABLES)}")
    return [TABLES[name] for name in _TABLE.value]


if __name__ == "__main__":
    cli.launch_without_devices(
        lambda workdir: make(
            _tables(), _scale(), workdir, _mode(), cli.devices_asked(), _ROWS.value
        ),
        _check_flags,
    )
