"""ResNet-18 for 32x32 inputs (He et al., *Deep Residual Learning*, CVPR 2016).

The first convolution is 3x3 at stride 1 with no pooling behind it. Shortcuts that change the shape
are 1x1 convolutions with BatchNorm. 11.1740M parameters and 1110.85M FLOPs for 10 classes.
"""

import flax.linen as nn
import jax

from ftnas_jax.models.layers import Baseline, classify, conv_norm

_STEM = 64
_STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))
"""Channels, and stride of the first of two blocks."""


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    Attributes:
        features: channels of the output.
        stride: of the first convolution.
    """

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, C] → [B, ⌈H / stride⌉, ⌈W / stride⌉, features]."""
        y = nn.relu(conv_norm(x, self.features, "conv0", train=train, stride=self.stride))
        y = conv_norm(y, self.features, "conv1", train=train)
        if x.shape != y.shape:
            x = conv_norm(x, self.features, "shortcut", train=train, size=1, stride=self.stride)
        return nn.relu(x + y)


class ResNet18(Baseline):
    """ResNet-18."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """float32 [B, H, W, C] → logits [B, num_classes]."""
        x = nn.relu(conv_norm(images, self.scaled(_STEM), "stem", train=train))
        for stage, (channels, first) in enumerate(_STAGES):
            for place, stride in enumerate((first, 1)):
                name = f"stage{stage}_block{place}"
                x = Block(self.scaled(channels), stride, name=name)(x, train)
        return classify(x, self.num_classes)
