"""Where a model acts, and when its maps are drawn."""

import dataclasses

import jax
import numpy as np
import pytest
from drawing import EIGHT, one_map
from hypothesis import given
from hypothesis import strategies as st

from ftnas_jax.faults import (
    BitBias,
    BitFlip,
    Drift,
    LogNormal,
    MiBB,
    Place,
    ReciprocalNormal,
    StuckAt,
    StuckBits,
)

PATHS = ("stem", "cell0/conv_0", "cell0/edge/conv", "cell1/conv_0", "cell10/conv_0", "classifier")


@pytest.mark.parametrize(
    ("layers", "acting"),
    [
        ("*", PATHS),
        ("stem", PATHS[:1]),
        ("Stem", ()),
        ("cell0", ()),
        ("cell0/*", PATHS[1:3]),
        ("*/conv_0", (PATHS[1], PATHS[3], PATHS[4])),
        ("cell?/*", PATHS[1:4]),
        ("cell[1-9]/*", PATHS[3:4]),
        ("stem|classifier", (PATHS[0], PATHS[5])),
        (" stem | classifier ", (PATHS[0], PATHS[5])),
        ("!stem", PATHS[1:]),
        ("! stem", PATHS[1:]),
        ("!stem|!classifier", PATHS[1:5]),
        ("cell*|!cell0/*", PATHS[3:5]),
        ("!cell0/*|cell*", PATHS[3:5]),
        ("*|!*", ()),
        ("nowhere", ()),
    ],
)
def test_patterns_name_layers(layers, acting):
    model = MiBB(layers=layers)
    assert tuple(path for path in PATHS if model.acts_at(path)) == acting


paths = st.text("abc/", min_size=1, max_size=6)
patterns = st.text("abc/*", min_size=1, max_size=4)


@given(paths, patterns, patterns)
def test_patterns_obey_set_algebra(path, first, second):
    def acts(layers):
        return MiBB(layers=layers).acts_at(path)

    assert acts(f"!{first}") == (not acts(first))
    assert acts(f"{first}|{second}") == (acts(first) or acts(second))
    assert acts(f"{first}|!{second}") == (acts(first) and not acts(second))
    assert acts(f"!{first}|!{second}") == (not acts(first) and not acts(second))


@pytest.mark.parametrize("layers", ["", " ", "stem|", "|stem", "stem||head", "!", "stem|! "])
def test_empty_patterns_are_refused(layers):
    with pytest.raises(ValueError, match=r"^mibb: layers is '.*', with an empty pattern$"):
        MiBB(layers=layers)


RATED = [
    MiBB(1.0, "linear", layers="stem"),
    BitBias(1.0, layers="stem"),
    BitFlip(1.0, bits="3", layers="stem", accumulated=3.0),
    StuckAt(0.5, 0.5, cells="pair", layers="stem", accumulated=2.0),
    StuckBits(0.5, 0.5, layers="stem"),
    LogNormal(2.0, layers="stem"),
    ReciprocalNormal(2.0, layers="stem", smallest=0.3),
    Drift(0.5, layers="stem", time=3.0),
]


@pytest.mark.parametrize("model", RATED, ids=lambda model: model.name)
def test_a_model_keeps_all_but_its_rates_where_it_does_not_act(model):
    assert model.at("stem") is model
    sound = model.at("head")
    assert sound == type(model)(**dataclasses.asdict(model) | dict.fromkeys(model.rates, 0.0))
    place = Place("head", 9)
    assert sound.probability(place, EIGHT) == 0.0
    assert not np.any(one_map(sound, 500, macs=9))
    assert np.any(one_map(model, 500, macs=9))
    # One program serves all layers: what it needs to know of each is alike.
    here, there = model.exposure(place), sound.exposure(place)
    assert jax.tree.structure(here) == jax.tree.structure(there)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a.dtype == b.dtype, here, there)))


def test_weights_fail_per_chip_and_features_per_image():
    assert all(m().per == "chip" for m in (BitFlip, StuckAt, StuckBits, LogNormal, Drift))
    assert all(m.per == "image" for m in (MiBB(), BitBias(), BitFlip(site="activations")))
    assert MiBB(per="default") == MiBB(per="image") != MiBB(per="chip")
    assert BitFlip(per="batch").per == "batch"


@pytest.mark.parametrize("model", [BitFlip, StuckAt, StuckBits, LogNormal, ReciprocalNormal, Drift])
def test_weights_are_not_drawn_for_every_image(model):
    message = f"^{model.name}: weights are read once for a batch; per is chip or batch, not image$"
    with pytest.raises(ValueError, match=message):
        model(per="image")
