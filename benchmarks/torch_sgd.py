"""A step of SGD on Eq. 13 in PyTorch eager, as a search and a final training both take it."""

import ctypes
from collections.abc import Callable

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.torch_network import from_jax, to_jax
from ftnas_jax.search_config import SearchConfig
from ftnas_jax.training_config import TrainingConfig

Logits = Callable[[Tensor, bool], Tensor]
"""(normalized images [B, C, H, W], whether faults act) → [B, num_classes], of a training pass."""


class TorchSGD:
    """A network in training.

    Args:
        config: how to augment and to descend.
        network: its parameters have paths in the JAX network's tree, by `tree_path`.
        mean: [C] of the training pixels, in [0, 1] units.
        std: [C].
    """

    def __init__(
        self,
        config: SearchConfig | TrainingConfig,
        network: nn.Module,
        mean: np.ndarray,
        std: np.ndarray,
    ):
        self.config, self.network = config, network
        self._mean, self._std = as_float(mean), as_float(std).clamp_(min=1e-6)
        self._generator = torch.Generator().manual_seed(config.seed)
        self._shapes: dict | None = None
        self._optimizer = torch.optim.SGD(
            network.parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            foreach=True,  # the fused form fails where only some parameters have a momentum yet
        )

    # Parameters and gradients as trees of NumPy arrays

    @torch.no_grad()
    def load(self, params) -> None:
        """Copy the parameters of the JAX network in."""
        self._shapes = jax.tree.map(np.shape, params, is_leaf=lambda leaf: hasattr(leaf, "shape"))
        for name, parameter in self.network.named_parameters():
            path, row = self.network.tree_path(name)
            array = np.asarray(_at(params, path))
            parameter.copy_(from_jax(array if row is None else array[row]))

    def parameters(self) -> dict:
        """Like the tree that was loaded."""
        return self._tree(lambda parameter: parameter)

    def gradients(self) -> dict:
        """The gradients of the last backward pass, like the tree that was loaded; else 0."""
        return self._tree(lambda parameter: parameter.grad)

    def _tree(self, of: Callable[[Tensor], Tensor | None]) -> dict:
        is_shape = {"is_leaf": lambda leaf: isinstance(leaf, tuple)}
        tree = jax.tree.map(lambda shape: np.zeros(shape, np.float32), self._shapes, **is_shape)
        for name, parameter in self.network.named_parameters():
            path, row = self.network.tree_path(name)
            value = of(parameter)
            if value is not None:
                array = _at(tree, path)
                target = array if row is None else array[row]
                target[...] = to_jax(value, target.ndim)
        return tree

    # Steps

    def _sgd_step(self, images: np.ndarray, labels: np.ndarray, logits: Logits) -> None:
        """One step for uint8 images [B, H, W, C] and int labels [B]."""
        x, y = self._augment(images), torch.from_numpy(labels).long()
        self._optimizer.zero_grad(set_to_none=True)
        alpha = self.config.alpha_l
        for faulty, weight in ((False, 1 - alpha), (True, alpha)):
            if weight > 0:
                (weight * F.cross_entropy(logits(x, faulty), y)).backward()
        used = [p for p in self.network.parameters() if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(used, self.config.gradient_clip, foreach=True)
        self._optimizer.step()

    def _normalized(self, images: np.ndarray) -> Tensor:
        """uint8 [B, H, W, C] → float32."""
        return torch.from_numpy(images).float().mul_(1 / 255).sub_(self._mean).div_(self._std)

    def _augment(self, images: np.ndarray) -> Tensor:
        """Normalize, crop, flip: float32 [B, C, H, W], channels last."""
        x = self._normalized(images)
        batch, height, width, _ = x.shape
        padding, generator = self.config.crop_padding, self._generator
        x = F.pad(x, (0, 0, padding, padding, padding, padding))
        top, left = torch.randint(2 * padding + 1, (2, batch, 1), generator=generator)
        columns = torch.arange(width).expand(batch, width)
        if self.config.flip:
            mirrored = torch.rand((batch, 1), generator=generator) < 0.5
            columns = torch.where(mirrored, width - 1 - columns, columns)
        rows = (torch.arange(height) + top)[:, :, None]
        x = x[torch.arange(batch)[:, None, None], rows, (columns + left)[:, None, :]]
        return x.permute(0, 3, 1, 2)


def _at(tree, path: tuple[str, ...]):
    for name in path:
        tree = tree[name]
    return tree


def as_float(array) -> Tensor:
    """A float32 copy."""
    return torch.tensor(np.asarray(array), dtype=torch.float32)


def prepare_process() -> None:
    """What a CPU process of PyTorch needs to be fast."""
    torch.set_flush_denormal(True)  # as XLA does
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    # By default glibc gives large tensors back to the kernel, and the next one faults all of its
    # pages in again. Here memory stays with the process, and grows by large pieces.
    no_mmap, trim_threshold, top_pad = -4, -1, -2
    for option, value in ((no_mmap, 0), (trim_threshold, -1), (top_pad, 2**26)):
        libc.mallopt(option, value)
