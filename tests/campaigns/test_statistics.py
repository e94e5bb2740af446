import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ftnas_jax.campaigns.statistics import (
    DIFFERENCES,
    deviation,
    image_error,
    mean,
    paired,
    proportion,
    quantile,
)

FALSE_ALARM = 1e-6
ACCURACIES = [0.61, 0.48, 0.72, 0.66, 0.59, 0.31, 0.70, 0.64]

shares = st.lists(st.floats(0, 1), min_size=1, max_size=40)
levels = st.floats(0.5, 0.999)


def covered(interval, truth) -> bool:
    return interval.low <= truth <= interval.high


# The mean


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_mean_is_scipys_t_interval(level):
    interval = mean(ACCURACIES, level=level)
    expected = stats.ttest_1samp(ACCURACIES, 0).confidence_interval(level)
    assert interval == pytest.approx((sum(ACCURACIES) / 8, *expected, level), rel=1e-12)
    assert interval.half_width == pytest.approx((expected.high - expected.low) / 2)


def test_a_critical_value_stands_in_for_the_t_quantile():
    expected = 3 * math.sqrt(sum((x - 0.58875) ** 2 for x in ACCURACIES) / 7 / 8)
    assert mean(ACCURACIES, critical=3.0).half_width == pytest.approx(expected)


def test_ends_are_cut_at_the_bounds_and_the_longer_arm_is_reported():
    interval = mean([1.0, 0.8], level=0.9)
    assert (interval.high, interval.half_width) == (1.0, interval.estimate - interval.low)
    assert mean([1.0, 0.0]).low == 0
    assert mean([1.0, 0.0], bounds=DIFFERENCES)[1:3] == (-1, 1)


def test_one_chip_says_nothing_of_the_spread():
    assert mean([0.7]) == (0.7, 0, 1, 0.95)
    assert mean([0.7], critical=2.0, bounds=DIFFERENCES)[1:3] == (-1, 1)
    assert math.isnan(deviation([0.7]))


@pytest.mark.parametrize("chips", [2, 5, 16, 100])
def test_chips_that_are_alike_leave_the_width_of_those_unseen(chips):
    interval = mean([0.9] * chips)
    share = stats.binomtest(0, chips).proportion_ci(0.95, "exact").high
    assert interval[:3] == pytest.approx((0.9, 0.9 - share * 0.9, 0.9 + share * 0.1))


@pytest.mark.parametrize("chips", [2, 3, 16])
@pytest.mark.parametrize("common", [1.0, 0.9, 0.5])
def test_alike_chips_mislead_no_more_often_than_they_say(chips, common):
    """By enumeration, of chips with one of two accuracies; about α/2 where it is worst."""
    missed = []
    for p in np.linspace(0, 1, 2001):
        truth, masses = p * common, {common: p, 0.0: 1 - p}
        wrong = [v for v in masses if not covered(mean([v] * chips), truth)]
        missed.append(sum(masses[v] ** chips for v in wrong))
    assert 0.02 < max(missed) <= 0.05


def test_what_differs_by_rounding_is_alike():
    a, b = np.array([0.3, 0.4, 0.9]), np.array([0.2, 0.3, 0.8])
    assert np.ptp(a - b) > 0
    assert paired(a, b).half_width > 0.5
    assert mean([0.1, 0.1 + 1e-8]).half_width > 0.5
    assert mean([0.1, 0.1 + 1e-5]).half_width < 0.001


@pytest.mark.parametrize("chips", [4, 8, 32])
def test_coverage_of_normal_chips_is_the_level(chips):
    campaigns = 0.5 + 0.05 * np.random.default_rng(chips).standard_normal((4000, chips))
    hits = sum(covered(mean(campaign, level=0.9), 0.5) for campaign in campaigns)
    assert stats.binomtest(hits, 4000, 0.9).pvalue > FALSE_ALARM


def test_coverage_of_skewed_chips_is_near_the_level():
    campaigns = np.random.default_rng(0).beta(20, 5, (4000, 16))
    assert 0.93 < np.mean([covered(mean(campaign), 0.8) for campaign in campaigns]) < 0.97


@given(values=shares, level=levels)
def test_the_mean_lies_within_its_interval_and_both_within_bounds(values, level):
    interval = mean(values, level=level)
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1
    assert interval.level == level


def test_deviation_divides_by_one_less_than_the_chips():
    assert deviation([0.2, 0.4]) == pytest.approx(0.2 / math.sqrt(2))


# Quantiles


def ranks(chips: int, q: float, level: float) -> tuple[int, int, int]:
    """Of low, estimate and high among the values; 0 and chips + 1 are the bounds."""
    values = np.arange(1, chips + 1) / (chips + 1)
    estimate, low, high, _ = quantile(values, q, level=level)
    low, estimate, high = (round(x * (chips + 1)) for x in (low, estimate, high))
    return low, estimate, high


def binomial(n: int, q: float) -> list[float]:
    return [math.comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(n + 1)]


@pytest.mark.parametrize("level", [0.81, 0.95])
@pytest.mark.parametrize("q", [0.05, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("chips", [1, 2, 7, 30, 100])
def test_quantile_takes_the_tightest_ranks_that_keep_each_tail(chips, q, level):
    tail, mass = (1 - level) / 2, binomial(chips, q)
    low, estimate, high = ranks(chips, q, level)
    assert low == max(rank for rank in range(chips + 1) if sum(mass[:rank]) <= tail)
    assert high == min(rank for rank in range(1, chips + 2) if sum(mass[rank:]) <= tail)
    assert estimate == min(k for k in range(1, chips + 1) if k >= chips * q - 1e-9)


def test_quantile_takes_a_whole_rank_for_whole():
    assert 100 * 0.07 > 7
    assert ranks(100, 0.07, 0.95)[1] == 7


def test_quantile_covers_whatever_is_tied():
    """All 3^6 samples of 6 chips with one of three accuracies, for each of its quantiles."""
    values, masses = np.array([0.1, 0.5, 0.9]), np.array([0.25, 0.35, 0.4])
    samples = list(itertools.product(range(3), repeat=6))
    for q, truth in [(0.1, 0.1), (0.25, 0.1), (0.4, 0.5), (0.6, 0.5), (0.61, 0.9), (0.9, 0.9)]:
        coverage = sum(
            masses[list(sample)].prod()
            for sample in samples
            if covered(quantile(values[list(sample)], q, level=0.8), truth)
        )
        assert coverage >= 0.8 - 1e-12


def test_quantile_of_few_chips_ends_at_the_bounds():
    assert quantile([0.5] * 71, 0.05)[:2] == (0.5, 0)
    assert quantile([0.5] * 72, 0.05)[:2] == (0.5, 0.5)
    assert quantile([0.5] * 5, 0.5)[1:3] == (0, 1)
    assert quantile([0.5] * 6, 0.5)[1:3] == (0.5, 0.5)
    assert quantile([0.5], 0.05, bounds=DIFFERENCES)[1:3] == (-1, 1)


@given(values=shares, q=st.floats(0.01, 0.99), level=levels)
def test_quantile_is_numpys_between_its_ends(values, q, level):
    interval = quantile(values, q, level=level)
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1
    near = [np.quantile(values, x, method="inverted_cdf") for x in (q - 1e-8, q, q + 1e-8)]
    assert interval.estimate in near


def test_coverage_of_the_worst_chips_is_at_least_the_level():
    truth = stats.beta(20, 5).ppf(0.05)
    campaigns = np.random.default_rng(1).beta(20, 5, (2000, 100))
    hits = sum(covered(quantile(campaign, 0.05), truth) for campaign in campaigns)
    assert stats.binomtest(hits, 2000, 0.95, "less").pvalue > FALSE_ALARM


# Shares


@pytest.mark.parametrize(("method", "name"), [("wilson", "wilson"), ("clopper_pearson", "exact")])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_proportion_is_scipys(method, name, level):
    for n in (1, 2, 9, 40):
        for count in range(n + 1):
            expected = stats.binomtest(count, n).proportion_ci(level, name)
            interval = proportion(count, n, level=level, method=method)
            assert interval[:3] == pytest.approx((count / n, *expected), abs=1e-9)


def test_clopper_and_pearson_never_cover_less_than_the_level():
    """By enumeration; Wilson does somewhere, and comes near on average."""
    rates = np.linspace(0.001, 0.999, 999)
    mass = np.array([binomial(12, rate) for rate in rates])
    coverage = {}
    for method in ("wilson", "clopper_pearson"):
        ends = [proportion(count, 12, method=method)[1:3] for count in range(13)]
        hit = [[low <= rate <= high for low, high in ends] for rate in rates]
        coverage[method] = (mass * hit).sum(1)
    assert coverage["clopper_pearson"].min() >= 0.95
    assert coverage["wilson"].min() < 0.95
    assert coverage["wilson"].mean() == pytest.approx(0.95, abs=0.01)


@given(count=st.integers(0, 10**6), more=st.integers(0, 10**6), level=levels)
def test_a_proportion_lies_within_its_interval(count, more, level):
    n = max(count + more, 1)
    for method in ("wilson", "clopper_pearson"):
        interval = proportion(count, n, level=level, method=method)
        assert 0 <= interval.low <= interval.estimate <= interval.high <= 1
        assert interval.half_width > 0


# Differences


def test_paired_is_scipys_t_interval_of_related_samples():
    others = [0.55, 0.50, 0.65, 0.66, 0.43, 0.30, 0.71, 0.52]
    expected = stats.ttest_rel(ACCURACIES, others).confidence_interval(0.9)
    assert paired(ACCURACIES, others, level=0.9)[1:3] == pytest.approx(tuple(expected))


def test_differences_are_cut_at_minus_one():
    assert paired([0.0, 0.1, 0.0], [1.0, 0.2, 1.0]).low == -1


# Images


def crossed(rng, images: int, chips: int) -> np.ndarray:
    """Which chips classify which images rightly, [chips, images]: harder images, worse chips."""
    ease, health = rng.normal(0.8, 1.2, images), rng.normal(0, 0.5, (chips, 1))
    return ease + health + rng.standard_normal((chips, images)) > 0


def mean_squares(right: np.ndarray) -> tuple[float, float, float]:
    """Of images, chips, and their interaction, by the table of the analysis of variance."""
    chips, images = right.shape
    by_image, by_chip, overall = right.mean(0), right.mean(1), right.mean()
    rest = right - by_image - by_chip[:, None] + overall
    return (
        chips * ((by_image - overall) ** 2).sum() / (images - 1),
        images * ((by_chip - overall) ** 2).sum() / (chips - 1),
        (rest**2).sum() / ((images - 1) * (chips - 1)),
    )


@pytest.mark.parametrize(("images", "chips"), [(2, 2), (10, 3), (300, 20)])
def test_image_error_is_the_component_of_variance(images, chips):
    right = crossed(np.random.default_rng(images), images, chips)
    by_images, _, interaction = mean_squares(right)
    expected = math.sqrt(max(by_images - interaction, 0) / chips / images)
    assert image_error(right.sum(0), right.mean(1)) == pytest.approx(expected, abs=1e-7)


def test_image_error_is_that_of_infinitely_many_chips():
    """A z-test of its square over 2000 campaigns of few chips."""
    rng = np.random.default_rng(5)
    # Right with probability Φ((ease) / √(1 + 0.5²)) over all chips, given the image.
    of_images = stats.norm.cdf(rng.normal(0.8, 1.2, 10**6) / math.sqrt(1.25)).var() / 50
    squares = []
    for _ in range(2000):
        right = crossed(rng, 50, 4)
        squares.append(image_error(right.sum(0), right.mean(1)) ** 2)
    z = (np.mean(squares) - of_images) / (np.std(squares) / math.sqrt(2000))
    assert 2 * stats.norm.sf(abs(z)) > FALSE_ALARM
    # Four standard errors of the test above are this near.
    assert np.mean(squares) == pytest.approx(of_images, rel=0.03)


def test_image_error_of_one_chip_is_that_of_its_accuracy():
    right = np.arange(100) < 80
    assert image_error(right, [0.8]) == pytest.approx(math.sqrt(0.8 * 0.2 / 99))


def test_image_error_is_zero_where_images_are_alike_and_unknown_for_one():
    # Images differ by less than their noise would have them: the estimate is cut at 0.
    assert image_error([1, 1, 1, 1], [1.0, 0.0]) < 1e-7
    assert image_error([2, 2, 2, 2], [0.5, 0.5, 0.5, 0.5]) == 0
    assert image_error([4, 4, 4], [1.0] * 4) == 0
    assert math.isnan(image_error([3], [1.0, 1.0, 1.0, 0.0]))


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean([]), r"values have shape \(0,\); give one accuracy for each chip"),
        (lambda: mean([[0.5]]), r"values have shape \(1, 1\)"),
        (lambda: mean([0.5, 64.8]), r"chip 1 has 64.8, outside \[0, 1\]; give shares, not percent"),
        (lambda: mean([0.5, math.nan]), "chip 1 has nan"),
        (lambda: mean([-1.5], bounds=DIFFERENCES), r"outside \[-1, 1\]"),
        (lambda: mean([0.5], level=95), "level is 95; .* between 0 and 1"),
        (lambda: quantile([0.5], 5), "q is 5; a quantile lies between 0 and 1"),
        (lambda: quantile([0.5], 0.0), "q is 0.0"),
        (lambda: quantile([], 0.5), "values have shape"),
        (lambda: proportion(1, 0), "n is 0; a share needs at least 1 trial"),
        (lambda: proportion(5, 4), "count is 5; of n = 4 trials"),
        (lambda: proportion(-1, 4), "count is -1"),
        (lambda: proportion(0.5, 4), "count is 0.5"),  # pyright: ignore
        (lambda: proportion(1, 4, method="wald"), "method is 'wald'; choose"),  # pyright: ignore
        (lambda: paired([0.5], [0.5, 0.5]), "1 and 2 chips; give both on the same chips"),
        (lambda: paired([0.5], [50.0]), "chip 0 has 50.0"),
        (lambda: image_error([3, 1], [0.5, 0.5]), "rights lie in 1 to 3, not 0 to 2"),
        (lambda: image_error([[1]], [0.5]), r"rights have shape \(1, 1\); give one count"),
        (lambda: image_error([1, 1], [0.5, 0.6]), "rights say 0.50000, values 0.55000; give both"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_image_error_of_a_difference_is_that_of_the_analysis_of_variance():
    rng = np.random.default_rng(5)
    images, chips = 40, 7
    easy = rng.random((images, 1))
    a, b = (rng.random((images, chips)) < easy**power for power in (1.0, 0.5))
    d = a.astype(float) - b
    means = d.mean(1)
    within = d.var(1, ddof=1).mean()
    by_chip = d.mean(0).var(ddof=1)
    expected = means.var(ddof=1) - images / (images - 1) * (within - by_chip) / chips
    found = image_error(d.sum(1), d.mean(0), (a != b).sum(1))
    assert found == pytest.approx(np.sqrt(max(expected, 0.0) / images))
    alone = image_error(a.sum(1), a.mean(0), a.sum(1))
    assert alone == image_error(a.sum(1), a.mean(0))
