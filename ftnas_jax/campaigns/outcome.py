"""What a campaign found out, with intervals: a summary for every network and point, and a report.

The sampling unit is the chip. What a finite test set adds to the error is told apart, as
`image_error`: more chips do not lessen it.
"""

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ftnas_jax.campaigns import statistics
from ftnas_jax.campaigns.points import Visited
from ftnas_jax.campaigns.statistics import Interval
from ftnas_jax.campaigns.table import Chip, count_rights, count_unlike
from ftnas_jax.graph.sites import text_table


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """One network at one point.

    Attributes:
        network: its name.
        point: the faults.
        images: N, of the test set.
        clean: accuracy without faults, on the same hardware.
        chips: those that count, in their order.
        level: of the intervals.
        critical: in place of Student's quantile, where the campaign is to stop at a margin.
        reached: whether it did; None where it has no margin.
    """

    network: str
    point: Visited
    images: int
    clean: float
    chips: tuple[Chip, ...]
    level: float = 0.95
    critical: float | None = None
    reached: bool | None = None

    @property
    def accuracies(self) -> np.ndarray:
        """Of the chips, float64 [M]."""
        return np.array([chip.correct for chip in self.chips]) / self.images

    @property
    def sdc_rates(self) -> np.ndarray:
        """Share of images that a chip classifies otherwise than sound hardware, float64 [M]."""
        return np.array([chip.changed for chip in self.chips]) / self.images

    @property
    def accuracy(self) -> Interval:
        """Mean over chips."""
        return self._mean(self.accuracies, self.critical)

    @property
    def sdc_rate(self) -> Interval:
        """Mean rate of silent data corruption over chips: top-1 is another than without faults."""
        return self._mean(self.sdc_rates, None)

    @property
    def deviation(self) -> float:
        """Standard deviation of the accuracy from chip to chip."""
        return 0.0 if self.point.sound else statistics.deviation(self.accuracies)

    @property
    def image_error(self) -> float:
        """Standard error of the mean accuracy from having these N images and no others."""
        rights = count_rights(self.chips, self.images)
        return statistics.image_error(rights, self.accuracies)

    @property
    def place(self) -> str:
        """The network and the point, in short."""
        return f"{self.network} under {self.point.label}"

    def worst(self, share: float) -> Interval:
        """The accuracy that a share of all chips, the worst ones, do not exceed."""
        if self.point.sound:
            return Interval(self.clean, self.clean, self.clean, self.level)
        return statistics.quantile(self.accuracies, share, level=self.level)

    def row(self) -> dict[str, Any]:
        """All of it as one row of summary.csv; accuracies and rates are shares, from 0 to 1."""
        row: dict[str, Any] = {
            "network": self.network,
            "faults": self.point.text,
            "rate": self.point.rate,
            "time": self.point.time,
            "chips": len(self.chips),
            "images": self.images,
            "clean": self.clean,
        }
        row |= columns("accuracy", self.accuracy)
        row |= {"deviation": self.deviation, "image_error": self.image_error}
        row |= columns("worst_5", self.worst(0.05)) | columns("worst_1", self.worst(0.01))
        row |= columns("sdc_rate", self.sdc_rate)
        return row | {"level": self.level, "reached": self.reached}

    def __str__(self) -> str:
        accuracy, chips = self.accuracy, len(self.chips)
        return (
            f"clean {100 * self.clean:.1f} % | faulty {100 * accuracy.estimate:.1f} % ± "
            f"{100 * accuracy.half_width:.1f} ({level_text(self.level)}, {chips} chips) | "
            f"worst 5 % chip {100 * self.worst(0.05).estimate:.1f} %"
            f"{' | margin not reached' if self.reached is False else ''}"
        )

    def _mean(self, values: np.ndarray, critical: float | None) -> Interval:
        if self.point.sound:
            return Interval(values[0], values[0], values[0], self.level)
        return statistics.mean(values, level=self.level, critical=critical)


@dataclasses.dataclass(frozen=True)
class Difference:
    """One network against another at a point, on the same chips.

    Attributes:
        networks: names of both; positive is in favour of the first.
        point: the faults.
        accuracy: mean difference over the chips that both have.
        image_error: its standard error from having these images and no others.
        chips: how many.
    """

    networks: tuple[str, str]
    point: Visited
    accuracy: Interval
    image_error: float
    chips: int

    def row(self) -> dict[str, Any]:
        """As one row of differences.csv."""
        row: dict[str, Any] = {
            "network": self.networks[0],
            "minus": self.networks[1],
            "faults": self.point.text,
            "rate": self.point.rate,
            "time": self.point.time,
            "chips": self.chips,
        }
        return row | columns("difference", self.accuracy) | {"image_error": self.image_error}


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """All that a campaign found out.

    Attributes:
        outcomes: for every network and point that was visited.
    """

    outcomes: tuple[Outcome, ...]

    def differences(self) -> tuple[Difference, ...]:
        """Every later network against the first, at every point that both visited."""
        first = next(iter(self.by_network()), None)
        base = {o.point.text: o for o in self.outcomes if o.network == first}
        return tuple(
            _difference(outcome, base[outcome.point.text])
            for outcome in self.outcomes
            if outcome.network != first and outcome.point.text in base
        )

    def by_network(self) -> dict[str, list[Outcome]]:
        """Outcomes by the network's name, in their order."""
        found: dict[str, list[Outcome]] = {}
        for outcome in self.outcomes:
            found.setdefault(outcome.network, []).append(outcome)
        return found

    def __str__(self) -> str:
        if not self.outcomes:
            return "no chips yet"
        if len(self.outcomes) == 1:
            return str(self.outcomes[0])
        differences = self.differences()
        parts = [text_table([_HEADER, *map(_cells, self.outcomes)])]
        if differences:
            parts.append(text_table([_DIFFERENCE_HEADER, *map(_difference_cells, differences)]))
        level = level_text(self.outcomes[0].level)
        parts.append(
            f"In percent; intervals over chips at {level}; ± i: standard error from images"
        )
        parts += [
            f"margin not reached: {one.place}" for one in self.outcomes if one.reached is False
        ]
        return "\n\n".join(parts)

    def write_csv(self, folder: str | Path) -> None:
        """Write summary.csv and, for several networks, differences.csv into a folder."""
        rows = {"summary.csv": self.outcomes, "differences.csv": self.differences()}
        for name, own in rows.items():
            if own:
                write_rows(Path(folder) / name, [one.row() for one in own])


def _difference(outcome: Outcome, base: Outcome) -> Difference:
    count = min(len(outcome.chips), len(base.chips))
    ours, theirs = outcome.accuracies[:count], base.accuracies[:count]
    own_chips, base_chips = outcome.chips[:count], base.chips[:count]
    if outcome.point.sound:
        own = float(ours[0] - theirs[0])
        interval = Interval(own, own, own, outcome.level)
    else:
        interval = statistics.paired(ours, theirs, level=outcome.level)
    images = outcome.images
    rights = count_rights(own_chips, images) - count_rights(base_chips, images)
    unlike = count_unlike(own_chips, base_chips, images)
    error = statistics.image_error(rights, ours - theirs, unlike)
    return Difference((outcome.network, base.network), outcome.point, interval, error, count)


def level_text(level: float) -> str:
    """A level of confidence in percent, with as many digits as it has."""
    return f"{100 * level:g} %"


def columns(name: str, interval: Interval) -> dict[str, float]:
    """An interval as three columns of a table."""
    return {
        name: interval.estimate,
        f"{name}_low": interval.low,
        f"{name}_high": interval.high,
    }


_HEADER = (
    *("network", "faults", "chips", "clean", "accuracy", "interval", "± i", "deviation"),
    *("worst 5 %", "interval", "worst 1 %", "SDC rate"),
)


def _cells(outcome: Outcome) -> tuple[str, ...]:
    accuracy, worst = outcome.accuracy, outcome.worst(0.05)
    return (
        outcome.network,
        outcome.point.label,
        str(len(outcome.chips)),
        _percent(outcome.clean),
        _percent(accuracy.estimate),
        _ends(accuracy),
        _percent(outcome.image_error),
        _percent(outcome.deviation),
        _percent(worst.estimate),
        _ends(worst),
        _percent(outcome.worst(0.01).estimate),
        _percent(outcome.sdc_rate.estimate),
    )


_DIFFERENCE_HEADER = ("difference", "faults", "chips", "accuracy", "interval", "± i")


def _difference_cells(difference: Difference) -> tuple[str, ...]:
    return (
        " - ".join(difference.networks),
        difference.point.label,
        str(difference.chips),
        _percent(difference.accuracy.estimate),
        _ends(difference.accuracy),
        _percent(difference.image_error),
    )


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _ends(interval: Interval) -> str:
    return f"{_percent(interval.low)} .. {_percent(interval.high)}"


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV, with the columns of the first; what is None or missing stays empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(_known(row) for row in rows)


def _known(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: "" if value is None else value for name, value in row.items()}
