"""The rate that is really injected is the one that a model states.

Every statistical test has a fixed seed and a false-alarm rate of 1e-6 for each assertion.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import EIGHT_SIGNED, sample
from significance import assert_rate

from ftnas_jax.faults import BitBias, BitFlip, MiBB, Place, StuckAt, StuckBits

SIZE = 2**14
PLACE = Place("layer", 3)


@pytest.mark.parametrize(
    "model",
    [
        MiBB(),
        MiBB(form="linear"),
        MiBB(per="chip"),
        BitBias(),
        BitFlip(),
        BitFlip(bits="0-2", site="activations"),
    ],
    ids=lambda model: f"{model.name}-{model.site}-{model.per}",
)
def test_the_share_hit_is_the_probability_stated(model):
    """Binomial test of 2^14 elements for each rate."""

    @jax.jit
    def hits(model, key):
        return jnp.count_nonzero(sample(model, key[None], (SIZE,), fmt=EIGHT_SIGNED, macs=3))

    for seed, rate in enumerate(np.float32([1e-4, 0.01, 0.03, 0.1, 0.25, 0.4, 0.51, 0.7])):
        known = type(model)(**vars(model) | {model.rates[0]: float(rate)})
        stated = known.probability(PLACE, EIGHT_SIGNED)
        traced = jax.tree.map(jnp.float32, known)
        assert float(traced.probability(PLACE, EIGHT_SIGNED)) == pytest.approx(stated, rel=1e-6)
        assert_rate(hits(traced, jax.random.key(seed)), SIZE, stated)


@pytest.mark.parametrize(
    "model",
    [StuckAt(), StuckAt(cells="pair"), StuckBits()],
    ids=["one", "pair", "bits"],
)
def test_the_share_of_weights_with_stuck_cells_is_the_probability_stated(model):
    """Binomial test of 2^14 weights for each pair of rates."""

    @jax.jit
    def hits(model, key):
        return jnp.count_nonzero(sample(model, key[None], (SIZE,), fmt=EIGHT_SIGNED))

    for seed, (p0, p1) in enumerate([(0.01, 0.01), (0.067, 0.013), (0.0, 0.4), (0.25, 0.26)]):
        known = type(model)(**vars(model) | {"p0": p0, "p1": p1})
        stated = known.probability(PLACE, EIGHT_SIGNED)
        traced = jax.tree.map(jnp.float32, known)
        assert float(traced.probability(PLACE, EIGHT_SIGNED)) == pytest.approx(stated, rel=1e-6)
        assert_rate(hits(traced, jax.random.key(seed)), SIZE, stated)
