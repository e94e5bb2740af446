import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ftnas_jax.campaigns import statistics
from ftnas_jax.campaigns.stopping import Rule, chips_needed, decide

FALSE_ALARM = 1e-6
CAMPAIGNS = 10_000

NEEDED = (0.5, 1, 2, 3, 5, 10)
"""Chips that a known spread would need, in units of those at the first look."""


def coverage(rule: Rule, critical, draw, truth: float, spread: float, needed: float) -> float:
    """Share of campaigns that hold the truth, each followed from its first chip to its stop."""
    margin = stats.norm.isf((1 - rule.level) / 2) * spread / math.sqrt(needed)
    values = draw(np.random.default_rng(7), (CAMPAIGNS, rule.max_chips))
    means, arms = [], []
    for look, c in zip(rule.looks, critical, strict=True):
        means.append(values[:, :look].mean(1))
        arms.append(c * values[:, :look].std(1, ddof=1) / math.sqrt(look))
    narrow = np.array(arms) <= margin
    narrow[-1] = True
    stop = narrow.argmax(0), np.arange(CAMPAIGNS)
    return float(np.mean(np.abs(np.array(means)[stop] - truth) <= np.array(arms)[stop]))


def corrected(rule: Rule) -> list[float]:
    return [rule.critical(look) for look in rule.looks]


def plain(rule: Rule) -> list[float]:
    return [float(stats.t.ppf((1 + rule.level) / 2, look - 1)) for look in rule.looks]


def normal(rng, shape):
    return 0.5 + 0.02 * rng.standard_normal(shape)


def skewed(rng, shape):
    return rng.beta(20, 5, shape)


# Looks


def test_looks_grow_by_a_quarter_from_the_least_to_the_most():
    assert Rule(min_chips=16, max_chips=64).looks == (16, 20, 25, 31, 39, 49, 61, 64)
    assert Rule(min_chips=4, max_chips=7, growth=1.05).looks == (4, 5, 6, 7)
    assert Rule(min_chips=10, max_chips=10).looks == (10,)


@given(least=st.integers(4, 200), more=st.integers(0, 2000), growth=st.floats(1.05, 3))
def test_looks_go_up_to_the_last(least, more, growth):
    looks = Rule(min_chips=least, max_chips=least + more, growth=growth).looks
    assert (looks[0], looks[-1]) == (least, least + more)
    for now, later in itertools.pairwise(looks):
        assert now < later <= max(now + 1, now * growth + 0.5)


# Critical values


def test_a_single_look_needs_no_correction():
    rule = Rule(min_chips=12, max_chips=12, level=0.9)
    assert rule.critical(12) == pytest.approx(stats.t.ppf(0.95, 11))


def test_critical_values_lie_above_students_and_come_near_with_many_chips():
    few, many = Rule(min_chips=4, max_chips=256), Rule(min_chips=64, max_chips=1024)
    assert all(c > t for c, t in zip(corrected(few), plain(few), strict=True))
    assert sorted(corrected(few), reverse=True) == corrected(few)
    assert few.error_rate < 0.03 < 0.045 < many.error_rate < 0.05


def exact_coverage(n: int, m: int, critical: tuple[float, float], margin: float) -> float:
    """Of normal chips (σ = 1) that are looked at after n and m, by quadrature."""
    c, d = critical
    quantiles = (np.arange(2000) + 0.5) / 2000
    first = stats.chi2.ppf(quantiles, n - 1)
    stopped = c * np.sqrt(first / (n - 1) / n) <= margin
    at_first = 2 * stats.norm.cdf(c * np.sqrt(first / (n - 1))) - 1
    total = first[:, None] + stats.chi2.ppf(quantiles[10::20], m - n)
    at_second = (2 * stats.norm.cdf(d * np.sqrt(total / (m - 1))) - 1).mean(1)
    return float(np.where(stopped, at_first, at_second).mean())


@pytest.mark.parametrize("level", [0.9, 0.99])
@pytest.mark.parametrize(("n", "m"), [(4, 40), (10, 12), (16, 64)])
def test_two_looks_keep_the_level_exactly(n, m, level):
    """Neither less at the worst margin than asked for, nor more than need be."""
    rule = Rule(min_chips=n, max_chips=m, level=level, growth=m / n)
    assert rule.looks == (n, m)
    critical = rule.critical(n), rule.critical(m)
    margins = np.geomspace(0.1, 5, 60) * critical[0] / math.sqrt(n)
    worst = min(exact_coverage(n, m, critical, margin) for margin in margins)
    assert worst == pytest.approx(level, abs=0.03 * (1 - level))


@pytest.mark.parametrize("least", [4, 8, 16])
def test_coverage_of_normal_chips_is_at_least_the_level(least):
    rule = Rule(min_chips=least, max_chips=12 * least)
    found = [coverage(rule, corrected(rule), normal, 0.5, 0.02, x * least) for x in NEEDED]
    for share in found:
        hits = round(share * CAMPAIGNS)
        assert stats.binomtest(hits, CAMPAIGNS, 0.95, "less").pvalue > FALSE_ALARM
    assert max(found) < 0.98


def test_looking_often_at_plain_t_intervals_covers_less():
    """A binomial test refuses 95 %, and 93 % too, where the first look is after 4 chips."""
    rule = Rule(min_chips=4, max_chips=48)
    share = coverage(rule, plain(rule), normal, 0.5, 0.02, 12)
    assert stats.binomtest(round(share * CAMPAIGNS), CAMPAIGNS, 0.93, "less").pvalue < FALSE_ALARM


@pytest.mark.parametrize("least", [8, 16])
def test_coverage_of_skewed_chips_is_near_the_level(least):
    rule, spread = Rule(min_chips=least, max_chips=12 * least), float(stats.beta(20, 5).std())
    for needed in NEEDED:
        share = coverage(rule, corrected(rule), skewed, 0.8, spread, needed * least)
        assert 0.93 < share < 0.97


# Decisions


def first_stop(values: np.ndarray, margin: float, rule: Rule) -> int | None:
    """Chips at which a campaign stops, written out; None where it goes on."""
    for look in rule.looks:
        if look > len(values):
            return None
        error = np.std(values[:look], ddof=1) / math.sqrt(look)
        if look == rule.max_chips or rule.critical(look) * error <= margin:
            return look
    return None


@given(seed=st.integers(0, 2**32), chips=st.integers(1, 150), margin=st.floats(0.005, 0.1))
@settings(max_examples=60, deadline=None)
def test_a_campaign_stops_at_the_first_look_that_is_narrow_enough(seed, chips, margin):
    rule = Rule(min_chips=6, max_chips=100)
    values = np.random.default_rng(seed).beta(20, 5, chips)
    decision, stop = decide(values, margin, rule), first_stop(values, margin, rule)
    assert decision.stop == (stop is not None)
    assert decision.chips == (stop or chips)
    assert decision.reached == (decision.interval.half_width <= margin)
    assert decision.interval.estimate == pytest.approx(values[: decision.chips].mean())
    # Chips run beyond the stop change nothing.
    if stop:
        assert decision == decide(values[:stop], margin, rule)


def test_the_interval_has_the_corrected_width():
    rule = Rule(min_chips=4, max_chips=100)
    values = np.random.default_rng(3).beta(20, 5, 50)
    decision = decide(values, 1e-3, rule)
    expected = rule.critical(50) * values.std(ddof=1) / math.sqrt(50)
    assert (decision.stop, decision.chips) == (False, 50)
    assert decision.interval.half_width == pytest.approx(expected)
    assert decision.interval.level == 0.95


def test_a_campaign_ends_with_its_last_chip_whatever_it_reached():
    values = np.random.default_rng(0).random(200)
    decision = decide(values, 1e-3, Rule(min_chips=8, max_chips=100))
    assert (decision.stop, decision.reached, decision.chips) == (True, False, 100)


def test_between_looks_a_campaign_goes_on():
    rule = Rule(min_chips=16, max_chips=100)
    values = 0.5 + 0.3 * (np.arange(19) < 16) * (-1) ** np.arange(19)
    margin = decide(values[:16], 1e-9, rule).interval.half_width * 0.99
    decision = decide(values, margin, rule)
    assert (decision.stop, decision.reached, decision.chips) == (False, True, 19)


def test_chips_that_are_alike_do_not_end_a_campaign_at_once():
    rule = Rule(min_chips=16, max_chips=1024)
    assert not decide([0.9] * 300, 0.01, rule).stop
    stop = decide([0.9] * 1024, 0.01, rule)
    assert stop.chips == next(n for n in rule.looks if 0.9 * (1 - 0.025 ** (1 / n)) <= 0.01)
    assert stop.reached


def test_one_chip_alone_decides_nothing():
    assert decide([0.9], 0.01, Rule()).interval[1:3] == (0, 1)


def test_differences_have_bounds_of_their_own():
    values = [-0.3, -0.2, -0.25, -0.31]
    rule = Rule(min_chips=4, max_chips=4)
    decision = decide(values, 0.5, rule, bounds=statistics.DIFFERENCES)
    assert decision.interval == statistics.mean(values, bounds=statistics.DIFFERENCES)


# Planning


@pytest.mark.parametrize("spread", [0.001, 0.02, 0.1])
def test_chips_needed_is_the_first_look_that_is_enough(spread):
    rule = Rule(min_chips=8, max_chips=2000)
    found = chips_needed(spread, 0.01, rule)
    arms = {n: rule.critical(n) * spread / math.sqrt(n) for n in rule.looks}
    assert found == next(n for n in rule.looks if arms[n] <= 0.01)


def test_chips_needed_says_when_no_look_is_enough():
    assert chips_needed(0.1, 0.001, Rule(min_chips=8, max_chips=256)) is None


def test_a_pilot_of_chips_that_were_alike_plans_as_they_would_stop():
    rule = Rule(min_chips=16, max_chips=1024)
    assert chips_needed(0.0, 0.01, rule) == decide([1.0] * 1024, 0.01, rule).chips


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Rule(min_chips=3), "min_chips is 3; it is at least 4"),
        (lambda: Rule(min_chips=16, max_chips=8), "max_chips is 8; it is at least min_chips, 16"),
        (lambda: Rule(level=1.0), "level is 1.0; a confidence level"),
        (lambda: Rule(growth=1.0), "growth is 1.0; it is a number from 1.05 on"),
        (lambda: Rule(growth=math.nan), "growth is nan"),
        (lambda: decide([0.5], 0.0, Rule()), "margin is 0.0; a half-width to reach is above 0"),
        (lambda: decide([0.5], math.nan, Rule()), "margin is nan"),
        (lambda: decide([], 0.01, Rule()), "values have shape"),
        (lambda: decide([50.0] * 20, 0.01, Rule()), "give shares, not percent"),
        (lambda: chips_needed(math.nan, 0.01, Rule()), "deviation is nan; it takes two chips"),
        (lambda: chips_needed(-0.1, 0.01, Rule()), "deviation is -0.1"),
        (lambda: chips_needed(0.1, -0.01, Rule()), "margin is -0.01"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
