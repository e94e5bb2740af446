"""ResNet-18 of `ftnas_jax.models` on faulty hardware in PyTorch eager, channels-last on CPU.

It only classifies, with the running statistics of BatchNorm. That lets it do once what the search's
peer does in every pass: images and weights are quantized when the network is made, and the scale of
a BatchNorm is a factor of the codes in front of it, its offset the bias of the convolution.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.campaigns import Work
from benchmarks.torch_hardware import (
    EPSILON,
    Pass,
    _flat,
    _unflat,
    round_to_steps,
    step_of,
    stick_weights_,
    tensor_step,
)
from benchmarks.torch_network import from_jax
from benchmarks.torch_sgd import prepare_process
from ftnas_jax import machine
from ftnas_jax.faults import MiBB, StuckAt, format_text
from ftnas_jax.nn.hardware import Hardware

_STRIDES = {f"stage{s}_block{p}": 2 if s and not p else 1 for s in range(4) for p in range(2)}


class TorchResNet18:
    """The network, with weights as sound hardware holds them.

    Args:
        variables: of `ftnas_jax.models.resnet.ResNet18`, of any width.
        hardware: number formats, and faults that `hold` and `logits` draw.

    Raises:
        ValueError: weights or features are in float32, or a fault model is not there.
    """

    def __init__(self, variables: Mapping[str, Any], hardware: Hardware):
        _check(hardware)
        self.hardware = hardware
        kernels, factors, self._offsets = _folded(variables["params"], variables["batch_stats"])
        self._shapes = kernels
        steps = {path: tensor_step(kernel, hardware.weights) for path, kernel in kernels.items()}
        codes = [_flat(kernel) / steps[path] for path, kernel in kernels.items()]
        self._codes = torch.cat(codes).round_()
        own = [(factors[path] * steps[path], kernel[0].numel()) for path, kernel in kernels.items()]
        self._factors = torch.cat([factor.repeat_interleave(size) for factor, size in own])

    def hold(self, run: Pass) -> dict[str, Tensor]:
        """The weights of a chip, by the path of their layer, times what BatchNorm does to them."""
        values = self._codes.clone()
        for model in self.hardware.models("weights") if run.faulty else ():
            stick_weights_(values, model, self.hardware.weights, run.generator)
        values.mul_(self._factors)
        parts = values.split([kernel.numel() for kernel in self._shapes.values()])
        pairs = zip(self._shapes.items(), parts, strict=True)
        return {path: _unflat(part, kernel) for (path, kernel), part in pairs}

    def quantized(self, images: np.ndarray) -> Tensor:
        """Images [B, H, W, C] as `logits` takes them."""
        x = torch.from_numpy(images).permute(0, 3, 1, 2).clone(memory_format=torch.channels_last)
        return Pass(self.hardware, False, torch.Generator()).write_(x)

    @torch.inference_mode()
    def logits(self, x: Tensor, held: Mapping[str, Tensor], run: Pass) -> Tensor:
        """[B, num_classes] of quantized images, with the faults of `run` in the features."""
        x = self._layer(x, "stem", held, run).relu_()
        for place, (block, stride) in enumerate(_STRIDES.items()):
            y = self._layer(x, f"{block}/conv0", held, run, stride).relu_()
            y = self._layer(y, f"{block}/conv1", held, run)
            shortcut = f"{block}/shortcut"
            x = self._layer(x, shortcut, held, run, stride) if shortcut in held else x
            x = y.add_(x).relu_()
            if place + 1 < len(_STRIDES):  # behind the last one it is the mean that is stored
                self._store_(x)
        pooled = x.mean((2, 3))
        self._store_(pooled)
        return F.linear(pooled, held["classifier"], self._offsets["classifier"])

    def _layer(
        self, x: Tensor, path: str, held: Mapping[str, Tensor], run: Pass, stride: int = 1
    ) -> Tensor:
        kernel = held[path]
        padding = kernel.shape[-1] // 2
        f = F.conv2d(x, kernel, self._offsets[path], stride=stride, padding=padding)
        return run.write_(f, kernel[0].numel())

    def _store_(self, x: Tensor) -> None:
        """Quantize features in place that no logic computes and that are not negative."""
        step = step_of(0.0, x.amax().item(), self.hardware.features)
        round_to_steps(x, step, out=x)


def _check(hardware: Hardware) -> None:
    if hardware.weights is None or hardware.features is None:
        raise ValueError("the PyTorch ResNet-18 has weights and features in fixed point only")
    for model in hardware.faults:
        same = isinstance(model, MiBB) and model.per == "image"
        if isinstance(model, StuckAt):
            same = (model.cells, model.accumulated) == ("one", 1) and model.per == "chip"
        if not same or model.layers != "*" or model.only is not None:
            raise ValueError(
                f"{format_text(model)}: the PyTorch ResNet-18 has only mibb and stuck_at, both "
                "everywhere and at any rate"
            )


def _folded(params, statistics) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """By path: kernels [O, I, k, k], and [O] what multiplies and what is added to an output."""
    kernels, factors, offsets = {}, {}, {}
    for path, own in _layers(params):
        kernel = from_jax(own["kernel"])
        dense = kernel.dim() == 2
        layout = torch.contiguous_format if dense else torch.channels_last
        kernels[path] = kernel.contiguous(memory_format=layout)
        if dense:
            factors[path], offsets[path] = torch.ones(len(kernel)), from_jax(own["bias"])
            continue
        norm, known = (_at(tree, f"{path}_norm") for tree in (params, statistics))
        factors[path] = from_jax(norm["scale"]) * (from_jax(known["var"]) + EPSILON).rsqrt()
        offsets[path] = from_jax(norm["bias"]) - from_jax(known["mean"]) * factors[path]
    return kernels, factors, offsets


def _layers(params, prefix: str = ""):
    """(path, parameters) of everything that has a kernel."""
    for name, own in params.items():
        if "kernel" in own:
            yield prefix + name, own
        elif isinstance(own, Mapping) and not prefix:
            yield from _layers(own, f"{name}/")


def _at(tree, path: str):
    for name in path.split("/"):
        tree = tree[name]
    return tree


class TorchChips:
    """A loop over chips and batches."""

    def __init__(self, work: Work):
        prepare_process()
        torch.set_num_threads(machine.cores())
        hardware = work.hardware()
        self._network = TorchResNet18(work.variables(), hardware)
        self._run = Pass(hardware, True, torch.Generator().manual_seed(0))
        self._sound = self._network.hold(self._run)
        self._batches = [
            (self._network.quantized(images), torch.from_numpy(labels))
            for _, images, labels in work.batches()
        ]
        self.turn(2)  # in which oneDNN compiles its kernels

    def turn(self, chips: int) -> float:
        """Seconds that so many chips take."""
        began = time.perf_counter()
        self._correct = [self._one() for _ in range(chips)]
        return time.perf_counter() - began

    def _one(self) -> int:
        fail = self._network.hardware.models("weights")
        held = self._network.hold(self._run) if fail else self._sound
        return sum(
            int((self._network.logits(x, held, self._run).argmax(-1) == labels).sum())
            for x, labels in self._batches
        )

    def correct(self) -> list[int]:
        """Images that every chip of the last turn classified rightly."""
        return self._correct
