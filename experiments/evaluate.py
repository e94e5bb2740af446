"""A fault campaign on trained networks: `python -m experiments.evaluate --run R --faults F`.

    python -m experiments.evaluate --run runs/train-wftt --workdir runs/eval \\
        --faults stuck_at:p0=0.067,p1=0.013 --margin 0.5
    python -m experiments.evaluate --run runs/a --run runs/b --workdir runs/both \\
        --faults mibb --rates 3e-6,1e-5,3e-5,1e-4,3e-4

Several networks meet the same chips and are compared pair by pair. The same command goes on with a
campaign that was interrupted, to the same numbers; more chips, rates, faults or networks are added
to what is there.
"""

if __name__ == "__main__":
    from experiments import large_pages

    large_pages.restart()  # before the other imports, which would all be made again

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import cli, evaluate_report, trained
from ftnas_jax.campaigns.campaign import Campaign, Position, Run
from ftnas_jax.campaigns.points import Point, as_models, points, told_apart
from ftnas_jax.campaigns.sensitivity import open_sensitivity
from ftnas_jax.campaigns.settings import Settings
from ftnas_jax.campaigns.single import SingleFaults
from ftnas_jax.campaigns.subject import Subject, as_subject
from ftnas_jax.errors import InputError, as_input_error
from ftnas_jax.fixed_point import FixedPoint
from ftnas_jax.graph.calibration import calibrate
from ftnas_jax.graph.model import on_hardware
from ftnas_jax.loop import Progress, Terminator, attentive
from ftnas_jax.nn.hardware import Hardware
from ftnas_jax.processes import is_first

_RUN = flags.DEFINE_multi_string(
    "run", [], "Run directory of a training, or NAME=DIRECTORY; several are compared."
)
_FAULTS = flags.DEFINE_multi_string(
    "faults", [], "Fault models, as stuck_at:p0=0.067,p1=0.013; + joins those that act together."
)
_RATES = flags.DEFINE_list("rates", [], "Rates of the fault model to visit.")
_TIMES = flags.DEFINE_list("times", [], "Times to which faults accumulate and conductances drift.")
_SWEEP = flags.DEFINE_string("sweep", "", "Of faults joined by +, the model whose rate is swept.")
_MARGIN = flags.DEFINE_float(
    "margin",
    0.0,
    "Half-width of the accuracy's interval, in points (percent), to stop at; 0 for none. Of single "
    "faults that of the critical share, 5 by default.",
)
_CHIPS = flags.DEFINE_integer(
    "chips", 0, "Chips at every point: 64, or with a margin at most so many, 1024."
)
_MIN_CHIPS = flags.DEFINE_integer("min_chips", 16, "Chips before a margin is looked at.")
_LEVEL = flags.DEFINE_float("level", 0.95, "Of all intervals.")
_SEED = flags.DEFINE_integer("seed", 0, "Of all chips.", lower_bound=0)
_IMAGES = flags.DEFINE_integer("images", 0, "Only the first so many test images; 0 for all.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 0, "Images at a time; 0 for about 256.")
_CHUNK = flags.DEFINE_integer(
    "chunk", 0, "Chips at once on a device; 0 for what is best, at most 256."
)
_MEMORY = flags.DEFINE_float("memory", 0.0, "GiB of a device that may be taken; 0 for all.")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "Of the data set; by default that of the training.")
_BY = flags.DEFINE_list(
    "by",
    [],
    "Faults in one group at a time: layer, edge (of a cell), block, or bit; bit and another.",
)
_SINGLE = flags.DEFINE_bool(
    "single_faults", False, "Single bit flips in weights: the critical share, by layer and/or bit."
)
_TOLERANCE = flags.DEFINE_float(
    "tolerance", 0.0, "Of single faults: percent of the images that one may change uncritically."
)
_ENCODING = flags.DEFINE_enum(
    "weight_encoding",
    None,
    ["twos_complement", "sign_magnitude"],
    "Of weights; by default that of the training. Faults of crossbars need sign_magnitude.",
)
_CALIBRATE = flags.DEFINE_integer(
    "calibrate",
    0,
    "Training images by which fraction lengths of features are frozen, on sound hardware; with 0 "
    "they follow the batch, faults included, as in the paper's published code.",
    lower_bound=0,
)
_RECALIBRATE = flags.DEFINE_integer(
    "recalibrate",
    0,
    "Training images by which every chip takes statistics of BatchNorm anew, with its faults; with "
    "0 it has those of the training.",
    lower_bound=0,
)
_PLAN = flags.DEFINE_bool("plan", False, "Only the first chips, and what the rest would take.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "HOST:PORT of the first of several processes."
)
_PROCESSES = flags.DEFINE_integer("processes", 1, "How many processes there are.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process", 0, "Which of them this one is, from 0.", lower_bound=0)

_CALIBRATION_BATCH = 256

_CHIPS_BY_DEFAULT = {False: 64, True: 1024}
"""Of a campaign without and with a margin."""


def evaluate(workdir: str, devices: list[Any]) -> int:
    """Run, or go on with, the campaign that the flags describe; returns an exit code."""
    runs = _load_runs()
    with as_input_error():
        job = _campaign(runs, workdir, devices)
        with job, Terminator() as stop, Progress(1, title="chips", unit="chip") as progress:
            asked, display = (lambda: stop.requested), _Display(progress)
            if _PLAN.value:
                progress.log(evaluate_report.plan(attentive(job.pilot, asked, display)))
                return stop.exit_code
            found = attentive(job.run, asked, display)
            if not stop.requested and is_first():
                found = job.table() if isinstance(job, SingleFaults) else found
                choices = evaluate_report.Choices(_SEED.value, _CALIBRATE.value, _RECALIBRATE.value)
                evaluate_report.write(workdir, job.settings, found, runs, devices, choices)
                progress.log(f"\n{found}\n\nresults: {workdir}/README.md")
            return stop.exit_code


def _load_runs() -> list[trained.Trained]:
    """The trained networks, each under a name of its own."""
    runs: dict[str, trained.Trained] = {}
    for text in _RUN.value:
        run = _load(text)
        if run.name in runs:
            raise InputError(
                f"{runs[run.name].path} and {run.path} are both called {run.name}; name one, "
                f"as --run NAME={run.path}"
            )
        runs[run.name] = run
    return list(runs.values())


def _load(text: str) -> trained.Trained:
    """The network of `DIRECTORY` or `NAME=DIRECTORY`; a directory may have = in its path, too."""
    name, separator, path = text.partition("=")
    if not separator or "/" in name or Path(text).is_dir():
        return trained.load(text)
    return dataclasses.replace(trained.load(path), name=name)


def _campaign(runs: Sequence[trained.Trained], workdir: str, devices: list[Any]) -> Campaign:
    test_set, key = _test_set(runs), jax.random.key(_SEED.value, impl="threefry2x32")
    there = jax.devices() if jax.process_count() > 1 else devices
    options: dict[str, Any] = {
        "batch_size": _BATCH_SIZE.value or None,
        "run": Run(_CHUNK.value or None, there, _MEMORY.value * 2**30 or None),
        "workdir": workdir,
    }
    subjects = list(map(_subject, runs))
    if _SINGLE.value:
        margin, tolerance = _MARGIN.value / 100 or 0.05, _TOLERANCE.value / 100
        strata: Any = _BY.value
        rates = (margin, _LEVEL.value, tolerance)
        return SingleFaults(subjects[0], test_set, strata, key, *rates, **options)
    if _BY.value:
        groups: Any = _BY.value
        models = as_models(_FAULTS.value[0])
        given = (subjects[0], test_set, models, groups, key, _settings())
        return open_sensitivity(*given, **options)
    return Campaign(subjects, test_set, _points(), key, _settings(), **options)


def _subject(run: trained.Trained) -> Subject:
    """A network under test, by the choices of the flags."""
    frozen_by, anew_by = _CALIBRATE.value, _RECALIBRATE.value
    chip, images = on_hardware(run.model, _hardware(run)), np.empty(0)
    if most := max(frozen_by, anew_by):
        images = run.training_images(most, _DATA_DIR.value)
    if frozen_by:
        chip = _frozen(chip, run, images[:frozen_by])
    norm_images = images[:anew_by] if anew_by else None
    return as_subject(chip, run.variables, run.hardware, name=run.name, norm_images=norm_images)


def _frozen(chip: Any, run: trained.Trained, images: np.ndarray) -> Any:
    """A network on its hardware, its fraction lengths frozen by images."""
    batches = np.array_split(images, -(-len(images) // _CALIBRATION_BATCH))
    return calibrate(chip, [(run.variables, batch) for batch in batches])


def _hardware(run: trained.Trained) -> Hardware:
    """Number formats of a network; its faults are replaced by those of the campaign."""
    weights = run.hardware.weights
    encoding: Any = _ENCODING.value
    if weights is not None and encoding:
        weights = FixedPoint(weights.bits, encoding)
    return dataclasses.replace(run.hardware, weights=weights, faults=())


def check_flags() -> None:
    """What can be said before anything is loaded."""
    if not _RUN.value:
        raise InputError("name a trained network: --run runs/NAME")
    if not _FAULTS.value and not _SINGLE.value:
        raise InputError("name the faults: --faults stuck_at:p0=0.067,p1=0.013")
    if _FAULTS.value and _SINGLE.value:
        raise InputError("--single_faults flips single bits; it takes no --faults")
    if _SINGLE.value and (_RATES.value or _TIMES.value or _CHIPS.value or _SWEEP.value):
        raise InputError("--single_faults takes no --rates, --times, --chips or --sweep")
    if _BY.value and _SWEEP.value:
        raise InputError("--by looks at faults at one rate; it takes no --sweep")
    if (_BY.value or _SINGLE.value) and len(_RUN.value) > 1:
        raise InputError("--by and --single_faults look at one network; name one --run")
    if _BY.value and (_RATES.value or _TIMES.value or len(_FAULTS.value) > 1):
        raise InputError("--by goes with one --faults at one rate, without --rates and --times")
    if not 0 <= _MARGIN.value < 100:
        raise InputError(f"--margin is {_MARGIN.value:g}; it is in points, from 0 to below 100")
    if not 0 <= _PROCESS.value < _PROCESSES.value:
        raise InputError(f"--process is {_PROCESS.value} of {_PROCESSES.value}; they count from 0")
    if (_PROCESSES.value > 1) != bool(_COORDINATOR.value):
        raise InputError("--coordinator and --processes go together")
    _points()
    with as_input_error():
        _settings()
    if _PROCESSES.value > 1:
        jax.distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)


def _settings() -> Settings:
    margin = _MARGIN.value / 100 if _MARGIN.value else None
    chips = _CHIPS.value or _CHIPS_BY_DEFAULT[margin is not None]
    return Settings(chips, margin, min(_MIN_CHIPS.value, chips), _LEVEL.value)


def _points() -> tuple[Point, ...]:
    rates, times = _numbers("rates", _RATES.value), _numbers("times", _TIMES.value)
    with as_input_error():
        return told_apart(
            [
                point
                for text in _FAULTS.value
                for point in points(as_models(text), rates, times, _SWEEP.value or None)
            ]
        )


def _numbers(name: str, texts: Sequence[str]) -> list[float] | None:
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        raise InputError(f"--{name} is {','.join(texts)!r}; give numbers, as 0.04,0.08") from None
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"--{name} is {','.join(texts)!r}; give finite numbers")
    return numbers or None


def _test_set(runs: Sequence[trained.Trained]):
    """Images and labels that all networks are measured on."""
    first = runs[0].test_set(_DATA_DIR.value)
    for other in runs[1:]:
        if other.data_sha256 != runs[0].data_sha256:
            raise InputError(
                f"{runs[0].name} and {other.name} were trained on different data, and cannot be "
                "compared; evaluate each on its own"
            )
    count = _IMAGES.value or len(first[1])
    if not 0 < count <= len(first[1]):
        raise InputError(f"--images is {count}; there are {len(first[1])} test images")
    return first[0][:count], first[1][:count]


class _Display:
    """Shows where a campaign stands."""

    def __init__(self, progress: Progress):
        self._progress = progress
        self._told: set[tuple[str, str]] = set()

    def __call__(self, position: Position) -> None:
        outcome, accuracy = position.outcome, position.outcome.accuracy
        shown = f"{accuracy.estimate:.1%} ± {100 * accuracy.half_width:.2f}"
        self._progress.update(position.done, total=position.total, accuracy=shown)
        cell = (position.network, position.point.text)
        if _SINGLE.value:  # how many are drawn is known beforehand
            return
        if cell not in self._told and len(outcome.chips) >= _MIN_CHIPS.value:
            self._told.add(cell)
            self._progress.log(evaluate_report.expectation(position))


if __name__ == "__main__":
    cli.launch(evaluate, check_flags)
