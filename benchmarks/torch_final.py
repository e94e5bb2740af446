"""Final networks in PyTorch eager, channels-last on CPU: ResNet-18, and those of one architecture.

Their BatchNorms have scale, offset and running statistics. A connection that stands twice in a cell
updates the statistics of its operation twice, one after the other; in the JAX network both updates
start from the same old ones.
"""

import math

import flax.linen
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.torch_hardware import Pass
from benchmarks.torch_network import SearchNetwork
from benchmarks.torch_operations import Convolution, uniform
from ftnas_jax.models import ResNet18
from ftnas_jax.supernet import Network

_STEM = 64
_STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))
"""Channels, and stride of the first of two blocks (He et al., *Deep Residual Learning*, 2016)."""

_OF_TRUNCATED = 0.87962566103423978
"""Standard deviation of a standard normal number that lies within ±2."""


def final_network(model: flax.linen.Module, image_channels: int) -> nn.Module:
    """The network of a JAX model, with initial values of its own: (images, run) → logits.

    Raises:
        ValueError: there is none for such a model.
    """
    if isinstance(model, ResNet18):
        return TorchResNet18InTraining(model, image_channels)
    if isinstance(model, Network) and model.architecture and model.config.batch_norm == "running":
        return FinalNetwork(model, image_channels)
    raise ValueError(
        f"there is no PyTorch peer of {type(model).__name__}; of resnet18, w_ftt_net and genotypes "
        "there is"
    )


class FinalNetwork(SearchNetwork):
    """A network of one architecture."""

    def __init__(self, model: Network, image_channels: int):
        super().__init__(model.config, model.space, image_channels, model.architecture)
        self._architecture = model.architecture

    def forward(self, images: Tensor, run: Pass) -> Tensor:
        """Logits [B, num_classes] of float32 images [B, C, H, W], channels last and ours to change.

        Dropout acts where the statistics are the batch's.
        """
        return super().forward(images, self._architecture, run, not run.by_running)


class _Block(nn.Module):
    """Two convolutions beside a shortcut; `last` says that no layer stores what it puts out."""

    def __init__(self, channels: int, out_channels: int, stride: int, last: bool):
        super().__init__()
        norm = {"norm": True, "affine": True}
        self.conv0 = Convolution(channels, out_channels, 3, stride=stride, **norm)
        self.conv1 = Convolution(out_channels, out_channels, 3, relu=True, **norm)
        same = (stride, channels) == (1, out_channels)
        shortcut = None if same else Convolution(channels, out_channels, 1, stride=stride, **norm)
        self.shortcut, self.last = shortcut, last

    def forward(self, x: Tensor, run: Pass) -> Tensor:
        y = self.conv1(self.conv0(x, run), run)
        x = x if self.shortcut is None else self.shortcut(x, run)
        return run.add_relu(y, x, write=not self.last)


class TorchResNet18InTraining(nn.Module):
    """ResNet-18, for its gradients; that of `torch_resnet` only classifies."""

    def __init__(self, model: ResNet18, image_channels: int):
        super().__init__()
        channels = model.scaled(_STEM)
        self.stem = Convolution(image_channels, channels, 3, norm=True, affine=True)
        for stage, (width, first) in enumerate(_STAGES):
            for place, stride in enumerate((first, 1)):
                last = (stage, place) == (len(_STAGES) - 1, 1)
                block = _Block(channels, model.scaled(width), stride, last)
                self.add_module(f"stage{stage}_block{place}", block)
                channels = model.scaled(width)
        kernel = uniform((model.num_classes, channels), channels)
        bias = nn.Parameter(torch.zeros(model.num_classes))
        self.classifier = nn.ParameterDict({"kernel": kernel, "bias": bias})
        for convolution in self._convolutions():
            he_normal_(convolution.kernel, convolution.macs)

    def _convolutions(self) -> list[Convolution]:
        return [module for module in self.modules() if isinstance(module, Convolution)]

    def forward(self, images: Tensor, run: Pass) -> Tensor:
        """As `FinalNetwork.forward`."""
        kernel, bias = self.classifier["kernel"], self.classifier["bias"]
        run.hold([convolution.kernel for convolution in self._convolutions()], [kernel])
        x = F.relu(self.stem(run.write_(images), run), inplace=True)
        for block in self.children():
            if isinstance(block, _Block):
                x = block(x, run)
        return F.linear(run.write_(x.mean((2, 3))), run.held[kernel], bias)

    def tree_path(self, name: str) -> tuple[tuple[str, ...], None]:
        """Path of a named parameter in the JAX network's tree, and None, as none is stacked."""
        *place, field = name.split(".")
        if place != ["classifier"] and field in ("scale", "offset"):
            place[-1] += "_norm"
            field = {"offset": "bias"}.get(field, field)
        return (*place, field), None


@torch.no_grad()
def he_normal_(kernel: Tensor, fan_in: int) -> None:
    """Normal, of variance 2 / fan_in, cut off at two standard deviations before it is scaled."""
    scale = math.sqrt(2 / fan_in) / _OF_TRUNCATED
    nn.init.trunc_normal_(kernel, std=scale, a=-2 * scale, b=2 * scale)
