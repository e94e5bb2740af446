"""A network that `experiments.train` has trained, for whoever evaluates it."""

import dataclasses
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from experiments.prepare import load_data
from experiments.train_configuration import network, training_config, with_genotype
from ftnas_jax.augment import normalize
from ftnas_jax.checkpoints import Checkpoints
from ftnas_jax.data import Dataset
from ftnas_jax.errors import InputError, as_input_error
from ftnas_jax.faults.text import format_text
from ftnas_jax.nn.hardware import Hardware
from ftnas_jax.run import read_json
from ftnas_jax.training import TrainingState, initial_key, state_shapes
from ftnas_jax.training_config import TrainingConfig

JOB = "training"
"""What its run directories are of."""

CONFIG, DATA, GENOTYPE = "config.json", "data.json", "genotype.json"
"""Files of a run directory: its settings, `facts` of its data, and the genotype of its network
where that was read from a file: so `CONFIG` names it, whatever the file was."""

_CAME_LATER = {"norm_passes": "clean", "fraction_lengths": "batch"}
"""Fields that trainings from before they came lack, and what was done in them."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A trained network.

    Attributes:
        name: of its run directory.
        path: of its run directory.
        config: nested fields as in `configs/train_defaults.py`.
        model: a linen module: images [B, H, W, C], normalized → logits [B, classes].
        variables: arrays of the model: `params` and `batch_stats`.
        hardware: number formats, and faults of the training.
        mean: float32 [C] of the training pixels, in [0, 1] units: images are normalized with it.
        std: float32 [C], likewise.
        data_sha256: digest of the training images and labels.
        epochs: how many are done, at the rate of faults that was kept.
        faults: those of the training, with that rate.
    """

    name: str
    path: Path
    config: Mapping[str, Any]
    model: nn.Module
    variables: Mapping[str, Any]
    hardware: Hardware
    mean: np.ndarray
    std: np.ndarray
    data_sha256: str
    epochs: int
    faults: str

    @property
    def data_name(self) -> str:
        """Name of the data set."""
        return self.config["data"]["name"]

    @property
    def description(self) -> str:
        """What was trained, and how, in a line."""
        alpha = self.config["weights"]["alpha_l"]
        under = f"under `{self.faults}` with alpha_l = {alpha:g}" if alpha else "without faults"
        epochs = f"{self.epochs} of {self.config['epochs']} epochs"
        held = self.config["fraction_lengths"] == "clean"
        lengths = ", fraction lengths those of its clean passes" if held else ""
        network = with_genotype(self.config["network"], os.path.relpath(self.path / GENOTYPE))
        return f"`{network}` after {epochs} on {self.data_name} {under}{lengths}"

    def initial_variables(self) -> Mapping[str, Any]:
        """Those of the model before the first step, as `variables`."""
        shape = read_json(self.path / DATA)["image_shape"]
        key = initial_key(self.config["seed"])
        return self.model.init(key, jnp.zeros((1, *shape)), train=False)

    def test_set(self, data_dir: str = "") -> tuple[np.ndarray, np.ndarray]:
        """Normalized test images float32 [N, H, W, C], and their labels int32 [N].

        Args:
            data_dir: of the data set; by default that of the training.

        Raises:
            InputError: the data cannot be had, or are others than those of the training.
        """
        dataset = self._dataset(data_dir)
        return self._normalized(dataset.test_images), dataset.test_labels

    def training_images(self, count: int, data_dir: str = "") -> np.ndarray:
        """The first `count` training images, normalized, float32 [count, H, W, C].

        Raises:
            InputError: as `test_set`; or there are not so many.
        """
        images = self._dataset(data_dir).images
        if count > len(images):
            raise InputError(f"{self.data_name} has {len(images)} training images, not {count}")
        return self._normalized(images[:count])

    def _dataset(self, data_dir: str) -> Dataset:
        fields = self.config["data"] | ({"data_dir": data_dir} if data_dir else {})
        dataset = load_data(fields)
        if dataset.sha256() != self.data_sha256:
            raise InputError(f"{self.data_name} is no longer what {self.path} was trained on")
        return dataset

    def _normalized(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(normalize(*map(jnp.asarray, (images, self.mean, self.std))))


def facts(dataset: Dataset) -> dict[str, Any]:
    """What a run directory keeps of its data."""
    mean, std = dataset.mean_std()
    return {
        "name": dataset.name,
        "sha256": dataset.sha256(),
        "images": len(dataset.images),
        "image_shape": list(dataset.image_shape),
        "num_classes": dataset.num_classes,
        "mean": mean.tolist(),
        "std": std.tolist(),
    }


def faults_of(config: Mapping[str, Any], settings: TrainingConfig, trial: int) -> str:
    """The text of a training's faults; where rates were tried, with that of a trial."""
    return config["faults"] if settings.rates is None else format_text(settings.faults_of(trial))


def load(run_directory: str | os.PathLike) -> Trained:
    """The network of a training's newest whole checkpoint; a warning says if it is unfinished.

    Raises:
        InputError: in one line, where there is no such directory, no training or no checkpoint in
            it, or all checkpoints are damaged.
    """
    path = Path(run_directory).expanduser().absolute()
    config = _config(path)
    data = read_json(path / DATA)
    if data is None:
        raise InputError(f"the training in {path} has no checkpoint yet: let it train first")
    settings = training_config(config)
    genotype = path / GENOTYPE
    model = network(config, data["num_classes"], genotype if genotype.exists() else None)
    state = _state(path, settings, model, tuple(data["image_shape"]))
    epochs = int(state.steps) // (data["images"] // settings.batch_size)
    if epochs < settings.epochs:
        logger.warning("%s: %d of %d epochs are done", path, epochs, settings.epochs)
    return Trained(
        name=path.name,
        path=path,
        config=config,
        model=model,
        variables=state.variables,
        hardware=settings.hardware,
        mean=np.asarray(data["mean"], np.float32),
        std=np.asarray(data["std"], np.float32),
        data_sha256=data["sha256"],
        epochs=epochs,
        faults=faults_of(config, settings, int(state.trial)),
    )


def _config(path: Path) -> Mapping[str, Any]:
    """The settings of the training in a directory."""
    if not path.is_dir():
        raise InputError(f"there is no directory {path}; name the --workdir of a training")
    stored = read_json(path / CONFIG)
    job = stored.get("job") if isinstance(stored, Mapping) else None
    if job != JOB:
        what = f"a {job}" if job else "no run"
        raise InputError(f"{path} holds {what}; name the --workdir of a training")
    return _CAME_LATER | stored["config"]


def _state(path: Path, settings: TrainingConfig, model: nn.Module, shape) -> TrainingState:
    checkpoints = Checkpoints(path / "checkpoints")
    try:
        with as_input_error():
            restored = checkpoints.restore(state_shapes(settings, model, shape))
    finally:
        checkpoints.close()
    if restored is None:
        raise InputError(f"the training in {path} has no checkpoint yet: let it train first")
    return restored.state
