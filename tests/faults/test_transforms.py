"""Models under jit, vmap and grad, as pytrees of their rates, and maps as functions of keys.

Every statistical test has a fixed seed and a false-alarm rate of 1e-6 for each assertion.
"""

import functools
import random

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import EIGHT_SIGNED, compounded, every_path, force, inject, one_map, sample
from significance import assert_rate

from ftnas_jax.faults import (
    BitBias,
    BitFlip,
    Drift,
    LogNormal,
    MiBB,
    Place,
    ReciprocalNormal,
    StuckAt,
    StuckBits,
    apply_maps,
)
from ftnas_jax.fixed_point import from_codes, quantize, straight_through, to_codes

MODELS = [
    MiBB(0.07),
    MiBB(0.3),
    MiBB(0.07, per="chip"),
    BitBias(0.01),
    BitFlip(0.3),
    BitFlip(0.01, site="activations"),
    StuckAt(0.1, 0.2),
    StuckAt(0.1, 0.2, cells="pair"),
    StuckBits(0.1, 0.2),
    LogNormal(0.2),
    ReciprocalNormal(0.2),
    Drift(0.2, spread=1.0),
]
every_model = pytest.mark.parametrize(
    "model", MODELS, ids=lambda model: f"{model.name}-{model.per}"
)


@every_model
def test_maps_depend_on_their_keys_and_on_nothing_else(model):
    shape = (4, 5, 10)

    @jax.jit
    def draw(seeds):
        return sample(model, jax.vmap(jax.random.key)(seeds), shape, fmt=EIGHT_SIGNED)

    together = np.asarray(draw(jnp.arange(5)))
    assert together.shape == (5, *shape)
    assert len({row.tobytes() for row in together}) == 5
    np.random.seed(1)  # noqa: NPY002, the global state that must not matter
    random.seed(1)
    np.testing.assert_array_equal(draw(jnp.arange(5)), together)
    np.testing.assert_array_equal(draw(jnp.array([3]))[0], together[3])
    shuffled = jnp.array([4, 1, 0, 3, 2])
    np.testing.assert_array_equal(draw(shuffled), together[shuffled])


@every_path
def test_keys_may_be_mapped_over(monkeypatch, path):
    force(monkeypatch, path)
    model = MiBB(0.05)

    @jax.jit
    def mapped(key):
        keys = jax.random.split(key, 4)
        return jax.vmap(lambda key: sample(model, key[None], (30,))[0])(keys)

    direct = jax.jit(lambda key: sample(model, jax.random.split(key, 4), (30,)))
    np.testing.assert_array_equal(mapped(jax.random.key(0)), direct(jax.random.key(0)))


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 1, 3)])
@every_model
def test_maps_of_any_shape(model, shape):
    def draw(key):
        return sample(model, jax.random.split(key, 2), shape, fmt=EIGHT_SIGNED, macs=9)

    assert jax.eval_shape(draw, jax.random.key(0)).shape == (2, *shape)
    if model in (MiBB(0.07), StuckAt(0.1, 0.2)):  # loops over nothing and over one place must end
        assert jax.jit(draw)(jax.random.key(0)).shape == (2, *shape)


@pytest.mark.parametrize(
    ("model", "macs"),
    [(MiBB(1e-4), 72), (MiBB(1e-3), 720), (StuckAt(0.1, 0.2), 1), (BitFlip(0.01), 1)],
    ids=lambda value: getattr(value, "name", value),
)
def test_an_exposure_gives_the_same_map_known_and_traced(model, macs):
    known = model.exposure(Place("layer", macs))
    assert all(isinstance(leaf, np.generic) for leaf in jax.tree.leaves(known))
    draw = jax.jit(
        lambda key, exposure: model.sample(
            jax.random.split(key, 1), (5000,), EIGHT_SIGNED, exposure
        )[0]
    )
    traced = draw(jax.random.key(0), jax.tree.map(jnp.asarray, known))
    np.testing.assert_array_equal(traced, one_map(model, 5000, fmt=EIGHT_SIGNED, macs=macs))


def test_one_program_serves_a_sweep_of_rates():
    """Binomial test of each rate of the second sweep."""
    codes = jnp.zeros(2**14, jnp.int32)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def share_hit(model, key):
        return (inject(model, codes + 1, key, EIGHT_SIGNED) != 1).mean()

    shares = [
        float(share_hit(StuckAt(jnp.float32(p), jnp.float32(p / 2)), jax.random.key(0)))
        for p in (0.0, 0.1, 0.3, 0.6)
    ]
    assert shares[0] == 0
    assert shares == sorted(set(shares))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def biases(model, key):
        return sample(model, key[None], (2**14,), macs=72)

    for p_m in (0.0, 1e-5, 1e-3, 0.7):
        hits = np.count_nonzero(biases(MiBB(jnp.float32(p_m)), jax.random.key(1)))
        assert_rate(hits, 2**14, compounded(np.float32(p_m), 72))


@pytest.mark.parametrize("model", [MiBB, BitFlip], ids=lambda model: model.name)
def test_rates_may_be_mapped_over(model):
    """Binomial test of each rate."""
    rates = np.array([0.0, 0.01, 0.5, 1.0], np.float32)
    models = model(jnp.asarray(rates))
    axes = jax.tree.map(lambda leaf: 0 if np.ndim(leaf) else None, models)
    one = functools.partial(sample, shape=(4096,))
    draw = jax.jit(jax.vmap(lambda m, key: one(m, key[None])[0], in_axes=(axes, 0)))
    # vmap of a condition selects between a key and itself, which the check takes for a second use.
    with jax.debug_key_reuse(False):
        maps = np.asarray(draw(models, jax.random.split(jax.random.key(0), 4)))
    for rate, row in zip(rates, maps, strict=True):
        stated = model(float(rate)).probability(Place("", 1), EIGHT_SIGNED)
        assert_rate(np.count_nonzero(row), 4096, stated)


@pytest.mark.parametrize(
    "model",
    [MiBB(0.3), BitFlip(0.3), StuckAt(0.1, 0.2, cells="pair"), LogNormal(0.2)],
    ids=lambda model: model.name,
)
def test_gradients_pass_straight_through_faults(model):
    fmt = EIGHT_SIGNED
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32))
    length = jnp.int32(5)

    @jax.jit
    def held(x, key):
        maps = sample(model, key[None], (64,), fmt=fmt)
        codes = apply_maps(to_codes(x, length, fmt), (model,), (maps,), fmt)
        return straight_through(x, from_codes(codes, length))

    out, gradient = jax.vjp(lambda x: held(x, jax.random.key(0)), x)
    assert np.any(np.asarray(out) != np.asarray(quantize(x, fmt, length)))
    weights = jnp.arange(64, dtype=jnp.float32)[None]
    np.testing.assert_array_equal(gradient(weights)[0], weights)


def test_models_are_frozen_hashable_pytrees_of_their_rates():
    assert hash(MiBB(1e-4)) == hash(MiBB(1e-4))
    assert MiBB(1e-4) == MiBB(1e-4) != MiBB(1e-4, "linear")
    assert jax.tree.leaves(StuckAt(0.1, 0.2)) == [0.1, 0.2, 1.0]
    assert jax.tree.leaves(StuckBits(0.1, 0.2, accumulated=3.0)) == [0.1, 0.2, 3.0]
    assert jax.tree.leaves(MiBB(0.3)) == jax.tree.leaves(BitFlip(0.3)) == [0.3, 1.0]
    assert jax.tree.leaves(LogNormal(0.3)) == jax.tree.leaves(ReciprocalNormal(0.3)) == [0.3]
    assert jax.tree.leaves(Drift(0.3, 0.1, 2.0)) == [0.3, 0.1, 2.0]
    with pytest.raises(AttributeError):
        MiBB().p_m = 0.5


@every_model
def test_a_pytree_keeps_what_is_not_a_rate(model):
    model = type(model)(**vars(model) | {"layers": "!stem"})
    leaves, tree = jax.tree.flatten(model)
    assert jax.tree.unflatten(tree, leaves) == model
    halved = jax.tree.map(lambda rate: rate / 2 if rate < 1 else rate, model)
    expected = {field: getattr(model, field) / 2 for field in model.rates}
    assert halved == type(model)(**vars(model) | expected)


def test_models_are_compared_by_their_fields_not_by_their_kind_alone():
    assert BitFlip(0.1) != BitBias(0.1)
    assert LogNormal(0.1) != ReciprocalNormal(0.1)
    assert StuckAt(cells="pair") != StuckAt()
    assert MiBB(layers="stem") != MiBB()
