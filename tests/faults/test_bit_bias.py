"""Bit-bias faults bit by bit against Eq. 7, and in distribution.

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
    maps_at,
    one_map,
    sample,
)
from significance import assert_counts, assert_rate

from ftnas_jax.faults import BitBias, Place, bernoulli
from ftnas_jax.fixed_point import FixedPoint


def eq_7(failed, negative):
    """e · 2^l' = sum of (-1)^β 2^(q-1) e_q over q = 1 .. Q, for the bits [Q] of one adder."""
    total = 0
    for q in range(1, len(failed) + 1):
        total += (-1) ** int(negative[q - 1]) * 2 ** (q - 1) * int(failed[q - 1])
    return total


@pytest.mark.parametrize("bits", [2, 3, 8, 16])
def test_a_map_is_the_sum_of_eq_7(monkeypatch, bits):
    rng = np.random.default_rng(bits)
    failed, negative = rng.integers(0, 2, (2, 300, bits))
    signs = jnp.asarray((failed * (-1) ** negative).astype(np.int32))[None]
    monkeypatch.setattr(bernoulli, "bit_failures", lambda *args, **kwargs: signs)
    got = sample(BitBias(), jax.random.key(0)[None], (300,), fmt=FixedPoint(bits))
    expected = [eq_7(e, beta) for e, beta in zip(failed, negative, strict=True)]
    np.testing.assert_array_equal(got, [expected])


@pytest.mark.parametrize("fmt", [FixedPoint(2), FixedPoint(4), EIGHT, EIGHT_SIGNED])
def test_a_bias_is_added_and_saturates(fmt):
    codes = all_codes(fmt)
    most = 2**fmt.bits - 1
    biases = np.linspace(-most, most, 2 * min(most, 60) + 1).astype(np.int32)
    expected = [
        [min(max(int(c) + int(b), int(codes[0])), int(codes[-1])) for b in biases] for c in codes
    ]
    got = BitBias().apply(
        jnp.asarray(np.broadcast_to(codes[:, None], np.shape(expected))),
        jnp.asarray(np.broadcast_to(biases[None], np.shape(expected))),
        fmt,
    )
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got, expected)


def distribution(bits, rate):
    """Probabilities of the biases -(2^bits - 1) .. 2^bits - 1."""
    whole = np.ones(1)
    for bit in range(bits):
        one = np.zeros(2 ** (bit + 1) + 1)
        one[[0, 2**bit, -1]] = rate / 2, 1 - rate, rate / 2
        whole = np.convolve(whole, one)
    return whole


@every_path
@pytest.mark.parametrize(("bits", "rate"), [(2, 0.51), (3, 0.3), (5, 0.7)])
def test_bits_fail_on_their_own_and_each_has_its_own_sign(monkeypatch, path, bits, rate):
    """Chi-square over all biases; bits that share a sign could not give 2 - 1."""
    force(monkeypatch, path)
    biases = one_map(BitBias(rate), 2**17, fmt=FixedPoint(bits))
    most = 2**bits - 1
    counts = np.bincount(biases + most, minlength=2 * most + 1)
    assert_counts(counts, distribution(bits, rate))


@every_path
def test_the_bits_of_a_wide_code_fail_alike(monkeypatch, path):
    """Chi-square over the 16 biases of one bit: the sparse path crosses from code to code."""
    force(monkeypatch, path)
    biases = one_map(BitBias(1e-3), 2**19)
    powers = (np.array([1, -1])[:, None] * 2 ** np.arange(8)).ravel()
    counts = [(biases == power).sum() for power in powers]
    assert_counts(counts, np.full(16, 1 / 16))
    assert_rate(sum(counts), biases.size, 8 * 1e-3 * (1 - 1e-3) ** 7)


def test_features_are_hit_as_often_as_any_bit_fails():
    """Binomial test of 2^17 features."""
    cases = [(1e-5, 72), (1e-3, 720), (0.4, 1)]
    exposures = [BitBias(rate).exposure(Place("", macs)) for rate, macs in cases]
    for (rate, macs), biases in zip(cases, maps_at(BitBias(), exposures, 2**17), strict=True):
        share = compounded(rate, 8 * macs)
        assert_rate(np.count_nonzero(biases), 2**17, share)
        stated = BitBias(rate).probability(Place("", macs), EIGHT)
        assert stated == pytest.approx(share, rel=1e-12)


def test_rate_1_fails_every_bit():
    """All of 2^8 sums of ±1 ±2 .. ±128 are odd, and none is 0."""
    biases = one_map(BitBias(1.0), 2**14)
    assert np.all(biases % 2 == 1)
    assert len(np.unique(biases)) == 256
    assert np.abs(biases).max() == 255
