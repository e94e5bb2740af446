"""Fraction lengths from a few batches, kept in a file; and the accuracy that is left."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from networks import (
    BARE,
    SOUND,
    Small,
    SmallNNX,
    array,
    held,
    initialized,
    perceptron,
    perceptron_parameters,
    quick,
)

import ftnas_jax as ft

P, X = perceptron_parameters(), array(4, 6)


def cut(x, length):
    """NumPy: 8 bits of a given fraction length, saturated."""
    codes = np.clip(np.round(np.asarray(x, np.float64) * 2.0**length), -128, 127)
    return jnp.asarray((codes * 2.0**-length).astype(np.float32))


def length_of(x):
    """NumPy: the largest length without overflow."""
    x = np.asarray(x, np.float64)
    for length in range(30, -30, -1):
        codes = np.round(x * 2.0**length)
        if codes.min() >= -128 and codes.max() <= 127:
            return length
    raise AssertionError("out of the range that this oracle searches")


def hidden(x):
    return held(x) @ held(P["a"]["w"]) + P["a"]["b"][None]


def test_lengths_are_the_largest_for_which_no_batch_overflows():
    batches = [X, 8 * X, X / 4]
    chip = ft.calibrate(ft.on_hardware(perceptron, SOUND), [(P, x) for x in batches])
    expected = {
        "input": min(map(length_of, batches)),
        "a": min(length_of(hidden(x)) for x in batches),
        "a/stored": min(length_of(jnp.maximum(held(hidden(x)), 0)) for x in batches),
    }
    assert {name: int(length) for name, length in chip.lengths.items()} == expected


def test_frozen_features_saturate():
    chip = ft.calibrate(ft.on_hardware(perceptron, SOUND), [(P, X)])
    lengths = {name: int(length) for name, length in chip.lengths.items()}
    large = 10 * X
    h = cut(large, lengths["input"]) @ held(P["a"]["w"]) + P["a"]["b"][None]
    h = cut(jnp.maximum(cut(h, lengths["a"]), 0), lengths["a/stored"])
    expected = h @ held(P["b"]["w"]) + P["b"]["b"][None]
    run, free = quick(chip.__call__), quick(ft.on_hardware(perceptron, SOUND).__call__)
    np.testing.assert_array_equal(run(P, large), expected)
    np.testing.assert_array_equal(run(P, X), free(P, X))
    assert np.any(expected != free(P, large))


def test_turns_of_a_loop_have_lengths_of_their_own(tmp_path):
    def growing(p, x):
        return lax.fori_loop(0, 3, lambda i, h: 4 * jnp.sin(h) + h @ p["w"], x)

    p, x = {"w": 3 * jnp.eye(6)}, array(4, 6)
    chip = ft.on_hardware(growing, SOUND)
    frozen = ft.calibrate(chip, [(p, x)])
    lengths, h = [], x
    for _ in range(3):
        h = held(h)
        lengths.append(length_of(h))
        h = 4 * jnp.sin(h) + held(h @ (3 * jnp.eye(6)))
    assert frozen.lengths["w/stored"].tolist() == lengths
    assert len(set(lengths)) > 1
    got = quick(frozen.__call__)(p, x)
    np.testing.assert_allclose(got, quick(chip.__call__)(p, x), rtol=1e-6)
    ft.save_lengths(tmp_path / "lengths.json", frozen.lengths)
    again = ft.load_lengths(tmp_path / "lengths.json")
    own = ft.on_hardware(growing, SOUND, lengths=again)
    np.testing.assert_array_equal(quick(own.__call__)(p, x), got)


def test_lengths_can_be_kept_and_edited(tmp_path):
    chip = ft.calibrate(ft.on_hardware(perceptron, SOUND), [(P, X)])
    file = tmp_path / "lengths.json"
    ft.save_lengths(file, chip.lengths)
    assert json.loads(file.read_text()) == {n: int(length) for n, length in chip.lengths.items()}
    known = ft.load_lengths(file)
    assert all(length.dtype == jnp.int32 for length in known.values())
    file.write_text('{"a": -1}')
    coarse = ft.on_hardware(perceptron, SOUND, lengths=ft.load_lengths(file))
    h = jnp.maximum(cut(hidden(X), -1), 0)
    expected = held(h) @ held(P["b"]["w"]) + P["b"]["b"][None]
    np.testing.assert_array_equal(coarse(P, X), expected)


@pytest.mark.parametrize(
    "text",
    ["", "[1]", '{"a": "5"}', '{"a": {"b": 1}}', '{"a": 1e9}', '{"a": 5.5}', '{"a": [1, [2]]}'],
)
def test_a_file_that_holds_no_lengths_is_refused(tmp_path, text):
    file = tmp_path / "lengths.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"holds no fraction lengths") as error:
        ft.load_lengths(file)
    assert str(error.value) == f"{file} holds no fraction lengths: names with whole numbers"


def test_a_file_that_is_not_there_is_refused(tmp_path):
    file = tmp_path / "lengths.json"
    with pytest.raises(ValueError, match=r"^cannot read ") as error:
        ft.load_lengths(file)
    assert str(error.value) == f"cannot read {file}: No such file or directory"


def test_calibration_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"^calibration needs at least one batch$"):
        ft.calibrate(ft.on_hardware(perceptron, SOUND), [])
    message = r"^features are in float32: they have no fraction lengths to calibrate$"
    with pytest.raises(ValueError, match=message):
        ft.calibrate(ft.on_hardware(perceptron, BARE), [(P, X)])
    message = r"^there are no images to measure the accuracy on$"
    with pytest.raises(ValueError, match=message):
        ft.accuracies(ft.on_hardware(perceptron, SOUND), [], [])


def test_arguments_that_are_no_arrays_stay_known():
    class Sometimes(nn.Module):
        @nn.compact
        def __call__(self, x, rectify):
            x = nn.Dense(6, name="a")(x)
            return nn.Dense(3, name="b")(nn.relu(x) if rectify else x)

    variables = initialized(Sometimes(), X, True)
    chip = ft.on_hardware(Sometimes(), ft.Hardware(faults=ft.faults.MiBB(0.1)))
    assert set(ft.calibrate(chip, [(variables, X, True)]).lengths) == {"input", "a", "a/stored"}
    assert set(ft.calibrate(chip, [(variables, X, False)]).lengths) == {"input", "a"}
    labels = jnp.zeros(4, jnp.int32)
    assert ft.accuracies(chip, [(variables, X, True)], [labels]).images == 4
    assert ft.exposure(chip, variables, X, False, key=jax.random.key(0), maps=1).rows


def test_accuracies_are_those_of_a_hand_count():
    batches = [array(6, 6), array(3, 6, seed=1)]
    labels = [np.arange(6) % 3, np.arange(3) % 3]
    chip = ft.on_hardware(perceptron, ft.Hardware(features=ft.FixedPoint(3)))
    got = ft.accuracies(chip, [(P, x) for x in batches], labels)
    counts = []
    for model in (perceptron, chip.__call__):
        logits = [np.asarray(quick(model)(P, x)) for x in batches]
        counts.append(
            sum(int((np.argmax(o, 1) == y).sum()) for o, y in zip(logits, labels, strict=True))
        )
    assert (got.float32, got.quantized, got.images) == (counts[0] / 9, counts[1] / 9, 9)
    percent = [f"{count / 9:.2%}" for count in counts]
    assert str(got) == f"float32 {percent[0]} | quantized {percent[1]} (9 images)"


def test_modules_of_nnx_and_linen_are_calibrated_and_measured():
    x = array(2, 5, 5, 3)
    variables = initialized(Small(), x)
    linen = ft.calibrate(ft.on_hardware(Small(), SOUND), [(variables, x)])
    module = SmallNNX(nnx.Rngs(0))
    module.eval()
    mean = np.asarray(module.norm.mean[...])
    twin = ft.calibrate(ft.on_hardware(module, SOUND), [(x,)])
    assert set(twin.lengths) == set(linen.lengths) == {"input", "conv", "conv/stored"}
    got = ft.accuracies(twin, [(x,)], [jnp.argmax(module(x), -1)])
    assert (got.float32, got.images) == (1.0, 2)
    np.testing.assert_array_equal(module.norm.mean[...], mean)


def test_lengths_of_another_model_or_format_are_refused():
    def model(p, x):
        return jnp.tanh(x @ p["w"]) @ p["v"]

    call = ({"w": array(6, 6), "v": array(6, 6, seed=1)}, array(4, 6))
    with pytest.raises(ValueError, match=r"a fraction length of 'typo', which is no feature"):
        ft.on_hardware(model, ft.Hardware(), lengths={"typo": jnp.int32(3)})(*call)
    frozen = ft.calibrate(ft.on_hardware(model, ft.Hardware()), [call])
    faults = ft.Hardware(faults=ft.faults.MiBB())
    assert frozen.with_hardware(faults).lengths == frozen.lengths
    with pytest.raises(ValueError, match=r"calibrate again$"):
        frozen.with_hardware(ft.Hardware(features=ft.FixedPoint(4)))


def test_a_diverged_model_is_not_calibrated():
    chip = ft.on_hardware(lambda p, x: jnp.tanh(x @ p) @ p, ft.Hardware())
    with pytest.raises(ValueError, match=r"is not finite: the model has diverged$"):
        ft.calibrate(chip, [(jnp.full((6, 6), jnp.nan), array(4, 6))])
