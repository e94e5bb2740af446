"""Persistent faults of a chip: more of them at higher rates and later, and those before stay.

Every statistical test has a fixed seed and a false-alarm rate of 1e-6 for each assertion.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import EIGHT, EIGHT_SIGNED, RATES, compounded, multiplied, one_map
from significance import assert_rate

from ftnas_jax.faults import BitBias, BitFlip, MiBB, Place, StuckAt, StuckBits, bernoulli
from ftnas_jax.fixed_point import FixedPoint

PLACE = Place("layer", 9)
TIMES = (1.0, 1.5, 3.0, 40.0)


def drawer(fmt=EIGHT_SIGNED, size=4000):
    """Maps [size] of one key, for models whose rates are arrays."""

    @jax.jit
    def draw(model):
        return model.sample(jax.random.key(7)[None], (size,), fmt, model.exposure(PLACE))[0]

    return lambda model: np.asarray(draw(jax.tree.map(jnp.float32, model)))


def assert_grows(maps, contains):
    """Each map contains the one before, and the last one has more faults than the first."""
    for before, after in itertools.pairwise(maps):
        contains(before, after)
    assert np.count_nonzero(maps[0]) < np.count_nonzero(maps[-1])


def same_values(before, after):
    np.testing.assert_array_equal(after[before != 0], before[before != 0])


def same_bits(before, after):
    np.testing.assert_array_equal(after & before, before)


def same_cells_of_a_pair(before, after):
    same_values(before % 3, after % 3)
    same_values(before // 3, after // 3)


def same_stuck_bits(before, after):
    same_bits(before & 0xFFFF, after & 0xFFFF)
    np.testing.assert_array_equal((after >> 16) & before & 0xFFFF, before >> 16)


ONE_RATE = [
    (MiBB(per="chip"), same_values),
    (MiBB(form="linear", per="chip"), same_values),
    (BitFlip(), same_bits),
    (BitFlip(site="activations", per="chip"), same_bits),
]
CELLS = [
    (StuckAt(), same_values),
    (StuckAt(cells="pair"), same_cells_of_a_pair),
    (StuckBits(), same_stuck_bits),
]
name_of = {"ids": lambda value: getattr(value, "name", "")}


def with_rates(model, *rates):
    return jax.tree.unflatten(jax.tree.structure(model), [*rates, 1.0])


@pytest.mark.parametrize(("model", "contains"), ONE_RATE, **name_of)
def test_faults_at_a_rate_are_among_those_at_a_higher_one(model, contains):
    draw = drawer()
    chips = [draw(with_rates(model, rate)) for rate in (1e-4, 1e-3, 0.01, 0.07, 0.09, 0.5, 1.0)]
    assert_grows(chips, contains)


@pytest.mark.parametrize(("model", "contains"), CELLS, **name_of)
def test_stuck_cells_stay_stuck_as_either_rate_grows(model, contains):
    draw = drawer()
    rates = [(0.0, 0.01), (0.01, 0.01), (0.067, 0.013), (0.067, 0.3), (0.5, 0.3), (0.5, 0.5)]
    assert_grows([draw(with_rates(model, p0, p1)) for p0, p1 in rates], contains)


@pytest.mark.parametrize(("model", "contains"), [*ONE_RATE, *CELLS], **name_of)
def test_faults_of_a_chip_are_among_those_of_later_times(model, contains):
    draw = drawer()
    leaves, tree = jax.tree.flatten(model)
    chips = [draw(jax.tree.unflatten(tree, [*leaves[:-1], times])) for times in TIMES]
    assert_grows(chips, contains)


@pytest.mark.parametrize("field", ["rate", "accumulated"])
def test_biases_of_bits_stay_as_others_join_them(monkeypatch, field):
    drawn = []
    bit_failures = bernoulli.bit_failures

    def recorded(*args, **kwargs):
        drawn.append(bit_failures(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(bernoulli, "bit_failures", recorded)
    values = {"rate": (1e-4, 0.01, 0.3, 1.0), "accumulated": TIMES}[field]

    @jax.jit
    def signs(value):
        model = BitBias(**{"rate": jnp.float32(1e-3), field: value, "per": "chip"})
        model.sample(jax.random.key(7)[None], (500,), EIGHT, model.exposure(PLACE))
        return drawn.pop()

    chips = [np.asarray(signs(jnp.float32(value))) for value in values]
    assert_grows(chips, same_values)


def test_transient_faults_need_not_grow():
    assert MiBB(per="chip").nested
    assert BitFlip().nested
    assert not MiBB().nested
    assert not BitFlip(per="batch").nested


@pytest.mark.parametrize("times", TIMES)
def test_a_rate_met_many_times_is_compound(times):
    for rate in RATES:
        flip = BitFlip(rate, bits="0", accumulated=times).probability(PLACE, EIGHT)
        assert flip == pytest.approx(compounded(rate, times), rel=1e-12)
        bias = BitBias(rate, per="chip", accumulated=times).probability(PLACE, EIGHT)
        assert bias == pytest.approx(compounded(rate, 9 * 8 * times), rel=1e-12)
        mibb = MiBB(rate, per="chip", accumulated=times).probability(PLACE)
        assert mibb == pytest.approx(compounded(rate, 9 * times), rel=1e-12)
        linear = MiBB(rate, "linear", per="chip", accumulated=times).probability(PLACE)
        assert linear == pytest.approx(multiplied(rate, 9 * times), rel=1e-12)


@pytest.mark.parametrize("times", TIMES)
def test_stuck_cells_accumulate_in_the_proportion_of_their_kinds(times):
    for p0, p1 in [(0.067, 0.013), (0.0, 1e-9), (0.4, 0.6), (1.0, 0.0), (0.0, 0.0)]:
        total = compounded(p0 + p1, times)
        for as_rate, near in ((float, 1e-12), (jnp.float32, 1e-5)):
            model = StuckAt(as_rate(p0), as_rate(p1), accumulated=as_rate(times))
            assert model.probability(PLACE) == pytest.approx(total, rel=near)
            now0, now1 = (float(rate) for rate in model.cell_rates())
            assert now0 * p1 == pytest.approx(now1 * p0, rel=near)
        bits = StuckBits(p0, p1, accumulated=times).probability(PLACE, FixedPoint(8))
        assert bits == pytest.approx(compounded(total, 7), rel=1e-9)


def test_a_product_of_rate_and_time_beyond_1_is_still_a_rate():
    assert BitFlip(0.4, accumulated=1e6).probability(PLACE, EIGHT) == 1.0
    assert StuckAt(0.4, 0.2, accumulated=1e6).probability(PLACE) == pytest.approx(1.0, rel=1e-15)
    assert np.all(one_map(StuckAt(0.4, 0.2, accumulated=1e6), 5000))


@pytest.mark.parametrize(
    "model",
    [
        MiBB(1e-3, per="chip", accumulated=3.5),
        BitBias(1e-4, per="chip", accumulated=20.0),
        BitFlip(1e-3, accumulated=9.0),
        StuckAt(0.03, 0.01, cells="pair", accumulated=2.5),
        StuckBits(0.003, 0.001, accumulated=4.0),
    ],
    ids=lambda model: model.name,
)
def test_as_many_are_hit_as_have_accumulated(model):
    """Binomial test of 2^16 elements."""
    hits = np.count_nonzero(one_map(model, 2**16, fmt=EIGHT_SIGNED, macs=9))
    assert_rate(hits, 2**16, model.probability(PLACE, EIGHT_SIGNED))
