"""Hardware without number formats computes what the model computes, bit by bit."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from networks import (
    BARE,
    Block,
    Small,
    SmallNNX,
    Stacked,
    Tied,
    array,
    initialized,
    perceptron,
    perceptron_parameters,
)

import ftnas_jax as ft


class Pools(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.GroupNorm(2)(nn.Conv(4, (3, 3), strides=2)(x))
        x = nn.max_pool(nn.gelu(x), (2, 2), (1, 1))
        x = nn.ConvLocal(3, (2, 2))(x)
        return nn.ConvTranspose(2, (3, 3), (2, 2))(nn.swish(x))


class Regular(nn.Module):
    """Dropout and remat."""

    @nn.compact
    def __call__(self, x):
        x = nn.remat(Block)()(x)[0]
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=False)(x))


IMAGES, ROWS = array(2, 6, 6, 3), array(2, 5, 6)
TOKENS = jnp.asarray([[1, 4, 10], [0, 0, 7]])
DROPOUT = {"rngs": {"dropout": jax.random.key(5)}}
MODELS = {
    "small": (Small(), IMAGES, {}),
    "trained": (Small(train=True, fast=False), IMAGES, {"mutable": ["batch_stats"]}),
    "pools": (Pools(), IMAGES, {}),
    "stacked": (Stacked(), array(2, 6), {}),
    "tied": (Tied(), TOKENS, {}),
    "attention": (nn.MultiHeadDotProductAttention(2, qkv_features=8), ROWS, {}),
    "recurrent": (nn.RNN(nn.OptimizedLSTMCell(4)), ROWS, {}),
    "dropout": (Regular(), array(2, 6), DROPOUT),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_linen_module(name):
    module, x, kwargs = MODELS[name]
    variables = initialized(module, x)
    chip = ft.on_hardware(module, BARE)
    kwargs = dict(kwargs)
    rngs = kwargs.pop("rngs", {})

    def run(apply):
        return jax.jit(lambda v, x, rngs: apply(v, x, rngs=rngs, **kwargs))(
            variables, x, jax.tree.map(jax.random.clone, rngs)
        )

    expected, got = run(module.apply), run(chip.apply)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_an_nnx_module():
    module, x = SmallNNX(nnx.Rngs(0)), IMAGES
    module.eval()
    np.testing.assert_array_equal(ft.on_hardware(module, BARE)(x), module(x))


def test_a_function():
    parameters, x = perceptron_parameters(), array(4, 6)
    chip = ft.on_hardware(perceptron, BARE)
    np.testing.assert_array_equal(chip(parameters, x), perceptron(parameters, x))


def test_a_function_with_loops_and_branches():
    def function(p, x, turns=3):
        def turn(i, h):
            there = lax.cond(i % 2 == 0, lambda: h @ p["w"][i], lambda: jnp.tanh(h))
            return lax.switch(i, [lambda h: h, lambda h: -h, jnp.tanh], there)

        return lax.fori_loop(0, turns, turn, x), {"count": turns}

    p, x = {"w": array(3, 6, 6)}, array(4, 6)
    got, known = ft.on_hardware(function, BARE)(p, x)
    np.testing.assert_array_equal(got, function(p, x)[0])
    assert known == {"count": 3}


def test_arrays_may_be_keyword_arguments():
    def masked(p, x, *, mask, scale=1.0):
        return jnp.where(mask, x @ p["w"], 0.0) * scale

    p, x, mask = {"w": array(6, 3)}, array(4, 6), array(4, 3) > 0
    got = ft.on_hardware(masked, BARE)(p, x, mask=mask, scale=2.0)
    np.testing.assert_array_equal(got, masked(p, x, mask=mask, scale=2.0))


def test_methods_of_linen_modules():
    class Coder(nn.Module):
        def setup(self):
            self.down, self.up = nn.Dense(2), nn.Dense(6)

        def __call__(self, x):
            return self.up(self.encode(x))

        def encode(self, x):
            return nn.relu(self.down(x))

    x = array(4, 6)
    variables = initialized(Coder(), x)
    got = ft.on_hardware(Coder(), BARE).apply(variables, x, method="encode")
    np.testing.assert_array_equal(got, Coder().apply(variables, x, method="encode"))
