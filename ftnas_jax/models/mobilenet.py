"""MobileNet-V2 for 32x32 inputs (Sandler et al., CVPR 2018).

Against the network for 224x224 inputs the stem and the second stage have stride 1, a block at
stride 1 that changes the number of channels has a 1x1 convolution with BatchNorm as its shortcut,
the first stage has its expansion layer too, and a plain ReLU stands in place of ReLU6. 2.2969M
parameters and 182.31M FLOPs for 10 classes.
"""

import flax.linen as nn
import jax

from ftnas_jax.models.layers import Baseline, classify, conv_norm

_STEM, _HEAD = 32, 1280
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, number of blocks, stride of the first of them."""


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise convolution, 1x1 projection; at stride 1 beside a shortcut.

    Attributes:
        features: channels of the output.
        expansion: channels in between over channels of the input.
        stride: of the depthwise convolution.
    """

    features: int
    expansion: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, C] → [B, ⌈H / stride⌉, ⌈W / stride⌉, features]."""
        inner = self.expansion * x.shape[-1]
        y = nn.relu(conv_norm(x, inner, "expand", train=train, size=1))
        y = conv_norm(y, inner, "depthwise", train=train, stride=self.stride, depthwise=True)
        y = conv_norm(nn.relu(y), self.features, "project", train=train, size=1)
        if self.stride > 1:
            return y
        if x.shape != y.shape:
            x = conv_norm(x, self.features, "shortcut", train=train, size=1)
        return x + y


class MobileNetV2(Baseline):
    """MobileNet-V2."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """float32 [B, H, W, C] → logits [B, num_classes]."""
        x = nn.relu(conv_norm(images, self.scaled(_STEM), "stem", train=train))
        for stage, (expansion, channels, blocks, first) in enumerate(_STAGES):
            for place in range(blocks):
                stride = first if place == 0 else 1
                name = f"stage{stage}_block{place}"
                x = InvertedResidual(self.scaled(channels), expansion, stride, name=name)(x, train)
        x = nn.relu(conv_norm(x, self.scaled(_HEAD), "head", train=train, size=1))
        return classify(x, self.num_classes)
