"""The search steps of `ftnas_jax.search` in PyTorch eager: the peer of our benchmarks.

It is tuned for CPU as far as eager mode goes: see `torch_hardware` and `torch_operations` for what
was measured. Differences from ours:

* Only parameters that had a gradient in a step decay and move, as PyTorch's optimizers have it.
* The learning rate is that of the first epoch.
* Features and weights that are not finite raise an error.
"""

import functools
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.torch_controller import Policy, Reinforce
from benchmarks.torch_hardware import Pass, check_faults
from benchmarks.torch_network import SearchNetwork
from benchmarks.torch_operations import depthwise
from benchmarks.torch_sgd import TorchSGD, as_float, prepare_process
from ftnas_jax.search_config import SearchConfig
from ftnas_jax.space import Architecture

_WARMUP = 8


class TorchSearch(TorchSGD):
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
        network = SearchNetwork(config.network, config.space, len(mean))
        super().__init__(config, network, mean, std)
        self.policy = Policy(config.space, config.controller)
        self._reinforce = Reinforce(self.policy)

    def logits(
        self, images: np.ndarray, architecture, faulty: bool, *, train: bool = False
    ) -> Tensor:
        """[B, num_classes] of normalized float32 images [B, H, W, C]."""
        x = as_float(images).permute(0, 3, 1, 2)
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

        def logits(x: Tensor, faulty: bool) -> Tensor:
            return self._forward(x, architecture, faulty, train=True)

        self._sgd_step(images, labels, logits)

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


# Measurement


class TorchSteps:
    """The peer, measured step by step on noise."""

    def __init__(self, config: SearchConfig):
        prepare_process()
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
        prepare_process()

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
