"""Campaigns that stop at a target half-width, honest for having looked often.

Who stops as soon as x ± t s / √n is narrow enough stops where s came out small, and reports
intervals that hold the truth less often than they say. Here one looks only after given numbers of
chips n_1 < n_2 < ..., and t is taken at a level 1 - α' above the one asked for.

For normal chips the mean of n is independent of all variances s_1 .. s_n so far, by which alone one
stops (Starr 1966). So a campaign that stops at look n holds the truth with probability
2 Φ(c_n s_n / σ) - 1 given these, and what remains is to average over paths of s. With S_n the sum
of squares about the mean of n chips, S_m = S_n + σ² χ²_{m-n}, an independent sum of squares
(Helmert).

References:
    Anscombe, Sequential estimation, JRSS B 15 (1953).
    Starr, The performance of a sequential procedure for the fixed-width interval estimation of the
    mean, Annals of Mathematical Statistics 37 (1966).
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import ArrayLike

from ftnas_jax.campaigns import statistics
from ftnas_jax.campaigns.statistics import Bounds, Interval

LEAST_CHIPS = 4
"""Before the first look: fewer leave s too loose for any useful α'."""

_PATHS = 20_000
_RATIOS = 40
_BISECTIONS = 14
_SEED = 20260


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """When a campaign looks, and how sure it is.

    Attributes:
        min_chips: at the first look, at least 4.
        max_chips: at the last look, where it stops whatever it has reached.
        level: of confidence, for the campaign as a whole.
        growth: of the number of chips from look to look, at least 1.05.
    """

    min_chips: int = 16
    max_chips: int = 1024
    level: float = 0.95
    growth: float = 1.25

    def __post_init__(self):
        statistics.check_level(self.level)
        if self.min_chips < LEAST_CHIPS:
            raise ValueError(f"min_chips is {self.min_chips}; it is at least {LEAST_CHIPS}")
        if self.max_chips < self.min_chips:
            raise ValueError(
                f"max_chips is {self.max_chips}; it is at least min_chips, {self.min_chips}"
            )
        if not 1.05 <= self.growth < math.inf:
            raise ValueError(f"growth is {self.growth}; it is a number from 1.05 on")

    def critical(self, chips: int) -> float:
        """c_n, in the place of the t-quantile: of t_{n-1} at level 1 - α'."""
        return float(scipy.stats.t.isf(self.error_rate / 2, chips - 1))

    @property
    def looks(self) -> tuple[int, ...]:
        """Numbers of chips at which the campaign may stop, from `min_chips` to `max_chips`."""
        schedule = [self.min_chips]
        while schedule[-1] < self.max_chips:
            grown = max(round(schedule[-1] * self.growth), schedule[-1] + 1)
            schedule.append(min(grown, self.max_chips))
        return tuple(schedule)

    @property
    def error_rate(self) -> float:
        """α' in (0, 1 - level], the same for all looks."""
        return _error_rate(self.looks, self.level)


class Decision(NamedTuple):
    """What a campaign knows.

    Attributes:
        interval: of the mean over all chips.
        chips: how many of the values, from the first on, the interval is made of.
        stop: whether the campaign ends with these chips.
        reached: whether the interval's half-width is within the margin; between looks that does
            not end the campaign.
    """

    interval: Interval
    chips: int
    stop: bool
    reached: bool


def decide(
    values: ArrayLike, margin: float, rule: Rule, *, bounds: Bounds = statistics.SHARES
) -> Decision:
    """The first look at which `values` end the campaign, or where it stands.

    A function of the values in their order alone: chips run beyond the look that ends the campaign
    change nothing, so neither do the chunks in which they were run.

    Args:
        values: float [n] of the chips so far, within `bounds`.
        margin: half-width to reach, above 0.
        rule: when to look.
        bounds: ends of the values' range.

    Raises:
        ValueError: a margin that is not above 0, or values that `statistics.mean` refuses.
    """
    _check_margin(margin)
    values = np.asarray(values, np.float64)
    chips = min(values.size, rule.max_chips)
    for n in (n for n in rule.looks if n <= chips):
        interval = _interval(values[:n], rule, bounds)
        reached = interval.half_width <= margin
        if reached or n == rule.max_chips:
            return Decision(interval, n, True, reached)
    interval = _interval(values[:chips], rule, bounds)
    return Decision(interval, chips, False, interval.half_width <= margin)


def chips_needed(deviation: float, margin: float, rule: Rule) -> int | None:
    """The first look at which chips of this spread reach the margin, None if none does.

    The first with c_n · deviation / √n <= margin. With a deviation of 0 the chips of a pilot
    were all alike: then the first at which the interval of alike chips is surely that narrow.

    Args:
        deviation: over chips, >= 0, as `statistics.deviation` of a pilot.
        margin: half-width to reach, above 0.
        rule: when to look.

    Raises:
        ValueError: a negative or unknown deviation, or a margin that is not above 0.
    """
    _check_margin(margin)
    if not deviation >= 0:
        raise ValueError(f"deviation is {deviation}; it takes two chips or more to know it")
    for n in rule.looks:
        arm = rule.critical(n) * deviation / math.sqrt(n)
        if (arm if deviation else statistics.alike_bound(n, rule.level)) <= margin:
            return n
    return None


@functools.lru_cache
def _error_rate(schedule: tuple[int, ...], level: float) -> float:
    """α' for a schedule: the largest α' <= α = 1 - level with which the level is kept.

    Kept for every ratio of the chips' spread to the margin, on a grid, by normal chips; to about
    0.001 in level by the number of simulated paths. A single look needs no correction.
    """
    alpha = 1 - level
    if len(schedule) == 1:
        return alpha
    spreads, chips = _spreads(schedule), np.array(schedule)
    low, high = math.log(alpha) - 12, math.log(alpha)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        kept = _worst_coverage(spreads, chips, math.exp(middle), level) >= level
        low, high = (middle, high) if kept else (low, middle)
    return math.exp(low)


def _spreads(schedule: tuple[int, ...]) -> np.ndarray:
    """float64 [paths, looks] of s_n / σ along independent campaigns of normal chips."""
    freedoms = np.array(schedule) - 1
    steps = np.diff(freedoms, prepend=0)
    drawn = np.random.default_rng(_SEED).chisquare(steps, (_PATHS, steps.size))
    return np.sqrt(drawn.cumsum(1) / freedoms)


def _worst_coverage(spreads: np.ndarray, chips: np.ndarray, alpha: float, level: float) -> float:
    """The least coverage over all ratios of spread to margin, for c_n at level 1 - alpha."""
    critical = scipy.stats.t.isf(alpha / 2, chips - 1)
    coverage = 1 - 2 * scipy.special.ndtr(-critical * spreads)
    # Narrowest so far, in units of σ: it is not yet within a margin at the looks before the stop.
    narrowest = np.minimum.accumulate(critical / np.sqrt(chips) * spreads, axis=1)
    # Margins in the same units that a known σ would reach within, before and behind the schedule.
    needed = np.geomspace(chips[0] / 10, chips[-1] * 3, _RATIOS)
    margins = scipy.stats.norm.isf((1 - level) / 2) / np.sqrt(needed)
    paths = np.arange(len(spreads))

    def covered(margin):
        stop = (narrowest[:, :-1] > margin).sum(1)
        return coverage[paths, stop].mean()

    return min(covered(margin) for margin in margins)


def _interval(values: np.ndarray, rule: Rule, bounds: Bounds) -> Interval:
    critical = rule.critical(values.size) if values.size > 1 else None
    return statistics.mean(values, level=rule.level, critical=critical, bounds=bounds)


def _check_margin(margin: float) -> None:
    if not margin > 0:
        raise ValueError(f"margin is {margin}; a half-width to reach is above 0, as 0.01")
