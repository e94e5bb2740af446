"""BatchNorm against float64 and central differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftnas_jax.nn.norm import EPSILON, MOMENTUM, batch_norm, update_running

SHAPE = (3, 5, 4, 6)


def reference(x, running, scale, offset):
    mean, variance = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if running is None else running
    y = (x - mean) / np.sqrt(variance + 1e-5)
    y = y if scale is None else y * scale
    return y if offset is None else y + offset


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("running", [True, False])
def test_batch_norm_and_its_gradients(running, affine):
    rng = np.random.default_rng(2 * running + affine)
    inputs = [rng.normal(size=SHAPE) * 3 + rng.normal(size=SHAPE[-1:]) * 4]
    inputs += [rng.normal(size=SHAPE[-1:]), rng.normal(size=SHAPE[-1:])] if affine else []
    direction = [rng.normal(size=a.shape) for a in inputs]
    g = rng.normal(size=SHAPE)
    stored = np.stack([rng.normal(size=6), rng.uniform(0.5, 3, size=6)]) if running else None

    def expected(x, scale=None, offset=None):
        return reference(x, stored, scale, offset)

    @jax.jit
    def program(inputs, g, stored):
        def apply(x, scale=None, offset=None):
            return batch_norm(x, stored, scale, offset)

        y, vjp, statistics = jax.vjp(apply, *inputs, has_aux=True)
        return y, statistics, vjp(g)

    y, statistics, gradients = program(*jax.tree.map(jnp.float32, (inputs, g, stored)))
    np.testing.assert_allclose(y, expected(*inputs), rtol=1e-5, atol=1e-5)
    x = inputs[0]
    used = stored if running else np.stack([x.mean((0, 1, 2)), x.var((0, 1, 2))])
    np.testing.assert_allclose(statistics, used, rtol=1e-5)

    step = 1e-5
    ahead, behind = (
        np.sum(expected(*(a + s * d for a, d in zip(inputs, direction, strict=True))) * g)
        for s in (step, -step)
    )
    got = sum(np.sum(np.float64(a) * d) for a, d in zip(gradients, direction, strict=True))
    np.testing.assert_allclose(got, (ahead - behind) / (2 * step), rtol=1e-4)


def test_no_gradient_flows_into_the_statistics():
    x = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(batch_norm(x, None)[1])))(x)
    assert not np.any(gradient)


def test_a_constant_channel_becomes_its_offset():
    x = jnp.full(SHAPE, 3.0, jnp.float32)
    y, _ = jax.jit(batch_norm)(x, None, jnp.full(6, 2.0), jnp.full(6, -0.5))
    np.testing.assert_allclose(y, -0.5, atol=1e-3)


def test_running_statistics_move_by_a_tenth():
    assert (EPSILON, MOMENTUM) == (1e-5, 0.9)
    running, batch = np.float32([[1.0, -2.0], [4.0, 0.5]]), np.float32([[3.0, 8.0], [0.0, 0.5]])
    np.testing.assert_allclose(
        update_running(jnp.asarray(running), jnp.asarray(batch)),
        [[1.2, -1.0], [3.6, 0.5]],
        rtol=1e-6,
    )
