"""What a campaign leaves behind for its reader: summary.csv, pictures, README.md."""

import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.durations import duration
from experiments.trained import Trained
from ftnas_jax import machine, plots
from ftnas_jax.campaigns.campaign import Position
from ftnas_jax.campaigns.outcome import Outcome, Report, level_text
from ftnas_jax.campaigns.settings import Settings
from ftnas_jax.campaigns.single import SingleFaultTable


def expectation(position: Position) -> str:
    """What the first chips of a network at a point say of the rest, in one line."""
    accuracy, chips = position.outcome.accuracy, position.chips
    more = position.expected - chips
    rest = f"about {position.expected} chips in all" if more > 0 else "that is enough"
    left = "" if not position.seconds else f", {duration(position.seconds)} left for everything"
    return (
        f"{position.network} under {position.point.label}: {accuracy.estimate:.1%} ± "
        f"{100 * accuracy.half_width:.2f} after {chips} chips; {rest}{left}"
    )


def plan(positions: Sequence[Position]) -> str:
    """What a whole campaign would take, after its first chips."""
    lines = [
        f"{p.network} under {p.point.label}: about {p.expected} chips "
        f"({p.chips} are there, standard deviation {100 * p.outcome.deviation:.2f} points)"
        for p in positions
    ]
    seconds = positions[-1].seconds if positions else None
    chips = sum(max(p.expected, p.chips) for p in positions)
    left = f", {duration(seconds)} to go" if seconds else ""
    return "\n".join([*lines, f"in all about {chips} chips{left}"])


class Choices(NamedTuple):
    """What a campaign's README says of how it was done.

    Attributes:
        seed: of all chips.
        calibrate: how many training images froze the fraction lengths of features; 0 for none.
        recalibrate: by how many every chip took statistics of BatchNorm anew; 0 for none.
    """

    seed: int
    calibrate: int
    recalibrate: int


def write(
    workdir: str,
    settings: Settings,
    found: Report | SingleFaultTable,
    runs: Sequence[Trained],
    devices: Sequence[Any],
    choices: Choices,
) -> None:
    """Write summary.csv, differences.csv, the pictures and README.md of a campaign.

    Args:
        workdir: of the campaign.
        settings: of the campaign.
        found: what it found.
        runs: the networks.
        devices: that it took.
        choices: by which it was done.
    """
    folder = Path(workdir)
    found.write_csv(folder)
    what = _command(runs, devices, choices)
    if isinstance(found, Report):
        text = _readme(folder, settings, found, what, runs[0].data_name, _draw(found, folder))
    else:
        text = _single_readme(folder, found, runs[0].name, what)
    (folder / "README.md").write_text(text, encoding="utf-8")


def _draw(report: Report, folder: Path) -> str:
    """Draw what there is to draw; the picture for the README."""
    points: list[Any] = [outcome.point for outcome in report.outcomes]
    plots.save_figure(plots.draw_chips(report), folder / "chips")
    if any(point.group is not None or point.bit is not None for point in points):
        plots.save_figure(plots.draw_sensitivity(report), folder / "sensitivity")
        return "![What each group costs](sensitivity.png)"
    if any(point.rate is not None or point.time is not None for point in points):
        plots.save_figure(plots.draw_curves(report), folder / "curves")
        return "![Accuracy under faults](curves.png)"
    return "![Every chip](chips.png)"


def _single_readme(folder: Path, table: SingleFaultTable, network: str, what: Sequence[str]) -> str:
    lines = [
        f"# Single faults of {network}",
        "",
        *what,
        "",
        "```",
        str(table),
        "```",
        "",
        "Every fault flips one bit of one weight. It is critical if it changes the class of more "
        "images than is allowed. Intervals of strata are exact, by the hypergeometric "
        "distribution; that of the whole weighs the strata by their size.",
        "",
        *_files(folder),
        "",
    ]
    return "\n".join(lines)


def _readme(
    folder: Path,
    settings: Settings,
    report: Report,
    what: Sequence[str],
    data_name: str,
    picture: str,
) -> str:
    differences = report.differences()
    return "\n".join(
        [
            f"# Campaign {folder.name}",
            "",
            *what,
            *_what_was_drawn(settings, report, data_name),
            "",
            "## Accuracy",
            "",
            *_accuracies(report.outcomes),
            "",
            picture,
            "",
            *(["## On the same chips", "", *_differences(differences), ""] if differences else []),
            *_files(folder),
            "",
        ]
    )


def _what_was_drawn(settings: Settings, report: Report, data_name: str) -> list[str]:
    images = report.outcomes[0].images
    wanted = (
        f"{settings.chips} chips at every point"
        if settings.margin is None
        else f"chips until the interval is within ± {100 * settings.margin:g} points, looked at "
        f"after {settings.min_chips} chips and ever more up to {settings.chips}; intervals allow "
        "for having looked"
    )
    return [
        *(f"- faults: `{text}`" for text in _faults(report)),
        f"- {images} test images of {data_name}; {wanted}",
        *(
            f"- margin not reached: {one.place}, after {len(one.chips)} chips"
            for one in report.outcomes
            if one.reached is False
        ),
    ]


def _faults(report: Report) -> list[str]:
    """Texts of the points, of each sweep and of all groups of layers the first."""
    first: dict[str, str] = {}
    for outcome in report.outcomes:
        point: Any = outcome.point
        grouped = point.group is not None or point.bit is not None
        first.setdefault(point.names if grouped else point.sweep or point.text, point.text)
    return list(first.values())


def _command(runs: Sequence[Trained], devices: Sequence[Any], choices: Choices) -> list[str]:
    frozen, anew = choices.calibrate, choices.recalibrate
    lengths = f"frozen by {frozen} training images" if frozen else "follow the batch"
    statistics = f"every chip's own, by {anew} training images" if anew else "of the training"
    return [
        "```",
        f"python -m experiments.evaluate {shlex.join(sys.argv[1:])}",
        "```",
        "",
        *(f"- network: {run.name}, {run.description}" for run in runs),
        f"- machine: {machine.describe(devices)}",
        f"- seed: {choices.seed}",
        f"- fraction lengths of features: {lengths}",
        f"- statistics of BatchNorm: {statistics}",
    ]


def _accuracies(outcomes: Sequence[Outcome]) -> list[str]:
    level = level_text(outcomes[0].level)
    lines = [
        "| network | faults | chips | clean | accuracy | interval | ± images | deviation "
        "| worst 5 % | interval | worst 1 % | interval | SDC rate |",
        "|---" * 13 + "|",
    ]
    for outcome in outcomes:
        accuracy = outcome.accuracy
        cells = (
            outcome.network,
            outcome.point.label,
            len(outcome.chips),
            _percent(outcome.clean),
            _percent(accuracy.estimate),
            f"{_percent(accuracy.low)} to {_percent(accuracy.high)}",
            _percent(outcome.image_error),
            _percent(outcome.deviation),
            *_worst(outcome, 0.05),
            *_worst(outcome, 0.01),
            _percent(outcome.sdc_rate.estimate),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return [
        *lines,
        "",
        f"In percent. Intervals at {level}: of the mean, Student's t over chips; of the accuracy "
        "that the worst 5 %, or 1 %, of chips do not exceed, by order statistics. ± images: what "
        "having these test images and no others adds, as a standard error; more chips do not "
        "lessen it. SDC rate: images whose class is another than without faults.",
    ]


def _worst(outcome: Outcome, share: float) -> tuple[str, str]:
    """What that share of chips does not exceed, and its interval."""
    worst = outcome.worst(share)
    return _percent(worst.estimate), f"{_percent(worst.low)} to {_percent(worst.high)}"


def _differences(differences) -> list[str]:
    lines = ["| networks | faults | chips | difference | interval | ± images |", "|---" * 6 + "|"]
    lines += [
        f"| {' - '.join(d.networks)} | {d.point.label} | {d.chips} "
        f"| {_percent(d.accuracy.estimate)} "
        f"| {_percent(d.accuracy.low)} to {_percent(d.accuracy.high)} "
        f"| {_percent(d.image_error)} |"
        for d in differences
    ]
    return [*lines, "", "In points of accuracy, chip by chip."]


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def _files(folder: Path) -> list[str]:
    """A table of the files that are there."""
    lines = [f"| {name} | {what} |" for name, what in _FILES.items() if (folder / name).exists()]
    return ["## Files", "", "| file | what is in it |", "|---|---|", *lines]


_FILES = {
    "summary.csv": "a row for each network and point, or stratum of faults, with intervals",
    "differences.csv": "of several networks, each against the first, chip by chip",
    "chips.csv": "a row for each network, point and chip",
    "rights.bin": "for each row of chips.csv a bit for each image, whether its class was right",
    "chips.png": "every chip",
    "curves.png": "accuracy over the rate or time",
    "sensitivity.png": "what each group of layers, or each bit, costs",
    "config.json": "what it takes to go on",
    "networks.json": "digests and clean accuracies of the networks, to go on with",
}
