"""Jit, vmap over chips, grad, and batches that are split over devices."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import Small, array, held, initialized, perceptron, perceptron_parameters, quick

import ftnas_jax as ft
from ftnas_jax.faults import BitFlip, MiBB, StuckAt

ALL = (StuckAt(0.1, 0.1), MiBB(0.02), BitFlip(0.01, site="activations"))
P, X = perceptron_parameters(), array(8, 6)


def logits_of(hardware, x=X, **kwargs):
    chip = ft.on_hardware(perceptron, hardware)
    return lambda key: chip(P, x, draw=ft.Draw(key, **kwargs))


def hold(p, hardware):
    return quick(lambda draw: ft.hold(p, hardware, draw))(ft.Draw(jax.random.key(0)))


def test_chips_of_a_batch_of_keys_are_those_of_each_key():
    run = logits_of(ft.Hardware(faults=ALL))
    alone = quick(run)
    each = [np.asarray(alone(jax.random.key(seed))) for seed in range(3)]
    assert len({one.tobytes() for one in each}) == 3
    keys = jnp.stack([jax.random.key(seed) for seed in range(3)])
    np.testing.assert_array_equal(quick(jax.vmap(run))(keys), np.stack(each))


def test_one_program_serves_both_passes_and_all_rates():
    @quick
    @chex.assert_max_traces(n=1)
    def run(p_m, faulty):
        chip = ft.on_hardware(perceptron, ft.Hardware(faults=MiBB(p_m)))
        return chip(P, X, draw=ft.Draw(jax.random.key(0), faulty))

    clean = logits_of(ft.Hardware(), faulty=False)(jax.random.key(0))
    for p_m, faulty in ((0.0, True), (0.05, False)):
        np.testing.assert_array_equal(run(jnp.float32(p_m), jnp.bool_(faulty)), clean)
    assert np.any(run(jnp.float32(0.05), jnp.bool_(True)) != clean)


@pytest.mark.parametrize("per", ["image", "batch"])
def test_a_batch_split_over_devices_has_the_faults_of_the_whole(per):
    faults = (StuckAt(0.1, 0.1), MiBB(0.02, per=per))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.PartitionSpec("data")
    chip = ft.on_hardware(perceptron, ft.Hardware(faults=faults, batch_axis="data"))

    def run(x):
        return chip(P, x, draw=ft.Draw(jax.random.key(0)))

    mapped = jax.shard_map(run, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
    whole = quick(logits_of(ft.Hardware(faults=faults)))(jax.random.key(0))
    np.testing.assert_array_equal(quick(mapped)(X), whole)


def test_batch_norm_over_a_split_batch_comes_before_features_are_written():
    """Statistics of all devices: the faulty network is that of the whole batch, bit by bit."""

    class Normed(nn.Module):
        axis: str | None = None

        @nn.compact
        def __call__(self, x):
            x = nn.Dense(8, name="a")(x)
            x = nn.BatchNorm(False, axis_name=self.axis, name="norm")(x)
            return nn.Dense(3, name="b")(nn.relu(x))

    variables = initialized(Normed(), X)
    faults = (StuckAt(0.1, 0.1), MiBB(0.02))

    def run(axis):
        chip = ft.on_hardware(Normed(axis), ft.Hardware(faults=faults, batch_axis=axis))

        def apply(x):
            draw = ft.Draw(jax.random.key(0))
            return chip.apply(variables, x, mutable=["batch_stats"], draw=draw)[0]

        return apply

    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.PartitionSpec("data")
    mapped = jax.shard_map(run("data"), mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
    np.testing.assert_array_equal(quick(mapped)(X), quick(run(None))(X))


def test_a_batch_is_split_by_its_sharding_alone():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    chip = ft.on_hardware(perceptron, ft.Hardware(faults=ALL))
    run = quick(lambda x: chip(P, x, draw=ft.Draw(jax.random.key(0))))
    np.testing.assert_array_equal(run(jax.device_put(X, sharding)), run(X))


def test_gradients_are_those_at_the_held_values():
    """Straight through: of a linear model each factor has the other one, as held, for gradient."""
    p, x, cotangent = {"w": array(6, 3)}, array(4, 6, seed=1), array(4, 3, seed=2)
    hardware = ft.Hardware(faults=BitFlip(0.05))
    chip = ft.on_hardware(lambda p, x: x @ p["w"], hardware)
    draw = ft.Draw(jax.random.key(0))

    @quick
    def with_gradients(p, x):
        logits, vjp = jax.vjp(lambda p, x: chip(p, x, draw=draw), p, x)
        return logits, *vjp(cotangent)

    logits, by_weights, by_images = with_gradients(p, x)
    weights = hold(p, hardware)["w"]
    np.testing.assert_array_equal(logits, held(x) @ weights)
    np.testing.assert_allclose(by_weights["w"], held(x).T @ cotangent, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(by_images, cotangent @ weights.T, rtol=1e-6, atol=1e-6)


def test_gradients_of_a_network_with_faulty_weights_are_those_at_these_weights():
    """With features in float32 the faulty network is the plain one at faulty weights."""
    hardware = ft.Hardware(features=None, faults=StuckAt(0.1, 0.1))
    chip = ft.on_hardware(perceptron, hardware)

    def loss(logits):
        return jnp.sum(jnp.tanh(logits))

    got = quick(jax.grad(lambda p: loss(chip(p, X, draw=ft.Draw(jax.random.key(0))))))(P)
    faulty = hold(P, hardware)
    expected = jax.grad(lambda p: loss(perceptron(p, X)))(faulty)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, expected)


def test_masked_gradients_are_zero_at_faulty_weights_alone():
    straight = ft.Hardware(features=None, faults=StuckAt(0.2, 0.0))
    masked = ft.Hardware(features=None, faults=StuckAt(0.2, 0.0), gradients="masked")

    def gradient(hardware):
        chip = ft.on_hardware(perceptron, hardware)
        return quick(jax.grad(lambda p: chip(p, X, draw=ft.Draw(jax.random.key(0))).sum()))(P)

    got, whole = gradient(masked), gradient(straight)
    faulty = hold(P, straight)
    for name in P:
        stuck = np.asarray((faulty[name]["w"] == 0) & (held(P[name]["w"], low=-127) != 0))
        assert 0 < stuck.mean() < 1
        np.testing.assert_array_equal(got[name]["w"], np.where(stuck, 0, whole[name]["w"]))
        np.testing.assert_array_equal(got[name]["b"], whole[name]["b"])


def test_masked_gradients_pass_no_faulty_feature():
    """Every feature behind the first layer is hit, so that none of it learns."""
    faults = MiBB(1.0, layers="a")
    chip = ft.on_hardware(perceptron, ft.Hardware(faults=faults, gradients="masked"))
    draw = ft.Draw(jax.random.key(0))
    gradient = quick(jax.grad(lambda p: chip(p, X, draw=draw).sum()))(P)
    assert not np.any(gradient["a"]["w"])
    assert np.all(gradient["b"]["b"] == 8)


def test_gradients_pass_through_batch_norm_and_loops():
    """Where rounding is fine the gradient is that of the model: 16 bits against float32."""
    x = array(2, 5, 5, 3)
    variables = initialized(Small(train=True), x)
    fine = ft.FixedPoint(16)
    chip = ft.on_hardware(Small(train=True), ft.Hardware(fine, fine))

    def gradient(apply):
        def loss(p):
            own = {**variables, "params": p}
            return jnp.sum(apply(own, x, mutable=["batch_stats"])[0] ** 2)

        return quick(jax.grad(loss))(variables["params"])

    got, expected = gradient(chip.apply), gradient(Small(train=True).apply)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        scale = 1e-3 * float(jnp.max(jnp.abs(other))) + 1e-4
        np.testing.assert_allclose(one, other, atol=scale)
