"""Layers against float64 NumPy, whatever number of images they work on at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftnas_jax.fixed_point import FixedPoint, fraction_length
from ftnas_jax.nn import layer
from ftnas_jax.nn.hardware import Hardware, hold_segments, hold_weights
from ftnas_jax.nn.layer import Features, normalization, run_window, write
from ftnas_jax.nn.window import WindowShape

SHAPE = (6, 5, 4, 3)  # B, H, W, C; 20 positions an image do not fill whole rows
POINTWISE = WindowShape("dense").window(3)
IDENTITY = jnp.eye(3, dtype=jnp.float32).ravel()


def run(x, *, normalize=True, scale=1.0, offset=0.0, fmt=None):
    """A layer that only normalizes and quantizes, jitted; (written, its moments)."""

    @jax.jit
    def program(x):
        def store(f, part, start):
            return jax.lax.dynamic_update_slice_in_dim(f, part, start, 0)

        source = Features(x, jnp.float32(1))
        f, moments = run_window(
            POINTWISE,
            IDENTITY,
            source,
            -jnp.inf,
            jnp.float32,
            store,
            jnp.zeros(x.shape, jnp.float32),
        )
        vectors = (jnp.full(3, scale, jnp.float32), jnp.full(3, offset, jnp.float32))
        norm = normalization(moments, None, *vectors, normalize)
        return write(f, norm, moments, Hardware(features=fmt), None), moments

    return program(jnp.asarray(x, jnp.float32))


@pytest.mark.parametrize("elements", [1, 60, 120, 2**20])
def test_moments_do_not_depend_on_the_images_at_a_time(monkeypatch, elements):
    monkeypatch.setattr(layer, "_CACHE_ELEMENTS", elements)
    x = np.random.default_rng(0).normal(size=SHAPE) * [1, 10, 0.1] + [0, -20, 0.3]
    _, moments = run(x)
    axes = (0, 1, 2)
    np.testing.assert_allclose(moments.mean, x.mean(axes), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moments.variance, x.var(axes), rtol=1e-5)
    np.testing.assert_allclose(moments.high, x.max(axes), rtol=1e-6)
    np.testing.assert_allclose(moments.low, x.min(axes), rtol=1e-6)


@pytest.mark.parametrize("elements", [1, 2**20])
def test_the_variance_of_features_far_from_0_keeps_its_digits(monkeypatch, elements):
    """A difference of squares would lose all of them: (mean / deviation)² · 2^-24 is 6 here."""
    monkeypatch.setattr(layer, "_CACHE_ELEMENTS", elements)
    x = np.float32(np.random.default_rng(1).normal(size=SHAPE) + 1e4)
    _, moments = run(x)
    np.testing.assert_allclose(moments.variance, np.float64(x).var((0, 1, 2)), rtol=1e-3)
    assert np.all(run(np.full(SHAPE, 1e4))[1].variance < 1e-5)


def test_a_constant_channel_becomes_its_offset():
    written, *_ = run(np.full(SHAPE, 3.0), scale=2.0, offset=-0.5)
    np.testing.assert_allclose(written.values, -0.5, atol=1e-3)


@pytest.mark.parametrize("scale", [1.7, -1.7])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_range_that_sets_the_step_is_that_of_what_is_written(scale, normalize):
    """No feature overflows, and with half the step one would."""
    fmt = FixedPoint(8)
    x = np.random.default_rng(2).normal(size=SHAPE) * [1, 5, 0.1]
    plain, *_ = run(x, normalize=normalize, scale=scale, offset=0.3)
    written, *_ = run(x, normalize=normalize, scale=scale, offset=0.3, fmt=fmt)
    assert written.codes.dtype == jnp.int8
    length = fraction_length(plain.values, fmt)
    assert written.step == 2.0 ** -float(length)
    np.testing.assert_allclose(written.values, plain.values, atol=float(written.step) / 2 + 1e-6)


def test_a_channel_that_is_not_finite_has_no_say_in_the_range():
    x = np.random.default_rng(3).normal(size=SHAPE)
    spoiled = x.copy()
    spoiled[0, 0, 0, 1] = np.inf
    fmt = FixedPoint(8)
    written, *_ = run(spoiled, normalize=False, fmt=fmt)
    assert written.step == 2.0 ** -float(fraction_length(jnp.float32(x[..., [0, 2]]), fmt))
    assert written.codes[0, 0, 0, 1] == fmt.max_code


def test_kernels_held_together_are_those_held_one_by_one():
    hardware = Hardware(weights=FixedPoint(8, "sign_magnitude"))
    rng = np.random.default_rng(4)
    kernels = [jnp.float32(rng.normal(size=n) * s) for n, s in ((7, 1), (20, 30), (5, 0.01))]
    flat = jnp.concatenate([*kernels, jnp.zeros(9, jnp.float32)])
    ends = jnp.asarray([7, 27, 32, 32], jnp.int32)
    held = jax.jit(lambda flat: hold_segments(flat, ends, hardware, None))(flat)
    expected = [hold_weights(kernel, hardware, None) for kernel in kernels]
    np.testing.assert_array_equal(held[:32], np.concatenate(expected))
    assert not np.any(held[32:])
