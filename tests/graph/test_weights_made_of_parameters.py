"""Weights that are computed from parameters, or that several layers share."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from networks import SOUND, array, function_rows, held, linen_rows, quick

import ftnas_jax as ft

X, W, V, B = array(4, 6), array(6, 6, seed=1), array(6, 6, seed=2), array(6, seed=3)
STUCK = ft.Hardware(faults=ft.faults.StuckAt(0.2, 0.1))


def weights(function, parameters, *args):
    """Names and shapes of what is held, and what is left in float32."""
    found = function_rows(function, parameters, *args)
    return [(row[0], row[3]) for row in found if row[1] == "weights"], found[-1][2:]


def faulty(function, parameters, *args, hardware=STUCK, seed=0):
    chip = ft.on_hardware(function, hardware)
    run = quick(lambda key: chip(parameters, *args, draw=ft.Draw(key)))
    return np.asarray(run(jax.random.key(seed)))


def test_a_standardized_kernel_is_held_after_that():
    def standardized(p, x):
        return x @ (p["w"] - p["w"].mean(0, keepdims=True))

    assert weights(standardized, {"w": W}, X) == ([("w", "6x6")], ["nothing"])
    clean = ft.on_hardware(standardized, SOUND)({"w": W}, X)
    expected = held(X) @ held(W - W.mean(0, keepdims=True))
    np.testing.assert_array_equal(clean, expected)


def test_a_scaled_kernel_has_the_name_of_the_kernel():
    def scaled(p, x):
        return x @ (p["g"][None] * p["v"])

    assert weights(scaled, {"g": B, "v": W}, X) == ([("v", "6x6")], ["nothing"])
    found = linen_rows(nn.WeightNorm(nn.Dense(5)), X)
    assert found[1] == ["layer_instance/kernel", "weights", "6", "6x5"]
    assert found[-1][2:] == ["layer_instance/bias"]


def test_kernels_side_by_side_are_one_tensor():
    def beside(p, x):
        return x @ jnp.concatenate([p["a"], p["b"]], 1)

    assert weights(beside, {"a": W, "b": V}, X) == ([("a", "6x12")], ["nothing"])
    whole = ft.on_hardware(beside, SOUND)({"a": W, "b": 9 * V}, X)
    np.testing.assert_array_equal(whole, held(X) @ held(jnp.concatenate([W, 9 * V], 1)))


def test_slices_of_a_fused_kernel_are_held_as_a_whole():
    def fused(p, x):
        return jax.nn.relu(x @ p["w"][:, :3]) @ p["w"][:3]

    assert weights(fused, {"w": W}, X) == ([("w", "6x6")], ["nothing"])
    large = W.at[5, 5].set(100.0)  # in neither slice, but it decides on the fraction length
    q = held(large)
    expected = held(jax.nn.relu(held(held(X) @ q[:, :3]))) @ q[:3]
    np.testing.assert_array_equal(ft.on_hardware(fused, SOUND)({"w": large}, X), expected)


def test_a_kernel_that_a_loop_computes():
    def looped(p, x):
        return x @ lax.scan(lambda c, row: (c + row, row * 2.0), jnp.zeros(6), p["w"])[1]

    assert weights(looped, {"w": W}, X)[0] == [("w", "6x6")]
    np.testing.assert_array_equal(ft.on_hardware(looped, SOUND)({"w": W}, X), held(X) @ held(2 * W))


def test_a_shared_layer_has_the_same_faults_at_every_call():
    def standardized(p, x):
        def layer(x):
            return x @ (p["w"] - p["w"].mean())

        return jnp.stack([layer(x), layer(x)])

    assert weights(standardized, {"w": W}, X)[0] == [("w", "6x6")]
    first, second = faulty(standardized, {"w": W}, X)
    np.testing.assert_array_equal(first, second)
    assert np.any(first != ft.on_hardware(standardized, SOUND)({"w": W}, X)[0])


def sum_of_calls(p, x):
    return lax.fori_loop(0, 3, lambda i, h: h + x @ (p["w"] * 2.0), jnp.zeros_like(x))


def test_a_loop_holds_what_it_does_not_slice_once():
    """Three turns with one set of faults add up to thrice one of them."""
    stuck = ft.Hardware(features=None, faults=STUCK.faults)
    one = faulty(lambda p, x: x @ (p["w"] * 2.0), {"w": W}, X, hardware=stuck)
    got = faulty(sum_of_calls, {"w": W}, X, hardware=stuck)
    np.testing.assert_allclose(got, 3 * one, rtol=1e-6)
    clean = ft.on_hardware(sum_of_calls, SOUND)({"w": W}, X)
    assert np.abs(got - clean).max() > 0.1


def test_stacked_layers_fail_alike_in_every_turn_of_an_outer_loop():
    stuck = ft.Hardware(features=None, faults=STUCK.faults)
    stack = array(2, 6, 6, seed=4)

    def once(p, x):
        return lax.scan(lambda h, w: (h @ w, None), x, p["w"])[0]

    def repeated(p, x):
        return lax.fori_loop(0, 3, lambda i, h: h + once(p, x), jnp.zeros_like(x))

    one = faulty(once, {"w": stack}, X, hardware=stuck)
    got = faulty(repeated, {"w": stack}, X, hardware=stuck)
    np.testing.assert_allclose(got, 3 * one, rtol=1e-5)


def test_two_scans_over_the_same_layers_have_the_same_faults():
    stuck = ft.Hardware(features=None, faults=STUCK.faults)

    def siamese(p, x):
        def encode(x):
            return lax.scan(lambda h, w: (h @ w, None), x, p["w"])[0]

        return jnp.stack([encode(x), encode(x)])

    first, second = faulty(siamese, {"w": array(2, 6, 6)}, X, hardware=stuck)
    np.testing.assert_array_equal(first, second)


def test_experts_chosen_by_data_are_read_from_a_table():
    def expert(p, x, number):
        return x @ p["w"][number]

    stack = array(3, 6, 6)
    for number in (0, 2):
        got = ft.on_hardware(expert, SOUND)({"w": stack}, X, jnp.int32(number))
        np.testing.assert_array_equal(got, held(X) @ held(held(stack)[number]))
    assert weights(expert, {"w": stack}, X, jnp.int32(0)) == ([("w", "3x6x6")], ["nothing"])
