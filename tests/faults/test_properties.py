"""What holds for every model, at any rates and formats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import EIGHT_SIGNED, all_codes, inject, maps_at, one_map, sample
from hypothesis import given, settings
from hypothesis import strategies as st

from ftnas_jax.faults import (
    MODELS,
    BitBias,
    BitFlip,
    Drift,
    LogNormal,
    MiBB,
    Place,
    ReciprocalNormal,
    StuckAt,
    StuckBits,
)
from ftnas_jax.fixed_point import FixedPoint

DIGITAL = [
    MiBB(),
    BitBias(),
    BitFlip(),
    BitFlip(site="activations"),
    StuckAt(),
    StuckAt(cells="pair"),
    StuckBits(),
]
ANALOG = [LogNormal(), ReciprocalNormal(), Drift()]

# Rates are arrays here: one program for a model and a format.
faulty = jax.jit(inject, static_argnums=(3, 4))


@jax.jit
def some_map(model):
    """Faults [64] of codes of 8 bits."""
    return sample(model, jax.random.key(0)[None], (64,), fmt=EIGHT_SIGNED)[0]


def with_rates(model, first, share):
    """A model with its rates drawn: `first`, and a `share` of what that leaves for SAF1."""
    rates = dict(zip(model.rates, (first, (1 - first) * share), strict=False))
    return jax.tree.map(jnp.float32, type(model)(**vars(model) | rates))


def some_codes(fmt):
    codes = all_codes(fmt)
    return codes[np.linspace(0, codes.size - 1, 64).astype(int)]


@pytest.mark.parametrize("model", DIGITAL, ids=lambda model: f"{model.name}-{model.site}")
def test_faulty_codes_are_codes(model):
    @given(
        st.sampled_from([FixedPoint(2), EIGHT_SIGNED, FixedPoint(16)]),
        st.floats(0, 1),
        st.floats(0, 1),
        st.integers(0, 2**31 - 1),
    )
    @settings(deadline=None, max_examples=50)
    def check(fmt, first, share, seed):
        codes = jnp.asarray(some_codes(fmt))
        out = faulty(with_rates(model, first, share), codes, jax.random.key(seed), fmt, 3)
        assert out.dtype == jnp.int32
        assert set(np.asarray(out).tolist()) <= set(all_codes(fmt).tolist())

    check()


@pytest.mark.parametrize("model", DIGITAL + ANALOG, ids=lambda model: f"{model.name}-{model.site}")
def test_rate_0_is_the_identity_and_so_is_an_empty_map(model):
    codes = some_codes(EIGHT_SIGNED)
    sound = with_rates(model, 0.0, 0.0)
    out = faulty(sound, jnp.asarray(codes), jax.random.key(0), EIGHT_SIGNED, 3)
    np.testing.assert_array_equal(out, codes)
    known = type(model)(**vars(model) | dict.fromkeys(model.rates, 0.0))
    fault_map = one_map(known, 64, fmt=EIGHT_SIGNED, macs=3)
    assert not np.any(fault_map)
    again = known.apply(jnp.asarray(codes), jnp.asarray(fault_map), EIGHT_SIGNED)
    np.testing.assert_array_equal(again, codes)


@pytest.mark.parametrize(
    "model",
    [
        MiBB(1.0),
        MiBB(0.5, "linear"),
        BitBias(1.0),
        BitFlip(1.0),
        StuckAt(1.0, 0.0),
        StuckAt(0.0, 1.0),
        StuckAt(0.4, 0.6, cells="pair"),
        StuckBits(0.6, 0.4),
    ],
    ids=lambda model: f"{model.name}-{model.site}",
)
def test_rate_1_hits_everything(model):
    both = (model, jax.tree.map(jnp.float32, model))
    exposures = [rates.exposure(Place("", 3)) for rates in both]
    for fault_map in maps_at(model, exposures, 5000, fmt=EIGHT_SIGNED):
        assert np.all(fault_map)


@pytest.mark.parametrize("model", DIGITAL, ids=lambda model: f"{model.name}-{model.site}")
def test_sound_elements_stay_as_they_are(model):
    """Where a map is 0."""
    fault_map, codes = some_map(with_rates(model, 0.1, 0.1)), some_codes(EIGHT_SIGNED)
    out = np.asarray(model.apply(jnp.asarray(codes), fault_map, EIGHT_SIGNED))
    fault_map = np.asarray(fault_map)
    assert np.any(fault_map == 0)
    np.testing.assert_array_equal(out[fault_map == 0], codes[fault_map == 0])
    assert np.any(out != codes)


@pytest.mark.parametrize("model", DIGITAL + ANALOG, ids=lambda model: f"{model.name}-{model.site}")
def test_one_map_serves_all_images(model):
    """A map of one image is broadcast over a batch, without promotion of its rank."""
    fmt = EIGHT_SIGNED
    fault_map = some_map(with_rates(model, 0.3, 0.3))[None]
    codes = jnp.asarray(np.stack([some_codes(fmt), -some_codes(fmt), some_codes(fmt) // 2]))
    together = model.apply(codes, fault_map, fmt)
    for image, row in zip(codes, together, strict=True):
        # XLA may divide by a broadcast number by way of its reciprocal, one more rounding.
        near = 2**-22 if model.analog else 0
        np.testing.assert_allclose(model.apply(image, fault_map[0], fmt), row, rtol=near, atol=0)


def test_all_models_are_here():
    assert {model.name for model in DIGITAL + ANALOG} == set(MODELS) - {"defect_map"}
