"""Hypothesis tests with a false-alarm rate of 1e-6 for each assertion."""

import numpy as np
from scipy import stats

FALSE_ALARM = 1e-6


def assert_rate(hits, n, rate):
    """Exact binomial test."""
    assert stats.binomtest(int(hits), int(n), rate).pvalue > FALSE_ALARM, (hits / n, rate)


def assert_counts(counts, probabilities):
    """Chi-square test of counts of independent outcomes."""
    counts, probabilities = np.ravel(counts), np.ravel(probabilities)
    expected = counts.sum() * probabilities / probabilities.sum()
    assert expected.min() >= 5, "the chi-square needs more draws"
    assert stats.chisquare(counts, expected).pvalue > FALSE_ALARM, (counts, expected)


def assert_alike(counts, others):
    """Chi-square test that two samples of the same outcomes have one distribution."""
    table = np.stack([np.ravel(counts), np.ravel(others)])
    assert stats.contingency.expected_freq(table).min() >= 5, "the chi-square needs more draws"
    assert stats.chi2_contingency(table).pvalue > FALSE_ALARM, table


def assert_positions(hits, rate):
    """Chi-square test that each column of `hits` [maps, positions] has `rate`."""
    maps, positions = hits.shape
    excess = (hits.sum(0) - maps * rate) ** 2 / (maps * rate * (1 - rate))
    assert stats.chi2.sf(excess.sum(), positions) > FALSE_ALARM, hits.mean(0)


def assert_independent(hits, rate):
    """Chi-square test of all patterns of the few positions of `hits` [maps, positions]."""
    positions = hits.shape[1]
    pattern = hits @ (1 << np.arange(positions))
    number = np.array([bin(code).count("1") for code in range(2**positions)])
    counts = np.bincount(pattern, minlength=2**positions)
    assert_counts(counts, rate**number * (1 - rate) ** (positions - number))


def assert_distribution(values, distribution):
    """Kolmogorov-Smirnov test of independent values."""
    assert stats.kstest(np.ravel(values), distribution.cdf).pvalue > FALSE_ALARM


def assert_uncorrelated(x, y):
    """z-test of the mean product of independent standard numbers."""
    z = np.mean(np.ravel(x) * np.ravel(y)) * np.sqrt(np.size(x))
    assert 2 * stats.norm.sf(abs(z)) > FALSE_ALARM, z
