"""MiBB bit by bit against Eq. 8, and in distribution.

Every statistical test has a fixed seed and a false-alarm rate of 1e-6 for each assertion.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import (
    EIGHT,
    EIGHT_SIGNED,
    all_codes,
    compounded,
    every_path,
    force,
    many_maps,
    maps_at,
    one_map,
    sample,
)
from scipy import stats
from significance import FALSE_ALARM, assert_alike, assert_counts, assert_rate

from ftnas_jax.faults import BitBias, MiBB, Place
from ftnas_jax.fixed_point import FixedPoint


@pytest.mark.parametrize("fmt", [FixedPoint(2), EIGHT, FixedPoint(5), EIGHT_SIGNED, FixedPoint(16)])
def test_a_bias_of_eq_8_is_added_and_saturates(fmt):
    low, *_, high = all_codes(fmt).tolist()
    codes = np.linspace(low, high, 257).astype(np.int32)
    alpha, beta = np.meshgrid(np.arange(fmt.bits), [0, 1])
    bias = ((-1) ** beta * 2**alpha).ravel()
    places = ((-1) ** beta * (alpha + 1)).astype(np.int8).ravel()  # how a map holds them
    expected = np.array([[min(max(int(c) + int(b), low), high) for b in bias] for c in codes])
    grid = np.broadcast_to(codes[:, None], expected.shape)
    maps = np.broadcast_to(places[None], expected.shape)
    got = MiBB().apply(jnp.asarray(grid), jnp.asarray(maps), fmt)
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got, expected)


def test_the_sign_bit_is_reached():
    fault_map = jnp.array([-8, 8, -7, 7, 0], jnp.int8)
    got = MiBB().apply(jnp.array([5, -5, 3, -3, 9], jnp.int32), fault_map, EIGHT)
    assert got.tolist() == [-123, 123, -61, 61, 9]
    fault_map = jnp.asarray(one_map(MiBB(1.0), 5000))
    from_zero = MiBB().apply(jnp.zeros(5000, jnp.int32), fault_map, EIGHT)
    assert {-128, 127} <= set(from_zero.tolist())  # +128 saturates


@every_path
@pytest.mark.parametrize("bits", [5, 16])
def test_biases_are_uniform_over_all_bits_and_both_signs(monkeypatch, path, bits):
    """Chi-square over the 2 · bits biases."""
    force(monkeypatch, path)
    biases = one_map(MiBB(0.3), 2**17, fmt=FixedPoint(bits), seed=bits)
    assert biases.dtype == np.int8
    values = [sign * (alpha + 1) for sign in (1, -1) for alpha in range(bits)]
    counts = [np.sum(biases == value) for value in values]
    assert sum(counts) == np.sum(biases != 0)
    assert_counts(counts, np.full(2 * bits, 1 / (2 * bits)))


@every_path
def test_bit_and_sign_do_not_depend_on_the_place(monkeypatch, path):
    """Chi-square over 16 biases at each of 8 places."""
    force(monkeypatch, path)
    biases = many_maps(MiBB(0.5), 8192, (8,))
    values = np.array([sign * (alpha + 1) for sign in (1, -1) for alpha in range(8)])
    counts = (biases[:, :, None] == values).sum(0)
    table = np.concatenate([counts, (8192 - counts.sum(1))[:, None]], axis=1)
    expected = 8192 * np.array([0.5 / 16] * 16 + [0.5])
    assert stats.chi2.sf(((table - expected) ** 2 / expected).sum(), 8 * 16) > FALSE_ALARM


@every_path
def test_as_many_features_are_hit_as_a_known_rate_says(monkeypatch, path):
    """Binomial test of one map of 2^17 features for each rate."""
    force(monkeypatch, path)
    rates = (2e-4, 0.04, 0.4, 0.7)
    exposures = [MiBB(rate).exposure(Place("", 1)) for rate in rates]
    for rate, biases in zip(rates, maps_at(MiBB(), exposures, 2**17), strict=True):
        assert_rate(np.count_nonzero(biases), 2**17, rate)


def test_as_many_features_are_hit_as_a_traced_rate_says():
    """Binomial test of one map of 2^17 features for each rate."""
    draw = jax.jit(lambda key, p: sample(MiBB(p), key[None], (2**17,)))
    for rate in (0.0, 1e-14, 2e-4, 0.003, 0.079, 0.081, 0.4, 0.7, 1.0):
        biases = np.asarray(draw(jax.random.key(1), jnp.float32(rate)))
        assert_rate(np.count_nonzero(biases), 2**17, float(np.float32(rate)))


def test_hits_grow_with_the_macs():
    """Binomial test of 2^18 features; the path is the library's choice."""
    cases = [(1e-4, 720), (1e-4, 72), (1e-3, 5000), (2e-6, 9)]
    exposures = [MiBB(p_m).exposure(Place("", macs)) for p_m, macs in cases]
    for (p_m, macs), biases in zip(cases, maps_at(MiBB(), exposures, 2**18), strict=True):
        assert_rate(np.count_nonzero(biases), 2**18, compounded(p_m, macs))


def test_a_linear_rate_grows_linearly():
    """Binomial test of 2^17 features, which the compound rate, 0.26, would not pass."""
    hits = np.count_nonzero(one_map(MiBB(0.03, "linear"), 2**17, macs=10))
    assert_rate(hits, 2**17, 0.3)


def test_rate_1_hits_everything():
    cases = [(rate, form) for rate in (1.0, jnp.float32(1)) for form in ("compound", "linear")]
    exposures = [MiBB(rate, form).exposure(Place("", 9)) for rate, form in cases]
    for biases in maps_at(MiBB(), exposures, 5000):
        assert np.all(biases)
    assert np.all(one_map(MiBB(1.0), 5000))


@every_path
def test_rate_0_is_the_identity(monkeypatch, path):
    force(monkeypatch, path)
    fault_map = one_map(MiBB(0.0), 256)
    assert not np.any(fault_map)
    codes = jnp.asarray(all_codes(EIGHT))
    np.testing.assert_array_equal(MiBB().apply(codes, jnp.asarray(fault_map), EIGHT), codes)


def test_stored_features_are_behind_no_macs_and_stay_sound():
    assert MiBB(1.0).probability(Place("pool", 0)) == 0.0
    exposures = [MiBB(rate).exposure(Place("pool", 0)) for rate in (1.0, jnp.float32(1))]
    for biases in maps_at(MiBB(), exposures, 1000):
        assert not np.any(biases)


def test_eq_8_agrees_with_eq_7_where_bits_hardly_ever_fail_together():
    """Binomial test of the rate; chi-square of the biases of two samples, doubles left out.

    Rates are 8 · 1e-3 for one bias and 1e-3 for each bit: of 500,000 features 4,000 are hit, 14 of
    them at two bits.
    """
    size, bits = 500_000, 8
    simple = one_map(MiBB(1e-3 * bits), size)
    exact = one_map(BitBias(1e-3), size, seed=1)
    assert_rate(np.count_nonzero(exact), size, MiBB(1e-3 * bits).probability(Place("", 1)))
    signs = np.array([1, -1])[:, None]
    counts = [(simple == value).sum() for value in (signs * np.arange(1, bits + 1)).ravel()]
    others = [(exact == value).sum() for value in (signs * 2 ** np.arange(bits)).ravel()]
    assert_alike(counts, others)
    for rate in (1e-6, 1e-9):
        ratio = BitBias(rate).probability(Place("", 72), EIGHT)
        ratio /= MiBB(rate * bits).probability(Place("", 72))
        assert ratio == pytest.approx(1, abs=rate * bits)
