"""What a network costs: the multiply-accumulates of its layers, for one image.

The paper's FLOPs are two for each multiply-accumulate of convolutions and of the classifier; all
else (BatchNorm, pooling, sums) counts as nothing.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from ftnas_jax.nn.primitives import parameter_shapes
from ftnas_jax.space import INPUT_NODES, Architecture, Space, target_node
from ftnas_jax.supernet import STEM_WIDTH, NetworkConfig


class LayerCost(NamedTuple):
    """One convolution, or the classifier.

    Attributes:
        name: where it stands, as in `cell2/preprocess0/conv1` or
            `cell0/edge3-5/sep_conv_3x3/conv0`.
        features: numbers that it puts out for one image.
        macs_per_feature: M_l of Eqs. 7 and 8.
    """

    name: str
    features: int
    macs_per_feature: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return self.features * self.macs_per_feature


class _Place(NamedTuple):
    """Features between layers."""

    channels: int
    height: int
    width: int

    def after(self, channels: int, stride: int) -> "_Place":
        return _Place(channels, self.height // stride, self.width // stride)


def count_macs(layers: list[LayerCost]) -> int:
    """Multiply-accumulates of a network for one image; the paper's FLOPs are twice as many."""
    return sum(layer.macs for layer in layers)


def layer_costs(
    config: NetworkConfig, space: Space, architecture: Architecture, image: tuple[int, int, int]
) -> list[LayerCost]:
    """The costs of every layer that `architecture` runs, from the stem to the classifier.

    Args:
        config: shape of the network.
        space: of the architecture.
        architecture: its connections.
        image: height, width and channels.

    Raises:
        ValueError: the architecture is not of the space, or the image cannot be halved as often as
            the network asks for.
    """
    space.check(architecture)
    config.check_image(*image[:2])
    start = _Place(image[2], image[0], image[1])
    stem = start.after(STEM_WIDTH * config.channels, 1)
    layers = list(_operation("stem", "conv_bn_3x3", start, stem.channels, 1))
    older, newer, channels = stem, stem, config.channels
    for number in range(config.cells):
        reduction = number in config.reductions
        channels *= 2 if reduction else 1
        for i, x in enumerate((older, newer)):
            stride = x.height // newer.height
            name = config.preprocess if stride == 1 else config.preprocess_stride2
            layers += _operation(f"cell{number}/preprocess{i}", name, x, channels, stride)
        inner = newer.after(channels, 2 if reduction else 1)
        layers += _cell(f"cell{number}", space, architecture[reduction], newer, inner)
        older, newer = newer, inner.after(space.inner_nodes * channels, 1)
    layers.append(LayerCost("classifier", config.num_classes, newer.channels))
    return layers


def _cell(prefix: str, space: Space, cell, newer: _Place, inner: _Place) -> Iterator[LayerCost]:
    inputs = newer.after(inner.channels, 1)  # behind the preprocessing
    for place, (source, op) in enumerate(cell):
        start = inputs if source < INPUT_NODES else inner
        name = space.primitives[op]
        label = f"{prefix}/edge{source}-{target_node(place)}/{name}"
        yield from _operation(label, name, start, inner.channels, start.height // inner.height)


def _operation(
    label: str, name: str, start: _Place, channels: int, stride: int
) -> Iterator[LayerCost]:
    out = start.after(channels, stride)
    shapes = parameter_shapes(name, start.channels, channels, stride=stride, affine=False)
    for layer, fields in shapes.items():
        kernel = fields["kernel"]
        macs_per_feature = math.prod(kernel[:-1] if len(kernel) == 4 else kernel[:2])
        features = kernel[-1] * out.height * out.width
        yield LayerCost(f"{label}/{layer}", features, macs_per_feature)
