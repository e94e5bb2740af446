"""Stuck-at faults against Eq. 9 and Fig. 3, of one cell and of a pair, and in distribution.

Every statistical test has a fixed seed and a false-alarm rate of 1e-6 for each assertion.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import EIGHT, EIGHT_SIGNED, all_codes, inject, many_maps, maps_at, one_map
from significance import assert_counts, assert_rate

from ftnas_jax.faults import HEALTHY, STUCK_AT_0, STUCK_AT_1, Place, StuckAt
from ftnas_jax.fixed_point import FixedPoint, from_codes


def eq_9(codes, theta, m, bits):
    """W' = (1 - θ) W + θ e with e = R_w sgn(W) m, in codes; sgn(0) = 1."""
    sign = np.where(codes < 0, -1, 1)
    return (1 - theta) * codes + theta * (2 ** (bits - 1) - 1) * sign * m


def eq_9_pair(codes, theta, m, bits):
    """The difference of two crossbars of conductances at least 0, each with Eq. 9 of its own."""
    held = np.maximum(codes, 0), np.maximum(-codes, 0)
    positive, negative = (eq_9(held[i], theta[i], m[i], bits) for i in range(2))
    return positive - negative


def states_of(theta, m):
    states = np.where(theta == 0, HEALTHY, np.where(m == 1, STUCK_AT_1, STUCK_AT_0))
    return states.astype(np.int8)


def test_every_state_of_one_cell():
    codes = np.array([5, -5, 0, 127, -127, 1, -1], np.int32)
    for state, expected in [
        (HEALTHY, codes),
        (STUCK_AT_0, np.zeros(7)),
        (STUCK_AT_1, [127, -127, 127, 127, -127, 127, -127]),  # 0 counts as positive
    ]:
        fault_map = jnp.full(7, state, jnp.int8)
        got = StuckAt().apply(jnp.asarray(codes), fault_map, EIGHT_SIGNED)
        assert got.dtype == jnp.int32
        np.testing.assert_array_equal(got, expected)


def test_every_state_of_a_pair():
    """Of weights 5 and -5, by the states of the positive cell, then of the negative one."""
    healthy, saf0, saf1 = HEALTHY, STUCK_AT_0, STUCK_AT_1
    expected = {
        (healthy, healthy): (5, -5),
        (healthy, saf0): (5, 0),
        (healthy, saf1): (-122, -127),
        (saf0, healthy): (0, -5),
        (saf0, saf0): (0, 0),
        (saf0, saf1): (-127, -127),
        (saf1, healthy): (127, 122),
        (saf1, saf0): (127, 127),
        (saf1, saf1): (0, 0),
    }
    for (positive, negative), weights in expected.items():
        fault_map = jnp.full(2, positive + 3 * negative, jnp.int8)
        codes = jnp.array([5, -5], jnp.int32)
        got = StuckAt(cells="pair").apply(codes, fault_map, EIGHT_SIGNED)
        assert got.dtype == jnp.int32
        assert got.tolist() == list(weights)


@pytest.mark.parametrize("fmt", [FixedPoint(2, "sign_magnitude"), EIGHT_SIGNED, EIGHT])
def test_one_cell_against_the_equation(fmt):
    rng = np.random.default_rng(0)
    codes = rng.integers(-(2 ** (fmt.bits - 1)) + 1, 2 ** (fmt.bits - 1), 2000).astype(np.int32)
    theta, m = rng.integers(0, 2, (2, 2000))
    states = jnp.asarray(states_of(theta, m))
    got = StuckAt().apply(jnp.asarray(codes), states, fmt)
    np.testing.assert_array_equal(got, eq_9(codes, theta, m, fmt.bits))


@pytest.mark.parametrize("bits", [2, 8, 16])
def test_a_pair_against_the_equation(bits):
    fmt = FixedPoint(bits, "sign_magnitude")
    rng = np.random.default_rng(0)
    codes = rng.choice(all_codes(fmt), 2000)
    theta, m = rng.integers(0, 2, (2, 2, 2000))
    states = states_of(theta, m)
    got = StuckAt(cells="pair").apply(
        jnp.asarray(codes), jnp.asarray(states[0] + 3 * states[1]), fmt
    )
    np.testing.assert_array_equal(got, eq_9_pair(codes, theta, m, bits))


KERNEL = np.array([[2, 3, 12], [0, 8, 5], [15, 9, 23]], np.int32)
NEGATIVE = np.array([[0, 0, 0], [-1, 0, 0], [0, 0, 0]], np.int32)
IMAGE = np.array([[12, 14, 21, -6], [20, 2, 1, 16], [6, 3, 4, 7], [9, 4, 3, -1]], np.int32)


def correlated(kernel):
    """The valid outputs [2, 2] of a layer with these codes, at fraction length 0."""
    layer = jax.lax.conv_general_dilated(
        from_codes(jnp.asarray(IMAGE), jnp.int32(0))[None, :, :, None],
        from_codes(kernel, jnp.int32(0))[:, :, None, None],
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return layer[0, :, :, 0].tolist()


@pytest.mark.parametrize(("cells", "saf0"), [("one", STUCK_AT_0), ("pair", 3 * STUCK_AT_0)])
def test_figure_3(cells, saf0):
    """SAF1 at the positive 8, whose bound is 127 (l = 0), and SAF0 at the negative -1."""
    model, codes = StuckAt(cells=cells), jnp.asarray(KERNEL + NEGATIVE)
    states = np.zeros((3, 3), np.int8)
    sound = model.apply(codes, jnp.asarray(states), EIGHT_SIGNED)
    assert correlated(sound) == [[528, 347], [336, 327]]
    states[1, 1], states[1, 0] = STUCK_AT_1, saf0
    faulty = model.apply(codes, jnp.asarray(states), EIGHT_SIGNED)
    assert faulty.tolist() == [[2, 3, 12], [0, 127, 5], [15, 9, 23]]
    assert correlated(faulty) == [[786, 468], [699, 806]]


SPLITS = [
    (0.01, 0.01), (0.067, 0.013), (0.05, 0.0), (0.0, 0.05), (0.4, 0.1), (0.25, 0.6), (0.3, 0.7)
]  # fmt: skip


def test_faults_are_split_by_the_ratio_of_their_rates():
    """Binomial tests of both kinds and of the rest in 2^18 weights."""
    draw = jax.jit(lambda key, known: StuckAt().sample(key[None], (2**18,), EIGHT_SIGNED, known)[0])
    for as_rate in (float, jnp.float32):
        for seed, (p0, p1) in enumerate(SPLITS):
            known = StuckAt(as_rate(p0), as_rate(p1)).exposure(Place(""))
            states = np.asarray(draw(jax.random.key(seed), jax.tree.map(jnp.asarray, known)))
            assert states.dtype == np.int8
            for state, rate in ((STUCK_AT_0, p0), (STUCK_AT_1, p1), (HEALTHY, 1 - p0 - p1)):
                assert_rate(np.sum(states == state), 2**18, min(max(rate, 0.0), 1.0))


def test_certain_kinds():
    kinds = [(0.0, 0.0, HEALTHY), (1.0, 0.0, STUCK_AT_0), (0.0, 1.0, STUCK_AT_1)]
    for as_rate in (float, jnp.float32):
        models = [StuckAt(as_rate(p0), as_rate(p1)) for p0, p1, _ in kinds]
        maps = maps_at(StuckAt(), [model.exposure(Place("")) for model in models], 5000)
        for (_, _, state), states in zip(kinds, maps, strict=True):
            assert np.all(states == state)
    assert HEALTHY not in one_map(StuckAt(0.9, 0.1), 5000)


def test_states_are_independent_of_each_other():
    """Chi-square over the 27 states of 3 weights."""
    states = many_maps(StuckAt(0.3, 0.2), 20_000, (3,)).astype(int)
    counts = np.bincount(states @ [1, 3, 9], minlength=27)
    p = np.array([0.5, 0.3, 0.2])
    assert (HEALTHY, STUCK_AT_0, STUCK_AT_1) == (0, 1, 2)
    assert_counts(counts, np.einsum("a,b,c->abc", p, p, p))


def test_both_cells_of_a_pair_have_the_rates_of_one():
    """Chi-square over the 81 states of 2 pairs."""
    states = many_maps(StuckAt(0.3, 0.2, cells="pair"), 40_000, (2,)).astype(int)
    p = np.array([0.5, 0.3, 0.2])
    pair = np.outer(p, p).ravel()
    assert_counts(np.bincount(states @ [1, 9], minlength=81), np.outer(pair, pair))


def test_a_pair_changes_the_share_of_weights_that_the_crossbars_change():
    """Binomial tests in 2^18 positive weights: to 0, to their bound, and pulled by the other."""
    p0, p1 = 0.067, 0.013
    codes = jnp.full(2**18, 5, jnp.int32)
    out = inject(StuckAt(p0, p1, cells="pair"), codes, jax.random.key(3), EIGHT_SIGNED)
    shares = {0: p0 * (1 - p1) + p1 * p1, 127: p1 * (1 - p1), 5 - 127: (1 - p0 - p1) * p1}
    for value, share in shares.items():
        assert_rate(np.sum(np.asarray(out) == value), 2**18, share)


def test_faults_do_not_look_at_the_weights():
    """Binomial tests among negative, zero and positive weights."""
    codes = jnp.asarray(np.resize(np.array([-90, -1, 0, 1, 90], np.int32), 2**17))
    draw = jax.jit(lambda key: inject(StuckAt(0.1, 0.05), codes, key, EIGHT_SIGNED))
    out = np.asarray(draw(jax.random.key(5)))
    for value in (-90, -1, 0, 1, 90):
        now = out[np.asarray(codes) == value]
        bound = -127 if value < 0 else 127
        assert_rate(np.sum(now == bound), now.size, 0.05)
        if value:
            assert_rate(np.sum(now == 0), now.size, 0.1)


def test_the_sign_stays_in_one_cell_and_not_in_a_pair():
    codes = jnp.asarray(all_codes(EIGHT_SIGNED))
    draw = jax.jit(inject, static_argnums=(0, 3))
    kept = draw(StuckAt(0.4, 0.4), codes, jax.random.key(0), EIGHT_SIGNED)
    assert np.all(kept * jnp.where(codes < 0, -1, 1) >= 0)
    pulled = draw(StuckAt(0.4, 0.4, cells="pair"), codes, jax.random.key(0), EIGHT_SIGNED)
    assert np.any(pulled * codes < 0)


@pytest.mark.parametrize("cells", ["one", "pair"])
def test_maps_hold_every_state_and_no_other(cells):
    found = np.unique(one_map(StuckAt(0.3, 0.3, cells=cells), 5000)).tolist()
    kinds = (HEALTHY, STUCK_AT_0, STUCK_AT_1)
    if cells == "pair":
        assert found == sorted(a + 3 * b for a, b in itertools.product(kinds, kinds))
    else:
        assert found == sorted(kinds)
