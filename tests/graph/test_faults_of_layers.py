"""Faults of a model's weights and features, layer by layer.

Statistical tests have a fixed seed and a false-alarm rate of 1e-6 for each assertion.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from networks import (
    Small,
    SmallNNX,
    array,
    fixed,
    held,
    initialized,
    perceptron,
    perceptron_parameters,
    quick,
)
from scipy import stats

import ftnas_jax as ft
from ftnas_jax.faults import BitFlip, DefectMap, LogNormal, MiBB, StuckAt

FALSE_ALARM = 1e-6


def draw_of(seed=0, **kwargs):
    return ft.Draw(jax.random.key(seed), **kwargs)


def faulty(chip, *args, first=0):
    """What a chip returns with faults, in one program."""
    call = chip.apply if hasattr(chip, "apply") else chip
    return quick(lambda draw, *args: call(*args, draw=draw))(draw_of(first=first), *args)


def splitting(chip, p):
    """The same for batches that begin at `first`, one program for each size."""
    run = quick(lambda x, first: chip(p, x, draw=draw_of(first=first)))
    return lambda x, first=0: np.asarray(run(x, jnp.int32(first)))


@pytest.mark.parametrize(
    "model",
    [StuckAt(0.2, 0.1), LogNormal(0.3), BitFlip(0.05, per="batch")],
    ids=lambda model: f"{model.name}_{model.per}",
)
def test_weights_are_those_of_hold(model):
    """The faulty network is the plain one with the weights of `ft.hold`, for the same key."""
    hardware = ft.Hardware(features=None, faults=model)
    p, x = perceptron_parameters(), array(4, 6)
    got = faulty(ft.on_hardware(perceptron, hardware), p, x, first=3)
    weights = quick(lambda draw: ft.hold(p, hardware, draw))(draw_of(first=3))
    np.testing.assert_allclose(got, perceptron(weights, x), rtol=1e-5 * model.analog)
    assert np.any(weights["a"]["w"] != held(p["a"]["w"], low=-127))


def test_twins_in_linen_and_nnx_have_the_same_faults():
    x = array(2, 5, 5, 3)
    variables = initialized(Small(), x)
    twin = SmallNNX(nnx.Rngs(0))
    twin.eval()
    p = variables["params"]
    for own, name in ((twin.conv, "conv"), (twin.head, "head")):
        own.kernel[...], own.bias[...] = p[name]["kernel"], p[name]["bias"]
    twin.norm.scale[...], twin.norm.bias[...] = p["norm"]["scale"], p["norm"]["bias"]
    twin.norm.mean[...] = variables["batch_stats"]["norm"]["mean"]
    twin.norm.var[...] = variables["batch_stats"]["norm"]["var"]
    faults = (StuckAt(0.1, 0.1), MiBB(1e-2), BitFlip(0.01, site="activations"))
    hardware = ft.Hardware(faults=faults)
    linen = faulty(ft.on_hardware(Small(), hardware), variables, x)
    run = nnx.jit(lambda twin, x: ft.on_hardware(twin, hardware)(x, draw=draw_of()))
    np.testing.assert_array_equal(run(twin, x), linen)


def test_all_cells_stuck_at_one_leave_the_signs_of_weights():
    p, x = perceptron_parameters(), array(4, 6)
    hardware = ft.Hardware(features=None, faults=StuckAt(0.0, 1.0))
    got = faulty(ft.on_hardware(perceptron, hardware), p, x)

    def bound(w):
        codes, value = fixed(w, low=-127)
        step = float(np.max(np.abs(value)) / np.abs(codes).max())
        return jnp.asarray(np.where(codes < 0, -127, 127) * step, jnp.float32)

    own = {name: {"w": bound(layer["w"]), "b": layer["b"]} for name, layer in p.items()}
    np.testing.assert_array_equal(got, perceptron(own, x))


WIDTHS = (1, 9, 72)


def wide(p, x):
    """Layers of 1, 9 and 72 multiply-accumulates, whose features all can be seen."""
    hidden = [x[:, :n] @ p[f"of_{n}"]["w"] for n in WIDTHS]
    return [jnp.tanh(h / 64) for h in hidden]


def test_features_fail_at_the_rate_of_their_layer():
    """Binomial test of 2^14 features of each layer, false alarms at 1e-6 each."""
    x = jnp.ones((64, 72))
    p = {f"of_{n}": {"w": jnp.full((n, 256), 0.5 / n)} for n in WIDTHS}
    # With codes in steps of 1/64 the features, 32, move at every fault.
    lengths = {f"of_{n}": jnp.int32(6) for n in WIDTHS}
    chip = ft.on_hardware(wide, ft.Hardware(faults=MiBB(2e-3)), lengths=lengths)
    for macs, clean, hit in zip(
        WIDTHS, quick(chip.__call__)(p, x), faulty(chip, p, x), strict=True
    ):
        hits = int(np.sum(np.asarray(clean != hit)))
        rate = 1 - (1 - 2e-3) ** macs
        assert stats.binomtest(hits, clean.size, rate).pvalue > FALSE_ALARM, (macs, hits)


def test_flips_in_the_buffer_hit_what_layers_read():
    """Every lowest bit flips: of what is stored, but not of images, sums or logits."""
    x = array(2, 5, 5, 3)
    variables = initialized(Small(), x)
    clean = ft.on_hardware(Small(), ft.Hardware())
    hardware = ft.Hardware(faults=BitFlip(1.0, "0", site="activations"))
    got = faulty(ft.on_hardware(Small(), hardware), variables, x)

    seen = clean.observed(lambda tensor, own: own.held, variables, x)[1]
    stored = np.asarray(seen["conv/stored"], np.float64)
    codes, _ = fixed(stored)
    step = np.max(np.abs(stored)) / np.abs(codes).max()
    flipped = jnp.asarray((codes.astype(int) ^ 1) * step, jnp.float32)
    head = variables["params"]["head"]
    np.testing.assert_array_equal(got, flipped @ held(head["kernel"]) + head["bias"][None])


def test_features_read_without_change_fail_in_logic_and_in_the_buffer():
    p, x = {"v": array(6, 6), "w": jnp.eye(6)}, jnp.eye(6)

    def linear(p, x):
        return x @ p["v"] @ p["w"]

    codes, value = fixed(p["v"])
    step = float(np.max(np.abs(value)) / np.abs(codes).max())
    hardware = ft.Hardware(faults=BitFlip(1.0, site="activations"))
    got = faulty(ft.on_hardware(linear, hardware), p, x)
    # All bits of a code c flip to -1 - c; the identity is held exactly.
    np.testing.assert_array_equal(got, np.float32((-1 - codes) * step))
    seen = faulty(ft.on_hardware(linear, ft.Hardware(faults=MiBB(1.0))), p, x)
    assert np.all(seen != value)


@pytest.mark.parametrize(
    ("layers", "failing"),
    [("a", {"a"}), ("!a", {"b"}), ("a|b|!b", {"a"})],
)
def test_patterns_choose_layers(layers, failing):
    p, x = perceptron_parameters(), array(4, 6)
    hardware = ft.Hardware(features=None, faults=StuckAt(1.0, 0.0, layers=layers))
    got = faulty(ft.on_hardware(perceptron, hardware), p, x)

    def own(name):
        w = held(p[name]["w"], low=-127)
        return {"w": w * float(name not in failing), "b": p[name]["b"]}

    np.testing.assert_array_equal(got, perceptron({name: own(name) for name in p}, x))


@pytest.mark.parametrize(
    ("layers", "unknown"), [("c", "c"), ("a|!head*", "head*"), ("input", "input")]
)
def test_patterns_that_name_no_layer_are_refused(layers, unknown):
    chip = ft.on_hardware(perceptron, ft.Hardware(faults=MiBB(layers=layers)))
    with pytest.raises(ValueError, match=r"^mibb: ") as error:
        chip(perceptron_parameters(), array(4, 6))
    # The last layer's features are what the model returns, and never fail.
    there = "a, b" if layers.startswith("a|") else "a"
    message = f"mibb: no layer that it acts on is called {unknown!r}; there are {there}"
    assert str(error.value) == message


def test_defects_are_those_of_the_file(tmp_path):
    file = tmp_path / "defects.csv"
    file.write_text("layer,position,stuck_at\nb,4,max\nb,0,0\n", encoding="utf-8")
    p, x = perceptron_parameters(), array(4, 6)
    hardware = ft.Hardware(features=None, faults=DefectMap(file=str(file)))
    got = faulty(ft.on_hardware(perceptron, hardware), p, x)
    codes, value = fixed(p["b"]["w"], low=-127)
    step = float(np.max(np.abs(value)) / np.abs(codes).max())
    codes[0, 0], codes[1, 1] = 0, 127 if codes[1, 1] >= 0 else -127
    own = {"a": dict(p["a"], w=held(p["a"]["w"], low=-127)), "b": dict(p["b"])}
    own["b"]["w"] = jnp.asarray(codes * step, jnp.float32)
    np.testing.assert_array_equal(got, perceptron(own, x))

    file.write_text("layer,position,stuck_at\nc,0,max\n", encoding="utf-8")
    chip = ft.on_hardware(perceptron, ft.Hardware(faults=DefectMap(file=str(file))))
    message = r"^defect_map: no layer that it acts on is called 'c'; there are a, b$"
    with pytest.raises(ValueError, match=message):
        chip(p, x)


def test_protecting_a_layer_that_would_not_fail_is_no_mistake():
    p, x = perceptron_parameters(), array(4, 6)
    whole, but_last = (
        ft.on_hardware(perceptron, ft.Hardware(faults=MiBB(0.3, layers=layers)))
        for layers in ("*", "!b")
    )
    np.testing.assert_array_equal(faulty(whole, p, x), faulty(but_last, p, x))
    with pytest.raises(ValueError, match="'b'"):
        faulty(ft.on_hardware(perceptron, ft.Hardware(faults=MiBB(0.3, layers="b"))), p, x)


def test_a_defect_map_is_not_for_a_stack_of_layers(tmp_path):
    file = tmp_path / "defects.csv"
    file.write_text("layer,position,stuck_at\nstack,0,max\n", encoding="utf-8")

    def model(params, x):
        return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["stack"])[0]

    chip = ft.on_hardware(model, ft.Hardware(faults=DefectMap(file=str(file))))
    with pytest.raises(ValueError, match=r"^defect_map: stack is a stack of layers"):
        chip({"stack": array(3, 6, 6)}, array(4, 6), draw=ft.Draw(jax.random.key(0)))


@pytest.mark.parametrize("per", ["image", "chip"])
def test_images_are_found_by_the_argument_that_holds_them(per):
    """Six equal images: faults of a chip hit them alike, those of an image go by its number."""
    p = {"w": array(16, 16), "v": array(16, 16, seed=1)}
    x, bias = jnp.tile(array(1, 5, 16), (6, 1, 1)), array(1, 5, 1)

    def model(p, x, bias):
        return jnp.tanh(x @ p["w"] + bias) @ p["v"]

    def swapped(p, bias, x):
        return model(p, x, bias)

    hardware, key = ft.Hardware(faults=MiBB(1e-2, per=per)), jax.random.key(0)
    expected = ft.on_hardware(model, hardware)(p, x, bias, draw=ft.Draw(jax.random.clone(key)))
    assert np.all(expected == expected[:1]) == (per == "chip")
    for images, call, named in ((1, (bias, x), {}), ("x", (), {"x": x, "bias": bias})):
        chip = ft.on_hardware(swapped, hardware, images=images)
        got = chip(p, *call, draw=ft.Draw(jax.random.clone(key)), **named)
        np.testing.assert_array_equal(got, expected)
    with pytest.raises(ValueError, match=r"argument 0 holds one image, and another is of shape"):
        ft.on_hardware(swapped, hardware)(p, bias, x)
    with pytest.raises(ValueError, match=r"the call has no argument 0 with images in it"):
        ft.on_hardware(model, hardware)(p, x=x, bias=bias)


FEATURES = [MiBB(0.1), BitFlip(0.1, site="activations")]


def frozen(model, function, p, *args):
    """A chip whose fraction lengths no longer depend on the batch."""
    chip = ft.on_hardware(function, ft.Hardware(faults=model))
    return ft.calibrate(chip, [(p, *args)])


@pytest.mark.parametrize("model", FEATURES, ids=lambda model: model.name)
def test_faults_of_an_image_do_not_depend_on_how_the_batch_is_split(model):
    p, x = perceptron_parameters(), jnp.tile(array(1, 6), (6, 1))
    chip = frozen(model, perceptron, p, x)
    run = splitting(chip, p)
    whole = run(x)
    assert len(np.unique(whole, axis=0)) == 6  # images are the same, their faults are not
    for first, end in ((0, 2), (2, 4), (5, 6)):
        np.testing.assert_array_equal(run(x[first:end], first), whole[first:end])


@pytest.mark.parametrize("per", ["batch", "chip"])
def test_maps_drawn_for_a_chip_or_a_batch_hit_all_images_alike(per):
    p, x = perceptron_parameters(), jnp.tile(array(1, 6), (4, 1))
    run = splitting(frozen(MiBB(0.1, per=per), perceptron, p, x), p)
    first, second = run(x), run(x, 4)
    assert len(np.unique(first, axis=0)) == 1
    assert np.array_equal(first, second) == (per == "chip")


@pytest.mark.parametrize("per", ["image", "chip"])
def test_rows_of_an_image_are_its_own(per):
    """Tokens [B, T, D] that a model lays out as [B·T, D]: T rows belong to each image."""
    p, x = perceptron_parameters(), jnp.tile(array(1, 3, 6), (4, 1, 1))

    def rows(p, x):
        return perceptron(p, x.reshape(-1, 6)).reshape(-1, 3, 3)

    chip = frozen(MiBB(0.1, per=per), rows, p, x)
    run = splitting(chip, p)
    whole = run(x)
    assert len(np.unique(whole, axis=0)) == (4 if per == "image" else 1)
    if per == "image":
        np.testing.assert_array_equal(run(x[1:3], 1), whole[1:3])
    else:
        np.testing.assert_array_equal(run(x[:1], 1), whole[:1])


def test_every_turn_of_a_loop_has_faults_of_its_own():
    """Without weights to differ, turns differ by the faults of their features."""

    def turns(p, x):
        return jax.lax.scan(lambda h, _: (h, jnp.tanh(x @ p["w"])), x, None, length=4)[1]

    p, x = {"w": array(6, 8)}, array(5, 6)
    got = faulty(ft.on_hardware(turns, ft.Hardware(faults=MiBB(0.02))), p, x)
    assert len(np.unique(np.asarray(got).reshape(4, -1), axis=0)) == 4
    stuck = faulty(ft.on_hardware(turns, ft.Hardware(faults=StuckAt(0.1, 0.1))), p, x)
    assert len(np.unique(np.asarray(stuck).reshape(4, -1), axis=0)) == 1
