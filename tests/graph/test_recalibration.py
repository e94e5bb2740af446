"""Statistics of BatchNorm that a chip takes anew, against NumPy's of what it computes."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import array, initialized, quick

import ftnas_jax as ft

IMAGES = array(16, 5, 5, 3)
STUCK = ft.Hardware(faults=ft.faults.StuckAt(0.2, 0.1))


class Normed(nn.Module):
    """Two convolutions with BatchNorms of different momenta, a ReLU, a Dense."""

    @nn.compact
    def __call__(self, x, train=False):
        for place, momentum in enumerate((0.9, 0.3)):
            x = nn.Conv(4, (3, 3), name=f"conv{place}")(x)
            norm = nn.BatchNorm(not train, momentum=momentum, use_fast_variance=False)
            x = nn.relu(norm(x))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


@pytest.fixture(scope="module")
def variables():
    return initialized(Normed(), IMAGES)


def recalibrated(chip, variables, images, draw):
    run = quick(functools.partial(ft.recalibrate, chip, draw=draw))
    return run(variables, images)


@pytest.mark.parametrize("draw", [ft.CLEAN, ft.Draw(jax.random.key(5))])
def test_statistics_are_those_of_the_features_on_the_chip(variables, draw):
    """The first convolution by NumPy; from the second one's own statistics: mean 0, variance 1."""
    chip = ft.on_hardware(Normed(), STUCK)
    own = recalibrated(chip, variables, IMAGES, draw)
    jax.tree.map(np.testing.assert_array_equal, own["params"], variables["params"])

    def keep(tensor, held):
        return held.x if tensor.kind == "features" else held.held

    def observed(variables, train):
        seen = quick(
            lambda v: chip.observed(
                keep, v, IMAGES, draw=draw, train=train, mutable=["batch_stats"]
            )[1]
        )
        return seen(variables)

    seen = observed(variables, True)
    kernel, bias = seen["conv0/kernel"], variables["params"]["conv0"]["bias"]
    f = _convolve(np.asarray(seen["input"], np.float64), np.asarray(kernel)) + np.asarray(bias)
    found = own["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(found["mean"], f.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["var"], f.var((0, 1, 2)), rtol=1e-4)
    # Normalized by them, features are what they are when normalized by the batch itself.
    again = observed(own, False)
    assert any(np.any(again[name] != observed(variables, False)[name]) for name in seen)
    for name in ("conv0", "conv1"):
        np.testing.assert_allclose(again[name], seen[name], rtol=1e-3, atol=1e-3)


def _convolve(x, kernel):
    """NumPy: 3x3, padded, stride 1."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    return sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3)
    )


def test_what_they_were_before_has_no_say(variables):
    chip, draw = ft.on_hardware(Normed(), STUCK), ft.Draw(jax.random.key(5))
    other = {**variables, "batch_stats": jax.tree.map(lambda a: 7 * a, variables["batch_stats"])}
    found = [recalibrated(chip, v, IMAGES, draw)["batch_stats"] for v in (variables, other)]
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_networks_of_the_search_space_are_recalibrated():
    space = ft.Space(3, ("none", "conv_1x1", "sep_conv_3x3"))
    cell = "[('sep_conv_3x3', 0, 2), ('conv_1x1', 1, 2)]"
    architecture = space.parse(f"normal={cell}, reduction={cell}")
    shape = ft.NetworkConfig(3, 4, 1, (), dropout=0.0, batch_norm="running", affine=True)
    network = ft.Network(shape, space, ft.Hardware(), architecture)
    images = array(8, 8, 8, 3)
    variables = jax.jit(network.init)(jax.random.key(0), images)
    chip = ft.on_hardware(network, ft.Hardware(faults=ft.faults.StuckAt(0.1, 0.05)))
    draw = ft.Draw(jax.random.key(1))
    own = jax.jit(functools.partial(ft.recalibrate, chip, draw=draw))(variables, images)
    options = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": jax.random.key(0)}}
    by_batch = jax.jit(lambda v: chip.apply(v, images, draw=draw, **options)[0])(variables)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(own))
    by_own = jax.jit(lambda v: chip.apply(v, images, draw=draw))(own)
    np.testing.assert_allclose(by_own, by_batch, rtol=1e-3, atol=1e-3)


def test_a_campaign_recalibrates_every_chip(variables):
    faults, key = "stuck_at:p0=0.2,p1=0.1", jax.random.key(3)
    labels = np.arange(len(IMAGES)) % 3
    others = np.asarray(array(12, 5, 5, 3, seed=9))
    report = ft.campaign(
        *(Normed(), variables, (np.asarray(IMAGES), labels)),
        faults=faults,
        key=key,
        chips=3,
        norm_images=others,
        keywords={"train": False},
    )
    chip = ft.on_hardware(Normed(), ft.Hardware(faults=ft.faults.parse(faults)))
    expected = []
    for number in range(3):
        own = recalibrated(chip, variables, others, ft.Draw(jax.random.fold_in(key, number)))
        logits = quick(chip.apply)(own, IMAGES, draw=ft.Draw(jax.random.fold_in(key, number)))
        expected.append(np.mean(np.argmax(np.asarray(logits), -1) == labels))
    np.testing.assert_allclose(report.outcomes[0].accuracies, expected)


def test_images_are_part_of_what_a_campaign_is_of(variables):
    digests = {
        ft.as_subject(Normed(), variables, STUCK, norm_images=images).sha256()
        for images in (None, np.asarray(IMAGES), np.asarray(IMAGES)[:8])
    }
    assert len(digests) == 3


def test_a_model_without_statistics_is_refused():
    message = r" has no BatchNorm to recalibrate: its variables have no batch_stats$"
    chip = ft.on_hardware(nn.Dense(3), STUCK)
    parameters = nn.Dense(3).init(jax.random.key(0), jnp.zeros((1, 4)))
    with pytest.raises(ValueError, match=message):
        ft.recalibrate(chip, parameters, jnp.zeros((2, 4)))
    message = "^network" + message
    with pytest.raises(ValueError, match=message):
        ft.as_subject(nn.Dense(3), parameters, STUCK, norm_images=np.zeros((2, 4)))
