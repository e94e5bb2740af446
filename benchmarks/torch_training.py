"""The final training of `ftnas_jax.training` in PyTorch eager, channels-last on CPU.

Images, their augmentation, the order of a step, the schedule, initial values and BatchNorm's
running statistics, of clean passes, are as there. Features and weights that are not finite raise an
error.
"""

import time

import flax.linen
import numpy as np
import torch
from torch import Tensor

from benchmarks.accuracy import Folders, Settings
from benchmarks.torch_final import final_network
from benchmarks.torch_hardware import Pass, check_faults
from benchmarks.torch_sgd import TorchSGD, as_float, prepare_process
from benchmarks.training_steps import STEPS_OF_DATA, Job
from ftnas_jax import machine
from ftnas_jax.nn.hardware import Hardware
from ftnas_jax.training_config import TrainingConfig

_WARMUP = 2


class TorchTraining(TorchSGD):
    """One training.

    Args:
        config: how to train.
        model: the JAX model whose network is trained.
        mean: [C] of the training pixels, in [0, 1] units.
        std: [C].

    Raises:
        ValueError: the peer does not have the network, a fault model, or what the config asks for.
    """

    def __init__(
        self,
        config: TrainingConfig,
        model: flax.linen.Module,
        mean: np.ndarray,
        std: np.ndarray,
    ):
        check_faults(config.hardware)
        masked = config.hardware.gradients != "straight_through"
        if masked or config.curriculum_epochs or config.rates is not None:
            raise ValueError("the PyTorch peer trains with straight-through gradients, at one rate")
        torch.manual_seed(config.seed)
        super().__init__(config, final_network(model, len(mean)), mean, std)

    def step(self, images: np.ndarray, labels: np.ndarray) -> None:
        """One step for uint8 images [B, H, W, C] and int labels [B]."""
        self._sgd_step(images, labels, self.training_logits)

    def training_logits(self, x: Tensor, faulty: bool) -> Tensor:
        """[B, num_classes] of normalized images [B, C, H, W], by the batch's statistics."""
        records = not faulty or self.config.alpha_l == 1
        run = Pass(self.config.hardware, faulty, self._generator, records=records)
        # The network rounds its images in place, and both passes of a step have the same.
        return self.network(x.clone(memory_format=torch.channels_last), run)

    @torch.no_grad()
    def logits(self, images: np.ndarray, faulty: bool = False) -> Tensor:
        """[B, num_classes] of normalized images [B, H, W, C], by the running statistics."""
        x = as_float(images).permute(0, 3, 1, 2)
        run = Pass(self.config.hardware, faulty, self._generator, by_running=True)
        return self.network(x, run)

    def train_epoch(self, epoch: int, images: np.ndarray, labels: np.ndarray) -> None:
        """All steps of an epoch, counted from 0, whose images are in an order of its own."""
        drops = sum(drop <= epoch for drop in self.config.drop_epochs())
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.learning_rate / 10**drops
        size = self.config.batch_size
        order = torch.randperm(len(images), generator=self._generator).numpy()
        for start in range(0, len(images) - size + 1, size):
            rows = order[start : start + size]
            self.step(images[rows], labels[rows])

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """On clean hardware, of uint8 images [N, H, W, C], in batches of a step's size."""
        size, right = min(self.config.batch_size, len(images)), 0
        for start in range(0, len(images), size):
            # The last batch is full as well: what others have counted, it does not count again.
            first = min(start, len(images) - size)
            x = self._normalized(images[first : first + size])
            found = self.logits(x).argmax(-1).numpy() == labels[first : first + size]
            right += int(found[start - first :].sum())
        return right / len(images)


class TorchTrainingSteps:
    """A training on noise, measured step by step."""

    def __init__(self, job: Job):
        prepare_process()
        torch.set_num_threads(machine.cores())
        dataset = job.data()
        self._images, self._labels = dataset.images, dataset.labels
        self._size, self._next = job.batch, 0
        self.training = TorchTraining(job.config(), job.model(), *dataset.mean_std())
        self.turn(_WARMUP)  # in which oneDNN compiles its kernels

    def turn(self, steps: int) -> float:
        """Seconds a step, of some steps."""
        began = time.perf_counter()
        for _ in range(steps):
            start = self._next % STEPS_OF_DATA * self._size
            rows = slice(start, start + self._size)
            self.training.step(self._images[rows], self._labels[rows])
            self._next += 1
        return (time.perf_counter() - began) / steps


class TorchTrainings:
    """Trainings one after the other, on all cores; see `benchmarks.accuracy`."""

    def __init__(self, settings: Settings, folders: Folders):
        prepare_process()
        torch.set_num_threads(machine.cores())
        self._settings, self._dataset = settings, folders.load(settings)

    def start(self, seed: int) -> None:
        """Begin a training."""
        bare = Hardware(weights=None, features=None)
        hardware = bare if self._settings.peer_float else Hardware()
        config = self._settings.config(seed, hardware)
        model = self._settings.model(self._dataset.num_classes)
        self._training = TorchTraining(config, model, *self._dataset.mean_std())

    def epoch(self, epoch: int) -> None:
        """Train for an epoch, counted from 0."""
        self._training.train_epoch(epoch, self._dataset.images, self._dataset.labels)

    def accuracy(self) -> float:
        """On the test images."""
        return self._training.accuracy(self._dataset.test_images, self._dataset.test_labels)
