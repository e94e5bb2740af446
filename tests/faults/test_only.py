"""One group of layers fails, chosen by a number: one program for all groups."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import EIGHT_SIGNED, every_path, force, one_program
from hypothesis import given, settings
from hypothesis import strategies as st

import ftnas_jax as ft
from ftnas_jax.faults import (
    BitBias,
    BitFlip,
    Drift,
    LogNormal,
    MiBB,
    Only,
    Place,
    ReciprocalNormal,
    StuckAt,
    StuckBits,
    bernoulli,
    check_layers,
)
from ftnas_jax.faults.stuck_at import CellRates, sample_states
from ftnas_jax.nn.fault_table import FaultTable
from ftnas_jax.nn.hardware import Draw, Hardware, draw_maps, exposures_at

PATHS = ("stem", "block0/conv", "block1/conv", "head")
GROUPS = ("stem", "block*/conv", "block1/*|head", "!stem|!head", "nowhere")
CHOSEN = {
    0: ("stem",),
    1: ("block0/conv", "block1/conv"),
    2: ("block1/conv", "head"),
    3: ("block0/conv", "block1/conv"),
    4: (),
}
"""The layers of every group, by hand."""

SURE = [
    MiBB(1.0),
    MiBB(1.0, "linear", per="chip", accumulated=2.0),
    BitBias(1.0),
    BitFlip(1.0),
    BitFlip(1.0, site="activations", per="batch"),
    StuckAt(0.5, 0.5),
    StuckAt(1.0, 0.0, cells="pair", accumulated=3.0),
    StuckBits(0.4, 0.6),
    LogNormal(2.0),
    ReciprocalNormal(2.0),
    Drift(0.5),
]
every_model = pytest.mark.parametrize(
    "model", SURE, ids=lambda model: f"{model.name}-{model.site}-{model.per}"
)
KINDS = {"weights": "weights", "features": "features", "activations": "stored"}


def choose(model, selected, groups=GROUPS):
    return dataclasses.replace(model, only=Only(groups, selected))


@pytest.mark.parametrize("selected", CHOSEN)
@pytest.mark.parametrize("as_number", [int, np.int32, jnp.int32], ids=["int", "numpy", "jax"])
def test_rates_are_there_in_the_group_and_0_elsewhere(selected, as_number):
    model = choose(StuckAt(0.3, 0.1), as_number(selected))
    for path in PATHS:
        own = model.at(path)
        rates = (0.3, 0.1) if path in CHOSEN[selected] else (0.0, 0.0)
        assert (own.p0, own.p1) == pytest.approx(rates, rel=1e-6)
        assert own.probability(Place(path)) == pytest.approx(sum(rates), rel=1e-6)


def test_layers_and_groups_both_have_to_fit():
    model = choose(BitFlip(0.5, layers="!block1/*"), 1)
    assert [float(model.at(path).rate) for path in PATHS] == [0, 0.5, 0, 0]


@pytest.mark.parametrize("selected", [-1, 5, 1000])
def test_a_traced_number_of_no_group_selects_none(selected):
    rates = jax.jit(lambda n: [choose(BitFlip(0.5), n).at(path).rate for path in PATHS])
    assert not np.any(rates(jnp.int32(selected)))


texts = st.text("abc/", min_size=1, max_size=4)
patterns = st.text("abc/*", min_size=1, max_size=4)


@given(texts, st.lists(patterns, min_size=1, max_size=4), st.data())
@settings(deadline=None, max_examples=50)
def test_a_group_is_what_the_same_text_in_layers_is(path, groups, data):
    selected = data.draw(st.integers(0, len(groups) - 1))
    expected = MiBB(0.25, layers=groups[selected]).at(path).p_m
    for number in (selected, jnp.int32(selected)):
        assert choose(MiBB(0.25), number, tuple(groups)).at(path).p_m == expected


def maps_at_all_paths(model, draw):
    hardware = Hardware(faults=model)
    return [
        draw_maps(
            hardware,
            KINDS[model.site],
            draw.at(number),
            (2, 40),
            exposures_at(hardware, KINDS[model.site], Place(path, 9, 80)),
        )[0]
        for number, path in enumerate(PATHS)
    ]


@every_model
def test_one_program_gives_each_group_the_faults_it_has_by_layers(model):
    """At rate 1 everything is hit in the group, and nothing elsewhere."""
    draw = Draw(jax.random.key(3))

    @one_program
    def maps(model, selected):
        return maps_at_all_paths(choose(model, selected), draw)

    @jax.jit
    def all_maps(model):
        return maps_at_all_paths(model, draw)

    traced = jax.tree.map(jnp.float32, model)
    everywhere = all_maps(traced)
    for selected, chosen in CHOSEN.items():
        for path, found, full in zip(
            PATHS, maps(traced, jnp.int32(selected)), everywhere, strict=True
        ):
            if path in chosen:
                np.testing.assert_array_equal(found, full)
                assert np.mean(np.asarray(found) != 0) > 0.95
            else:
                assert not np.any(found)


@pytest.mark.parametrize(
    "model", [MiBB(0.01), BitFlip(0.3), StuckAt(0.02, 0.01), StuckBits(0.02, 0.01)],
    ids=lambda model: model.name,
)  # fmt: skip
def test_groups_may_be_mapped_over(model):
    """As chips and rates may."""
    draw = Draw(jax.random.key(3))

    def maps(selected):
        return maps_at_all_paths(choose(model, selected), draw)

    numbers = jnp.arange(len(GROUPS), dtype=jnp.int32)
    # vmap of a condition selects between a key and itself, which the check takes for a second use.
    with jax.debug_key_reuse(False):
        mapped = jax.jit(jax.vmap(maps))(numbers)
    alone = jax.jit(maps)
    for number in numbers:
        for row, one in zip(mapped, alone(number), strict=True):
            np.testing.assert_array_equal(row[number], one)


def test_operations_of_a_table_are_chosen_by_their_group():
    """Every edge, choice and group, all of them traced, in one program."""
    operations = (("conv_1x1", 1), ("sep_conv_3x3", 1))
    groups = ("edge0/*", "*/conv_1x1", "edge1/sep_conv_3x3")
    paths = tuple(tuple(f"edge{e}/{name}" for name, _ in operations) for e in range(2))
    draws = [Draw(jax.random.key(seed)) for seed in (0, 1)]

    @one_program
    def hit(edge, choice, selected):
        only = Only(groups, selected)
        faults = (StuckAt(0.5, 0.5, only=only), MiBB(0.5, only=only))
        table = FaultTable(Hardware(faults=faults), operations, 6, 6, paths)
        maps = table.draw(edge, choice, *draws, (2, 4, 4, 6))
        return jnp.any(maps.weights[0] != 0), jnp.any(maps.features[0] != 0)

    for selected, group in enumerate(groups):
        for edge in range(2):
            for choice, (name, _) in enumerate(operations):
                expected = group in (f"edge{edge}/*", f"*/{name}", f"edge{edge}/{name}")
                found = hit(*map(jnp.int32, (edge, choice, selected)))
                assert list(map(bool, found)) == [expected, expected]


def test_parameters_are_held_with_the_faults_of_one_layer():
    """As by `layers`, and the others as sound hardware holds them."""
    keys = jax.random.split(jax.random.key(0), 2)
    parameters = {
        name: {"kernel": jax.random.normal(key, (20, 30))}
        for name, key in zip(("first", "second"), keys, strict=True)
    }
    draw = Draw(jax.random.key(1))

    @jax.jit
    def hold(selected):
        model = StuckAt(0.3, 0.1, only=Only(("first", "sec*"), selected))
        return ft.hold(parameters, Hardware(faults=model), draw)

    for selected, layer in enumerate(("first", "second")):
        expected = ft.hold(parameters, Hardware(faults=StuckAt(0.3, 0.1, layers=layer)), draw)
        chex.assert_trees_all_equal(hold(jnp.int32(selected)), expected)


@pytest.mark.parametrize("groups", [("stem", "hed"), ("!stme", "head"), ("stem|hed",)])
def test_groups_that_name_no_layer_are_refused(groups):
    known = {"weights": PATHS, "features": (), "activations": ()}
    check_layers([choose(StuckAt(), jnp.int32(0), ("stem", "!head", "b*|head"))], known)
    wrong = {"hed": "head", "stme": "stem"}
    name = next(name for name in wrong if name in " ".join(groups))
    message = f"called '{name}'; did you mean {wrong[name]}\\?$"
    with pytest.raises(ValueError, match=message):
        check_layers([choose(StuckAt(), jnp.int32(0), groups)], known)


def test_a_choice_is_static_but_for_its_number():
    model = choose(BitFlip(0.3), 1)
    assert jax.tree.leaves(model) == [0.3, 1.0, 1]
    assert jax.tree.unflatten(jax.tree.structure(model), [0.3, 1.0, 1]) == model
    assert hash(model) == hash(choose(BitFlip(0.3), 1))
    assert Only(["a", "b"], 0) == Only(("a", "b"), 0) != Only(("a",), 0)


EXTREME = jnp.array([0, 1, 2**31, 2**32 - 2, 2**32 - 1], jnp.uint32)


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_no_cell_is_stuck_at_a_traced_rate_of_0(monkeypatch, zero):
    """Whatever words are drawn."""
    monkeypatch.setattr(bernoulli, "random_words", lambda keys, size: EXTREME[None])

    @jax.jit
    def states(rate):
        rates = CellRates(bernoulli.as_rate(rate), bernoulli.as_rate(rate))
        return sample_states(jax.random.split(jax.random.key(0), 1), 5, rates)

    assert not np.any(states(jnp.float32(zero)))


@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("nested", [False, True])
@every_path
def test_nothing_fails_at_a_traced_rate_of_0(monkeypatch, path, nested, zero):
    """Whatever words are drawn."""
    force(monkeypatch, path, chunks=1)
    words = EXTREME
    monkeypatch.setattr(bernoulli, "random_words", lambda keys, size: words[None])

    @jax.jit
    def failures(rate):
        keys = jax.random.split(jax.random.key(0), 1)
        return bernoulli.failures(keys, 5, bernoulli.as_rate(rate), nested=nested)

    assert not np.any(failures(jnp.float32(zero)))


@every_model
def test_a_traced_rate_of_0_is_the_identity(model):
    @jax.jit
    def held(model, selected):
        sound = choose(model, selected).at("head")
        exposure = sound.exposure(Place("head", 9))
        maps = sound.sample(jax.random.key(0)[None], (255,), EIGHT_SIGNED, exposure)
        probability = jnp.asarray(sound.probability(Place("head", 9), EIGHT_SIGNED))
        return sound.apply(codes, maps[0], EIGHT_SIGNED), probability

    codes = jnp.arange(-127, 128, dtype=jnp.int32)
    for rates in (model, jax.tree.map(jnp.float32, model)):
        out, probability = held(rates, jnp.int32(0))
        np.testing.assert_array_equal(out, codes)
        assert probability == 0
