"""Architectures of one network, and cells in use, against what the network itself computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import partial_eval

from ftnas_jax.equivalence import canonical, cells_in_use, unused_types
from ftnas_jax.nn.hardware import Hardware
from ftnas_jax.space import Architecture, Space
from ftnas_jax.supernet import Network, NetworkConfig

IN_FLOAT = Hardware(weights=None, features=None)


def random_architectures(space: Space, count: int) -> np.ndarray:
    return np.asarray(jax.vmap(space.random)(jax.random.split(jax.random.key(0), count)))


def cells_with_parameters_that_count(network: Network) -> set[int]:
    """Cells some of whose parameters are left when JAX drops what the logits do not need."""
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    traced = jax.make_jaxpr(network.apply)(variables, images)
    _, used = partial_eval.dce_jaxpr(traced.jaxpr, [True])
    paths = [str(path[1].key) for path, _ in jax.tree_util.tree_leaves_with_path(variables)]
    return {
        int(path.removeprefix("cell"))
        for path, counts in zip(paths, used, strict=False)
        if counts and path.startswith("cell")
    }


@pytest.mark.parametrize(("cells", "reductions"), [(5, (1, 3)), (3, (1,)), (1, ())])
def test_cells_in_use_are_those_whose_parameters_count(cells, reductions):
    space = Space(nodes=5, primitives=("none", "skip_connect", "conv_1x1"))
    config = NetworkConfig(num_classes=3, channels=2, cells=cells, reductions=reductions)
    seen = set()
    for array in random_architectures(space, 8):
        architecture = Architecture.from_array(array)
        used = cells_in_use(config, space, architecture)
        types = {place in reductions for place in used}
        assert unused_types(config, space, architecture) == tuple(
            name
            for name, reduction in (("normal", False), ("reduction", True))
            if reduction not in types
        )
        # A cell of nothing but `none` is read, and has no parameter that counts.
        idle = [all(space.primitives[c.op] == "none" for c in cell) for cell in architecture]
        expected = {place for place in used if not idle[place in reductions]}
        network = Network(config, space, IN_FLOAT, architecture)
        assert cells_with_parameters_that_count(network) == expected
        seen.add(used)
    assert len(seen) > (cells > 1)


def swapped(array: np.ndarray, one: int, other: int) -> np.ndarray:
    """The same connections, two of the normal cell in each other's place."""
    array = array.copy()
    array[0, [one, other]] = array[0, [other, one]]
    return array


def test_canonical_forms_are_equal_where_logits_are():
    """One program for all architectures: those of one network have the same logits to the bit."""
    space = Space(nodes=4, primitives=("none", "skip_connect", "conv_1x1", "avg_pool_3x3"))
    config = NetworkConfig(num_classes=3, channels=2, cells=3, reductions=(1,), dropout=0.0)
    network = Network(config, space, IN_FLOAT)
    drawn = random_architectures(space, 100).copy()
    drawn[::2, ..., 1] = np.maximum(drawn[::2, ..., 1], 1)  # without `none`
    within = [swapped(array, 2, 3) for array in drawn]  # both feed node 3
    across = [swapped(array, 1, 2) for array in drawn if array[0, 2, 0] < 2]  # nodes 2 and 3
    arrays = [*drawn, *within, *across]
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    variables = network.init(jax.random.key(2), images, jnp.asarray(arrays[0]))
    logits = jax.jit(lambda array: network.apply(variables, images, array))
    architectures = [Architecture.from_array(array) for array in arrays]
    forms = [canonical(config, space, a) for a in architectures]
    assert [canonical(config, space, form) for form in forms] == forms
    assert forms[:100] == forms[100:200]
    values = [np.asarray(logits(array)).tobytes() for array in arrays]
    for form, value in zip(forms, values, strict=True):
        assert np.asarray(logits(form.to_array())).tobytes() == value
    # Without `none` no other two are equal, be their connections the same in another place.
    plain = [i for i, array in enumerate(arrays) if array[..., 1].all()]
    distinct = {forms[i] for i in plain}
    assert len(distinct) == len({values[i] for i in plain}) < len({architectures[i] for i in plain})
