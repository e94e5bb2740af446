"""Fault maps do not depend on whether the operation is known while tracing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftnas_jax.faults import BitFlip, DefectMap, MiBB, StuckAt
from ftnas_jax.fixed_point import FixedPoint
from ftnas_jax.nn.fault_table import FaultTable
from ftnas_jax.nn.hardware import Draw, Hardware

OPERATIONS = (("none", 1), ("conv_1x1", 1), ("sep_conv_3x3", 2), ("skip_connect", 2))
SITES = (0, 1, 4, 1)
SHAPE = (2, 4, 4, 6)


@pytest.fixture(scope="module")
def table() -> FaultTable:
    formats = (FixedPoint(8, "sign_magnitude"), FixedPoint(8))
    faults = (MiBB(1e-2), StuckAt(0.2, 0.1), BitFlip(1e-2, site="activations", per="batch"))
    return table_of(Hardware(*formats, faults))


def table_of(hardware, operations=OPERATIONS) -> FaultTable:
    paths = tuple(tuple(f"edge{e}/{name}" for name, _ in operations) for e in range(2))
    return FaultTable(hardware, operations, 6, 6, paths)


def draw(table, choice, faulty=True, edge=0):
    draws = [Draw(jax.random.key(seed), faulty) for seed in (0, 1)]
    edge = jnp.int32(edge) if isinstance(choice, jax.Array) else edge
    return table.draw(edge, choice, *draws, SHAPE)


@pytest.mark.parametrize("choice", range(len(OPERATIONS)))
def test_known_and_traced_choices_draw_the_same_maps(table, choice):
    known = draw(table, choice)
    traced = jax.jit(lambda c: draw(table, c))(jnp.int32(choice))
    for site in range(SITES[choice]):
        for own, other in zip(known.features, traced.features, strict=True):
            np.testing.assert_array_equal(own[site], other[site])
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
    table = table_of(hardware, (("none", 1), ("skip_connect", 1)))
    assert draw(table, choice) == (None, None)


def test_pooling_is_stored_but_not_computed():
    faults = (MiBB(0.5), BitFlip(0.5, site="activations"))
    table = table_of(Hardware(faults=faults), (("avg_pool_3x3", 2), ("conv_1x1", 1)))
    for choice in (0, jnp.int32(0)):
        logic, buffer = draw(table, choice).features
        assert not np.any(logic)
        assert np.any(buffer[0])


@pytest.mark.parametrize("layers", ["edge1/*", "*/sep_conv_3x3|*/conv_1x1", "!edge0/*"])
def test_layers_are_chosen_by_edge_and_operation(layers):
    sign_magnitude = FixedPoint(8, "sign_magnitude")
    faults = (StuckAt(0.5, 0.5, layers=layers), MiBB(0.5, layers=layers))
    table = table_of(Hardware(sign_magnitude, faults=faults))
    for edge in range(2):
        for choice, (name, _) in enumerate(OPERATIONS):
            hit = faults[0].acts_at(f"edge{edge}/{name}")
            known, traced = (draw(table, c, edge=edge) for c in (choice, jnp.int32(choice)))
            for maps in (known, traced):
                assert np.any(maps.weights[0] if maps.weights else 0) == (hit and choice > 0)
                assert np.any(maps.features[0] if maps.features else 0) == (hit and choice > 0)


def test_a_defect_map_is_not_for_a_supernet(tmp_path):
    file = tmp_path / "chip.csv"
    file.write_text("layer,position,stuck_at\nedge1/conv_1x1,3,max\nedge1/conv_1x1,35,0\n")
    table = table_of(Hardware(faults=DefectMap(file=str(file))))
    known = draw(table, 1, edge=1).weights[0]
    assert known.shape == (max(table.kernels),)
    assert {int(i): int(known[i]) for i in np.flatnonzero(known)} == {3: -1, 35: 1}
    assert not np.any(draw(table, 1, edge=0).weights[0])
    with pytest.raises(ValueError, match="a given defect map is that of one chip"):
        draw(table, jnp.int32(1))
