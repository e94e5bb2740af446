"""The search steps of `ftnas_jax.search` in PyTorch eager: the peer of our benchmarks.

It is tuned for CPU as far as eager mode goes: see `torch_hardware` and `torch_operations` for what
was measured. Differences from ours:

* Only parameters that had a gradient in a step decay and move, as PyTorch's optimizers have it.
* The learning rate is that of the first epoch.
* Features and weights that are not finite raise an error.
"""

import ctypes
import functools
import time

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.torch_controller import Policy, Reinforce
from benchmarks.torch_hardware import Pass, check_faults
from benchmarks.torch_network import SearchNetwork, from_jax, to_jax, tree_path
from benchmarks.torch_operations import depthwise
from ftnas_jax.search_config import SearchConfig
from ftnas_jax.space import Architecture

_WARMUP = 8


class TorchSearch:
    """The steps of one search.

    Args:
        config: what to search; its network's BatchNorm must be in the batch mode.
        mean: [C] of the training pixels, in [0, 1] units.
        std: [C].

    Raises:
        ValueError: for the running mode of BatchNorm, or for a fault model that is not there.
    """

    def __init__(self, config: SearchConfig, mean: np.ndarray, std: np.ndarray):
        if config.network.batch_norm != "batch":
            raise ValueError("the PyTorch peer has BatchNorm in its batch mode only")
        check_faults(config.hardware)
        torch.manual_seed(config.seed)
        self.config = config
        self.network = SearchNetwork(config.network, config.space, len(mean))
        self.policy = Policy(config.space, config.controller)
        self._reinforce = Reinforce(self.policy)
        self._mean, self._std = _float(mean), _float(std).clamp_(min=1e-6)
        self._generator = torch.Generator().manual_seed(config.seed)
        self._shapes: dict | None = None
        self._optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            foreach=True,  # the fused form fails where only some parameters have a momentum yet
        )

    # Parameters and gradients as trees of NumPy arrays

    @torch.no_grad()
    def load(self, params) -> None:
        """Copy the parameters of `ftnas_jax.supernet.Network` in."""
        self._shapes = jax.tree.map(np.shape, params, is_leaf=lambda leaf: hasattr(leaf, "shape"))
        for name, parameter in self.network.named_parameters():
            path, row = tree_path(name)
            array = np.asarray(_at(params, path))
            parameter.copy_(from_jax(array if row is None else array[row]))

    def gradients(self) -> dict:
        """The gradients of the last backward pass, like the tree that was loaded; else 0."""
        is_shape = {"is_leaf": lambda leaf: isinstance(leaf, tuple)}
        tree = jax.tree.map(lambda shape: np.zeros(shape, np.float32), self._shapes, **is_shape)
        for name, parameter in self.network.named_parameters():
            path, row = tree_path(name)
            if parameter.grad is not None:
                array = _at(tree, path)
                target = array if row is None else array[row]
                target[...] = to_jax(parameter.grad, target.ndim)
        return tree

    # Steps

    def logits(
        self, images: np.ndarray, architecture, faulty: bool, *, train: bool = False
    ) -> Tensor:
        """[B, num_classes] of normalized float32 images [B, H, W, C]."""
        x = _float(images).permute(0, 3, 1, 2)
        return self._forward(x, architecture, faulty, train)

    def _forward(self, x: Tensor, architecture, faulty: bool, train: bool) -> Tensor:
        if not isinstance(architecture, Architecture):
            architecture = Architecture.from_array(architecture)
        run = Pass(self.config.hardware, faulty, self._generator)
        # The network rounds its images in place, and both passes of a step have the same.
        return self.network(x.clone(memory_format=torch.channels_last), architecture, run, train)

    def weight_step(self, images: np.ndarray, labels: np.ndarray, architecture) -> None:
        """One SGD step on the loss of Eq. 13.

        Args:
            images: uint8 [B, H, W, C].
            labels: int [B].
            architecture: in either form.
        """
        x, y = self._augment(images), torch.from_numpy(labels).long()
        self._optimizer.zero_grad(set_to_none=True)
        alpha = self.config.alpha_l
        for faulty, weight in ((False, 1 - alpha), (True, alpha)):
            if weight > 0:
                logits = self._forward(x, architecture, faulty, train=True)
                (weight * F.cross_entropy(logits, y)).backward()
        used = [p for p in self.network.parameters() if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(used, self.config.gradient_clip, foreach=True)
        self._optimizer.step()

    def controller_step(
        self, images: np.ndarray, labels: np.ndarray, given: Architecture | None = None
    ) -> None:
        """Sample an architecture or score the one given; its reward (Eq. 12) updates the policy."""
        sample = self.policy(given)
        x, y = self._augment(images), torch.from_numpy(labels).long()
        alpha, reward = self.config.alpha_r, 0.0
        with torch.no_grad():
            for faulty, weight in ((False, 1 - alpha), (True, alpha)):
                logits = self._forward(x, sample.architecture, faulty, train=False)
                reward += weight * (logits.argmax(-1) == y).float().mean().item()
        self._reinforce.update(sample, reward)

    def _augment(self, images: np.ndarray) -> Tensor:
        """Normalize, crop, flip: float32 [B, C, H, W], channels last."""
        x = torch.from_numpy(images).float().mul_(1 / 255).sub_(self._mean).div_(self._std)
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


def _float(array) -> Tensor:
    return torch.tensor(np.asarray(array), dtype=torch.float32)


# Measurement


class TorchSteps:
    """The peer, measured step by step on noise."""

    def __init__(self, config: SearchConfig):
        _prepare_process()
        self._search = TorchSearch(config, np.full(3, 0.5), np.full(3, 0.25))
        rng = np.random.default_rng(0)
        self._images = rng.integers(0, 256, (config.batch_size, 32, 32, 3), dtype=np.uint8)
        self._labels = rng.integers(0, 10, config.batch_size)
        for _ in range(_WARMUP):  # in which oneDNN compiles its kernels
            with torch.no_grad():
                architecture = self._search.policy().architecture
            self.step("weights", architecture.to_array())

    def step(self, phase: str, architecture) -> float:
        """Seconds of a step with an architecture."""
        calls = {"weights": self._search.weight_step, "controller": self._search.controller_step}
        known = Architecture.from_array(architecture)
        began = time.perf_counter()
        calls[phase](self._images, self._labels, known)
        return time.perf_counter() - began


class TorchKernels:
    """The peer's kernels, one at a time, in the peer's layout."""

    def __init__(self):
        _prepare_process()

    def prepare(self, kernel, _whose: str) -> None:
        """Set up a kernel of `benchmarks.kernels`, and run it until oneDNN has compiled it."""
        x, k, g = kernel.arrays()
        self._xs = [_images(one).requires_grad_() for one in x]
        self._gs = [_images(one) for one in g]
        if kernel.kind == "depthwise":
            shaped = torch.from_numpy(k).permute(2, 0, 1)[:, None].contiguous()
            self._run = functools.partial(depthwise, stride=kernel.stride, dilation=kernel.dilation)
        else:
            shaped = torch.from_numpy(k).permute(3, 2, 0, 1)
            shaped = shaped.contiguous(memory_format=torch.channels_last)
            self._run = functools.partial(F.conv2d, stride=kernel.stride, padding=kernel.width // 2)
        self._kernel = shaped.requires_grad_()
        for _ in range(_WARMUP):
            self.run("")

    def run(self, _whose: str) -> float:
        """Seconds an input, forward and backward."""
        began = time.perf_counter()
        for x, g in zip(self._xs, self._gs, strict=True):
            x.grad = self._kernel.grad = None
            self._run(x, self._kernel).backward(g)
        return (time.perf_counter() - began) / len(self._xs)


def _images(array: np.ndarray) -> Tensor:
    """[B, H, W, C] → [B, C, H, W], channels last."""
    return torch.from_numpy(array).permute(0, 3, 1, 2)


def _prepare_process() -> None:
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
