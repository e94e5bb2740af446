"""Small data sets to prepare and load, and the archive that CIFAR-10 comes in."""

import io
import tarfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from ftnas_jax import data, data_io, tfds_reader

CLASSES = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "boat", "truck"]
BATCHES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
PER_BATCH = 20
Usage = namedtuple("Usage", "total used free")


def load(name, root, cache, **kwargs):
    return data.load(name, root, cache_dir=cache, progress=False, **kwargs)


def error_line(*args, **kwargs) -> str:
    """The message of the DataError that `load` must end in: one line, not too long to read."""
    with pytest.raises(data.DataError) as caught:
        load(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


def cifar_records(seed: int = 0):
    """Random images uint8 [batch, image, H, W, C] and labels [batch, image]."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (len(BATCHES), PER_BATCH, 32, 32, 3), dtype=np.uint8)
    return images, rng.integers(0, 10, (len(BATCHES), PER_BATCH))


def cifar_files(images, labels) -> dict[str, bytes]:
    """The archive's files, a pixel plane at a time, as its web page describes them."""
    files = {"batches.meta.txt": "\n".join([*CLASSES, ""]).encode()}
    for name, batch, batch_labels in zip(BATCHES, images, labels, strict=True):
        record = b""
        for image, label in zip(batch, batch_labels, strict=True):
            record += bytes([label])
            record += image[:, :, 0].tobytes() + image[:, :, 1].tobytes() + image[:, :, 2].tobytes()
        files[name] = record
    return files


def write_archive(path, files) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def pairs(images, labels) -> list[tuple[bytes, int]]:
    """Images and their labels in an order that does not depend on how they were shuffled."""
    return sorted((i.tobytes(), int(n)) for i, n in zip(images, labels, strict=True))


def png(array) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    file.seek(0)
    return file


def toy_images(split: str, count: int, shape=(6, 5, 3)) -> np.ndarray:
    rng = np.random.default_rng(len(split))
    return rng.integers(0, 256, (count, *shape), dtype=np.uint8)


class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A prepared data set of any features, from the examples of each split."""

    name = "toy"
    VERSION = tfds.core.Version("1.2.0")

    def __init__(self, features, splits, **kwargs):
        self._toy_features, self._splits = features, splits
        super().__init__(file_format="array_record", **kwargs)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(self._toy_features)
        )

    def _split_generators(self, dl_manager):
        return {name: enumerate(examples) for name, examples in self._splits.items()}

    def _generate_examples(self):
        raise NotImplementedError


class ToyWithConfigs(Toy, skip_registration=True):
    name = "toy_with_configs"
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=n, version="1.2.0") for n in ("one", "two")]  # noqa: RUF012


class FtnasJaxRegistered(tfds.core.GeneratorBasedBuilder):
    """A data set that TFDS knows by name and that needs no TensorFlow to prepare."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(toy_features((6, 5, 3)))
        )

    def _split_generators(self, dl_manager):
        return {s: enumerate(toy_examples(s)) for s in ("train", "test")}

    def _generate_examples(self):
        raise NotImplementedError


def toy_features(shape) -> dict:
    return {
        "image": tfds.features.Image(shape=shape),
        "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
    }


def toy_examples(split: str, count: int = 7, shape=(6, 5, 3)) -> list[dict]:
    images = toy_images(split, count, shape)
    return [
        {"image": png(image.squeeze()), "label": place % 3} for place, image in enumerate(images)
    ]


def prepare_toy(root, features=None, builder=Toy, **splits):
    features = features or toy_features((6, 5, 3))
    splits = splits or {s: toy_examples(s) for s in ("train", "test")}
    with data_io.quiet(errors=True):
        made = builder(features, splits, data_dir=root)
        made.download_and_prepare()
    return Path(made.data_path)


def no_decoding(monkeypatch):
    def decode(*args, **kwargs):
        raise AssertionError("decoded although there is a cache")

    monkeypatch.setattr(tfds_reader, "decode", decode)
