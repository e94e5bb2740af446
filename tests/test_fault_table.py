"""Fault maps do not depend on whether the operation is known while tracing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftnas_jax.faults import MiBB, StuckAt
from ftnas_jax.fixed_point import FixedPoint
from ftnas_jax.nn.fault_table import FaultTable
from ftnas_jax.nn.hardware import Draw, Hardware

OPERATIONS = (("none", 1), ("conv_1x1", 1), ("sep_conv_3x3", 2), ("skip_connect", 2))
SITES = (0, 1, 4, 1)
SHAPE = (2, 4, 4, 6)


@pytest.fixture(scope="module")
def table() -> FaultTable:
    formats = (FixedPoint(8, "sign_magnitude"), FixedPoint(8))
    return FaultTable(Hardware(*formats, (MiBB(1e-2), StuckAt(0.2, 0.1))), OPERATIONS, 6, 6)


def draw(table, choice, faulty=True):
    draws = [Draw(jax.random.key(seed), faulty) for seed in (0, 1)]
    return table.draw(choice, *draws, SHAPE)


@pytest.mark.parametrize("choice", range(len(OPERATIONS)))
def test_known_and_traced_choices_draw_the_same_maps(table, choice):
    known = draw(table, choice)
    traced = jax.jit(lambda c: draw(table, c))(jnp.int32(choice))
    for site in range(SITES[choice]):
        np.testing.assert_array_equal(known.features[0][site], traced.features[0][site])
    if choice > 0:
        np.testing.assert_array_equal(known.weights[0], traced.weights[0])
        assert np.any(known.weights[0] != 0)
    else:
        assert known.weights is None
        assert not np.any(traced.weights[0])


def test_sites_behind_the_last_of_an_operation_stay_sound(table):
    maps = jax.jit(lambda c: draw(table, c))(jnp.int32(1))
    assert not np.any(maps.features[0][SITES[1] :])


def test_a_traced_pass_without_faults_is_sound(table):
    maps = jax.jit(lambda flag: draw(table, jnp.int32(2), flag))(False)
    assert not np.any(maps.features[0])
    assert not np.any(maps.weights[0])


@pytest.mark.parametrize("choice", [1, jnp.int32(1)])
def test_operations_without_sites_need_no_maps(choice):
    hardware = Hardware(faults=(MiBB(1e-2), StuckAt(0.2, 0.1)))
    table = FaultTable(hardware, (("none", 1), ("skip_connect", 1)), 6, 6)
    assert draw(table, choice) == (None, None)
