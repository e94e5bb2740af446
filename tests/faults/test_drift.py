"""Drift of conductances against float64, and the exponents of cells in distribution.

Every statistical test has a fixed seed and a false-alarm rate of 1e-6 for each assertion.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import EIGHT_SIGNED, all_codes, inject, many_maps, one_map, one_program, sample
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from significance import assert_distribution, assert_rate, assert_uncorrelated

from ftnas_jax.faults import Drift, Place

TIMES = (1.5, 60.0, 86400.0, 3e8)


def drifted(codes, exponents, time):
    """w(t) = w0 (t/t0)^-ν_i, each cell by itself."""
    pairs = zip(codes.tolist(), exponents.tolist(), strict=True)
    return np.array([code * time**-exponent for code, exponent in pairs])


@pytest.mark.parametrize("time", TIMES)
def test_cells_follow_their_power_of_time(time):
    """The exponents are those of another map, at t = e, which is ν_i itself."""
    codes = np.repeat(all_codes(EIGHT_SIGNED), 10)
    exponents = one_map(Drift(0.1, 0.5, np.e), codes.size).astype(np.float64)
    maps = jnp.asarray(one_map(Drift(0.1, 0.5, time), codes.size))
    got = Drift().apply(jnp.asarray(codes), maps, EIGHT_SIGNED)
    assert got.dtype == jnp.float32
    # ln t is at most 20 here, and the exponents 0.4: a rounding of 8 grows to 8 · 2^-24 and more.
    np.testing.assert_allclose(got, drifted(codes, exponents, time), rtol=1e-5)


@pytest.mark.parametrize("as_rate", [float, jnp.float32], ids=["float", "jax"])
def test_every_cell_has_a_normal_exponent_of_its_own(as_rate):
    """Kolmogorov-Smirnov test; z-tests of neighbours, and of the same cell in the next map."""
    maps = many_maps(Drift(as_rate(0.05), as_rate(0.16), as_rate(1e3)), 3, (5000,))
    assert maps.dtype == np.float32
    exponents = maps / np.log(1e3)
    assert_distribution(exponents, stats.norm(0.05, 0.008))
    standard = (exponents - 0.05) / 0.008
    assert_uncorrelated(standard[:, 1:], standard[:, :-1])
    assert_uncorrelated(standard[1:], standard[:-1])


def test_exponents_below_0_are_cut():
    """Kolmogorov-Smirnov test of those above; binomial test of the share that is cut."""
    exponents = one_map(Drift(0.2, 0.5, np.e), 2**16).astype(np.float64)
    assert exponents.min() == 0
    assert_rate(np.sum(exponents == 0), 2**16, stats.norm.cdf(-2))
    moving = exponents[exponents > 0]
    assert_distribution(moving, stats.truncnorm(-2, np.inf, loc=0.2, scale=0.1))


def test_the_median_cell_follows_the_mean_exponent():
    """Binomial test of 2^14 weights of -90 after 1000 t0."""
    codes = jnp.full(2**14, -90, jnp.int32)
    held = np.asarray(inject(Drift(0.1, 0.3, 1e3), codes, jax.random.key(1), EIGHT_SIGNED))
    assert_rate(np.sum(held > -90 * 1e3**-0.1), held.size, 0.5)


def test_the_defaults_are_those_of_the_measurement():
    """ν_i = 0.049 ± 0.008; see the model."""
    assert Drift().nu == 0.049
    assert Drift().nu * Drift().spread == pytest.approx(0.008, rel=0.03)


@one_program
def at_times(model, key, times):
    return jax.vmap(lambda time: sample(model.at_time(time), key[None], (3000,))[0])(times)


def test_a_chip_has_the_same_cells_at_all_times():
    """Exponents of one key, by maps at several times of one program."""
    model = Drift(0.05, 1.0)
    maps = np.asarray(at_times(model, jax.random.key(3), jnp.array(TIMES, jnp.float32)))
    exponents = maps / np.log(np.float32(TIMES))[:, None]
    assert np.array_equal(exponents[1:] == 0, exponents[:1].repeat(3, 0) == 0)
    np.testing.assert_allclose(exponents[1:], exponents[:1].repeat(3, 0), rtol=1e-6)
    alone = sample(Drift(0.05, 1.0, np.e), jax.random.key(3)[None], (3000,))[0]
    np.testing.assert_allclose(exponents[0], alone, rtol=1e-6, atol=1e-7)


def test_maps_of_a_key_grow_in_proportion_to_nu():
    small, large = one_map(Drift(0.05), 1000), one_map(Drift(0.2), 1000)
    np.testing.assert_allclose(large, 4 * small, rtol=1e-6)


@pytest.mark.parametrize("as_rate", [float, jnp.float32], ids=["float", "jax"])
def test_nothing_moves_at_nu_0_or_at_t0(as_rate):
    codes = jnp.asarray(all_codes(EIGHT_SIGNED))
    for nu, spread, time in [(0, 0.16, 1e4), (0, 30.0, 1e30), (0.1, 0.5, 1)]:
        model = Drift(as_rate(nu), as_rate(spread), as_rate(time))
        held = inject(model, codes, jax.random.key(0), EIGHT_SIGNED)
        np.testing.assert_array_equal(held, codes)
        assert not np.any(one_map(model, 500))
        assert model.probability(Place("")) == 0


@pytest.mark.parametrize("spread", [0, 0.16, 0.5, 1.0, 3.0])
def test_the_share_of_cells_that_move_is_the_probability_stated(spread):
    """Binomial test of 2^15 cells."""
    known, traced = Drift(spread=spread), jax.tree.map(jnp.float32, Drift(spread=spread))
    stated = known.probability(Place(""))
    assert stated == pytest.approx(stats.norm.cdf(1 / spread) if spread else 1.0, rel=1e-12)
    assert float(traced.probability(Place(""))) == pytest.approx(stated, rel=1e-6)
    assert_rate(np.count_nonzero(one_map(traced, 2**15)), 2**15, stated)


@given(
    st.floats(0, 1),
    st.floats(0, 10),
    st.lists(st.floats(1, 1e30), min_size=2, max_size=4).map(sorted),
    st.integers(0, 2**31 - 1),
)
@settings(deadline=None, max_examples=30)
def test_weights_only_shrink_and_signs_stay(nu, spread, times, seed):
    codes = jnp.asarray(all_codes(EIGHT_SIGNED))
    last = np.abs(np.asarray(codes))
    for time in times:
        model = jax.tree.map(jnp.float32, Drift(nu, spread, time))
        held = np.asarray(injected(model, codes, jax.random.key(seed)))
        assert np.all(np.isfinite(held))
        assert np.all(np.abs(held) <= last)
        assert np.all(held * np.sign(codes) >= 0)
        last = np.abs(held)


@jax.jit
def injected(model, codes, key):
    return inject(model, codes, key, EIGHT_SIGNED)


def test_maps_say_how_far_a_cell_fell():
    """The map of a cell is ln(w0 / w)."""
    codes = jnp.full(100, 64, jnp.int32)
    maps = one_map(Drift(), 100)
    held = np.asarray(Drift().apply(codes, jnp.asarray(maps), EIGHT_SIGNED), np.float64)
    np.testing.assert_allclose(np.log(64 / held), maps, rtol=1e-5)
