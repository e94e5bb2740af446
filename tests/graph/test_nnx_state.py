"""State of nnx modules: updated as by the module's own call."""

import jax
import numpy as np
from flax import nnx
from networks import BARE, SOUND, SmallNNX, array, held

import ftnas_jax as ft

X = array(2, 5, 5, 3)


class Dropping(SmallNNX):
    """With dropout, whose keys are counted."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return super().__call__(self.drop(x))


def states(module):
    """All that is no parameter, as NumPy; keys as words."""
    _, _, state = nnx.split(module, nnx.Param, ...)
    return [
        np.asarray(
            jax.random.key_data(leaf)
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else leaf
        )
        for leaf in jax.tree.leaves(state)
    ]


def test_state_is_updated_as_by_the_call_itself():
    own, twin = Dropping(nnx.Rngs(0)), Dropping(nnx.Rngs(0))
    before = states(own)
    chip = ft.on_hardware(twin, BARE)
    for _ in range(2):
        np.testing.assert_allclose(chip(X), own(X), rtol=1e-5, atol=1e-6)
    changed = 0
    for start, expected, got in zip(before, states(own), states(twin), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)
        changed += np.any(start != expected)
    assert changed >= 3  # mean, variance, count of keys


def test_statistics_are_those_of_quantized_features():
    module = SmallNNX(nnx.Rngs(0))
    kernel, bias = held(module.conv.kernel[...]), module.conv.bias[...]
    y = np.asarray(
        jax.lax.conv_general_dilated(
            held(X), kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    ) + np.asarray(bias)
    ft.on_hardware(module, SOUND)(X)
    np.testing.assert_allclose(module.norm.mean[...], 0.01 * y.mean((0, 1, 2)), rtol=1e-5)


def test_state_is_updated_under_nnx_jit():
    own, twin = SmallNNX(nnx.Rngs(0)), SmallNNX(nnx.Rngs(0))
    faulty = ft.Hardware(faults=ft.faults.StuckAt(0.2, 0.1))

    @nnx.jit
    def step(module, x):
        return ft.on_hardware(module, faulty)(x, draw=ft.Draw(jax.random.key(0)))

    got = step(own, X)
    expected = ft.on_hardware(twin, faulty)(X, draw=ft.Draw(jax.random.key(0)))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    for one, other in zip(states(own), states(twin), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    assert np.any(own.norm.mean[...])


def test_gradients_of_a_module_in_training():
    module = SmallNNX(nnx.Rngs(0))

    @nnx.jit
    def gradient(module, x):
        def loss(module):
            return (ft.on_hardware(module, SOUND)(x) ** 2).sum()

        return nnx.grad(loss)(module)

    found = gradient(module, X)
    sizes = {jax.tree_util.keystr(p): np.abs(g).sum() for p, g in jax.tree.leaves_with_path(found)}
    assert len(sizes) == 6
    assert all(size > 0 for path, size in sizes.items() if "conv" not in path or "kernel" in path)
    assert np.any(module.norm.mean[...])
