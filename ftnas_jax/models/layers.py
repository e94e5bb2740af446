"""What the baselines have in common: fields, initial values, convolutions with BatchNorm."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftnas_jax.nn.norm import EPSILON, MOMENTUM

HE = nn.initializers.he_normal()
"""Of kernels of convolutions: variance 2 / fan_in, for a ReLU behind them (He et al., 2015)."""

UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""Of the classifier's kernel: uniform in ±1/√fan_in, PyTorch's default."""


class Baseline(nn.Module):
    """What is asked of every baseline.

    Attributes:
        num_classes: width of the classifier.
        width: what the channels of all layers are multiplied with, above 0; the published networks
            have 1.
    """

    num_classes: int = 10
    width: float = 1.0

    def __post_init__(self):
        if not 0 < self.width < math.inf:
            raise ValueError(f"width is {self.width}; it multiplies channels and lies above 0")
        super().__post_init__()

    def scaled(self, channels: int) -> int:
        """Channels of a layer that has `channels` at a width of 1."""
        return max(1, round(channels * self.width))


def conv_norm(
    x: jax.Array,
    features: int,
    name: str,
    *,
    train: bool,
    size: int = 3,
    stride: int = 1,
    depthwise: bool = False,
    bias: bool = False,
) -> jax.Array:
    """A convolution and BatchNorm, in the module that calls it.

    Args:
        x: [B, H, W, C].
        features: channels of the output; of a depthwise convolution as many as of `x`.
        name: of the convolution; the BatchNorm's ends in `_norm`.
        train: normalize by the batch and update the running statistics, or else use these.
        size: side of the kernel, odd.
        stride: step of the output grid.
        depthwise: whether every channel has a kernel of its own.
        bias: whether the convolution adds a bias.

    Returns:
        [B, ⌈H / stride⌉, ⌈W / stride⌉, features]. Padding is (size - 1) / 2 on every side, as in
        PyTorch; XLA's SAME is not, at stride 2.
    """
    f = nn.Conv(
        features,
        (size, size),
        stride,
        padding=size // 2,
        feature_group_count=x.shape[-1] if depthwise else 1,
        use_bias=bias,
        kernel_init=HE,
        name=name,
    )(x)
    return nn.BatchNorm(not train, momentum=MOMENTUM, epsilon=EPSILON, name=f"{name}_norm")(f)


def classify(x: jax.Array, num_classes: int) -> jax.Array:
    """The mean over all pixels, and a linear layer: [B, H, W, C] → [B, num_classes]."""
    return nn.Dense(num_classes, kernel_init=UNIFORM, name="classifier")(jnp.mean(x, (1, 2)))
