"""VGG-16 with BatchNorm for 32x32 inputs (Simonyan and Zisserman, ICLR 2015).

Thirteen 3x3 convolutions, and one fully connected layer in place of three. All convolutions but the
first have a bias, which a BatchNorm behind them makes idle: so it is counted in the published
14.7282M parameters. 626.40M FLOPs for 10 classes.
"""

import flax.linen as nn
import jax

from ftnas_jax.models.layers import Baseline, classify, conv_norm

_GROUPS = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)
"""Channels of convolutions; a 2x2 max pooling ends each group."""

_LEAST = 2 ** len(_GROUPS)


class VGG16(Baseline):
    """VGG-16."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """float32 [B, H, W, C], H and W at least 32 → logits [B, num_classes]."""
        if min(images.shape[1:3]) < _LEAST:
            height, width = images.shape[1:3]
            raise ValueError(
                f"images of {height}x{width} are too small for vgg16, which halves them "
                f"{len(_GROUPS)} times; resize them to {_LEAST}x{_LEAST}"
            )
        x = images
        for group, channels in enumerate(_GROUPS):
            for place, own in enumerate(channels):
                name = f"group{group}_conv{place}" if (group, place) > (0, 0) else "stem"
                bias = name != "stem"
                x = nn.relu(conv_norm(x, self.scaled(own), name, train=train, bias=bias))
            x = nn.max_pool(x, (2, 2), (2, 2))
        return classify(x, self.num_classes)
