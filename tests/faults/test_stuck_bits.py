"""Stuck bits of magnitudes against Eq. 10, and in distribution.

Every statistical test has a fixed seed and a false-alarm rate of 1e-6 for each assertion.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import EIGHT_SIGNED, all_codes, inject, many_maps, one_map
from significance import assert_counts, assert_rate

from ftnas_jax.faults import Place, StuckBits
from ftnas_jax.fixed_point import FixedPoint

FOUR = FixedPoint(4, "sign_magnitude")


def eq_10(code, theta, m):
    """sgn(w) ((¬θ ∧ |w|) ∨ (θ ∧ e)), with the bits θ_q and m_q of each, the lowest first."""
    magnitude = 0
    for q, (stuck, one) in enumerate(zip(theta, m, strict=True)):
        own = abs(code) // 2**q % 2
        magnitude += 2**q * (((1 - stuck) & own) | (stuck & one))
    return -magnitude if code < 0 else magnitude  # sgn(0) = 1


def packed(theta, m):
    """The map of stuck bits: θ in the lower 16 bits, in the upper ones what they are stuck at."""
    whole = 0
    for q, (stuck, one) in enumerate(zip(theta, m, strict=True)):
        whole += stuck * (2**q + one * 2 ** (q + 16))
    return whole


def assert_eq_10(cases, fmt):
    """`cases` of a code and the bits θ and m."""
    codes = jnp.array([code for code, _, _ in cases], jnp.int32)
    maps = jnp.array([packed(theta, m) for _, theta, m in cases], jnp.int32)
    got = StuckBits().apply(codes, maps, fmt)
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got, [eq_10(*case) for case in cases])


def test_every_code_with_every_stuck_bit():
    bits = list(itertools.product([0, 1], repeat=3))
    assert_eq_10(list(itertools.product(all_codes(FOUR).tolist(), bits, bits)), FOUR)


@pytest.mark.parametrize("bits", [2, 8, 16])
def test_random_bits_against_the_equation(bits):
    fmt = FixedPoint(bits, "sign_magnitude")
    rng = np.random.default_rng(bits)
    codes = [*all_codes(fmt)[[0, -1]].tolist(), *rng.choice(all_codes(fmt), 1000).tolist()]
    theta, m = rng.integers(0, 2, (2, len(codes), bits - 1)).tolist()
    assert_eq_10(list(zip(codes, theta, m, strict=True)), fmt)


def test_the_maps_that_are_drawn_are_those_of_the_equation():
    """From all ones and all zeros θ and e are read off; a third tensor must follow from them."""
    maps = jnp.asarray(one_map(StuckBits(0.3, 0.3), 2000, fmt=EIGHT_SIGNED))
    full = StuckBits().apply(jnp.full(2000, 127, jnp.int32), maps, EIGHT_SIGNED)
    empty = StuckBits().apply(jnp.zeros(2000, jnp.int32), maps, EIGHT_SIGNED)
    codes = np.random.default_rng(0).choice(all_codes(EIGHT_SIGNED), 2000)
    got = StuckBits().apply(jnp.asarray(codes), maps, EIGHT_SIGNED)
    for code, high, low, now in zip(codes, np.asarray(full), np.asarray(empty), got, strict=True):
        theta = [1 - (int(high) >> q & 1) | int(low) >> q & 1 for q in range(7)]
        assert eq_10(int(code), theta, [int(low) >> q & 1 for q in range(7)]) == int(now)


def test_bits_are_stuck_and_not_biased():
    model, fmt = StuckBits(0.2, 0.2), EIGHT_SIGNED
    maps = jnp.asarray(one_map(model, 2000, fmt=fmt))
    rng = np.random.default_rng(1)
    tensors = [jnp.asarray(rng.integers(0, 128, 2000).astype(np.int32)) for _ in range(2)]
    first, second = (np.asarray(model.apply(codes, maps, fmt)) for codes in tensors)
    stuck = np.asarray(maps) & 127
    # A stuck bit is the same whatever was written, a sound one is what was written.
    np.testing.assert_array_equal(first & stuck, second & stuck)
    np.testing.assert_array_equal(first & ~stuck, np.asarray(tensors[0]) & ~stuck)
    np.testing.assert_array_equal(model.apply(jnp.asarray(first), maps, fmt), first)
    assert np.any(first - np.asarray(tensors[0]) != second - np.asarray(tensors[1]))


def test_the_sign_stays_and_zero_counts_as_positive():
    codes = jnp.array([-5, 5, 0], jnp.int32)
    stuck = inject(StuckBits(0.0, 1.0), codes, jax.random.key(0), EIGHT_SIGNED)
    assert stuck.tolist() == [-127, 127, 127]
    lost = inject(StuckBits(1.0, 0.0), codes, jax.random.key(0), EIGHT_SIGNED)
    assert lost.tolist() == [0, 0, 0]


@pytest.mark.parametrize("as_rate", [float, jnp.float32], ids=["float", "jax"])
def test_bits_are_stuck_independently_and_split_by_the_ratio_of_their_rates(as_rate):
    """Chi-square over the 27 states of the 3 bits of a weight, and over the 9 of two weights."""
    model = StuckBits(as_rate(0.3), as_rate(0.2))
    maps = many_maps(model, 15_000, (2,), fmt=FOUR)
    assert maps.dtype == np.int32
    q = np.arange(3)
    states = (maps[..., None] >> q & 1) + (
        maps[..., None] >> q >> 16 & 1
    )  # 0 sound, 1 at 0, 2 at 1
    p = np.array([0.5, 0.3, 0.2])
    of_weight = np.bincount((states @ [1, 3, 9]).ravel(), minlength=27)
    assert_counts(of_weight, np.einsum("a,b,c->abc", p, p, p))
    of_two = np.bincount(states[:, 0, 2] + 3 * states[:, 1, 0], minlength=9)
    assert_counts(of_two, np.outer(p, p))


@pytest.mark.parametrize("bits", [2, 8, 16])
def test_every_bit_of_the_magnitude_has_the_rates(bits):
    """Binomial tests of both kinds for each bit of 2^14 weights, and of the weights hit."""
    fmt, p0, p1 = FixedPoint(bits, "sign_magnitude"), 0.067, 0.013
    maps = one_map(StuckBits(p0, p1), 2**14, fmt=fmt)
    for q in range(bits - 1):
        stuck, one = maps >> q & 1, maps >> q >> 16 & 1
        assert_rate(np.sum(stuck - one), 2**14, p0)
        assert_rate(np.sum(one), 2**14, p1)
    hit = StuckBits(p0, p1).probability(Place(""), fmt)
    assert hit == pytest.approx(1 - (1 - p0 - p1) ** (bits - 1), rel=1e-12)
    assert_rate(np.count_nonzero(maps), 2**14, hit)
    assert not np.any(maps & 2 ** (bits - 1) | maps >> 16 & 2 ** (bits - 1))  # never the sign
