"""Failures of independent trials, drawn densely, by gaps, and for several keys at once.

Every statistical test has a fixed seed and a false-alarm rate of 1e-6 for each assertion.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import every_path, force
from scipy import stats
from significance import (
    FALSE_ALARM,
    assert_counts,
    assert_independent,
    assert_positions,
    assert_rate,
)

from ftnas_jax.faults import bernoulli

# Sparse positions in one chunk if they fit, in chunks of the usual size, and one at a time.
CHUNKS = [("dense", None), ("sparse", 1), ("sparse", None), ("sparse", 2**30)]
every_chunk = pytest.mark.parametrize(("path", "chunks"), CHUNKS)


def digits(words):
    """Values 1 .. 9."""
    return (words % 9 + 1).astype(jnp.int8)


def draw(rate, rows, size, *, values=None, seed=0, nested=False):
    """Failures [rows, size] under a fresh trace."""

    @jax.jit
    def failures(keys):
        return bernoulli.failures(keys, size, bernoulli.as_rate(rate), values, nested=nested)

    return np.asarray(failures(jax.random.split(jax.random.key(seed), rows)))


@every_path
def test_as_many_fail_as_the_rate_says(monkeypatch, path):
    """Binomial test of 2^16 trials at each rate."""
    force(monkeypatch, path)

    @jax.jit
    def failed(rate):
        keys = jax.random.split(jax.random.key(0), 1)
        return bernoulli.failures(keys, 2**16, bernoulli.as_rate(rate)).sum(dtype=jnp.int32)

    for rate in np.float32([2e-4, 0.04, 0.4, 0.5, 0.51, 0.7, 0.99]):
        assert_rate(failed(jnp.asarray(rate)), 2**16, float(rate))


@every_path
def test_rate_0_and_rate_1_are_certain(monkeypatch, path):
    force(monkeypatch, path)
    assert not np.any(draw(0.0, 2, 500))
    assert not np.any(draw(jnp.float32(0), 2, 500))
    assert np.all(draw(jnp.float32(1), 2, 500))
    assert np.all(draw(1.0, 2, 500))


@every_chunk
def test_positions_fail_independently(monkeypatch, path, chunks):
    """Chi-square over the 16 patterns of 4 positions."""
    force(monkeypatch, path, chunks)
    assert_independent(draw(0.3, 20_000, 4), 0.3)


@every_chunk
def test_rows_of_several_keys_are_independent(monkeypatch, path, chunks):
    """Chi-square over the 16 patterns of 4 rows at one position, which differ in their keys."""
    force(monkeypatch, path, chunks)
    assert_independent(draw(0.3, 4, 20_000).T, 0.3)


@every_chunk
def test_the_last_position_fails_as_often_as_the_first(monkeypatch, path, chunks):
    """Chi-square over positions, binomial tests of both ends, chi-square of failures in a row."""
    rate = 0.05
    force(monkeypatch, path, chunks)
    hits = draw(rate, 8192, 30)
    assert_positions(hits, rate)
    assert_rate(hits[:, 0].sum(), 8192, rate)
    assert_rate(hits[:, -1].sum(), 8192, rate)
    # The number of failures of a row is binomial, not only right on average.
    counts = np.bincount(np.minimum(hits.sum(1), 5), minlength=6)
    assert_counts(
        counts, np.append(stats.binom.pmf(range(5), 30, rate), stats.binom.sf(4, 30, rate))
    )


@every_chunk
def test_gaps_are_geometric_and_blocks_alike_in_a_long_row(monkeypatch, path, chunks):
    """Chi-square over gaps and over 32 blocks of one row."""
    size, rate = 2**17, 0.04
    force(monkeypatch, path, chunks)
    hits = draw(rate, 1, size, seed=3)[0]
    edges = np.array([0, 1, 2, 3, 5, 8, 12, 18, 25, 40, 60, 100, np.inf])
    counts, _ = np.histogram(np.diff(np.flatnonzero(hits)), edges + 0.5)
    assert_counts(counts, np.diff(1 - (1 - rate) ** edges))
    in_block = hits.reshape(32, -1).sum(1)
    variance = size / 32 * rate * (1 - rate)
    excess = (in_block - size / 32 * rate) ** 2 / variance
    assert stats.chi2.sf(excess.sum(), 32) > FALSE_ALARM, in_block


@every_path
def test_values_do_not_depend_on_the_position(monkeypatch, path):
    """Chi-square over sound and 9 values at each of 8 positions."""
    force(monkeypatch, path)
    nine = draw(0.5, 8192, 8, values=digits)
    counts = (nine[:, :, None] == np.arange(10)).sum(0)
    share = np.array([0.5] + [0.5 / 9] * 9)
    excess = (counts - 8192 * share) ** 2 / (8192 * share)
    assert stats.chi2.sf(excess.sum(), 8 * 9) > FALSE_ALARM


@every_chunk
def test_a_row_depends_on_its_key_and_not_on_those_drawn_with_it(monkeypatch, path, chunks):
    force(monkeypatch, path, chunks)

    @functools.partial(jax.jit, static_argnums=1)
    def rows(seeds, rate):
        keys = jax.vmap(jax.random.key)(seeds)
        return bernoulli.failures(keys, 200, bernoulli.as_rate(rate), digits)

    together = np.asarray(rows(jnp.arange(6), 0.07))
    assert len({row.tobytes() for row in together}) == 6
    for seed, row in enumerate(together):
        np.testing.assert_array_equal(rows(jnp.array([seed]), 0.07)[0], row)
    np.testing.assert_array_equal(rows(jnp.arange(6)[::-1], 0.07)[::-1], together)


def test_many_rows_take_the_path_of_one(monkeypatch):
    """Rows of 600 lie within the exact floats, six of them beyond."""
    monkeypatch.setattr(bernoulli, "_EXACT_FLOAT", 2**10)
    together = draw(0.05, 6, 600, values=digits)

    @jax.jit
    def alone(number):
        key = jax.random.split(jax.random.key(0), 6)[number]
        return bernoulli.failures(key[None], 600, bernoulli.as_rate(0.05), digits)[0]

    for number, row in enumerate(together):
        np.testing.assert_array_equal(alone(number), row)


def test_failures_of_a_key_at_a_rate_are_among_those_at_a_higher_one():
    """Binomial test at each rate."""

    @jax.jit
    def nested(rate):
        keys = jax.random.split(jax.random.key(0), 3)
        return bernoulli.failures(keys, 4096, bernoulli.as_rate(rate), digits, nested=True)

    last = np.zeros((3, 4096), np.int8)
    for rate in (1e-3, 0.02, 0.079, 0.081, 0.4, 0.7, 1.0):
        now = np.asarray(nested(jnp.float32(rate)))
        np.testing.assert_array_equal(now[last != 0], last[last != 0])
        assert_rate(np.count_nonzero(now), now.size, float(np.float32(rate)))
        last = now
    assert np.all(last)


def test_bits_of_a_code_fail_on_their_own():
    """Chi-square over the 16 patterns of the 4 bits of a code."""
    keys = jax.random.split(jax.random.key(0), 2)
    rate = bernoulli.as_rate(0.4)
    found = jax.jit(lambda keys: bernoulli.bit_failures(keys, 10_000, 4, rate))(keys)
    assert found.shape == (2, 10_000, 4)
    assert found.dtype == jnp.int32
    assert_independent(np.asarray(found).reshape(-1, 4), 0.4)


def exact_gaps(words, rate):
    """The geometric distribution's inverse at (w + 1/2) / 2^32, in float64.

    The survival 1 - u is formed from integers, so that it keeps its digits near u = 1.
    """
    survival = (2**32 - words.astype(np.float64) - 0.5) / 2**32
    small = -np.log1p(-(words + 0.5) / 2**32)
    exponential = np.where(words < 2**31, small, -np.log(survival))
    return np.floor(exponential / -np.log1p(-rate)) + 1


@pytest.mark.parametrize("rate", [1e-6, 1e-3, 0.05, 0.6])
@pytest.mark.parametrize("as_rate", [float, jnp.float32], ids=["float", "jax"])
def test_gaps_follow_every_word_to_both_ends(rate, as_rate):
    low = [0, 1, 2, 100, 2**16, 2**24 + 1, 2**31 - 1]
    high = [2**31, 2**32 - 2**24, 2**32 - 2**16, 2**32 - 2**10, 2**32 - 200]
    last = [2**32 - 128, 2**32 - 64, 2**32 - 2, 2**32 - 1]
    words = np.array(low + high + last, np.int64)
    fixed = jnp.asarray(words.astype(np.uint32))
    rate = as_rate(rate)
    gaps = bernoulli._geometric_gaps(fixed, bernoulli.as_rate(rate))
    # Rows that are drawn by gaps are shorter than 2^24. Rounding in float32 may move a gap by a
    # part in 2^21, and by one at a boundary.
    gaps, exact = np.minimum(gaps, 2**24), np.minimum(exact_gaps(words, float(rate)), 2**24)
    np.testing.assert_allclose(gaps, exact, rtol=2**-21, atol=1)


def test_positions_are_exact_in_the_longest_sparse_row():
    """Odd and even positions of the upper half fail alike; binomial tests."""
    size, rate = 2**24 - 1, 1e-4
    places = np.flatnonzero(draw(rate, 1, size)[0])
    assert_rate(places.size, size, rate)
    upper = places[places > 2**23]
    assert_rate(upper.size, 2**23 - 2, rate)
    assert_rate(np.sum(upper % 2), upper.size, 0.5)


@pytest.mark.parametrize("rate", [1e-30, 1e-14])
def test_hardly_ever_is_hardly_ever(rate):
    """2^20 trials at 1e-14: a failure is a false alarm of 1e-8."""
    assert not np.any(draw(rate, 1, 2**20))
