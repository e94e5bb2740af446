"""One bit fails, chosen by a number: one program for all bits.

Every statistical test has a fixed seed and a false-alarm rate of 1e-6 for each assertion.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import EIGHT, EIGHT_SIGNED, compounded, one_map, one_program, sample
from significance import assert_rate

from ftnas_jax.faults import BitBias, BitFlip, LogNormal, MiBB, Place, StuckAt, StuckBits
from ftnas_jax.fixed_point import FixedPoint

SIGNED_5, SIGNED_16 = FixedPoint(5, "sign_magnitude"), FixedPoint(16, "sign_magnitude")
CASES = [
    (BitFlip(0.3), EIGHT, 8),
    (BitFlip(0.02), EIGHT_SIGNED, 8),
    (BitFlip(0.3, per="batch"), FixedPoint(16), 16),
    (BitFlip(0.3, accumulated=2.0, layers="!stem"), FixedPoint(2), 2),
    (StuckBits(0.2, 0.1), EIGHT_SIGNED, 7),
    (StuckBits(0.2, 0.1, accumulated=3.0), SIGNED_16, 15),
    (StuckBits(0.2, 0.1, per="batch"), SIGNED_5, 4),
]
every_case = pytest.mark.parametrize(
    ("model", "fmt", "count"), CASES, ids=lambda value: getattr(value, "name", "")
)


def at_all_bits(model, fmt, bits):
    """Maps [bits, 500] and probabilities, of one program."""

    @one_program
    def draw(bit):
        one = model.at_bit(bit)
        found = sample(one, jax.random.key(4)[None], (500,), fmt=fmt)[0]
        return found, jnp.asarray(one.probability(Place(""), fmt))

    drawn = [draw(jnp.int32(bit)) for bit in bits]
    return [np.asarray(found) for found, _ in drawn], [float(p) for _, p in drawn]


@every_case
def test_a_traced_bit_has_the_faults_of_that_bit_as_text(model, fmt, count):
    maps, probabilities = at_all_bits(model, fmt, range(count))
    for bit, (found, probability) in enumerate(zip(maps, probabilities, strict=True)):
        alone = type(model)(**vars(model) | {"bits": f"{bit}"})
        expected = sample(alone, jax.random.key(4)[None], (500,), fmt=fmt)[0]
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
        stated = compounded(model.rate, model.accumulated)
        assert probability == pytest.approx(stated, rel=1e-6)
        assert alone.probability(Place(""), fmt) == pytest.approx(stated, rel=1e-12)
        known = model.at_bit(bit)
        assert known.probability(Place(""), fmt) == pytest.approx(stated, rel=1e-12)
        known_map = sample(known, jax.random.key(4)[None], (500,), fmt=fmt)[0]
        np.testing.assert_array_equal(known_map, expected)


@every_case
def test_all_bits_are_hit_in_the_same_places(model, fmt, count):
    maps, _ = at_all_bits(model, fmt, range(count))
    assert 0 < np.count_nonzero(maps[0]) < maps[0].size
    for bit, found in enumerate(maps):
        np.testing.assert_array_equal(found, maps[0].astype(np.int64) << bit)


@every_case
def test_a_traced_bit_that_no_code_has_changes_nothing(model, fmt, count):
    maps, _ = at_all_bits(model, fmt, (count, count + 1, 31, 32, 1000, -1))
    assert not np.any(maps)


@pytest.mark.parametrize(
    ("model", "fmt", "message"),
    [
        (BitFlip().at_bit(8), EIGHT, "bit_flip: bit is 8; a code of 8 bits has 0-7"),
        (BitFlip().at_bit(-1), EIGHT, "bit_flip: bit is -1; a code of 8 bits has 0-7"),
        (
            StuckBits(bit=7),
            EIGHT_SIGNED,
            "stuck_bits: bit is 7; a magnitude of 7 bits has 0-6",
        ),
        (
            StuckBits(bits="3-7"),
            EIGHT_SIGNED,
            "stuck_bits: bits is '3-7'; a magnitude of 7 bits has 0-6",
        ),
    ],
)
def test_a_known_bit_that_no_code_has_is_refused(model, fmt, message):
    for refuse in (model.check, lambda fmt: one_map(model, 10, fmt=fmt)):
        with pytest.raises(ValueError) as error:  # noqa: PT011, the whole text is compared below
            refuse(fmt)
        assert str(error.value) == message


def test_the_highest_bits_are_there():
    BitFlip(bit=7).check(EIGHT)
    StuckBits(bit=6).check(EIGHT_SIGNED)
    StuckBits(bits="0-6").check(EIGHT_SIGNED)


@pytest.mark.parametrize("model", [MiBB(), BitBias(), StuckAt(), LogNormal()])
def test_faults_that_are_not_of_single_bits_have_none_to_choose(model):
    message = f"^{model.name}: its faults are not of single bits that could be chosen$"
    with pytest.raises(ValueError, match=message):
        model.at_bit(3)


@pytest.mark.parametrize(
    ("bits", "own"), [("all", range(15)), ("14", [14]), ("0-3", range(4)), ("9-9", [9])]
)
def test_only_the_given_bits_are_stuck(bits, own):
    """Binomial tests of both kinds for each of them."""
    p0, p1 = 0.1, 0.05
    model = StuckBits(p0, p1, bits=bits)
    maps = one_map(model, 2**14, fmt=SIGNED_16).astype(np.int64)
    for bit in range(16):
        stuck, one = maps >> bit & 1, maps >> bit + 16 & 1
        assert np.all(one <= stuck)
        if bit in own:
            assert_rate(np.sum(stuck - one), 2**14, p0)
            assert_rate(np.sum(one), 2**14, p1)
        else:
            assert not np.any(stuck)
    probability = 1 - (1 - p0 - p1) ** len(own)
    assert model.probability(Place(""), SIGNED_16) == pytest.approx(probability, rel=1e-12)
