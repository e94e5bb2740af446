"""Costs: against the published table, and against the sites at which a network runs."""

import pytest

from ftnas_jax.costs import LayerCost, count_macs, layer_costs
from ftnas_jax.published import W_FTT_NET
from ftnas_jax.space import Architecture, Connection, Space
from ftnas_jax.supernet import NetworkConfig


@pytest.mark.parametrize(
    ("channels", "preprocess", "megaflops"),
    [
        (20, "relu_conv_bn_3x3", 919.37),
        (40, "relu_conv_bn_3x3", 3655.73),
        (20, "sep_conv_3x3", 639.99),
        (20, "relu_conv_bn_1x1", 440.96),
    ],
)
def test_the_published_flops_of_w_ftt_net(channels, preprocess, megaflops):
    space = Space()
    config = NetworkConfig(channels=channels, preprocess=preprocess, preprocess_stride2=preprocess)
    layers = layer_costs(config, space, space.parse(W_FTT_NET), (32, 32, 3))
    assert 2e-6 * count_macs(layers) == pytest.approx(megaflops, abs=0.005)


def test_every_layer_by_hand():
    space = Space(3, ("skip_connect", "conv_1x1", "max_pool_3x3", "dil_conv_5x5"))
    cells = Architecture((Connection(0, 1), Connection(1, 2)), (Connection(0, 0), Connection(1, 3)))
    config = NetworkConfig(num_classes=3, channels=4, cells=2, reductions=(0,))
    layers = layer_costs(config, space, cells, (8, 6, 1))
    whole, half = 8 * 6, 4 * 3
    assert layers == [
        LayerCost("stem/conv0", whole * 12, 9),
        LayerCost("cell0/preprocess0/conv0", whole * 8, 12),
        LayerCost("cell0/preprocess1/conv0", whole * 8, 12),
        LayerCost("cell0/edge0-2/skip_connect/conv0", half * 4, 8),
        LayerCost("cell0/edge0-2/skip_connect/conv1", half * 4, 8),
        LayerCost("cell0/edge1-2/dil_conv_5x5/conv0", half * 8, 25),
        LayerCost("cell0/edge1-2/dil_conv_5x5/conv1", half * 8, 8),
        LayerCost("cell1/preprocess0/conv0", half * 4, 12),
        LayerCost("cell1/preprocess0/conv1", half * 4, 12),
        LayerCost("cell1/preprocess1/conv0", half * 8, 8),
        LayerCost("cell1/edge0-2/conv_1x1/conv0", half * 8, 8),
        LayerCost("classifier", 3, 8),
    ]


def test_what_does_not_fit_is_refused():
    space = Space()
    with pytest.raises(ValueError, match="cannot be halved"):
        layer_costs(NetworkConfig(), space, space.first(), (30, 30, 3))
