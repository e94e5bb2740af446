"""Stacks of primitives, and of blocks that are drawn anew in every step (§5.5 of the paper).

The paper says neither how wide its stacks are nor where they lose resolution: here they have the
channels of a search's first cell, and every second layer halves the sides and doubles the channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftnas_jax.models.layers import HE, classify, conv_norm

_PRIMITIVES = {
    "relu_conv_bn_1x1": ("dense", 1, 1),
    "relu_conv_bn_3x3": ("dense", 3, 1),
    "relu_conv_bn_5x5": ("dense", 5, 1),
    "sep_conv_3x3": ("separable", 3, 1),
    "sep_conv_5x5": ("separable", 5, 1),
    "dil_conv_3x3": ("separable", 3, 2),
    "dil_conv_5x5": ("separable", 5, 2),
}
"""Kind, side of the kernel, dilation."""

_BLOCKS = ("sep_conv_3x3", "relu_conv_bn_3x3", "relu_conv_bn_1x1")
"""What a random block is one of."""


class Primitive(nn.Module):
    """One of the convolutional operations of the search space, its BatchNorm affine.

    Attributes:
        primitive: its name.
        features: channels of the output.
        stride: of its first convolution.
    """

    primitive: str
    features: int
    stride: int = 1

    def __post_init__(self):
        if self.primitive not in _PRIMITIVES:
            names = ", ".join(_PRIMITIVES)
            raise ValueError(f"primitive is {self.primitive!r}; choose from {names}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, C] → [B, ⌈H / stride⌉, ⌈W / stride⌉, features]."""
        kind, size, dilation = _PRIMITIVES[self.primitive]
        if kind == "dense":
            x = nn.relu(x)
            return conv_norm(x, self.features, "conv0", train=train, size=size, stride=self.stride)
        halves = 1 if dilation > 1 else 2  # a SepConv is two of them
        for half in range(halves):
            stride = 1 if half else self.stride
            x = _depthwise(nn.relu(x), f"depthwise{half}", size, dilation, stride)
            channels = self.features if half == halves - 1 else x.shape[-1]
            x = conv_norm(x, channels, f"pointwise{half}", train=train, size=1)
        return x


def _depthwise(x: jax.Array, name: str, size: int, dilation: int, stride: int) -> jax.Array:
    return nn.Conv(
        x.shape[-1],
        (size, size),
        stride,
        padding=dilation * (size // 2),
        kernel_dilation=dilation,
        feature_group_count=x.shape[-1],
        use_bias=False,
        kernel_init=HE,
        name=name,
    )(x)


class Stack(nn.Module):
    """A stem, layers of one primitive, and a classifier.

    Attributes:
        num_classes: width of the classifier.
        primitive: which.
        layers: how many.
        channels: of the first layer.
    """

    num_classes: int = 10
    primitive: str = "sep_conv_5x5"
    layers: int = 5
    channels: int = 20

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """float32 [B, H, W, C] → logits [B, num_classes]."""
        x = conv_norm(images, self.channels, "stem", train=train)
        for place, (channels, stride) in enumerate(_shapes(self.layers, self.channels)):
            layer = Primitive(self.primitive, channels, stride, name=f"layer{place}")
            x = layer(x, train)
        return classify(nn.relu(x), self.num_classes)


class RandomBlocks(nn.Module):
    """A stem, blocks, and a classifier; every step of training draws what each block is.

    A block is a SepConv 3x3, a ReLU-Conv-BN 3x3 or a ReLU-Conv-BN 1x1; without training it is the
    first of these. All three are computed, and one is taken: gradients of convolutions in a branch
    are slow on CPU.

    Attributes:
        num_classes: width of the classifier.
        layers: number of blocks.
        channels: of the first block.
    """

    num_classes: int = 10
    layers: int = 5
    channels: int = 20

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """float32 [B, H, W, C] → logits [B, num_classes]."""
        x = conv_norm(images, self.channels, "stem", train=train)
        chosen = jnp.zeros(self.layers, jnp.int32)
        if train:
            key = self.make_rng("dropout")
            chosen = jax.random.randint(key, (self.layers,), 0, len(_BLOCKS))
        for place, (channels, stride) in enumerate(_shapes(self.layers, self.channels)):
            every = [
                Primitive(name, channels, stride, name=f"block{place}_{name}")(x, train)
                for name in _BLOCKS
            ]
            x = jnp.stack(every)[chosen[place]]
        return classify(nn.relu(x), self.num_classes)


def _shapes(layers: int, channels: int) -> list[tuple[int, int]]:
    """Channels and stride of every layer."""
    return [(channels * 2 ** ((place + 1) // 2), 1 + place % 2) for place in range(layers)]
