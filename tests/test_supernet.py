"""The network: one module for a known and for a traced architecture, and the sites of faults.

Compilation takes nearly all the time, so programs are shared and networks are tiny. Where two
programs are compared, codes have 16 bits: they may round a tie differently, and a step of a code
of 16 bits is lost in the tolerance.
"""

import collections
import dataclasses
import functools
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftnas_jax.faults import BitFlip, FaultModel, MiBB, StuckAt
from ftnas_jax.fixed_point import FixedPoint
from ftnas_jax.nn.cell import CellSpec, static_cell
from ftnas_jax.nn.hardware import Draw, Hardware, draw_maps
from ftnas_jax.published import W_FTT_NET
from ftnas_jax.space import Architecture, Connection, Space, edge_index, target_node
from ftnas_jax.supernet import Network, NetworkConfig

SPACE = Space(
    nodes=4,
    primitives=(
        "none",
        "skip_connect",
        "avg_pool_3x3",
        "max_pool_3x3",
        "conv_1x1",
        "relu_conv_bn_3x3",
        "sep_conv_3x3",
        "dil_conv_5x5",
    ),
)
RRAM = FixedPoint(16, "sign_magnitude")
FAULTS = (
    StuckAt(0.1, 0.1),
    MiBB(5e-3, layers="!*/conv_1x1"),
    BitFlip(5e-3, "6-9", site="activations", per="batch"),
)
FINE = Hardware(RRAM, FixedPoint(16), FAULTS, "masked")


def _covering_architectures():
    """Two architectures that have every operation in either cell, and one in which every node
    has two equal connections, all of them convolutions."""
    rng = np.random.default_rng(0)
    array = np.zeros((3, 2, SPACE.connections, 2), np.int32)
    for cell in range(2):
        array[:2, cell, :, 1] = rng.permutation(len(SPACE.primitives)).reshape(2, -1)
        array[2, cell, :, 1] = rng.permutation(SPACE.connections) + 4
        for connection in range(SPACE.connections):
            array[:, cell, connection, 0] = rng.integers(target_node(connection), size=3)
    array[2, :, 1::2] = array[2, :, ::2]
    return tuple(Architecture.from_array(a) for a in array)


COVERING = _covering_architectures()


def config(**changes):
    """Two cells: a reduction, and a cell whose older input has twice the resolution."""
    settings = {"num_classes": 3, "channels": 4, "cells": 2, "reductions": (0,), "dropout": 0.0}
    return NetworkConfig(**(settings | changes))


def images(seed=0, size=8, batch=4):
    return np.random.default_rng(seed).normal(size=(batch, size, size, 3)).astype(np.float32)


def variables_of(network, seed=0, size=8):
    """Random variables, without running the initializers."""
    given = () if network.architecture else (np.zeros((2, network.space.connections, 2), np.int32),)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images(size=size), *given)
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        if path[0].key == "batch_stats":
            return rng.uniform(0.5, 1.5, size=leaf.shape).astype(np.float32)
        around = 1.0 if path[-1].key == "scale" else 0.0
        return (around + rng.normal(size=leaf.shape) * 0.3).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def step(network, variables, x, architecture, seed, faulty):
    """Logits, gradients and new running statistics of a training pass."""

    def loss(params):
        draw = Draw(jax.random.key(seed), faulty)
        logits, updates = network.apply(
            variables | {"params": params}, x, architecture, draw, train=True, mutable="batch_stats"
        )
        weights = jnp.cos(jnp.arange(logits.size, dtype=jnp.float32)).reshape(logits.shape)
        return jnp.sum(logits * weights), (logits, updates)

    gradients, (logits, updates) = jax.grad(loss, has_aux=True)(variables["params"])
    return logits, gradients, updates


def evaluate(network, variables, x, architecture, seed, faulty):
    """Logits of an evaluation."""
    return network.apply(variables, x, architecture, Draw(jax.random.key(seed), faulty))


static_step = jax.jit(step, static_argnames=("network", "architecture"))
static_evaluate = jax.jit(evaluate, static_argnames=("network", "architecture"))


def once(function):
    """One program for all architectures: a second trace is an error."""

    @functools.wraps(function)
    def own(*args):
        return function(*args)  # chex counts by function: one of its own for every program

    return jax.jit(chex.assert_max_traces(own, n=1), static_argnums=0)


def assert_same(got, expected):
    """Equal to float32 rounding and to steps of a code of 16 bits, relative to each tensor."""
    chex.assert_trees_all_equal_shapes_and_dtypes(got, expected)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True
    ):
        scale = max(np.abs(b).max(), 1e-6)
        np.testing.assert_allclose(a, b, atol=2e-3 * scale, err_msg=jax.tree_util.keystr(path))


def differ(a, b):
    return not np.allclose(a, b, rtol=1e-2, atol=1e-2)


# A known and a traced architecture


@pytest.fixture(scope="module")
def training():
    """A network whose BatchNorms keep running statistics, its variables, its traced program."""
    network = Network(config(batch_norm="running"), SPACE, FINE)
    return network, variables_of(network), once(step)


@pytest.fixture(scope="module")
def evaluation():
    """The same for evaluation; without MiBB, whose samplers take long to compile."""
    hardware = Hardware(RRAM, FixedPoint(16), (StuckAt(0.1, 0.1),))
    network = Network(config(batch_norm="running"), SPACE, hardware)
    return network, variables_of(network), once(evaluate)


@pytest.mark.parametrize("architecture", COVERING[:2])
def test_a_traced_architecture_trains_as_a_known_one(training, architecture):
    """Logits, gradients of all parameters and new running statistics, clean and faulty."""
    network, variables, traced_step = training
    for seed, faulty in ((0, False), (1, True), (2, True)):
        got = traced_step(network, variables, images(), architecture.to_array(), seed, faulty)
        expected = static_step(network, variables, images(), architecture, seed, faulty)
        assert_same(got, expected)


def test_only_what_an_architecture_uses_is_trained(training):
    network, variables, traced_step = training
    architecture = COVERING[0]
    _, gradients, updates = traced_step(
        network, variables, images(), architecture.to_array(), 0, False
    )
    for cell, connections in (("cell0", architecture.reduction), ("cell1", architecture.normal)):
        used = {
            (edge_index(source, target_node(place)), op)
            for place, (source, op) in enumerate(connections)
        }
        for op, name in enumerate(SPACE.primitives):
            edges = [edge for edge, other in used if other == op]
            unused = np.setdiff1d(np.arange(SPACE.edges), edges)
            for gradient in jax.tree.leaves(gradients[cell].get(name, {})):
                assert not np.any(gradient[unused])
            before, after = (tree["batch_stats"][cell]["stats"] for tree in (variables, updates))
            np.testing.assert_array_equal(after[unused, op], before[unused, op])


def test_equal_connections_both_move_the_running_statistics(training):
    network, variables, traced_step = training
    twice = COVERING[2].to_array()
    once_only = twice.copy()
    once_only[1, 1, 1] = SPACE.primitives.index("none")
    (source, op), before = twice[1, 0], variables["batch_stats"]["cell0"]["stats"]
    moves = []
    for array in (once_only, twice):
        updates = traced_step(network, variables, images(), array, 0, False)[2]
        after = updates["batch_stats"]["cell0"]["stats"]
        moves.append((np.asarray(after) - before)[edge_index(source, target_node(0)), op])
    assert np.any(np.abs(moves[0]) > 0.01)
    np.testing.assert_allclose(moves[1], 2 * moves[0], atol=1e-5)


def test_equal_connections_train_alike_in_the_batch_mode():
    """Without running statistics; two equal connections add up their gradients."""
    hardware = Hardware(RRAM, FixedPoint(16), (StuckAt(0.1, 0.1),))
    space = Space(4, SPACE.primitives[4:])
    network = Network(config(batch_norm="batch", affine=True, pool_norm=False), space, hardware)
    variables = variables_of(network)
    architecture = Architecture.from_array(COVERING[2].to_array() - np.array([0, 4]))
    assert set(variables) == {"params"}
    traced_step = once(step)
    for seed, faulty in ((0, False), (1, True)):
        got = traced_step(network, variables, images(), architecture.to_array(), seed, faulty)
        expected = static_step(network, variables, images(), architecture, seed, faulty)
        assert_same(got, expected)


def test_a_traced_architecture_evaluates_as_a_known_one(evaluation):
    network, variables, traced_evaluate = evaluation
    architecture = COVERING[0]
    for seed, faulty in ((0, False), (1, True)):
        got = traced_evaluate(network, variables, images(), architecture.to_array(), seed, faulty)
        expected = static_evaluate(network, variables, images(), architecture, seed, faulty)
        assert_same(got, expected)


def own_variables(variables, architecture):
    """The variables of a network that has nothing but `architecture`, out of a supernet's."""
    params = dict(variables["params"])
    for cell, connections in (("cell0", architecture.reduction), ("cell1", architecture.normal)):
        rows = collections.defaultdict(dict)
        for place, (source, op) in enumerate(connections):
            name = SPACE.primitives[op]
            identity = name == "skip_connect" and not (cell == "cell0" and source < 2)
            if name in params[cell] and not identity:
                rows[name][edge_index(source, target_node(place))] = None
        preprocessing = {k: v for k, v in params[cell].items() if k.startswith("preprocess")}
        params[cell] = preprocessing | {
            name: jax.tree.map(lambda p, e=list(edges): p[np.array(e)], params[cell][name])
            for name, edges in rows.items()
        }
    return variables | {"params": params}


@pytest.mark.parametrize("architecture", COVERING[1:])
def test_a_fixed_network_is_the_supernet_with_one_architecture(evaluation, architecture):
    network, variables, traced_evaluate = evaluation
    fixed = network.clone(architecture=architecture)
    own = own_variables(variables, architecture)
    chex.assert_trees_all_equal_shapes(own, variables_of(fixed))
    for seed, faulty in ((0, False), (1, True)):
        got = static_evaluate(fixed, own, images(), None, seed, faulty)
        expected = traced_evaluate(
            network, variables, images(), architecture.to_array(), seed, faulty
        )
        assert_same(got, expected)


# Keys and faults


def test_faults_follow_the_key_and_the_flag(evaluation):
    network, variables, traced_evaluate = evaluation
    array = COVERING[0].to_array()

    def logits(seed, faulty):
        return np.asarray(traced_evaluate(network, variables, images(), array, seed, faulty))

    np.testing.assert_array_equal(logits(1, True), logits(1, True))
    assert differ(logits(1, True), logits(2, True))
    np.testing.assert_array_equal(logits(1, False), logits(2, False))
    assert differ(logits(1, True), logits(1, False))
    sound = network.clone(hardware=Hardware(RRAM, FixedPoint(16)))
    clean = jax.jit(lambda v, x: sound.apply(v, x, COVERING[0]))(variables, images())
    assert_same(logits(1, False), clean)


@pytest.mark.parametrize("model", [StuckAt(0.2, 0.2), MiBB(2e-2)])
def test_equal_connections_share_faulty_weights_but_not_features(model):
    """A node with two equal connections against nodes with either of them and a `none`."""
    space = Space(3, ("none", "relu_conv_bn_3x3"))
    hardware = Hardware(RRAM, FixedPoint(16), (model,))
    spec = CellSpec(space, False, hardware, pool_norm=False, path="cell0")
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 6, 6, 4)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(space.edges, 3, 3, 4, 4)), jnp.float32)
    params = {"relu_conv_bn_3x3": {"conv0": {"kernel": kernel}}}

    @functools.partial(jax.jit, static_argnums=0)
    def node(ops):
        cell = tuple(Connection(1, op) for op in ops)
        return static_cell(spec, params, None, [x, x], cell, Draw(jax.random.key(0)))[0][0]

    both, first, second = np.asarray(node((1, 1))), node((1, 0)), node((0, 1))
    np.testing.assert_allclose(both, first + second, atol=1e-3 * np.abs(both).max())
    if model.site == "weights":
        np.testing.assert_array_equal(first, second)
    else:
        assert differ(first, second)


def test_weight_faults_hit_every_kernel_and_nothing_else():
    """Weights that are all stuck at the bound of their sign have no magnitude to change."""
    space = Space(3, ("skip_connect", "conv_1x1", "relu_conv_bn_3x3", "sep_conv_3x3"))
    cells = Architecture((Connection(0, 1), Connection(1, 2)), (Connection(0, 0), Connection(1, 3)))
    hardware = Hardware(FixedPoint(8, "sign_magnitude"), None, (StuckAt(0.0, 1.0),))
    network = Network(config(batch_norm="running", affine=True), space, hardware, cells)
    variables = variables_of(network)

    def logits(variables):
        return np.asarray(static_evaluate(network, variables, images(), None, 0, True))

    before = logits(variables)
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        # The largest keeps its size, and with it the fraction length; none becomes 0.
        share = np.abs(leaf) / np.abs(leaf).max()
        change = np.where((share > 0.1) & (share < 0.7), 0.5, 1.0).astype(np.float32)
        after = logits(
            jax.tree_util.tree_map_with_path(
                lambda p, a, path=path, change=change: a * change if p[1:] == path else a, variables
            )
        )
        kernel = path[-1].key == "kernel"
        assert np.array_equal(before, after) == kernel, jax.tree_util.keystr(path)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Recorder(FaultModel):
    """A fault model of features that changes nothing and notes M_l and shape of every tensor."""

    seen: list = dataclasses.field(hash=False, compare=False, default_factory=list)
    site: str = dataclasses.field(default="features", kw_only=True)
    name: ClassVar[str] = "recorder"

    def exposure(self, place):
        return np.int32(place.macs)

    def sample(self, keys, shape, fmt, exposure):
        del fmt
        return jnp.full((len(keys), *shape), exposure, jnp.int32)

    def apply(self, codes, fault_map, fmt):
        del fmt
        note = functools.partial(self._note, codes.shape)
        jax.debug.callback(note, jnp.min(fault_map), jnp.max(fault_map))
        return codes

    def _note(self, shape, low, high):
        assert low == high
        self.seen.append((int(low), shape[1:]))


@pytest.mark.parametrize("op", [1, 4, 6])
def test_no_two_tensors_of_a_network_share_draws(monkeypatch, op):
    """The key of none is that of another, nor is one folded into the other's."""
    cells = [[[place % 2, op] for place in range(SPACE.connections)]] * 2
    network = Network(config(), SPACE, FINE, Architecture.from_array(np.array(cells)))
    variables = variables_of(network)
    drawn, fold = [], Draw.at

    def at(draw, *place):
        if isinstance(draw.key, tuple):
            return draw._replace(key=(*draw.key, *place))
        return fold(draw, *place)

    def record(hardware, kind, draw, *rest):
        drawn.append(draw.key)
        return draw_maps(hardware, kind, draw._replace(key=jax.random.key(0)), *rest)

    monkeypatch.setattr(Draw, "at", at)
    for module in ("supernet", "nn.cell", "nn.fault_table"):
        monkeypatch.setattr(f"ftnas_jax.{module}.draw_maps", record)
    jax.eval_shape(lambda own: network.apply(own, images(), draw=Draw((), True)), variables)
    assert len(drawn) > 10
    for place, key in enumerate(drawn):
        for other in drawn[:place] + drawn[place + 1 :]:
            assert other[: len(key)] != key


@pytest.mark.parametrize("site", ["features", "activations"])
def test_sites_of_feature_faults_in_a_network(site):
    space = Space(3, ("skip_connect", "conv_1x1", "max_pool_3x3", "dil_conv_5x5"))
    cells = Architecture((Connection(0, 1), Connection(1, 2)), (Connection(0, 0), Connection(1, 3)))
    seen = []
    network = Network(
        config(preprocess="sep_conv_3x3"), space, Hardware(faults=Recorder(seen, site=site)), cells
    )
    jax.block_until_ready(static_evaluate(network, variables_of(network), images(), None, 0, True))
    jax.effects_barrier()
    stem, c = 12, 8
    expected = [
        (27, (8, 8, stem)),
        *2 * [(9, (8, 8, stem)), (stem, (8, 8, stem)), (9, (8, 8, stem)), (stem, (8, 8, c))],
        (c, (4, 4, c)),  # factorized reduction
        *[(25, (4, 4, c)), (c, (4, 4, c))],  # dilated convolution
        (stem, (4, 4, c)),  # preprocessing at stride 2
        *[(9, (4, 4, c)), (c, (4, 4, c))] * 2,  # preprocessing of one inner node of c channels
        (c, (4, 4, c)),  # conv_1x1
    ]
    if site == "activations":
        # A node in either cell, the pooling of the second, and what the classifier reads.
        expected += [*3 * [(0, (4, 4, c))], (0, (c,))]
    assert collections.Counter(seen) == collections.Counter(expected)


# Dropout, parameters, errors


def test_dropout_acts_while_training_only():
    space = Space(3, ("skip_connect",))
    cells = Architecture.from_array(np.zeros((2, 2, 2), np.int32))
    network = Network(config(cells=1, reductions=(), dropout=0.5), space, Hardware(), cells)
    variables = variables_of(network)

    @functools.partial(jax.jit, static_argnames=("train", "dropout"))
    def logits(seed, train, dropout):
        net = network.clone(config=config(cells=1, reductions=(), dropout=dropout))
        rngs = {"dropout": jax.random.key(seed)}
        return net.apply(variables, images(), train=train, rngs=rngs)

    np.testing.assert_array_equal(logits(1, True, 0.5), logits(1, True, 0.5))
    assert differ(logits(1, True, 0.5), logits(2, True, 0.5))
    np.testing.assert_array_equal(logits(1, False, 0.5), logits(2, False, 0.5))
    np.testing.assert_allclose(logits(1, False, 0.5), logits(1, True, 0.0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "preprocess", "millions"),
    [
        (20, "relu_conv_bn_3x3", 2.7126),
        (40, "relu_conv_bn_3x3", 10.7908),
        (20, "sep_conv_3x3", 2.0646),
        (20, "relu_conv_bn_1x1", 1.5190),
    ],
)
def test_parameters_of_the_published_network(channels, preprocess, millions):
    """W-FTT-Net has 2.71M parameters with 20 channels and 10.78M with 40 (Table 5)."""
    space = Space()
    settings = NetworkConfig(
        channels=channels,
        preprocess=preprocess,
        preprocess_stride2=preprocess,
        affine=True,
        pool_norm=False,
    )
    network = Network(settings, space, Hardware(), space.parse(W_FTT_NET))
    shapes = jax.eval_shape(network.init, jax.random.key(0), images(size=32, batch=1))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert round(parameters / 1e6, 4) == millions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 0}, "network.channels is 0"),
        ({"cells": 0}, "network.cells is 0"),
        ({"num_classes": 1}, "network.num_classes is 1"),
        ({"channels": 2.5}, "network.channels is 2.5"),
        ({"reductions": (2,)}, "network.reductions names cell 2; cells are 0 to 1"),
        ({"reductions": (1, 0)}, "must increase"),
        ({"reductions": (1, 1)}, "must increase"),
        ({"preprocess": "skip_connect"}, "network.preprocess is 'skip_connect'; choose from"),
        ({"preprocess_stride2": "none"}, "network.preprocess_stride2 is 'none'; choose from"),
        ({"batch_norm": "frozen"}, "network.batch_norm is 'frozen'; choose from batch, running"),
        ({"dropout": 1.0}, "network.dropout is 1.0"),
    ],
)
def test_errors_in_a_config_are_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as raised:
        config(**changes)
    assert "\n" not in str(raised.value)


def test_images_must_halve_at_every_reduction():
    settings = config(cells=4, reductions=[1, 2])
    settings.check_image(8, 12)
    for size in ((6, 8), (8, 6)):
        with pytest.raises(ValueError, match="multiple of 4"):
            settings.check_image(*size)


def test_a_supernet_needs_an_architecture():
    network = Network(config(), SPACE, Hardware())
    with pytest.raises(ValueError, match="a supernet is called with an architecture"):
        jax.eval_shape(network.init, jax.random.key(0), images())


@pytest.mark.parametrize(
    "primitives", [("none",), ("none", "skip_connect"), ("avg_pool_3x3", "max_pool_3x3")]
)
def test_spaces_without_convolutions(primitives):
    space = Space(3, primitives)
    network = Network(config(), space, Hardware(RRAM, FixedPoint(8), (StuckAt(0.1, 0.1),)))
    variables = variables_of(network)

    def loss(variables, architecture):
        return jnp.sum(network.apply(variables, images(), architecture, Draw(jax.random.key(1))))

    architecture = space.random(jax.random.key(2))
    gradients = jax.jit(jax.grad(loss))(variables, architecture)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradients))


def test_a_network_of_one_architecture_takes_no_other():
    space = Space(3, ("none", "skip_connect"))
    network = Network(config(), space, Hardware(), space.first())
    with pytest.raises(ValueError, match="a network of one architecture without"):
        network.apply(variables_of(network), images(), space.random(jax.random.key(1)))
