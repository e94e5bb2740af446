"""Costs: against published tables, by hand, and of models of every kind."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ftnas_jax.costs import LayerCost, costs_at, count_costs, count_macs, layer_costs
from ftnas_jax.models import by_name
from ftnas_jax.nn.hardware import Hardware
from ftnas_jax.published import W_FTT_NET
from ftnas_jax.space import Architecture, Connection, Space
from ftnas_jax.supernet import Network, NetworkConfig

IMAGE = (32, 32, 3)


@pytest.mark.parametrize(
    ("name", "megaflops", "megaparameters"),
    [
        ("resnet18", 1110.85, 11.1740),
        ("vgg16", 626.40, 14.7282),
        ("mobilenet_v2", 182.31, 2.2969),
        ("w_ftt_net:channels=20", 919.37, 2.7126),
        ("w_ftt_net:channels=40", 3655.73, 10.7908),
    ],
)
def test_the_published_costs(name, megaflops, megaparameters):
    costs = costs_at(by_name(name, 10), IMAGE)
    assert round(costs.flops / 1e6, 2) == megaflops
    assert round(costs.parameters / 1e6, 4) == megaparameters


@pytest.mark.parametrize(
    ("preprocess", "megaflops"), [("sep_conv_3x3", 639.99), ("relu_conv_bn_1x1", 440.96)]
)
def test_the_flops_of_w_ftt_net_with_other_preprocessing(preprocess, megaflops):
    space = Space()
    config = NetworkConfig(preprocess=preprocess, preprocess_stride2=preprocess)
    layers = layer_costs(config, space, space.parse(W_FTT_NET), IMAGE)
    assert round(2 * count_macs(layers) / 1e6, 2) == megaflops


def test_every_layer_of_a_network_by_hand():
    space = Space(3, ("skip_connect", "conv_1x1", "max_pool_3x3", "dil_conv_5x5"))
    cells = Architecture((Connection(0, 1), Connection(1, 2)), (Connection(0, 0), Connection(1, 3)))
    config = NetworkConfig(num_classes=3, channels=4, cells=2, reductions=(0,))
    layers = layer_costs(config, space, cells, (8, 6, 1))
    whole, half = (8, 6), (4, 3)
    assert layers == [
        LayerCost("stem/conv0", "features", (*whole, 12), 9 * 12, 9),
        LayerCost("cell0/preprocess0/conv0", "features", (*whole, 8), 12 * 8, 12),
        LayerCost("cell0/preprocess1/conv0", "features", (*whole, 8), 12 * 8, 12),
        LayerCost("cell0/edge0-2/skip_connect/conv0", "features", (*half, 4), 8 * 4, 8),
        LayerCost("cell0/edge0-2/skip_connect/conv1", "features", (*half, 4), 8 * 4, 8),
        LayerCost("cell0/edge1-2/dil_conv_5x5/conv0", "features", (*half, 8), 25 * 8, 25),
        LayerCost("cell0/edge1-2/dil_conv_5x5/conv1", "features", (*half, 8), 8 * 8, 8),
        LayerCost("cell1/preprocess0/conv0", "features", (*half, 4), 12 * 4, 12),
        LayerCost("cell1/preprocess0/conv1", "features", (*half, 4), 12 * 4, 12),
        LayerCost("cell1/preprocess1/conv0", "features", (*half, 8), 8 * 8, 8),
        LayerCost("cell1/edge0-2/conv_1x1/conv0", "features", (*half, 8), 8 * 8, 8),
        LayerCost("classifier", "returned", (3,), 8 * 3, 8),
    ]
    macs = [48 * 12 * 9, 2 * 48 * 8 * 12, 12 * 8 * (8 + 25 + 8), 12 * 8 * (12 + 8 + 8), 3 * 8]
    assert count_macs(layers) == sum(macs)


def test_two_identical_edges_have_parameters_once_and_macs_twice():
    space = Space(3, ("none", "conv_1x1"))
    one = Architecture((Connection(0, 0), Connection(0, 1)), (Connection(0, 0),) * 2)
    two = Architecture((Connection(0, 1), Connection(0, 1)), (Connection(0, 0),) * 2)
    config = NetworkConfig(channels=4, cells=1, reductions=())
    single, twin = (
        costs_at(Network(config, space, Hardware(), cells), (8, 8, 3)) for cells in (one, two)
    )
    assert twin.parameters == single.parameters
    assert twin.macs - single.macs == 64 * 4 * 4
    edges = [layer for layer in twin.layers if "edge" in layer.name]
    assert [layer.kernel for layer in edges] == [16, 0]
    assert edges[0].name == edges[1].name


class Mixed(nn.Module):
    """A strided, a grouped and a transposed convolution, attention, and a layer that runs twice."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 2), strides=(2, 1), padding="VALID", name="strided")(x))
        x = nn.relu(nn.Conv(6, (3, 3), feature_group_count=3, name="grouped")(x))
        x = nn.relu(nn.ConvTranspose(4, (2, 2), (2, 2), name="transposed")(x))
        x = x.reshape(x.shape[0], -1, 4)
        x = nn.MultiHeadDotProductAttention(2, name="attention")(x)
        dense = nn.Dense(4, name="twice")
        return nn.Dense(3, name="head")(dense(nn.relu(dense(x))).mean(1))


def test_a_model_of_many_layers_counted_by_its_loops():
    """MACs as NumPy counts taps that meet a feature, one output at a time."""
    costs = costs_at(Mixed(), (9, 7, 3))
    height, width = (9 - 3) // 2 + 1, 7 - 2 + 1
    tokens = 4 * height * width
    macs = {
        "strided": height * width * 6 * _taps((3, 2, 3)),
        "grouped": height * width * 6 * _taps((3, 3, 2)),
        "transposed": tokens * 4 * 6,  # 2x2 taps at stride 2 lie apart: one meets each output
        "attention/query": tokens * 4 * 4,
        "attention/key": tokens * 4 * 4,
        "attention/value": tokens * 4 * 4,
        "attention/product": 2 * tokens * tokens * 4,
        "attention/out": tokens * 4 * 4,
        "twice": 2 * tokens * 4 * 4,
        "head": 4 * 3,
    }
    found = dict.fromkeys(macs, 0)
    for layer in costs.layers:
        found[layer.name] += layer.macs
    assert found == macs
    assert costs.macs == sum(macs.values())
    assert [layer.name for layer in costs.layers if layer.kind == "returned"] == ["head"]


def _taps(shape):
    return int(np.count_nonzero(np.ones(shape)))


class Scanned(nn.Module):
    """Three blocks that a loop goes over, each with weights of its own."""

    @nn.compact
    def __call__(self, x):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return nn.relu(nn.Dense(6, name="dense")(x)), None

        scan = nn.scan(Block, {"params": 0}, split_rngs={"params": True}, length=3)
        return nn.Dense(2, name="head")(scan(name="blocks")(x, None)[0])


def test_the_turns_of_a_loop_all_count():
    costs = costs_at(Scanned(), (6,))
    block, head = costs.layers
    assert (block.shape, block.kernel, block.macs) == ((3, 6), 3 * 36, 3 * 36)
    assert (head.shape, head.kernel, head.kind) == ((2,), 12, "returned")
    assert costs.parameters == 3 * (36 + 6) + 12 + 2


class Plain(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        return self.head(x.mean((1, 2))), x


def test_an_nnx_module_and_a_function():
    images = jnp.zeros((2, 8, 8, 3))
    costs = count_costs(Plain(nnx.Rngs(0)), images)
    expected = (
        LayerCost("conv", "computed", (8, 8, 4), 108, 27),
        LayerCost("head", "returned", (2,), 8, 4),
    )
    assert costs.layers == expected
    assert costs.parameters == 108 + 4 + 2 * 4 + 8 + 2

    def function(parameters, x, power):
        return jnp.tanh(x @ parameters["w"]) ** power @ parameters["v"]

    shapes = {"w": jax.ShapeDtypeStruct((5, 7), jnp.float32), "v": jnp.zeros((7, 2))}
    costs = count_costs(function, shapes, jax.ShapeDtypeStruct((4, 5), jnp.float32), 2, p_m=0.5)
    assert [(layer.name, layer.macs) for layer in costs.layers] == [("w", 35), ("v", 14)]
    assert [layer.error_rate(0.5) for layer in costs.layers] == [1 - 0.5**5, 0]


def test_error_rates_a_table_and_json():
    costs = costs_at(by_name("resnet18:width=0.125", 10), IMAGE, p_m=1e-3)
    stem = costs.layers[0]
    assert (stem.name, stem.macs_per_feature) == ("stem", 27)
    assert stem.error_rate(1e-3) == pytest.approx(1 - (1 - 1e-3) ** 27)
    rates = [1 - (1 - 1e-3) ** layer.macs_per_feature for layer in costs.layers[:-1]]
    features = [layer.features for layer in costs.layers[:-1]]
    assert costs.faulty_features == pytest.approx(np.dot(rates, features))
    text = str(costs).splitlines()
    assert len(text) == len(costs.layers) + 2
    head = "layer kind shape kernel MACs M_l rate at p_m=0.001"
    assert text[0].split() == head.split()
    assert text[-2].split()[-1] == "never"
    content = json.loads(json.dumps(costs.to_json()))
    assert content["flops"] == 2 * content["macs"] == costs.flops
    assert sum(layer["macs"] for layer in content["layers"]) == content["macs"]
    kernels = sum(layer["kernel"] for layer in content["layers"])
    assert kernels < content["parameters"] < 1.1 * kernels


def test_what_does_not_fit_is_refused():
    space = Space()
    with pytest.raises(ValueError, match="cannot be halved"):
        layer_costs(NetworkConfig(), space, space.first(), (30, 30, 3))
    with pytest.raises(ValueError, match=r"p_m is 2.0; a rate lies in \[0, 1\]"):
        costs_at(by_name("resnet18:width=0.01", 10), IMAGE, p_m=2.0)
    with pytest.raises(ValueError, match="no layer was found"):
        count_costs(lambda parameters, x: x, {}, jnp.zeros((2, 3)))


class _Trains(nn.Module):
    """Normalizes by the batch unless it is told not to, as many modules do."""

    @nn.compact
    def __call__(self, x, train: bool = True):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x))
        return nn.Dense(5)(x.mean((1, 2)))


class _MustBeTold(_Trains):
    @nn.compact
    def __call__(self, x, train: bool):
        return super().__call__(x, train)


class _Fails(nn.Module):
    @nn.compact
    def __call__(self, x, masks):
        return nn.Dense(5)(x) + masks


@pytest.mark.parametrize("module", [_Trains(), _MustBeTold()])
def test_modules_that_know_training_are_counted_in_evaluation(module):
    costs = costs_at(module, (6, 6, 3))
    assert costs.macs == 6 * 6 * 9 * 3 * 4 + 4 * 5
    assert costs.parameters == 9 * 3 * 4 + 4 + 2 * 4 + 4 * 5 + 5


def test_a_module_that_takes_more_than_images_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"_Fails cannot be called with images of 6x6x3: ") as told:
        costs_at(_Fails(), (6, 6, 3))
    assert "\n" not in str(told.value)
