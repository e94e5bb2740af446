"""Models at another rate and at another age, known and traced.

Every statistical test has a fixed seed and a false-alarm rate of 1e-6 for each assertion.
"""

import dataclasses
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import EIGHT_SIGNED, compounded, inject, one_map, one_program, sample
from hypothesis import given, settings
from hypothesis import strategies as st
from significance import assert_rate

from ftnas_jax.faults import (
    MODELS,
    BitBias,
    BitFlip,
    DefectMap,
    Drift,
    LogNormal,
    MiBB,
    Only,
    Place,
    ReciprocalNormal,
    StuckAt,
    StuckBits,
)

PLACE = Place("layer", 9)
ONE_RATE = {
    MiBB(0.3, "linear", layers="!stem"): "p_m",
    BitBias(0.3, per="chip", accumulated=2.0): "rate",
    BitFlip(0.3, bits="0-6", site="activations"): "rate",
    LogNormal(0.3, per="batch"): "sigma",
    ReciprocalNormal(0.3, smallest=0.3): "sigma",
    Drift(0.3, 0.2, 5.0): "nu",
}
CELLS = [
    StuckAt(0.3, 0.1, cells="pair", layers="!stem"),
    StuckBits(0.3, 0.1, bits="6", accumulated=2.0),
]
MODEL = [*ONE_RATE, *CELLS]
every_model = pytest.mark.parametrize("model", MODEL, ids=lambda model: model.name)


@pytest.fixture
def given_map(tmp_path):
    file = tmp_path / "chip.csv"
    file.write_text("layer,position,stuck_at\nstem,0,max\n")
    return DefectMap(str(file))


def test_all_models_are_here(given_map):
    assert {model.name for model in [*MODEL, given_map]} == set(MODELS)


@pytest.mark.parametrize(("model", "field"), ONE_RATE.items(), ids=lambda value: str(value)[:9])
def test_a_model_with_one_rate_has_that_one_replaced(model, field):
    assert model.rate == getattr(model, field) == 0.3
    expected = type(model)(**vars(model) | {field: 0.1})
    assert model.at_rate(0.1) == expected != model
    assert model.at_rate(model.rate) == model


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None)
def test_stuck_cells_keep_their_proportion(first, share, rate):
    """Against exact fractions."""
    p0, p1 = first, (1 - first) * share
    for model in (StuckAt(p0, p1, cells="pair"), StuckBits(p0, p1, bits="2")):
        assert model.rate == p0 + p1
        if p0 + p1 == 0:
            return
        now = model.at_rate(rate)
        exact = Fraction(rate) * Fraction(p0) / (Fraction(p0) + Fraction(p1))
        # Rates below the normal numbers lose digits.
        assert now.p0 == pytest.approx(float(exact), rel=1e-12, abs=1e-300)
        assert now.p1 == pytest.approx(float(Fraction(rate) - exact), rel=1e-12, abs=1e-300)
        assert now == dataclasses.replace(model, p0=now.p0, p1=now.p1)


@pytest.mark.parametrize("model", CELLS, ids=lambda model: model.name)
def test_stuck_cells_at_their_own_rate_are_as_they_were(model):
    again = model.at_rate(model.rate)
    assert jax.tree.structure(again) == jax.tree.structure(model)
    assert jax.tree.leaves(again) == pytest.approx(jax.tree.leaves(model), rel=1e-15)


@every_model
def test_a_traced_rate_gives_the_faults_of_that_rate(model):
    """And of one program for all rates; to float32, in which a threshold may move by a word."""

    @one_program
    def draw(rate, key):
        now = model.at_rate(rate)
        found = sample(now, key[None], (2000,), fmt=EIGHT_SIGNED, macs=9)[0]
        return found, jnp.asarray(now.probability(PLACE, EIGHT_SIGNED)), now.rate

    for rate in (0.0, 0.01, 0.25, 0.5):
        found, probability, again = draw(jnp.float32(rate), jax.random.key(5))
        expected = model.at_rate(rate)
        stated = expected.probability(PLACE, EIGHT_SIGNED)
        assert float(probability) == pytest.approx(stated, rel=1e-5)
        assert float(again) == pytest.approx(rate, rel=1e-6)
        known = jax.tree.map(jnp.float32, expected)
        drawn = sample(known, jax.random.key(5)[None], (2000,), fmt=EIGHT_SIGNED, macs=9)[0]
        if model.analog:
            np.testing.assert_allclose(found, drawn, rtol=1e-5)
        else:
            assert np.mean(np.asarray(found) != np.asarray(drawn)) < 1e-3


def test_traced_rates_of_cells_that_are_0_stay_0():
    model = jax.jit(lambda p, rate: StuckAt(p, p).at_rate(rate))(jnp.float32(0), jnp.float32(0.5))
    assert (model.p0, model.p1) == (0, 0)


@pytest.mark.parametrize(
    ("model", "rate", "message"),
    [
        (MiBB(), 1.5, "mibb: p_m is 1.5; a rate lies in [0, 1]"),
        (BitFlip(), -0.1, "bit_flip: rate is -0.1; a rate lies in [0, 1]"),
        (StuckAt(), 1.1, "stuck_at: rate is 1.1; a rate lies in [0, 1]"),
        (StuckBits(), float("nan"), "stuck_bits: rate is nan; a rate lies in [0, 1]"),
        (LogNormal(), -1, "log_normal: sigma is -1; it is at least 0"),
        (Drift(), -1, "drift: nu is -1; it is at least 0"),
        (
            StuckAt(0.0, 0.0),
            0.1,
            "stuck_at: p0 and p1 are 0, of which no proportion is known",
        ),
    ],
)
def test_rates_that_make_no_sense_are_refused(model, rate, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011, the whole text is compared below
        model.at_rate(rate)
    assert str(error.value) == message


def test_given_faults_have_no_rate(given_map):
    message = "^defect_map: it has no rate that could be set$"
    with pytest.raises(ValueError, match=message):
        given_map.at_rate(0.1)
    with pytest.raises(ValueError, match=message):
        _ = given_map.rate


AGING = [
    MiBB(per="chip"),
    BitBias(per="chip", layers="!stem"),
    BitFlip(),
    BitFlip(site="activations", per="chip"),
    StuckAt(0.03, 0.01, cells="pair"),
    StuckBits(bits="6"),
]
AGELESS = [
    MiBB(),
    BitBias(per="batch"),
    BitFlip(per="batch"),
    BitFlip(site="activations"),
    StuckAt(per="batch"),
    LogNormal(),
    ReciprocalNormal(),
]


@pytest.mark.parametrize("model", AGING, ids=lambda model: model.name)
def test_persistent_faults_accumulate(model):
    assert model.ages
    assert model.at_time(30.0) == type(model)(**vars(model) | {"accumulated": 30.0})
    assert model.at_time(30).at_time(1) == model
    with pytest.raises(ValueError, match=r"accumulated is 0\.5; M_p is at least 1$"):
        model.at_time(0.5)


@pytest.mark.parametrize("model", AGELESS, ids=lambda model: f"{model.name}-{model.per}")
def test_time_has_no_effect_on_transient_faults_and_variation(model):
    assert not model.ages
    assert model.at_time(30.0) is model
    assert model.at_time(jnp.float32(30)) is model


def test_a_given_chip_does_not_age(given_map):
    assert not given_map.ages
    assert given_map.at_time(30.0) is given_map


def test_conductances_drift_with_time():
    assert Drift().ages
    assert Drift(0.1, 0.2, layers="stem").at_time(9.0) == Drift(0.1, 0.2, 9.0, layers="stem")
    with pytest.raises(ValueError, match=r"^drift: time is 0\.5; it is at least 1$"):
        Drift().at_time(0.5)


def test_one_program_serves_all_ages():
    """Binomial test of 2^14 weights at each age; nothing of a cell is ever mended."""
    model = StuckAt(0.004, 0.001)

    @one_program
    def held(time):
        codes = jnp.ones(2**14, jnp.int32)
        return inject(model.at_time(time), codes, jax.random.key(2), EIGHT_SIGNED)

    last = np.zeros(2**14, bool)
    for time in (1.0, 5.0, 40.0, 1000.0):
        hit = np.asarray(held(jnp.float32(time))) != 1
        assert np.all(hit[last])
        assert_rate(np.count_nonzero(hit), 2**14, compounded(0.005, time))
        last = hit


@pytest.mark.parametrize("model", [BitFlip(), StuckBits(0.03, 0.01), Drift()], ids=lambda m: m.name)
def test_rate_time_and_choice_may_be_set_in_any_order(model):
    only = Only(("stem", "head"), 1)
    chosen = dataclasses.replace(model, only=only).at_time(4.0).at_rate(0.02)
    other = dataclasses.replace(model.at_rate(0.02), only=only).at_time(4.0)
    assert chosen == other
    assert chosen.at("head").rate == other.rate == pytest.approx(0.02)
    assert chosen.at("stem").rate == 0
    map_of = one_map(chosen.at("head"), 300, fmt=EIGHT_SIGNED)
    np.testing.assert_array_equal(map_of, one_map(other.at("head"), 300, fmt=EIGHT_SIGNED))
