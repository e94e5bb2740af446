"""Sound hardware against the same networks written out, each step in fixed point by NumPy."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from networks import SOUND, Small, Stacked, array, fixed, held, initialized, quick

import ftnas_jax as ft

convolve = functools.partial(
    lax.conv_general_dilated,
    window_strides=(1, 1),
    padding="SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
)


def per_channel(v):
    return v[None, None, None]


def run(function, p, *args):
    """What a function on sound hardware returns."""
    return quick(ft.on_hardware(function, SOUND).__call__)(p, *args)


@pytest.mark.parametrize(("train", "fast"), [(False, True), (True, True), (True, False)])
def test_a_small_network_with_batch_norm(train, fast):
    """Convolution, bias and BatchNorm are one; then features are written, not before."""
    x = array(2, 5, 5, 3)
    variables = initialized(Small(), x)
    chip = ft.on_hardware(Small(train, fast), SOUND)
    got = quick(lambda *args: chip.apply(*args, mutable=["batch_stats"])[0])(variables, x)

    p, stats = variables["params"], variables["batch_stats"]["norm"]
    y = convolve(held(x), held(p["conv"]["kernel"])) + per_channel(p["conv"]["bias"])
    mean, var = stats["mean"], stats["var"]
    if train:
        mean = y.mean((0, 1, 2))
        centred = ((y - per_channel(mean)) ** 2).mean((0, 1, 2))
        var = jnp.maximum(0, (y**2).mean((0, 1, 2)) - mean**2) if fast else centred
    scale = lax.rsqrt(var + 1e-5) * p["norm"]["scale"]
    y = (y - per_channel(mean)) * per_channel(scale) + per_channel(p["norm"]["bias"])
    pooled = held(jnp.maximum(held(y), 0).mean((1, 2)))
    expected = pooled @ held(p["head"]["kernel"]) + p["head"]["bias"][None]
    np.testing.assert_array_equal(got, expected)
    early = held(jnp.maximum(y, 0).mean((1, 2))) @ held(p["head"]["kernel"])
    assert np.any(early + p["head"]["bias"][None] != expected)


def test_attention():
    x = array(2, 5, 6)
    module = nn.MultiHeadDotProductAttention(2, qkv_features=4, out_features=3)
    variables = initialized(module, x)
    p = variables["params"]

    def project(name, scale=1.0):
        y = jnp.einsum("bti,ihd->bthd", held(x), held(p[name]["kernel"]))
        return held((y + p[name]["bias"][None, None]) / scale)

    # The scale of queries is part of their layer, as a bias is.
    query, key, value = project("query", jnp.sqrt(2.0)), project("key"), project("value")
    scores = held(jnp.einsum("bqhd,bkhd->bhqk", query, key))
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    weights = held(weights / weights.sum(-1, keepdims=True))
    mixed = held(jnp.einsum("bhqk,bkhd->bqhd", weights, value))
    expected = jnp.einsum("bqhd,hdo->bqo", mixed, held(p["out"]["kernel"]))
    got = quick(ft.on_hardware(module, SOUND).apply)(variables, x)
    np.testing.assert_allclose(got, expected + p["out"]["bias"][None, None], rtol=2e-6)


def test_scanned_layers():
    """Every turn has fraction lengths of its own, of weights and of features."""
    x = array(4, 6)
    variables = initialized(Stacked(), x)
    p = variables["params"]
    blocks, h = p["blocks"]["dense"], x
    for turn in range(3):
        h = held(h)
        kernel, bias = blocks["kernel"][turn] * 4**turn, blocks["bias"][turn]
        h = h + jnp.maximum(held(h @ held(kernel) + bias[None]), 0)
    expected = held(h) @ held(p["head"]["kernel"]) + p["head"]["bias"][None]
    blocks["kernel"] = blocks["kernel"] * jnp.array([1.0, 4.0, 16.0])[:, None, None]
    got = quick(ft.on_hardware(Stacked(), SOUND).apply)(variables, x)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_residual_sum_is_stored_after_the_layer_is_written():
    p = {"v": array(6, 6), "w": array(6, 2, seed=1)}
    x = array(4, 6, seed=2)

    def residual(p, x):
        return jax.nn.relu(x + x @ p["v"]) @ p["w"]

    q = held(x)
    expected = held(jnp.maximum(q + held(q @ held(p["v"])), 0)) @ held(p["w"])
    np.testing.assert_array_equal(run(residual, p, x), expected)
    q = held(x[1:2])  # nor does an image alone take its residual for a bias
    expected = held(jnp.maximum(q + held(q @ held(p["v"])), 0)) @ held(p["w"])
    np.testing.assert_array_equal(run(residual, p, x[1:2]), expected)
    late = held(jnp.maximum(held(q + q @ held(p["v"])), 0)) @ held(p["w"])
    assert np.any(late != expected)


def test_a_gate_of_data_is_no_scale_of_the_layer():
    """Squeeze and excitation: what is gated was written before, in a batch of one as well."""
    p = {"v": array(1, 1, 3, 4), "g": array(4, 4, seed=1), "w": array(4, 2, seed=2)}
    x = array(1, 4, 4, 3, seed=3)

    def gated(p, x):
        y = convolve(x, p["v"])
        gate = jnp.tanh(y.mean((1, 2)) @ p["g"])
        return jax.nn.relu(y * gate[:, None, None]).mean((1, 2)) @ p["w"]

    y = held(convolve(held(x), held(p["v"])))
    gate = jnp.tanh(held(held(y.mean((1, 2))) @ held(p["g"])))
    expected = held(jnp.maximum(y * gate[:, None, None], 0).mean((1, 2))) @ held(p["w"])
    np.testing.assert_array_equal(run(gated, p, x), expected)


def test_a_value_used_before_and_after_its_bias_is_written_before():
    p = {"v": array(6, 6), "b": array(6, seed=1), "w": array(6, 2, seed=2)}
    x = array(4, 6, seed=3)

    def both(p, x):
        h = x @ p["v"]
        return (jnp.tanh(h) + h + p["b"][None]) @ p["w"]

    h = held(held(x) @ held(p["v"]))
    expected = held(jnp.tanh(h) + h + p["b"][None]) @ held(p["w"])
    np.testing.assert_array_equal(run(both, p, x), expected)


def test_features_that_are_returned_and_used_are_written_once():
    p = {"v": array(6, 6), "b": array(6, seed=1), "w": array(6, 2, seed=2)}
    x = array(4, 6, seed=3)

    def both(p, x):
        h = x @ p["v"] + p["b"][None]
        return h, h @ p["w"]

    h = held(held(x) @ held(p["v"]) + p["b"][None])
    features, logits = run(both, p, x)
    np.testing.assert_array_equal(features, h)
    np.testing.assert_array_equal(logits, h @ held(p["w"]))


@pytest.mark.parametrize("shape", [(4, 6), (4, 1, 6), (2, 2, 6), (4, 2, 3)])
def test_outputs_stay_in_the_accumulators_in_any_layout(shape):
    p, x = {"w": array(6, 6), "b": array(6, seed=1)}, array(4, 6, seed=2)
    got = run(lambda p, x: (x @ p["w"] + p["b"][None]).reshape(shape), p, x)
    expected = held(x) @ held(p["w"]) + p["b"][None]
    np.testing.assert_array_equal(got, expected.reshape(shape))


@pytest.mark.parametrize("shape", [(2, 2, 6), (1, 4, 1, 6)])
def test_a_bias_may_stand_behind_a_change_of_layout(shape):
    p = {"v": array(6, 6), "b": array(6, seed=1), "w": array(6, 2, seed=2)}
    x = array(4, 6, seed=3)

    def reshaped(p, x):
        h = (x @ p["v"]).reshape(shape) + p["b"].reshape((1,) * (len(shape) - 1) + (6,))
        return jnp.tanh(h) @ p["w"]

    h = held(held(x) @ held(p["v"]) + p["b"][None])
    expected = (held(jnp.tanh(h)) @ held(p["w"])).reshape(*shape[:-1], 2)
    np.testing.assert_array_equal(run(reshaped, p, x), expected)


def test_frames_of_a_film_share_one_batch_norm():
    """Linen lays [B, T, H, W, C] out as [B·T, H, W, C] for a convolution, and back."""

    class Film(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(False, name="norm")(nn.Conv(4, (3, 3), name="conv")(x))
            return nn.relu(x)

    x = array(2, 3, 4, 4, 3)
    variables = initialized(Film(), x)
    chip = ft.on_hardware(Film(), SOUND)
    got = quick(lambda *args: chip.apply(*args, mutable=["batch_stats"])[0])(variables, x)
    p = variables["params"]
    y = convolve(held(x).reshape(6, 4, 4, 3), held(p["conv"]["kernel"]))
    y = y + per_channel(p["conv"]["bias"])
    norm = nn.BatchNorm(False).bind(
        {"params": p["norm"], "batch_stats": variables["batch_stats"]["norm"]}, mutable=True
    )
    expected = jnp.maximum(held(norm(y)), 0).reshape(got.shape)
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize(
    "prepare", [lambda x: x, lambda x: (x - 0.5) / 0.25, lambda x: x.astype(jnp.float32) / 255]
)
def test_what_is_done_to_images_before_any_layer_is_part_of_the_input(prepare):
    p = {"w": array(6, 2)}
    x = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 6)), jnp.uint8)
    x = x if prepare(jnp.float32(1)) < 1 else x.astype(jnp.float32)
    flips = ft.Hardware(faults=ft.faults.BitFlip(1.0, site="activations"))
    chip = ft.on_hardware(lambda p, x: prepare(x) @ p["w"], flips)
    got = chip(p, x, draw=ft.Draw(jax.random.key(0)))
    np.testing.assert_array_equal(got, held(prepare(x)) @ held(p["w"]))


@pytest.mark.parametrize("pool", [nn.max_pool, nn.avg_pool])
def test_what_is_pooled_is_stored_pooled(pool):
    p = {"v": array(1, 1, 3, 4), "w": array(4, 2, seed=1)}
    x = array(2, 4, 4, 3, seed=2)

    def pooled(y):
        with jax.numpy_dtype_promotion("standard"):
            return pool(jnp.maximum(y, 0), (2, 2), (2, 2))

    got = run(lambda p, x: pooled(convolve(x, p["v"])) @ p["w"], p, x)
    expected = held(pooled(held(convolve(held(x), held(p["v"]))))) @ held(p["w"])
    np.testing.assert_array_equal(got, expected)


def test_a_stored_tensor_is_not_changed_by_being_stored_again():
    """Two layers read halves of what a third wrote; each half has codes of its own."""
    p = {"v": array(6, 6), "w": array(3, 2, seed=1)}
    x = array(4, 6, seed=2)

    def halves(p, x):
        h = x @ p["v"]
        return h[:, :3] @ p["w"], h[:, 3:] @ p["w"]

    h = held(held(x) @ held(p["v"]))
    for got, half in zip(run(halves, p, x), (h[:, :3], h[:, 3:]), strict=True):
        np.testing.assert_array_equal(held(half), half)
        np.testing.assert_array_equal(got, half @ held(p["w"]))


def test_no_batch_at_all():
    p, x = {"w": array(6, 6)}, array(6, seed=1)
    got = run(lambda p, x: jnp.tanh(p["w"] @ x) @ p["w"], p, x)
    h = held(held(p["w"]) @ held(x))
    np.testing.assert_array_equal(got, held(jnp.tanh(h)) @ held(p["w"]))


@pytest.mark.parametrize("positive", [True, False])
def test_layers_in_branches(positive):
    p = {"a": array(6, 6), "b": array(6, 6, seed=1)}
    x = jnp.abs(array(4, 6, seed=2)) * (1 if positive else -1)

    def branched(p, x):
        branches = (lambda x: jnp.tanh(x @ p["a"]), lambda x: jnp.sin(x @ p["a"] @ p["b"]))
        return lax.cond(x[0, 0] > 0, *branches, x) @ p["b"]

    h = held(held(x) @ held(p["a"]))
    last = jnp.tanh(h) if positive else jnp.sin(held(h @ held(p["b"])))
    np.testing.assert_array_equal(run(branched, p, x), held(last) @ held(p["b"]))


def test_half_precision_holds_the_same_codes():
    p, x = {"v": array(6, 6), "w": array(6, 2, seed=1)}, array(4, 6, seed=2)
    half = jnp.bfloat16

    def mixed(p, x):
        return x.astype(half) @ p["v"].astype(half)

    # Step by step: a compiler may leave out a rounding to bfloat16.
    chip = ft.on_hardware(lambda p, x: mixed(p, x).astype(jnp.float32) @ p["w"], SOUND)
    got = chip(p, x)
    # Eight bits pass through bfloat16 unchanged.
    exact = (held(x).astype(half) @ held(p["v"]).astype(half)).astype(jnp.float32)
    np.testing.assert_array_equal(got, held(exact) @ held(p["w"]))


def test_codes_of_weights_follow_the_encoding():
    """-128 is a code in two's complement only."""
    p, x = {"w": jnp.asarray([[-1.0], [0.5]])}, jnp.eye(2)
    plus, minus = (ft.Hardware(ft.FixedPoint(8, e)) for e in ("twos_complement", "sign_magnitude"))
    for hardware, low in ((plus, -128), (minus, -127)):
        got = ft.on_hardware(lambda p, x: x @ p["w"], hardware)(p, x)
        np.testing.assert_array_equal(got, held(p["w"], low=low))
    assert fixed(p["w"])[0][0, 0] == -128
