"""Variation of conductances against float64, and in distribution.

Every statistical test has a fixed seed and a false-alarm rate of 1e-6 for each assertion.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import EIGHT_SIGNED, all_codes, inject, many_maps, one_map
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from significance import assert_distribution, assert_rate, assert_uncorrelated

from ftnas_jax.faults import LogNormal, Place, ReciprocalNormal

MODELS = [LogNormal, ReciprocalNormal]
every_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)


def log_normal(codes, deviation):
    return codes.astype(np.float64) * np.exp(deviation.astype(np.float64))


def reciprocal_normal(codes, deviation, smallest):
    resistance = np.maximum(1 + deviation.astype(np.float64), smallest)
    return codes.astype(np.float64) / resistance


def test_log_normal_against_float64():
    codes = np.repeat(all_codes(EIGHT_SIGNED), 20)
    deviation = np.random.default_rng(0).normal(0, 0.5, codes.size).astype(np.float32)
    got = LogNormal().apply(jnp.asarray(codes), jnp.asarray(deviation), EIGHT_SIGNED)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, log_normal(codes, deviation), rtol=1e-6)


@pytest.mark.parametrize("smallest", [0.1, 0.5])
def test_reciprocal_normal_against_float64(smallest):
    codes = np.repeat(all_codes(EIGHT_SIGNED), 20)
    deviation = np.random.default_rng(0).normal(0, 0.5, codes.size).astype(np.float32)
    deviation[:3] = -1, -3, 5
    assert np.mean(1 + deviation < smallest) > 0.01
    model = ReciprocalNormal(smallest=smallest)
    got = model.apply(jnp.asarray(codes), jnp.asarray(deviation), EIGHT_SIGNED)
    assert got.dtype == jnp.float32
    # 1 + deviation is rounded once, to 2^-24 of 1, and its reciprocal grows by 1 / smallest.
    expected = reciprocal_normal(codes, deviation, smallest)
    np.testing.assert_allclose(got, expected, rtol=2**-23 / smallest)
    assert np.abs(got).max() <= 127 / smallest * (1 + 2**-22)


@every_model
@pytest.mark.parametrize("as_rate", [float, jnp.float32], ids=["float", "jax"])
def test_every_cell_has_a_normal_number_of_its_own(model, as_rate):
    """Kolmogorov-Smirnov test; z-tests of neighbours, and of the same cell in the next map."""
    maps = many_maps(model(as_rate(0.3)), 3, (5000,))
    assert maps.dtype == np.float32
    standard = maps / np.float32(0.3)
    assert_distribution(standard, stats.norm)
    assert_uncorrelated(standard[:, 1:], standard[:, :-1])
    assert_uncorrelated(standard[1:], standard[:-1])


@every_model
def test_cells_of_one_level_vary_on_their_own(model):
    held = np.asarray(
        inject(model(0.1), jnp.full(1000, 64, jnp.int32), jax.random.key(0), EIGHT_SIGNED)
    )
    assert len(np.unique(held)) > 990


def test_log_conductances_are_normal_around_the_target():
    """Kolmogorov-Smirnov test; binomial test that the target is the median."""
    codes = jnp.full(20_000, -90, jnp.int32)
    held = np.asarray(inject(LogNormal(0.4), codes, jax.random.key(1), EIGHT_SIGNED), np.float64)
    assert_distribution(np.log(held / -90), stats.norm(0, 0.4))
    assert_rate(np.sum(held < -90), held.size, 0.5)


def test_resistances_are_normal_around_the_target_and_cut():
    """Kolmogorov-Smirnov test of those not cut; binomial test of the share that is."""
    codes = jnp.full(2**16, 50, jnp.int32)
    model = ReciprocalNormal(0.3, smallest=0.4)
    held = np.asarray(inject(model, codes, jax.random.key(2), EIGHT_SIGNED), np.float64)
    resistance = 50 / held
    cut = resistance < 0.4 * (1 + 1e-6)
    assert_rate(cut.sum(), cut.size, stats.norm.cdf(-2))
    assert_distribution(resistance[~cut], stats.truncnorm(-2, np.inf, loc=1, scale=0.3))


def test_the_default_cut_moves_as_many_cells_as_it_says():
    """Binomial test of 2^18 cells at σ = 0.3: 0.13 %."""
    deviation = one_map(ReciprocalNormal(0.3), 2**18)
    assert_rate(np.sum(1 + deviation < ReciprocalNormal().smallest), 2**18, stats.norm.cdf(-3))


@every_model
def test_sigma_0_is_the_identity(model):
    codes = jnp.asarray(all_codes(EIGHT_SIGNED))
    for sigma in (0, 0.0, jnp.float32(0)):
        held = inject(model(sigma), codes, jax.random.key(0), EIGHT_SIGNED)
        np.testing.assert_array_equal(held, codes)
        assert model(sigma).probability(Place("")) == 0
    assert model(1e-9).probability(Place("")) == model(jnp.float32(3)).probability(Place("")) == 1


@every_model
def test_maps_of_a_key_grow_in_proportion_to_sigma(model):
    small, large = one_map(model(0.1), 1000), one_map(model(0.4), 1000)
    np.testing.assert_allclose(large, 4 * small, rtol=1e-6)


@given(st.sampled_from(MODELS), st.floats(0, 2), st.integers(-127, 127), st.integers(0, 1000))
@settings(deadline=None, max_examples=50)
def test_signs_stay_and_zeros_stay_zero(model, sigma, code, seed):
    deviation = jnp.float32(sigma * stats.norm.ppf((seed + 0.5) / 1001))[None]
    held = model(sigma).apply(jnp.array([code], jnp.int32), deviation, EIGHT_SIGNED)
    assert np.all(np.isfinite(held))
    assert np.sign(held).tolist() == [np.sign(code)]
