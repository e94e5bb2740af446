"""Faulty weights of plain trees, as Haiku, Equinox and others have them."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import SOUND, Small, array, held, initialized, quick

import ftnas_jax as ft
from ftnas_jax.faults import BitFlip, MiBB, StuckAt


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Linear:
    """A layer as a dataclass of arrays, as Equinox has it."""

    weight: jax.Array
    bias: jax.Array


def haiku_tree():
    return {"mlp/~/linear_0": {"w": array(6, 5), "b": array(5)}, "linear": {"w": array(5, 3)}}


def equinox_tree():
    return {"layers": [Linear(array(5, 6), array(5)), Linear(array(3, 5), array(3))], "depth": None}


@pytest.mark.parametrize("tree", [haiku_tree(), equinox_tree()])
def test_kernels_are_quantized_and_biases_are_not(tree):
    got = ft.hold(tree, SOUND)
    assert jax.tree.structure(got) == jax.tree.structure(tree)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(tree), strict=True):
        np.testing.assert_array_equal(one, held(other) if other.ndim > 1 else other)


@pytest.mark.parametrize(
    ("tree", "layers", "names"),
    [
        (haiku_tree(), "mlp/~/linear_0", ["mlp/~/linear_0"]),
        (haiku_tree(), "*linear*|!linear", ["mlp/~/linear_0"]),
        (equinox_tree(), "layers/1", ["layers/1"]),
    ],
)
def test_layers_are_called_as_their_paths(tree, layers, names):
    got = ft.hold(tree, ft.Hardware(faults=StuckAt(1.0, 0.0, layers=layers)), draw_of())
    for path, leaf in jax.tree.leaves_with_path(got):
        parts = [str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", "")))) for p in path]
        if leaf.ndim > 1:
            assert np.any(leaf) == ("/".join(parts[:-1]) not in names)


def draw_of(seed=0):
    return ft.Draw(jax.random.key(seed))


def test_faults_follow_the_key_and_the_path():
    hardware = ft.Hardware(faults=StuckAt(0.3, 0.0))
    w = jnp.ones((8, 8))
    tree = {"a": {"w": w}, "b": {"w": w}}
    first, again = (ft.hold(tree, hardware, draw_of()) for _ in range(2))
    np.testing.assert_array_equal(first["a"]["w"], again["a"]["w"])
    assert np.any(first["a"]["w"] != first["b"]["w"])
    alone = ft.hold({"b": {"w": w}}, hardware, draw_of())
    np.testing.assert_array_equal(alone["b"]["w"], first["b"]["w"])
    other = ft.hold(tree, hardware, draw_of(1))
    assert np.any(first["a"]["w"] != other["a"]["w"])


def test_trees_of_flax_are_held_as_chips_hold_them():
    x = array(2, 5, 5, 3)
    variables = initialized(Small(), x)
    hardware = ft.Hardware(features=None, faults=BitFlip(0.05))
    faulty = quick(lambda draw: ft.hold(variables["params"], hardware, draw))(draw_of())
    expected = Small().apply({**variables, "params": faulty}, x)
    chip = ft.on_hardware(Small(), hardware)
    got = quick(lambda draw: chip.apply(variables, x, draw=draw))(draw_of())
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_state_of_nnx_is_a_tree_with_the_faults_of_the_module():
    module, x = nnx.Linear(6, 3, rngs=nnx.Rngs(0)), array(4, 6)
    module.bias[...] = array(3)
    hardware = ft.Hardware(features=None, faults=BitFlip(0.05))
    faulty = ft.hold(nnx.state(module, nnx.Param), hardware, draw_of())
    assert np.any(faulty["kernel"][...] != held(module.kernel[...]))
    np.testing.assert_array_equal(faulty["bias"][...], module.bias[...])
    got = ft.on_hardware(module, hardware)(x, draw=draw_of())
    nnx.update(module, faulty)
    np.testing.assert_array_equal(got, module(x))


def test_patterns_choose_what_is_a_weight():
    tree = {"conv": {"kernel": array(3, 3)}, "pos": array(4, 4), "gain": array(5)}
    got = ft.hold(tree, SOUND, weights="*/kernel | gain")
    np.testing.assert_array_equal(got["conv"]["kernel"], held(tree["conv"]["kernel"]))
    np.testing.assert_array_equal(got["gain"], held(tree["gain"]))
    np.testing.assert_array_equal(got["pos"], tree["pos"])


def test_types_are_kept_and_integers_are_no_weights():
    tree = {"w": array(4, 4).astype(jnp.bfloat16), "steps": jnp.ones((2, 2), jnp.int32)}
    got = ft.hold(tree, SOUND)
    assert got["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(got["w"].astype(jnp.float32), held(tree["w"].astype(jnp.float32)))
    np.testing.assert_array_equal(got["steps"], tree["steps"])


def test_faults_of_features_have_no_say():
    tree = haiku_tree()
    got = ft.hold(tree, ft.Hardware(faults=MiBB(1.0)), draw_of())
    jax.tree.map(np.testing.assert_array_equal, got, ft.hold(tree, SOUND))


def test_held_trees_can_be_mapped_over_chips():
    hardware = ft.Hardware(faults=StuckAt(0.1, 0.1))
    tree = haiku_tree()
    keys = jnp.stack([jax.random.key(seed) for seed in range(3)])
    chips = quick(jax.vmap(lambda key: ft.hold(tree, hardware, ft.Draw(key))))(keys)
    for seed in range(3):
        alone = ft.hold(tree, hardware, draw_of(seed))
        np.testing.assert_array_equal(chips["linear"]["w"][seed], alone["linear"]["w"])


@pytest.mark.parametrize(
    ("tree", "weights", "names"),
    [
        ({"b": jnp.ones(3)}, "", "b"),
        ({"w": jnp.ones((3, 3)), "b": jnp.ones(3)}, "v|kernel", "b, w"),
    ],
)
def test_a_tree_without_weights_is_refused(tree, weights, names):
    message = f"no parameter is a weight by weights={weights!r}; there are {names}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ft.hold(tree, SOUND, weights=weights)


def test_a_layer_that_is_not_there_is_refused():
    p = {"a": {"kernel": array(6, 6)}, "b": {"kernel": array(6, 6)}}
    hardware = ft.Hardware(faults=StuckAt(0.5, 0.4, layers="typo"))
    with pytest.raises(ValueError, match=r"'typo'; there are a, b$"):
        ft.hold(p, hardware, ft.Draw(jax.random.key(0)))


def test_variables_are_held_as_their_parameters():
    p = {"a": {"kernel": array(6, 6)}}
    hardware = ft.Hardware(faults=StuckAt(0.5, 0.4, layers="a"))
    held = ft.hold({"params": p}, hardware, ft.Draw(jax.random.key(0)))
    own = ft.hold(p, hardware, ft.Draw(jax.random.key(0)))
    np.testing.assert_array_equal(held["params"]["a"]["kernel"], own["a"]["kernel"])
