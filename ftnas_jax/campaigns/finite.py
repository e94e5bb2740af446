"""Single faults drawn from a finite list: the share of them that is critical.

The sampling unit is one fault, a bit of a register in a cycle or of a stored weight, drawn without
replacement from a population of N; it is critical or it is not. This is another question than the
accuracy at a fault rate, for which a chip is the unit and `statistics` has the intervals.

References:
    Leveugle, Calvez, Maistri and Vanhauwaert, Statistical fault injection: quantified error and
    confidence, DATE 2009.
    Buonaccorsi, A note on confidence intervals for proportions in finite populations, The American
    Statistician 41 (1987).
    Cochran, Sampling Techniques, 3rd ed. (1977), ch. 5.
    Miettinen and Nurminen, Comparative analysis of two rates, Statistics in Medicine 4 (1985).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import scipy

from ftnas_jax.campaigns.statistics import Interval, check_count, check_level, proportion

_EXACT_UP_TO = 10**9
"""Populations whose hypergeometric tails scipy gives to six digits."""


def sample_size(population: int, margin: float, *, level: float = 0.95, p: float = 0.5) -> int:
    """How many faults to draw for a share within ± margin (Leveugle et al.).

        n = N t² p (1-p) / (e² (N-1) + t² p (1-p)),

    rounded up, e the margin and t the normal quantile of the level.

    Args:
        population: N, at least 1.
        margin: e, in (0, 1).
        level: of confidence.
        p: share that is expected to be critical, in (0, 1); 0.5 is the safe one.

    Raises:
        ValueError: an argument outside its range.
    """
    check_level(level)
    _check_population(population)
    if not 0 < margin < 1:
        raise ValueError(f"margin is {margin}; it lies between 0 and 1, as 0.01")
    if not 0 < p < 1:
        raise ValueError(f"p is {p}; an expected share lies between 0 and 1, 0.5 if not known")
    spread = float(scipy.stats.norm.isf((1 - level) / 2)) ** 2 * p * (1 - p)
    return math.ceil(population * spread / (margin**2 * (population - 1) + spread))


def allocate(
    populations: Sequence[int], margin: float, *, level: float = 0.95, p: float = 0.5
) -> tuple[int, ...]:
    """`sample_size` of each stratum as a population of its own, each with the margin."""
    return tuple(sample_size(n, margin, level=level, p=p) for n in populations)


def share(count: int, n: int, population: int, *, level: float = 0.95) -> Interval:
    """The share of critical faults in a population of which n were drawn and `count` are critical.

    The interval is exact: K / N of all K, the number of critical faults in the population, that
    neither tail of the hypergeometric distribution refuses at α/2,

        P(X >= count | K) > α/2 and P(X <= count | K) > α/2,

    so the level is a lower bound. Its width is 0 where all were drawn, or all but so few that any
    other K is refused. Populations above 10^9 have Clopper and Pearson's interval, a little wider.

    Args:
        count: critical faults among those drawn, 0 to n.
        n: faults drawn, 1 to N.
        population: N.
        level: of confidence.

    Raises:
        ValueError: counts that do not fit each other.
    """
    check_level(level)
    _check_sample(count, n, population)
    if population > _EXACT_UP_TO:
        return proportion(count, n, level=level, method="clopper_pearson")
    tail = (1 - level) / 2
    # At least `count` and at most all but the sound ones of the sample are critical.
    least, most = count, population - (n - count)

    def not_too_few(critical: int) -> bool:
        return bool(scipy.stats.hypergeom.sf(count - 1, population, critical, n) > tail)

    def too_many(critical: int) -> bool:
        return bool(scipy.stats.hypergeom.cdf(count, population, critical, n) <= tail)

    low = _first(not_too_few, least, most)
    high = _first(too_many, least, most + 1)
    estimate = count / n
    ends = min(low / population, estimate), max((high - 1) / population, estimate)
    return Interval(estimate, *ends, level)


def stratified(
    counts: Sequence[int], ns: Sequence[int], populations: Sequence[int], *, level: float = 0.95
) -> Interval:
    """The share of critical faults in a population of which each stratum was sampled apart.

    The estimate is p̂ = Σ_h W_h p̂_h with weights W_h = N_h / N and p̂_h = count_h / n_h. Its variance

        V(p) = Σ_h W_h² p_h (1 - p_h) / n_h · (N_h - n_h) / (N_h - 1)

    is 0 at p̂_h of 0 or 1, the common case. So, as Wilson does without strata, it is taken where the
    share is held to be t: the interval is all t with

        |p̂ - t| - c <= z √V(p(t)),

    p(t) being the most likely p_h with Σ W_h p_h = t (Miettinen and Nurminen), and c half the
    smallest step of p̂: with this correction for continuity the level is kept for nearly every
    share, without it only on average over shares. Faults seen to be critical or sound bound the
    interval too. Only a population that was looked at as a whole leaves no width.

    Args:
        counts: critical faults among those drawn, a number for each stratum.
        ns: faults drawn, at least 1 in each stratum.
        populations: N_h.
        level: of confidence.

    Raises:
        ValueError: unlike numbers of strata, or counts that do not fit each other.
    """
    check_level(level)
    if not len(counts) == len(ns) == len(populations) or not len(counts):
        raise ValueError(
            f"{len(counts)} counts, {len(ns)} samples, {len(populations)} populations; "
            "give one of each for every stratum"
        )
    for one in zip(counts, ns, populations, strict=True):
        _check_sample(*one)
    k, n, size = (np.asarray(x, np.float64) for x in (counts, ns, populations))
    weights, estimates = size / size.sum(), k / n
    variances = weights**2 / n * (size - n) / np.maximum(size - 1, 1)
    correction = 0.5 * np.min(weights / n, initial=1.0, where=size > n)
    z = float(scipy.stats.norm.isf((1 - level) / 2))
    low = 1 - _score_end(1 - estimates, weights, variances, correction, z)
    high = _score_end(estimates, weights, variances, correction, z)
    estimate = float(weights @ estimates)
    low = min(max(low, k.sum() / size.sum()), estimate)
    high = max(min(high, 1 - (n - k).sum() / size.sum()), estimate)
    return Interval(estimate, float(low), float(high), level)


def _score_end(
    estimates: np.ndarray,
    weights: np.ndarray,
    variances: np.ndarray,
    correction: float,
    z: float,
) -> float:
    """The largest t with t - p̂ - c <= z √V(p(t)), by bisection over Lagrange's multiplier.

    `variances` are those of p̂_h, times W_h², where p_h (1 - p_h) is 1; 0 if a stratum is known.
    """
    if not ((variances > 0) & (estimates < 1)).any():
        return float(weights @ estimates)
    pulls = variances / weights / np.max(variances / weights)
    inside, outside = 0.0, 1.0
    for _ in range(60):
        middle = (inside + outside) / 2
        shares = _most_likely(estimates, pulls * middle / (1 - middle))
        excess = weights @ (shares - estimates) - correction
        within = excess <= z * math.sqrt(variances @ (shares * (1 - shares)))
        inside, outside = (middle, outside) if within else (inside, middle)
    return float(weights @ _most_likely(estimates, pulls * inside / (1 - inside)))


def _most_likely(estimates: np.ndarray, pulls: np.ndarray) -> np.ndarray:
    """The p_h >= p̂_h in [0, 1] with p_h - p̂_h = a_h p_h (1 - p_h), where Lagrange puts them.

    The two forms of the root of this quadratic each lose no digits on their side of a = 1.
    """
    root = np.sqrt((1 - pulls) ** 2 + 4 * pulls * estimates)
    weak = 2 * estimates / np.where(pulls < 1, 1 - pulls + root, 1)
    strong = (pulls - 1 + root) / np.where(pulls < 1, 1, 2 * pulls)
    return np.clip(np.where(pulls < 1, weak, strong), 0, 1)


def _first(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The smallest whole number in [low, high] from which `holds` is true, `high` untried."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _check_population(population: int) -> None:
    if population < 1:
        raise ValueError(f"population is {population}; it holds at least 1 fault")


def _check_sample(count: int, n: int, population: int) -> None:
    _check_population(population)
    check_count(count, n)
    if n > population:
        raise ValueError(f"n is {n}; only {population} faults can be drawn without replacement")
