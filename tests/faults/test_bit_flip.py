"""Bit flips against Eq. 6 on the words that a memory holds, and in distribution.

Every statistical test has a fixed seed and a false-alarm rate of 1e-6 for each assertion.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import EIGHT, EIGHT_SIGNED, all_codes, every_path, force, inject, one_map
from significance import assert_counts, assert_independent, assert_rate

from ftnas_jax.faults import BitFlip, Place
from ftnas_jax.faults.bit_flip import from_words, to_words
from ftnas_jax.fixed_point import FixedPoint

FORMATS = [
    FixedPoint(bits, encoding)
    for bits in (2, 5, 8, 16)
    for encoding in ("twos_complement", "sign_magnitude")
]
every_format = pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f"{f.encoding}-{f.bits}")


def stored(code, fmt):
    """The bits of a code, the lowest first."""
    if fmt.encoding == "twos_complement":
        return [int(bit) for bit in reversed(np.binary_repr(code, fmt.bits))]
    return [*(abs(code) >> q & 1 for q in range(fmt.bits - 1)), int(code < 0)]


def read(word, fmt):
    """The code that bits, the lowest first, stand for."""
    *magnitude, sign = word
    value = sum(bit * 2**q for q, bit in enumerate(magnitude))
    if fmt.encoding == "twos_complement":
        return value - sign * 2 ** (fmt.bits - 1)
    return -value if sign else value


def eq_6(code, mask, fmt):
    """x' = x ⊕ e, e the sum of e_q 2^(q-1), bit by bit."""
    return read([bit ^ (mask >> q & 1) for q, bit in enumerate(stored(code, fmt))], fmt)


def codes_and_masks(fmt):
    """All pairs of codes and flips, or 4096 of them."""
    codes, masks = all_codes(fmt), np.arange(2**fmt.bits)
    if fmt.bits <= 5:
        return (grid.ravel() for grid in np.meshgrid(codes, masks))
    rng = np.random.default_rng(fmt.bits)
    codes, masks = rng.choice(codes, 4096), rng.choice(masks, 4096)
    codes[:4] = all_codes(fmt)[[0, 0, -1, -1]]
    masks[:4] = [0, 2**fmt.bits - 1] * 2
    return codes, masks


@every_format
def test_flips_of_eq_6(fmt):
    codes, masks = codes_and_masks(fmt)
    word = np.uint8 if fmt.bits <= 8 else np.uint16
    got = BitFlip().apply(jnp.asarray(codes), jnp.asarray(masks.astype(word)), fmt)
    assert got.dtype == jnp.int32
    expected = [eq_6(int(code), int(mask), fmt) for code, mask in zip(codes, masks, strict=True)]
    np.testing.assert_array_equal(got, expected)
    assert set(expected) <= set(all_codes(fmt).tolist())


@every_format
def test_words_are_the_stored_bits_and_stand_for_their_codes(fmt):
    codes = all_codes(fmt)[:: max(1, 2**fmt.bits // 500)]
    words = to_words(jnp.asarray(codes), fmt)
    bits = [sum(bit << q for q, bit in enumerate(stored(int(code), fmt))) for code in codes]
    np.testing.assert_array_equal(words, bits)
    np.testing.assert_array_equal(from_words(words, fmt), codes)


@pytest.mark.parametrize("fmt", [EIGHT, EIGHT_SIGNED], ids=["complement", "magnitude"])
def test_the_sign_bit_can_flip(fmt):
    codes = jnp.array([1, 100, 127, -1, -100, 0], jnp.int32)
    flipped = inject(BitFlip(1.0, bits="7"), codes, jax.random.key(0), fmt)
    expected = {
        "twos_complement": [-127, -28, -1, 127, 28, -128],
        "sign_magnitude": [-1, -100, -127, 1, 100, 0],
    }
    assert flipped.tolist() == expected[fmt.encoding]


def unpacked(masks, bits):
    return masks[:, None].astype(int) >> np.arange(bits) & 1


@every_path
@pytest.mark.parametrize("rate", [0.4, 0.7])
def test_bits_flip_independently_at_rates_around_a_half(monkeypatch, path, rate):
    """Chi-square over the 16 patterns of 4 bits: 0.4 is not 0.5, and 0.7 is not 1."""
    force(monkeypatch, path)
    masks = one_map(BitFlip(rate), 2**15, fmt=FixedPoint(4))
    assert_independent(unpacked(masks, 4), rate)


@every_path
def test_the_bits_of_a_wide_code_flip_alike(monkeypatch, path):
    """Chi-square over the 8 bits of codes with one flip; binomial test of their number."""
    force(monkeypatch, path)
    masks = one_map(BitFlip(1e-3), 2**18)
    counts = [(masks == 2**bit).sum() for bit in range(8)]
    assert_counts(counts, np.full(8, 1 / 8))
    assert_rate(sum(counts), masks.size, 8 * 1e-3 * (1 - 1e-3) ** 7)


@pytest.mark.parametrize(
    ("bits", "own"), [("all", range(16)), ("15", [15]), ("0-3", range(4)), ("9-9", [9])]
)
def test_only_the_given_bits_flip(bits, own):
    """Binomial test of each of them."""
    fmt, model = FixedPoint(16), BitFlip(0.1, bits=bits)
    masks = one_map(model, 2**15, fmt=fmt)
    assert masks.dtype == np.uint16
    for bit, flips in enumerate(unpacked(masks, 16).T):
        if bit in own:
            assert_rate(flips.sum(), flips.size, 0.1)
        else:
            assert not np.any(flips)
    assert model.probability(Place(""), fmt) == pytest.approx(1 - 0.9 ** len(own), rel=1e-12)


def test_a_tenth_of_few_bits_is_a_tenth():
    """Binomial test over 20,000 maps of 10 bits, drawn without positions that repeat."""
    draw = jax.jit(
        lambda key: BitFlip(0.1).sample(
            jax.random.split(key, 20_000), (5,), FixedPoint(2), BitFlip(0.1).exposure(Place(""))
        )
    )
    flips = unpacked(np.asarray(draw(jax.random.key(0))).ravel(), 2)
    assert_rate(flips.sum(), 200_000, 0.1)


def test_rate_1_inverts_every_word():
    codes = jnp.asarray(all_codes(EIGHT))
    np.testing.assert_array_equal(inject(BitFlip(1.0), codes, jax.random.key(0), EIGHT), ~codes)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f"{f.encoding}-{f.bits}")
def test_bits_that_a_code_does_not_have_are_refused(fmt):
    BitFlip(bits=f"{fmt.bits - 1}").check(fmt)
    with pytest.raises(
        ValueError, match=r"^bit_flip: bits is '\d+'; a code of \d+ bits has 0-\d+$"
    ):
        BitFlip(bits=f"{fmt.bits}").check(fmt)
    with pytest.raises(ValueError, match=r"^bit_flip: bits is '0-\d+'; a code of"):
        inject(BitFlip(bits=f"0-{fmt.bits}"), jnp.zeros(3, jnp.int32), jax.random.key(0), fmt)
