import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ftnas_jax.campaigns.finite import allocate, sample_size, share, stratified
from ftnas_jax.campaigns.statistics import proportion


def hypergeometric(population: int, critical: int, n: int) -> np.ndarray:
    """P(X = k) for k = 0 to n, by counting."""
    ways = [math.comb(critical, k) * math.comb(population - critical, n - k) for k in range(n + 1)]
    return np.array(ways) / math.comb(population, n)


@st.composite
def samples(draw, most=10**12):
    population = draw(st.integers(1, most))
    n = draw(st.integers(1, min(population, 10**5)))
    return draw(st.integers(0, n)), n, population


# Sample sizes


@pytest.mark.parametrize("p", [0.5, 0.1])
@pytest.mark.parametrize("level", [0.95, 0.998])
@pytest.mark.parametrize("margin", [0.01, 0.05])
@pytest.mark.parametrize("population", [1, 2, 100, 3000])
def test_sample_size_is_the_least_that_reaches_the_margin(population, margin, level, p):
    t = stats.norm.ppf((1 + level) / 2)

    def error(n):
        return t * math.sqrt(p * (1 - p) / n * (population - n) / max(population - 1, 1))

    assert sample_size(population, margin, level=level, p=p) == next(
        n for n in range(1, population + 1) if error(n) <= margin
    )


def test_sample_size_of_a_large_population_is_the_textbooks():
    assert sample_size(10**12, 0.05) == 385
    assert sample_size(10**12, 0.01) == 9604
    assert sample_size(10**9, 1e-9) <= 10**9


def test_each_stratum_has_a_sample_size_of_its_own():
    assert allocate([10, 10**9], 0.05) == (sample_size(10, 0.05), sample_size(10**9, 0.05))
    assert allocate([], 0.05) == ()


# One population


@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize(("population", "n"), [(1, 1), (6, 2), (14, 5), (14, 13), (30, 12)])
def test_share_holds_what_neither_tail_refuses(population, n, level):
    tail = (1 - level) / 2
    masses = [hypergeometric(population, critical, n) for critical in range(population + 1)]
    for count in range(n + 1):
        kept = [
            critical
            for critical, mass in enumerate(masses)
            if mass[count:].sum() > tail and mass[: count + 1].sum() > tail
        ]
        interval = share(count, n, population, level=level)
        low, high = min(kept) / population, max(kept) / population
        assert interval == (count / n, min(low, count / n), max(high, count / n), level)


@pytest.mark.parametrize(("population", "n"), [(20, 6), (50, 10), (60, 59), (200, 60)])
def test_share_never_covers_less_than_the_level(population, n):
    intervals = [share(count, n, population) for count in range(n + 1)]
    for critical in range(population + 1):
        truth = critical / population
        hit = [interval.low <= truth <= interval.high for interval in intervals]
        assert hypergeometric(population, critical, n) @ hit >= 0.95


def test_share_of_a_large_population_is_clopper_and_pearsons():
    expected = proportion(12, 1000, method="clopper_pearson")
    assert share(12, 1000, 10**9) == pytest.approx(expected, abs=1e-7)
    assert share(12, 1000, 10**15) == expected
    # A finite one is known better.
    assert share(12, 1000, 2000).high < expected.high - 0.001


def test_share_of_all_faults_is_known():
    assert share(3, 12, 12)[:3] == (0.25, 0.25, 0.25)


@given(sample=samples(), level=st.floats(0.5, 0.999))
@settings(deadline=None)
def test_a_share_lies_within_its_interval(sample, level):
    interval = share(*sample, level=level)
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1


# Strata


def most_likely_variance(counts, ns, populations, t: float) -> float:
    """V at the most likely shares of two strata with mean t, on a fine grid of the first."""
    counts, ns, populations = (np.array(x, float) for x in (counts, ns, populations))
    weights = populations / populations.sum()
    known = (populations - 1) / (populations - ns)
    first = np.linspace(0, min(1, t / weights[0]), 2_000_001)
    shares = np.stack([first, (t - weights[0] * first) / weights[1]])
    right = (shares >= 0).all(0) & (shares <= 1).all(0)
    shares = shares[:, right]
    with np.errstate(divide="ignore", invalid="ignore"):
        hits = np.where(counts[:, None] > 0, counts[:, None] * np.log(shares), 0)
        sound = np.where((ns - counts)[:, None] > 0, (ns - counts)[:, None] * np.log1p(-shares), 0)
    best = shares[:, (known @ (hits + sound)).argmax()]
    return float(np.sum(weights**2 * best * (1 - best) / ns / known))


@pytest.mark.parametrize(
    ("counts", "ns", "populations"),
    [
        ((3, 1), (20, 40), (300, 200)),
        ((0, 2), (50, 10), (100, 700)),
        ((0, 0), (30, 20), (500, 400)),
        ((12, 5), (12, 15), (40, 90)),
    ],
)
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_strata_are_held_to_the_most_likely_shares(counts, ns, populations, level):
    interval = stratified(counts, ns, populations, level=level)
    z, total = stats.norm.ppf((1 + level) / 2), sum(populations)
    step = min(size / total / n for size, n in zip(populations, ns, strict=True))
    for end in (interval.low, interval.high):
        if 0 < end < 1:
            variance = most_likely_variance(counts, ns, populations, end)
            distance = abs(end - interval.estimate) - step / 2
            assert distance == pytest.approx(z * math.sqrt(variance), abs=2e-5)


def test_one_stratum_has_wilsons_interval():
    """With the corrections for a finite population and for continuity, from its equation."""
    for count in range(1, 30):
        interval, z2 = stratified([count], [30], [100]), stats.norm.ppf(0.975) ** 2
        for end in interval[1:3]:
            variance = end * (1 - end) / 30 * 70 / 99
            inside = count / 100 < end < 1 - (30 - count) / 100
            distance = abs(end - count / 30) - 1 / 60
            assert not inside or distance**2 == pytest.approx(z2 * variance, abs=1e-9)


@pytest.mark.parametrize(
    ("populations", "ns"), [((20, 30), (8, 10)), ((60, 10), (8, 3)), ((12, 30), (11, 10))]
)
def test_coverage_of_strata_is_near_the_level_for_every_share(populations, ns):
    """By enumeration of all samples of all populations with two strata."""
    counts = list(itertools.product(*(range(n + 1) for n in ns)))
    ends = np.array([stratified(each, ns, populations)[1:3] for each in counts])
    masses = [
        [hypergeometric(size, critical, n) for critical in range(size + 1)]
        for size, n in zip(populations, ns, strict=True)
    ]
    found = []
    for first, second in itertools.product(*(range(size + 1) for size in populations)):
        truth = (first + second) / sum(populations)
        hit = (ends[:, 0] <= truth + 1e-9) & (truth <= ends[:, 1] + 1e-9)
        found.append(np.outer(masses[0][first], masses[1][second]).ravel() @ hit)
    assert min(found) > 0.93
    assert np.mean(np.array(found) >= 0.95) > 0.9


def test_strata_without_critical_faults_share_one_bound():
    """Eight strata of 100 sound faults say nearly what 800 of one population say."""
    interval = stratified([0] * 8, [100] * 8, [1000] * 8)
    together = share(0, 800, 8000)
    assert interval[:2] == (0, 0)
    assert together.high < interval.high < 1.5 * together.high


def test_a_stratum_that_is_known_only_dilutes_the_others():
    alone, beside = stratified([4], [30], [100]), stratified([4, 0], [30, 100], [100, 100])
    assert beside[:3] == pytest.approx(np.array(alone[:3]) / 2, rel=1e-9)


@given(
    strata=st.lists(samples(most=20) | samples(most=10**6), min_size=1, max_size=5),
    level=st.floats(0.5, 0.999),
)
@settings(deadline=None)
def test_strata_have_a_width_unless_all_was_looked_at(strata, level):
    counts, ns, populations = zip(*strata, strict=True)
    interval = stratified(counts, ns, populations, level=level)
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1
    assert (interval.half_width > 1e-12) == (ns != populations)
    # What was found sound or critical is certain.
    assert interval.low >= sum(counts) / sum(populations) - 1e-12
    assert interval.high <= 1 - (sum(ns) - sum(counts)) / sum(populations) + 1e-12


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_size(0, 0.01), "population is 0; it holds at least 1 fault"),
        (lambda: sample_size(10, 0.0), "margin is 0.0; it lies between 0 and 1"),
        (lambda: sample_size(10, 1), "margin is 1;"),
        (lambda: sample_size(10, 0.1, p=1.0), "p is 1.0; an expected share"),
        (lambda: sample_size(10, 0.1, level=95), "level is 95;"),
        (lambda: share(0, 11, 10), "n is 11; only 10 faults can be drawn"),
        (lambda: share(3, 2, 10), "count is 3; of n = 2"),
        (lambda: share(0, 0, 10), "n is 0; a share needs"),
        (lambda: stratified([], [], []), "0 counts, 0 samples, 0 populations; give one of each"),
        (lambda: stratified([0], [1, 1], [5, 5]), "1 counts, 2 samples, 2 populations"),
        (lambda: stratified([0, 0], [1, 0], [5, 5]), "n is 0"),
        (lambda: stratified([0], [1], [5], level=2), "level is 2"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
