"""Small networks, arrays for them, and NumPy's word on fixed point."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import ftnas_jax as ft

BARE = ft.Hardware(weights=None, features=None)
SOUND = ft.Hardware()

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Jit that compiles in half the time."""


def array(*shape, seed=0, scale=1.0):
    """Normal numbers in float32."""
    x = np.random.default_rng(seed).normal(size=shape) * scale
    return jnp.asarray(x.astype(np.float32))


def fixed(x, low=-128, high=127):
    """NumPy: x in 8 bits by minimal overflow, as codes and as values."""
    x = np.asarray(x, np.float64)
    for length in range(30, -30, -1):
        codes = np.round(x * 2.0**length)
        if low <= codes.min() and codes.max() <= high:
            return codes, jnp.asarray((codes * 2.0**-length).astype(np.float32))
    raise AssertionError("out of the range that this oracle searches")


def held(x, low=-128, high=127):
    """NumPy: x as it is held in 8 bits."""
    return fixed(x, low, high)[1]


def initialized(module, *args, seed=0):
    """Variables of a linen module, every one of them random: no bias is 0, no scale is 1."""
    keys = {"params": jax.random.key(seed), "dropout": jax.random.key(1)}
    shapes = jax.eval_shape(lambda: module.init(keys, *args))
    leaves, structure = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    own = [jnp.asarray(rng.uniform(0.2, 1.2, s.shape).astype(np.float32)) for s in leaves]
    signs = [jnp.asarray(rng.choice([-1.0, 1.0], s.shape).astype(np.float32)) for s in leaves]
    signed = [x * s if x.ndim > 1 else x for x, s in zip(own, signs, strict=True)]
    return jax.tree.unflatten(structure, signed)


def rows(chip, *args, **kwargs):
    """The sites of a chip as lines of words: name, kind, M_l and shape; then what is in float32."""
    sites = chip.sites(*args, **kwargs)
    found = [
        [t.name, t.kind if t.faulty else "input", str(t.macs), "x".join(map(str, t.shape))]
        for t in sites.tensors
    ]
    return [*found, ["in", "float32:", *(", ".join(sites.floats) or "nothing").split()]]


def table(text):
    """An expected table of sites as lines of words."""
    return [line.split() for line in text.strip().splitlines()]


def linen_rows(module, *args, **kwargs):
    """The sites of a linen module, from shapes alone."""
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = jax.eval_shape(lambda: module.init(keys, *args))
    return rows(ft.on_hardware(module, SOUND), variables, *args, **kwargs)


def function_rows(function, parameters, *args, **kwargs):
    """The sites of a function."""
    return rows(ft.on_hardware(function, SOUND, **kwargs), parameters, *args)


class Small(nn.Module):
    """Conv, BatchNorm, ReLU, global average pool, Dense."""

    train: bool = False
    fast: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), name="conv")(x)
        norm = functools.partial(nn.BatchNorm, not self.train, use_fast_variance=self.fast)
        x = nn.relu(norm(name="norm")(x))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


class SmallNNX(nnx.Module):
    """`Small` again."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))


class Block(nn.Module):
    """A residual block, as scans take them."""

    @nn.compact
    def __call__(self, x, _=None):
        return x + nn.relu(nn.Dense(x.shape[-1], name="dense")(x)), None


class Stacked(nn.Module):
    """Blocks that are scanned over, and a Dense."""

    @nn.compact
    def __call__(self, x):
        scanned = nn.scan(Block, {"params": 0}, split_rngs={"params": True}, length=3)
        return nn.Dense(2, name="head")(scanned(name="blocks")(x, None)[0])


class Tied(nn.Module):
    """Tokens in, logits of tokens out, by one table."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(11, 6, name="embed")
        return embed.attend(nn.LayerNorm(name="norm")(embed(tokens)))


def perceptron(parameters, x):
    """Two layers as a plain function."""
    h = jax.nn.relu(x @ parameters["a"]["w"] + parameters["a"]["b"][None])
    return h @ parameters["b"]["w"] + parameters["b"]["b"][None]


def perceptron_parameters(width=6, hidden=8, out=3):
    """Random parameters of `perceptron`, as Haiku would have them."""
    return {
        "a": {"w": array(width, hidden, seed=1), "b": array(hidden, seed=2)},
        "b": {"w": array(hidden, out, seed=3), "b": array(out, seed=4)},
    }
