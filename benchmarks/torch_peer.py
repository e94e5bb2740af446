"""The search steps of `ftnas_jax.search` in PyTorch eager: the peer of our benchmarks.

    pip install -r requirements-benchmarks.txt
    python -m benchmarks.torch_peer --faults mibb --json results/search_steps/torch_mibb.json

It is tuned for CPU as far as eager mode goes: see `torch_hardware` and `torch_operations` for what
was measured. Differences from ours:

* Only parameters that had a gradient in a step decay and move, as PyTorch's optimizers have it.
* The learning rate is that of the first epoch.
* Features and weights that are not finite raise an error.
"""

import ctypes
import time
from types import SimpleNamespace

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.reporting import CONFIGS, spread, steps_parser, write_json
from benchmarks.torch_controller import Policy, Reinforce
from benchmarks.torch_hardware import Pass, check_faults
from benchmarks.torch_network import SearchNetwork, from_jax, to_jax, tree_path
from experiments.configuration import search_config
from ftnas_jax import machine
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

    def controller_step(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Sample an architecture, measure its reward (Eq. 12), update the policy."""
        sample = self.policy()
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


def prepare_process(threads: int) -> None:
    """What a CPU process of PyTorch needs to be fast."""
    torch.set_num_threads(threads)
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


def measure(name: str, channels: int, batch: int, steps: int) -> list[dict]:
    """One row for the weight step and one for the controller step."""
    fields = CONFIGS[name].get_config()
    fields.network.channels, fields.batch_size = channels, batch
    config = search_config(fields.to_dict(), SimpleNamespace(num_classes=10))
    search = TorchSearch(config, np.full(3, 0.5), np.full(3, 0.25))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, batch)

    def weight_step():
        with torch.no_grad():
            architecture = search.policy().architecture
        search.weight_step(images, labels, architecture)

    rows = []
    for phase, step in (
        ("weights", weight_step),
        ("controller", lambda: search.controller_step(images, labels)),
    ):
        seconds = _time_steps(step, steps)
        rows.append(
            {
                "workload": f"{name} {phase} step",
                "channels": channels,
                "batch": batch,
                "threads": torch.get_num_threads(),
                "warmup_seconds": seconds[:_WARMUP],
                "step_seconds": seconds[_WARMUP:],
            }
        )
    return rows


def _time_steps(step, steps: int) -> list[float]:
    """Seconds of `_WARMUP` steps, in which oneDNN compiles its kernels, and of `steps` more."""
    seconds = []
    for _ in range(_WARMUP + steps):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return seconds


def _print(described: str, rows: list[dict]) -> None:
    print(described)
    print(f"{'workload':28} {'s/step: median [min-max]':>26}  n")
    for row in rows:
        times = row["step_seconds"]
        print(f"{row['workload']:28} {spread(times, 3):>26}  {len(times)}")


def main() -> None:
    """Measure, print a table, write it as JSON where asked."""
    parser = steps_parser(__doc__, steps=24)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    prepare_process(args.threads)
    rows = measure(args.faults, args.channels, args.batch, args.steps)
    described = f"{machine.describe()}, torch {torch.__version__}"
    _print(described, rows)
    write_json(args.json, described, rows)


if __name__ == "__main__":
    main()
