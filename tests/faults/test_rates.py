"""Rates: exact over all of [0, 1], for numbers and for arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import (
    EIGHT,
    EIGHT_SIGNED,
    RATES,
    compounded,
    force,
    multiplied,
    one_map,
    sample,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ftnas_jax.faults import (
    HEALTHY,
    STUCK_AT_0,
    STUCK_AT_1,
    BitBias,
    BitFlip,
    MiBB,
    Place,
    StuckAt,
    StuckBits,
    bernoulli,
)
from ftnas_jax.fixed_point import FixedPoint

MACS = (0, 1, 9, 72, 720, 5000)
as_number_or_array = pytest.mark.parametrize("as_rate", [float, jnp.float32], ids=["float", "jax"])


def assert_exact(of_rate, exact):
    """`of_rate` of every rate, as a number and in a trace, against `exact` of the same rate."""
    arrays = np.asarray(jax.jit(jax.vmap(of_rate))(jnp.array(RATES, jnp.float32)))
    for rate, array in zip(RATES, arrays, strict=True):
        number = of_rate(rate)
        assert isinstance(number, float)
        assert 0 <= number <= 1
        assert number == pytest.approx(exact(rate), rel=1e-13, abs=0)
        assert 0 <= array <= 1
        assert array == pytest.approx(exact(np.float32(rate)), rel=1e-6, abs=0)


@pytest.mark.parametrize("form", ["compound", "linear"])
def test_mibb_grows_with_the_macs(form):
    exact = {"compound": compounded, "linear": multiplied}[form]
    for macs in MACS:
        assert_exact(
            lambda p, macs=macs: MiBB(p, form).probability(Place("", macs)),
            lambda p, macs=macs: exact(p, macs),
        )


def test_mibb_forms_agree_to_first_order_and_compound_is_the_default():
    nine, many = Place("", 9), Place("", 72)
    default, linear = MiBB().probability(nine), MiBB(form="linear").probability(nine)
    assert default == MiBB(form="compound").probability(nine) < linear
    rare = MiBB(1e-9).probability(many)
    assert rare == pytest.approx(MiBB(1e-9, "linear").probability(many), rel=1e-6)
    assert MiBB(0.1, "linear").probability(many) == 1.0
    assert MiBB(0.1).probability(many) < 1.0


def test_bits_fail_on_their_own():
    for bits in (2, 8, 16):
        fmt = FixedPoint(bits)
        place = Place("", 9)
        assert_exact(
            lambda r, fmt=fmt, place=place: BitBias(r).probability(place, fmt),
            lambda r, bits=bits: compounded(r, 9 * bits),
        )
        assert_exact(
            lambda r, fmt=fmt, place=place: BitFlip(r).probability(place, fmt),
            lambda r, bits=bits: compounded(r, bits),
        )
        assert_exact(
            lambda r, fmt=fmt, place=place: StuckBits(r, 0.0).probability(place, fmt),
            lambda r, bits=bits: compounded(r, bits - 1),
        )


def test_a_pair_of_cells_fails_twice_as_often_but_for_both():
    for p1 in (0.0, 1e-6, 0.1):
        one = StuckAt(0.3, p1).probability(Place(""))
        assert one == pytest.approx(0.3 + p1, rel=1e-14)
        pair = StuckAt(0.3, p1, cells="pair").probability(Place(""))
        assert pair == pytest.approx(1 - (1 - one) ** 2, rel=1e-14)


@pytest.mark.parametrize("model", [StuckAt, StuckBits])
def test_rates_that_add_up_to_one_but_for_rounding_are_a_probability(model):
    assert model(0.6, 0.4000004).probability(Place(""), EIGHT_SIGNED) == 1.0


@given(st.floats(0, 1))
@settings(deadline=None, max_examples=300)
def test_thresholds_are_exact_to_the_resolution_of_the_words(rate):
    fixed = int(bernoulli.as_rate(rate).threshold)
    assert abs(fixed / 2**32 - rate) <= 2**-32
    traced = int(bernoulli.as_rate(jnp.float32(rate)).threshold)
    assert abs(traced / 2**32 - float(np.float32(rate))) <= 2**-32


@as_number_or_array
def test_rate_0_takes_no_word_and_rate_1_every_word(as_rate):
    words = jnp.array([0, 1, 2**31, 2**32 - 1], jnp.uint32)
    assert not np.any(bernoulli.below(words, bernoulli.as_rate(as_rate(0))))
    assert np.all(bernoulli.below(words, bernoulli.as_rate(as_rate(1))))


def test_integers_are_rates_too():
    assert one_map(StuckAt(1, 0), 100).tolist() == [STUCK_AT_0] * 100
    assert np.all(one_map(MiBB(1), 100))
    assert not np.any(one_map(MiBB(0), 100))


def even_words(monkeypatch):
    """Replace random words by 2^16 words spread evenly: shares of failures need no statistics.

    Where values are drawn with them, their words are the same again.
    """
    words = jnp.arange(2**16, dtype=jnp.uint32) * jnp.uint32(2**16) + jnp.uint32(2**15)
    drawn = lambda keys, size: jnp.resize(words, (1, size))  # noqa: E731
    monkeypatch.setattr(bernoulli, "random_words", drawn)


@as_number_or_array
@pytest.mark.parametrize(
    ("p0", "p1"),
    [(0.01, 0.01), (0.067, 0.013), (0.02, 0), (0, 0.02), (0.4, 0.6), (0.7, 0.2), (0.1, 0.9)],
)
def test_stuck_at_rates_are_split_as_asked_for(monkeypatch, p0, p1, as_rate):
    even_words(monkeypatch)
    model = StuckAt(as_rate(p0), as_rate(p1))
    states = np.asarray(sample(model, jax.random.key(0)[None], (2**16,)))
    assert np.mean(states == STUCK_AT_0) == pytest.approx(p0, abs=2**-16)
    assert np.mean(states == STUCK_AT_1) == pytest.approx(p1, abs=2**-15)
    assert np.mean(states == HEALTHY) == pytest.approx(1 - p0 - p1, abs=2**-15)


def test_rates_are_not_rounded_to_reciprocals_of_integers(monkeypatch):
    even_words(monkeypatch)
    force(monkeypatch, "dense")

    @jax.jit
    def draw(exposure):
        return MiBB().sample(jax.random.key(0)[None], (2**16,), EIGHT, exposure)

    for rate in (0.0, 0.01, 0.26, 0.4, 0.5, 0.51, 0.7, 0.99, 1.0):
        for as_rate in (float, jnp.float32):
            exposure = jax.tree.map(jnp.asarray, MiBB(as_rate(rate)).exposure(Place("", 1)))
            assert np.mean(np.asarray(draw(exposure)) != 0) == pytest.approx(rate, abs=2**-16)
