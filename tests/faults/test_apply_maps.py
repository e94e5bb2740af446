"""Several models on one tensor."""

import jax.numpy as jnp
import numpy as np

from ftnas_jax.faults import (
    STUCK_AT_0,
    STUCK_AT_1,
    BitFlip,
    LogNormal,
    MiBB,
    StuckAt,
    apply_maps,
    faulty_positions,
)
from ftnas_jax.fixed_point import FixedPoint

SIGNED = FixedPoint(8, "sign_magnitude")
CODES = jnp.array([5, -5, 0, 100], jnp.int32)
STUCK = jnp.array([STUCK_AT_1, STUCK_AT_0, 0, 0], jnp.int8)
FLIPS = jnp.array([0b1, 0b1, 0, 0b10000000], jnp.uint8)


def test_models_act_in_turn():
    stuck, flip = StuckAt(), BitFlip()
    assert apply_maps(CODES, (stuck, flip), (STUCK, FLIPS), SIGNED).tolist() == [126, 1, 0, -100]
    assert apply_maps(CODES, (flip, stuck), (FLIPS, STUCK), SIGNED).tolist() == [127, 0, 0, -100]


def test_each_model_saturates_before_the_next():
    up, down = jnp.full(4, 7, jnp.int8), jnp.full(4, -7, jnp.int8)
    models = MiBB(), MiBB()
    assert apply_maps(CODES, models, (up, down), FixedPoint(8)).tolist() == [5, -5, 0, 63]


def test_models_without_maps_do_not_act():
    models = StuckAt(), BitFlip()
    np.testing.assert_array_equal(apply_maps(CODES, models, None, SIGNED), CODES)
    np.testing.assert_array_equal(apply_maps(CODES, models, (None, None), SIGNED), CODES)
    np.testing.assert_array_equal(apply_maps(CODES, (), (), SIGNED), CODES)
    assert apply_maps(CODES, models, (None, FLIPS), SIGNED).tolist() == [4, -4, 0, -100]


def test_faulty_positions_are_those_of_any_model():
    models = StuckAt(), BitFlip(), LogNormal()
    varied = jnp.full(4, 0.3, jnp.float32)
    assert faulty_positions(models, (STUCK, FLIPS, varied)).tolist() == [True, True, False, True]
    assert faulty_positions(models, (STUCK, None, None)).tolist() == [True, True, False, False]


def test_no_position_is_faulty_without_maps_of_digital_faults():
    models = StuckAt(), LogNormal()
    assert faulty_positions(models, None) is None
    assert faulty_positions(models, (None, None)) is None
    assert faulty_positions(models, (None, jnp.ones(4, jnp.float32))) is None
