"""How many chips a campaign draws, and when it has seen enough."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ftnas_jax.campaigns import statistics, stopping
from ftnas_jax.campaigns.points import Visited


class Verdict(NamedTuple):
    """What the chips at a point amount to.

    Attributes:
        chips: how many count where it is enough, else how many there should be to look again.
        enough: whether no more are needed.
        critical: of the interval, in place of Student's quantile; None for that.
        reached: whether they ended at the margin; None where there is none.
    """

    chips: int
    enough: bool
    critical: float | None = None
    reached: bool | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """How sure a campaign is to be.

    Attributes:
        chips: fault maps of every network at every point; with a margin, at most so many.
        margin: half-width of the accuracy's interval at which a point has seen enough, as a share
            of the images; None for as many chips as `chips` says. One looks after `min_chips` and
            ever more chips, and the intervals allow for that.
        min_chips: before a margin is looked at.
        level: of all intervals.
    """

    chips: int = 64
    margin: float | None = None
    min_chips: int = 16
    level: float = 0.95

    def __post_init__(self):
        if not isinstance(self.chips, int) or self.chips < 1:
            raise ValueError(f"chips is {self.chips!r}; it is a whole number of at least 1")
        if not 0 < self.level < 1:
            raise ValueError(f"level is {self.level}; it lies between 0 and 1, as 0.95")
        if self.margin is None:
            return
        if not 0 < self.margin < 1:
            raise ValueError(
                f"margin is {self.margin}; it is a share of the images between 0 and 1: 0.005 for "
                "half a point of accuracy"
            )
        if not 4 <= self.min_chips <= self.chips:
            raise ValueError(
                f"min_chips is {self.min_chips} and chips {self.chips}; to stop at a margin takes "
                "at least 4, and no more than chips"
            )

    def judge(self, point: Visited, accuracies: Sequence[float]) -> Verdict:
        """Whether the accuracies of the chips at a point, in their order, are enough."""
        there = len(accuracies)
        if point.sound:
            reached = None if self.margin is None else there >= 1
            return Verdict(1, there >= 1, reached=reached)
        if self.margin is None:
            return Verdict(self.chips, there >= self.chips)
        rule = self._rule()
        if there:
            decision = stopping.decide(accuracies, self.margin, rule)
            if decision.stop:
                critical = rule.critical(decision.chips)
                return Verdict(decision.chips, True, critical, decision.reached)
        wanted = next(look for look in rule.looks if look > there)
        return Verdict(wanted, False, rule.critical(there) if there > 1 else None, False)

    def expected(self, point: Visited, accuracies: Sequence[float]) -> int:
        """About how many chips it will take, by those that are there."""
        verdict = self.judge(point, accuracies)
        if verdict.enough or self.margin is None or len(accuracies) < 2:
            return verdict.chips
        deviation = statistics.deviation(np.asarray(accuracies))
        wanted = stopping.chips_needed(deviation, self.margin, self._rule())
        return max(verdict.chips, wanted or self.chips)

    def _rule(self) -> stopping.Rule:
        return stopping.Rule(min_chips=self.min_chips, max_chips=self.chips, level=self.level)
