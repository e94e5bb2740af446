"""Statistics of BatchNorm that a chip takes anew, against NumPy's of what it computes."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import array, held, initialized, quick

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
        return nn.Dense(3, name="head")(x.reshape(len(x), -1))


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


@pytest.mark.parametrize("scale", [1e-3, 1e3, 1e6])
@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.999])
def test_statistics_of_any_size_are_found(scale, momentum):
    """Against float64, without fixed point; the start is 0 and 1, as `init` leaves them."""

    class Only(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            norm = nn.BatchNorm(not train, momentum=momentum, use_fast_variance=False, name="norm")
            return norm(nn.Dense(4, use_bias=False, name="dense")(x))

    x = array(64, 6, scale=scale)
    variables = Only().init(jax.random.key(0), x)
    chip = ft.on_hardware(Only(), ft.Hardware(weights=None, features=None))
    found = recalibrated(chip, variables, x, ft.CLEAN)["batch_stats"]["norm"]
    f = np.float64(x) @ np.float64(variables["params"]["dense"]["kernel"])
    np.testing.assert_allclose(found["var"], f.var(0), rtol=1e-4)
    np.testing.assert_allclose(found["mean"], f.mean(0), rtol=1e-4, atol=1e-4 * scale)


def test_what_counts_is_kept():
    """An integer among the statistics is no average."""

    class Counting(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            steps = self.variable("batch_stats", "steps", lambda: jnp.int32(7))
            if train:
                steps.value = steps.value + 1
            return nn.BatchNorm(not train, name="norm")(nn.Dense(3, name="dense")(x))

    x = array(8, 4)
    variables = Counting().init(jax.random.key(0), x)
    found = recalibrated(ft.on_hardware(Counting(), STUCK), variables, x, ft.CLEAN)["batch_stats"]
    assert (found["steps"].dtype, int(found["steps"])) == (jnp.int32, 7)
    assert np.any(found["norm"]["mean"] != 0)


def test_layers_that_are_scanned_over_and_dropout_are_recalibrated():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.Dense(6, name="dense")(x)
            x = nn.BatchNorm(not train, use_fast_variance=False, name="norm")(x)
            return nn.Dropout(0.5, deterministic=not train)(nn.relu(x)), None

    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            layers = nn.scan(
                Layer,
                {"params": 0, "batch_stats": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=nn.broadcast,
                length=2,
            )
            return nn.Dense(3, name="head")(layers(name="layers")(x, train)[0])

    x = array(32, 6)
    variables = Scanned().init(jax.random.key(0), x)
    chip, draw = ft.on_hardware(Scanned(), STUCK), ft.Draw(jax.random.key(5))
    found = recalibrated(chip, variables, x, draw)["batch_stats"]["layers"]["norm"]
    assert found["mean"].shape == (2, 6)
    seen = quick(
        lambda v: chip.observed(lambda _, held: held.held, v, x, draw=draw)[1][
            "layers/dense/kernel"
        ]
    )(variables)
    f = np.float64(held(x)) @ np.float64(seen[0]) + np.float64(
        variables["params"]["layers"]["dense"]["bias"][0]
    )
    np.testing.assert_allclose(found["mean"][0], f.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["var"][0], f.var(0), rtol=1e-4)


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


FAULTS, KEY = "stuck_at:p0=0.2,p1=0.1+mibb:p_m=0.02", jax.random.key(3)
OTHERS, TESTED = (np.asarray(array(n, 5, 5, 3, seed=n)) for n in (12, 40))


@pytest.fixture(scope="module")
def recalibrated_classes(variables):
    """Classes of the images tested, as one replays a chip; without a number on sound hardware."""
    chip = ft.on_hardware(Normed(), ft.Hardware(faults=ft.faults.parse(FAULTS)))

    @quick
    def classes(draw):
        own = ft.recalibrate(chip, variables, OTHERS, draw=draw)
        return jnp.argmax(chip.apply(own, TESTED, draw=draw), -1)

    def of_chip(number=None):
        key = jax.random.fold_in(KEY, number or 0)
        return np.asarray(classes(ft.Draw(key, jnp.array(number is not None))))

    return of_chip


@pytest.fixture(scope="module")
def test_set(recalibrated_classes):
    """Labels are what sound hardware says, so that every change of a class counts."""
    return TESTED, recalibrated_classes()


def test_a_campaign_recalibrates_every_chip(variables, recalibrated_classes, test_set):
    """Whatever the devices and the chips at once."""
    expected = [np.mean(recalibrated_classes(number) == test_set[1]) for number in range(4)]
    assert len(set(expected)) > 1
    for options in ({}, {"chunk": 2, "devices": jax.devices()[:2]}):
        report = ft.campaign(
            *(Normed(), variables, test_set),
            faults=FAULTS,
            key=KEY,
            chips=4,
            norm_images=OTHERS,
            keywords={"train": False},
            **options,
        )
        np.testing.assert_allclose(report.outcomes[0].accuracies, expected)
        assert report.outcomes[0].clean == 1


def test_sensitivity_and_single_faults_recalibrate_too(variables, test_set):
    found = []
    for images in (OTHERS, None):
        own = {"key": KEY, "norm_images": images}
        report = ft.sensitivity(
            *(Normed(), variables, test_set),
            faults=FAULTS,
            chips=2,
            own_programs=False,
            **own,
        )
        table = ft.single_faults(Normed(), variables, test_set, by=(), margin=0.2, **own)
        found.append((report.outcomes[0].clean, table.clean))
    assert found[0] == (1, 1)
    assert max(found[1]) < 1


def test_images_are_part_of_what_a_campaign_is_of(variables):
    digests = {
        ft.as_subject(Normed(), variables, STUCK, norm_images=images).sha256()
        for images in (None, np.asarray(IMAGES), np.asarray(IMAGES)[:8])
    }
    assert len(digests) == 3


class Frozen(nn.Module):
    """Its BatchNorm is frozen in training, too; it returns logits [B, 3]."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(True, name="frozen")(nn.Dense(3, name="dense")(x))
        return nn.BatchNorm(not train, name="norm")(x)


class Plain(nn.Module):
    """Without BatchNorm."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(x)


@pytest.mark.parametrize(
    ("model", "images", "message"),
    [
        (Plain(), (2, 4), "there is no BatchNorm to recalibrate: no variables are batch_stats"),
        (Frozen(), (2, 4), "the model computes with its batch_stats in training, too, as a frozen"),
        (Frozen(), (2, 5), "network cannot be recalibrated by images of shape"),
        (lambda v, x: x @ v["params"]["dense"]["kernel"], (2, 4), "only Flax linen modules on"),
    ],
)
def test_what_cannot_be_recalibrated_is_refused(model, images, message):
    module = model if isinstance(model, nn.Module) else Frozen()
    variables = module.init(jax.random.key(0), jnp.zeros((1, 4)))
    with pytest.raises(ValueError, match=message) as error:
        ft.as_subject(model, variables, STUCK, norm_images=np.zeros(images))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("network cannot be recalibrated by images of shape [2, ")
