"""The baselines on hardware, in evaluation and in training, at small widths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ftnas_jax as ft
from ftnas_jax.models import MODELS, by_name

WIDTHS = {"resnet18": 1 / 16, "vgg16": 1 / 32, "mobilenet_v2": 1 / 8}
FAULTS = {
    "resnet18": "stuck_at:p0=0.05,p1=0.01+mibb:p_m=1e-3",
    "vgg16": "mibb:p_m=1e-3",
    "mobilenet_v2": "stuck_at:p0=0.05,p1=0.01",
}
CLASSES = 5

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Jit that compiles in half the time."""


@pytest.fixture(scope="module", params=WIDTHS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return by_name(name, CLASSES, width=WIDTHS[name])


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(0), (4, 32, 32, 3))


@pytest.fixture(scope="module")
def variables(model, images):
    return quick(model.init)(jax.random.key(1), images)


@pytest.fixture(scope="module")
def chip(name, model):
    return ft.on_hardware(model, ft.Hardware(faults=ft.faults.parse(FAULTS[name])))


def test_all_have_a_width():
    assert set(WIDTHS) == set(MODELS) - {"w_ftt_net"}


def test_every_convolution_is_found_with_its_batch_norm(chip, variables, images):
    for train in (False, True):
        own = {"train": True, "mutable": ["batch_stats"]} if train else {}
        sites = chip.sites(variables, images, **own)
        kernels = {t.name for t in sites.tensors if t.kind == "weights"}
        params = variables["params"]
        paths = ["/".join(k.key for k in path) for path, _ in jax.tree.leaves_with_path(params)]
        assert kernels == {path for path in paths if path.endswith("kernel")}
        assert set(sites.floats) == set(paths) - kernels
        written = [t for t in sites.tensors if t.kind in ("computed", "features")]
        assert {t.path for t in written} == {k.removesuffix("/kernel") for k in kernels} - {
            "classifier"
        }
        assert len(written) == len(kernels) - 1
        assert not sites.fixed


def test_bare_hardware_computes_what_the_model_computes(model, variables, images):
    chip = ft.on_hardware(model, ft.Hardware(weights=None, features=None))
    expected, got = (quick(apply)(variables, images) for apply in (model.apply, chip.apply))
    assert expected.shape == (4, CLASSES)
    assert expected.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_a_pass_with_faults_is_finite_and_differs(chip, variables, images):
    run = quick(lambda key: chip.apply(variables, images, draw=ft.Draw(key)))
    first, second = run(jax.random.key(2)), run(jax.random.key(3))
    assert first.shape == (4, CLASSES)
    assert np.all(np.isfinite(first))
    assert not np.allclose(first, second)


def test_training_with_faults_has_gradients_and_updates_the_statistics(chip, variables, images):
    labels = jnp.arange(4)

    def loss(params, key):
        logits, updates = chip.apply(
            variables | {"params": params},
            images,
            train=True,
            mutable=["batch_stats"],
            draw=ft.Draw(key),
        )
        own = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
        return -own.mean(), updates["batch_stats"]

    compute = quick(jax.value_and_grad(loss, has_aux=True))
    (value, statistics), gradients = compute(variables["params"], jax.random.key(4))
    assert np.isfinite(value)
    kernels = [
        gradient
        for path, gradient in jax.tree.leaves_with_path(gradients)
        if path[-1].key == "kernel"
    ]
    for gradient in kernels:
        assert np.all(np.isfinite(gradient))
    assert np.mean([np.any(np.asarray(gradient) != 0) for gradient in kernels]) > 0.9
    before = jax.tree.leaves(variables["batch_stats"])
    for old, new in zip(before, jax.tree.leaves(statistics), strict=True):
        assert np.all(np.isfinite(new))
        assert not np.array_equal(old, new)


def test_initial_kernels_have_the_variance_that_their_fan_in_asks_for():
    model, images = by_name("resnet18:width=0.25", 10), jnp.zeros((1, 8, 8, 3))
    params = quick(model.init)(jax.random.key(0), images)["params"]
    for path, leaf in jax.tree.leaves_with_path(params):
        if path[-1].key == "kernel":
            fan_in = np.prod(leaf.shape[:-1])
            expected = 1 / (3 * fan_in) if path[0].key == "classifier" else 2 / fan_in
            assert np.var(leaf) == pytest.approx(expected, rel=0.2), path


def test_images_that_are_too_small_are_refused():
    model = by_name("vgg16:width=0.02", 10)
    with pytest.raises(ValueError, match="images of 16x32 are too small for vgg16"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 32, 3)))
