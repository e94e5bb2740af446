import errno
import gzip
import hashlib
import io
import json
import logging
import shutil
import socket
import subprocess
import sys
import tarfile
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from ftnas_jax import cifar, data, data_io, tfds_reader

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


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing listens where the archive is looked for, and TFDS finds no host."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(cifar, "URL", f"http://127.0.0.1:{port}/cifar-10-binary.tar.gz")

    def refuse(*args, **kwargs):
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(tfds_reader, "socket", SimpleNamespace(create_connection=refuse))
    monkeypatch.setattr(tfds_reader, "getproxies", dict)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path):
    """A data_dir that does not exist yet."""
    return tmp_path / "some" / "data"


@pytest.fixture
def toy(root):
    """The directory of a prepared toy set: 7 + 7 images of 6x5x3, three classes."""
    return prepare_toy(root)


def no_decoding(monkeypatch):
    def decode(*args, **kwargs):
        raise AssertionError("decoded although there is a cache")

    monkeypatch.setattr(tfds_reader, "decode", decode)


# digits


def test_digits_are_those_of_scikit_learn():
    digits = data.load("digits", size=8)
    assert digits.images.shape == (1437, 8, 8, 1)
    assert digits.test_images.shape == (360, 8, 8, 1)
    assert digits.images.dtype == np.uint8
    assert digits.labels.dtype == digits.test_labels.dtype == np.int32
    original = load_digits()
    scaled = np.floor(original.images / 16 * 255 + 0.5).astype(np.uint8)
    both = [
        np.concatenate([digits.images, digits.test_images]),
        np.concatenate([digits.labels, digits.test_labels]),
    ]
    assert pairs(*both) == pairs(scaled, original.target)
    assert digits.classes == tuple("0123456789")


def test_digits_are_shuffled_stratified_and_the_same_every_time():
    one, two = data.load("digits"), data.load("digits")
    assert one.image_shape == (16, 16, 1)
    assert one.num_classes == 10
    np.testing.assert_array_equal(one.images, two.images)
    np.testing.assert_array_equal(one.test_labels, two.test_labels)
    share = np.bincount(one.test_labels) / np.bincount(load_digits().target)
    np.testing.assert_allclose(share, 0.2, atol=0.005)
    assert len(set(one.labels[:30])) > 5
    assert one.labels[:10].tolist() != list(range(10))


def test_digits_grow_bilinearly():
    small, large = data.load("digits", size=8), data.load("digits", size=16)
    # Halving 16x16 by 2x2 means gives back a blur of 8x8 whose mean is that of the original.
    halved = large.images[..., 0].reshape(-1, 8, 2, 8, 2).mean((2, 4))
    inner = np.s_[:, 1:-1, 1:-1]
    x = small.images[..., 0].astype(float)
    kernel = np.array([1, 6, 1]) / 8
    blurred = sum(
        a * b * np.roll(x, (i - 1, j - 1), (1, 2))
        for i, a in enumerate(kernel)
        for j, b in enumerate(kernel)
    )
    np.testing.assert_allclose(halved[inner], blurred[inner], atol=1.0)


# parts and statistics


def test_mean_std_is_numpys():
    images = np.random.default_rng(3).integers(0, 256, (2100, 3, 4, 2), dtype=np.uint8)
    images[..., 1] = 7
    labels = np.zeros(len(images), np.int32)
    mean, std = data.Dataset("x", images, labels, images, labels, ("a",)).mean_std()
    assert mean.dtype == std.dtype == np.float32
    unit = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, unit.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, unit.std((0, 1, 2)), rtol=1e-6, atol=1e-7)


def test_split_is_the_first_part_and_the_last():
    digits = data.load("digits", size=8)
    train, validation = data.split(digits)
    assert (len(train.images), len(validation.images)) == (1149, 288)
    for field in ("images", "labels"):
        joined = np.concatenate([getattr(train, field), getattr(validation, field)])
        np.testing.assert_array_equal(joined, getattr(digits, field))
    assert len(data.split(digits, 0.5)[0].labels) == 718


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 1.5])
def test_split_leaves_no_part_empty(fraction):
    with pytest.raises(data.DataError, match=r"leaves one part of 1437 images empty; take one"):
        data.split(data.load("digits", size=8), fraction)


# cifar10 from its archive


@pytest.mark.parametrize("place", ["cifar-10-binary.tar.gz", "downloads/cifar-10-binary.tar.gz"])
def test_cifar10_from_an_archive_has_its_pixels(root, cache, place, capfd):
    images, labels = cifar_records()
    write_archive(root / place, cifar_files(images, labels))
    loaded = load("cifar10", root, cache)
    assert loaded.images.shape == (5 * PER_BATCH, 32, 32, 3)
    assert loaded.images.dtype == np.uint8
    assert loaded.labels.dtype == loaded.test_labels.dtype == np.int32
    assert loaded.classes == tuple(CLASSES)
    assert loaded.image_shape == (32, 32, 3)
    train = images[:5].reshape(-1, 32, 32, 3), labels[:5].reshape(-1)
    assert pairs(loaded.images, loaded.labels) == pairs(*train)
    assert pairs(loaded.test_images, loaded.test_labels) == pairs(images[5], labels[5])
    assert (root / "cifar10" / "3.0.2" / "dataset_info.json").is_file()
    assert "tensorflow" not in sys.modules
    assert capfd.readouterr() == ("", "")


def test_cifar10_is_shuffled_as_tfds_shuffles_it(root, cache):
    """Another writer of the same keys, split names and counts gives the same order."""
    images, labels = cifar_records()
    write_archive(root / cifar.ARCHIVE, cifar_files(images, labels))
    loaded = load("cifar10", root, cache)
    train = images[:5].reshape(-1, 32, 32, 3)
    examples = [{"image": png(i), "label": 0} for i in train]
    other = root.parent / "other"
    prepare_toy(
        other, toy_features((32, 32, 3)), train=examples, test=toy_examples("test", 1, (32, 32, 3))
    )
    np.testing.assert_array_equal(load("toy", other, cache).images, loaded.images)


def test_cifar10_is_prepared_once(root, cache, monkeypatch):
    write_archive(root / cifar.ARCHIVE, cifar_files(*cifar_records()))
    first = load("cifar10", root, cache)
    (root / cifar.ARCHIVE).unlink()
    no_decoding(monkeypatch)
    for name in ("cifar10", "cifar10:3.0.2", "cifar10:3.*.*"):
        again = load(name, root, cache)
        np.testing.assert_array_equal(again.images, first.images)
        assert again.classes == first.classes


def test_cifar10_is_downloaded_and_checked(root, cache, tmp_path, monkeypatch):
    source = tmp_path / "server" / cifar.ARCHIVE
    write_archive(source, cifar_files(*cifar_records()))
    monkeypatch.setattr(cifar, "URL", source.as_uri())
    message = error_line("cifar10", root, cache)
    assert f"what came from {source.as_uri()} is not the archive of cifar10" in message
    assert list((root / "downloads").iterdir()) == []
    monkeypatch.setattr(cifar, "SHA256", hashlib.sha256(source.read_bytes()).hexdigest())
    assert len(load("cifar10", root, cache).images) == 5 * PER_BATCH
    kept = list((root / "downloads").glob("*.gz"))
    assert [path.read_bytes() for path in kept] == [source.read_bytes()]


def test_cifar10_without_network_says_what_to_do(root, cache):
    message = error_line("cifar10", root, cache)
    assert f"{cifar.URL} cannot be fetched (Connection refused)" in message
    assert f"put the archive at {root}/downloads/cifar-10-binary.tar.gz" in message
    assert "file_format='array_record', and point data_dir at it" in message
    assert not list(root.rglob("*.part"))


@pytest.mark.parametrize("name", ["cifar10:2.0.0", "cifar10:2.*.*", "cifar10/grey"])
def test_only_one_version_of_cifar10_can_be_prepared(root, cache, name):
    message = error_line(name, root, cache)
    assert message.startswith(f"{name} cannot be prepared, only cifar10:3.0.2; prepare it where")


def damaged(kind: str, files: dict[str, bytes], path) -> str:
    """Write a damaged archive; returns what the message must say of it."""
    if kind == "no batch":
        del files["data_batch_3.bin"]
    if kind == "half a record":
        files["data_batch_2.bin"] = files["data_batch_2.bin"][:-100]
    if kind == "empty batch":
        files["test_batch.bin"] = b""
    if kind == "label":
        files["test_batch.bin"] = b"\x0a" + files["test_batch.bin"][1:]
    if kind == "classes":
        files["batches.meta.txt"] = b"cat\ndog\n"
    write_archive(path, files)
    if kind == "cut short":
        path.write_bytes(path.read_bytes()[:50_000])
    if kind == "no archive":
        path.write_bytes(gzip.compress(b"<html>not found</html>" * 100))
    if kind == "changed":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(bytes(content))
    return {
        "no batch": "it lacks data_batch_3.bin",
        "half a record": "data_batch_2.bin is not made of records of 3073 bytes",
        "empty batch": "test_batch.bin is not made of records of 3073 bytes",
        "label": "test_batch.bin has labels beyond 9",
        "classes": "batches.meta.txt does not name 10 classes",
    }.get(kind, "")


KINDS = ["no batch", "half a record", "empty batch", "label", "classes"]


@pytest.mark.parametrize("kind", [*KINDS, "cut short", "no archive", "changed"])
def test_damaged_archive(root, cache, kind):
    path = root / cifar.ARCHIVE
    says = damaged(kind, cifar_files(*cifar_records()), path)
    message = error_line("cifar10", root, cache)
    assert message.startswith(f"{path} is not the binary archive of cifar10: {says}")
    assert message.endswith("; delete it and try again")
    assert not (root / "cifar10").exists()


# what is prepared already


def test_prepared_set_is_read_and_left_alone(toy, root, cache):
    before = [(p, p.stat().st_mtime_ns) for p in sorted(root.parent.rglob("*"))]
    loaded = load("toy", root, cache)
    assert pairs(loaded.images, loaded.labels) == pairs(toy_images("train", 7), np.arange(7) % 3)
    assert pairs(loaded.test_images, loaded.test_labels) == pairs(
        toy_images("test", 7), np.arange(7) % 3
    )
    assert loaded.classes == ("a", "b", "c")
    after = [(p, p.stat().st_mtime_ns) for p in sorted(root.parent.rglob("*"))]
    assert after == before


def test_more_images_than_are_read_at_a_time(root, cache, monkeypatch):
    monkeypatch.setattr(tfds_reader, "_BLOCK", 4)
    prepare_toy(root, train=toy_examples("train", 9), test=toy_examples("test", 8))
    loaded = load("toy", root, cache)
    assert pairs(loaded.images, loaded.labels) == pairs(toy_images("train", 9), np.arange(9) % 3)
    assert loaded.test_images.shape == (8, 6, 5, 3)


def test_validation_stands_in_for_test(root, cache):
    prepare_toy(root, train=toy_examples("train"), validation=toy_examples("validation", 4))
    loaded = load("toy", root, cache)
    assert pairs(loaded.test_images, loaded.test_labels) == pairs(
        toy_images("validation", 4), [0, 1, 2, 0]
    )


def test_grey_images_keep_one_channel(root, cache):
    splits = {s: toy_examples(s, 5, (6, 5, 1)) for s in ("train", "test")}
    prepare_toy(root, toy_features((6, 5, 1)), **splits)
    loaded = load("toy", root, cache)
    assert loaded.image_shape == (6, 5, 1)
    expected = pairs(toy_images("train", 5, (6, 5, 1)), np.arange(5) % 3)
    assert pairs(loaded.images, loaded.labels) == expected


def test_name_with_a_config(root, cache):
    features = toy_features((6, 5, 3))
    for config, count in (("one", 3), ("two", 5)):
        splits = {s: toy_examples(s, count) for s in ("train", "test")}
        with data_io.quiet(errors=True):
            made = ToyWithConfigs(features, splits, data_dir=root, config=config)
            made.download_and_prepare()
    assert len(load("toy_with_configs/two", root, cache).images) == 5
    assert len(load("toy_with_configs/one:1.2.0", root, cache).images) == 3
    assert len(load("toy_with_configs", root, cache).images) == 3


def test_images_of_different_sizes_need_a_size(root, cache):
    mixed = [*toy_examples("train", 3), *toy_examples("train", 3, (8, 5, 3))]
    prepare_toy(root, toy_features((None, None, 3)), train=mixed, test=toy_examples("test"))
    message = error_line("toy", root, cache)
    assert "differ in size (" in message
    assert "6x5" in message
    assert "8x5" in message
    assert message.endswith("; pass size= to resize them")
    assert load("toy", root, cache, size=4).image_shape == (4, 4, 3)


def test_splits_of_different_sizes_need_a_size(root, cache):
    other = toy_examples("test", 3, (8, 5, 3))
    prepare_toy(root, toy_features((None, None, 3)), train=toy_examples("train"), test=other)
    assert "differ in size (6x5 and 8x5)" in error_line("toy", root, cache)


def test_resizing_is_pillows_bilinear(toy, root, cache):
    loaded = load("toy", root, cache, size=9)
    bilinear = Image.Resampling.BILINEAR
    images = [Image.fromarray(i).resize((9, 9), bilinear) for i in toy_images("train", 7)]
    expected = pairs([np.asarray(i) for i in images], np.arange(7) % 3)
    assert pairs(loaded.images, loaded.labels) == expected


def test_tfrecord_cannot_be_read(toy, root, cache):
    info = toy / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    message = error_line("toy", root, cache)
    assert message.startswith(f"toy in {toy} is in tfrecord format, which cannot be read without")
    assert "take another data_dir, or prepare it again with file_format='array_record'" in message


@pytest.mark.parametrize("damage", ["info", "features", "missing shard", "cut shard", "changed"])
def test_damaged_prepared_set(toy, root, cache, damage):
    shard = next(toy.glob("toy-train*"))
    if damage == "info":
        (toy / "dataset_info.json").write_text("{")
    if damage == "features":
        (toy / "features.json").write_text("{}")
    if damage == "missing shard":
        shard.unlink()
    if damage == "cut shard":
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    if damage == "changed":
        shard.write_bytes(bytes(shard.stat().st_size))
    message = error_line("toy", root, cache)
    assert message.startswith("cannot read ")
    assert str(root) in message
    assert message.endswith("; prepare it again")
    assert not cache.exists()


@pytest.mark.parametrize(
    ("features", "example", "lacks"),
    [
        ({"text": tfds.features.Text()}, {"text": "x"}, "an 'image' of uint8 (it has text)"),
        (
            {
                "image": tfds.features.Image(shape=(6, 5, 3)),
                "label": tfds.features.Scalar(np.int64),
            },
            {"image": png(toy_images("train", 1)[0]), "label": 1},
            "a 'label' with classes (it has image, label)",
        ),
    ],
)
def test_not_an_image_classification_set(root, cache, features, example, lacks):
    prepare_toy(root, features, train=[example], test=[example])
    message = error_line("toy", root, cache)
    assert f"is no image classification set: it lacks {lacks}; choose another" in message


def test_no_test_split(root, cache):
    prepare_toy(root, train=toy_examples("train"), extra=toy_examples("extra"))
    message = error_line("toy", root, cache)
    assert "has the splits ['train', 'extra'], but 'train' and 'test'" in message


def test_empty_split(root, cache):
    info = prepare_toy(root, train=toy_examples("train", 5)) / "dataset_info.json"
    content = json.loads(info.read_text())
    content["splits"].append(content["splits"][0] | {"name": "test", "shardLengths": ["0"]})
    info.write_text(json.dumps(content))
    message = error_line("toy", root, cache)
    assert message == f"split 'test' of {info.parent} is empty; choose another data set"


def test_unlabelled_split(root, cache):
    hidden = [example | {"label": -1} for example in toy_examples("test")]
    prepare_toy(root, train=toy_examples("train"), test=hidden)
    message = error_line("toy", root, cache)
    assert "split 'test' of" in message
    assert "has labels from -1 to -1, but there are 3 classes; choose another" in message


# names and directories


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cifar1O", "did you mean cifar10 or"),
        ("digit", "did you mean digits"),
        ("digits:1.0.0", "did you mean digits"),
        ("mnist:one", "did you mean mnist"),
        ("../mnist", "digits and cifar10 are two of many"),
        ("", "digits and cifar10 are two of many"),
    ],
)
def test_unknown_name(root, cache, name, hint):
    message = error_line(name, root, cache)
    assert message.startswith(f"unknown data set {name!r}; {hint}")
    assert not root.exists()


def test_data_dir_is_a_file(tmp_path, cache):
    path = tmp_path / "file"
    path.write_text("")
    assert error_line("cifar10", path, cache) == (
        f"data_dir {path} is a file; name the directory that holds the data sets"
    )


def test_data_dir_is_not_local(cache):
    message = error_line("cifar10", "gs://bucket/data", cache)
    assert message.startswith("data_dir gs://bucket/data is not a local directory; copy")


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_size_is_positive(root, cache, name):
    assert error_line(name, root, cache, size=0).startswith("size is 0; ")


# other sets that TFDS prepares


def test_tfds_prepares_what_needs_no_tensorflow(root, cache, capfd):
    loaded = load("ftnas_jax_registered", root, cache)
    assert pairs(loaded.images, loaded.labels) == pairs(toy_images("train", 7), np.arange(7) % 3)
    assert (root / "ftnas_jax_registered" / "1.0.0").is_dir()
    assert capfd.readouterr() == ("", "")


def test_tfds_set_without_network(root, cache):
    message = error_line("mnist", root, cache)
    assert message.startswith(f"cannot prepare mnist in {root}: no connection to ")
    assert "(Network is unreachable); prepare it where TensorFlow is installed" in message


def test_tfds_set_that_needs_tensorflow(root, cache, monkeypatch):
    def examples(split):
        import tensorflow  # noqa: F401

    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setattr(sys.modules[__name__], "toy_examples", examples)
    message = error_line("ftnas_jax_registered", root, cache)
    assert message.startswith(
        f"cannot prepare ftnas_jax_registered in {root}: it needs TensorFlow; prepare it where"
    )
    assert not list(root.rglob("dataset_info.json"))


# the cache


def only_file(folder):
    (path,) = folder.iterdir()
    return path


def test_second_load_comes_from_the_cache(toy, root, cache, monkeypatch):
    first = load("toy", root, cache)
    assert only_file(cache).name.startswith("toy-1.2.0-native-")
    no_decoding(monkeypatch)
    second = load("toy", root, cache)
    for field in ("images", "labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(second, field), getattr(first, field))
        assert getattr(second, field).dtype == getattr(first, field).dtype
    assert second.classes == first.classes


@pytest.mark.parametrize("damage", ["changed", "cut", "empty", "text", "lacking"])
def test_damaged_cache_is_built_again(toy, root, cache, damage, caplog):
    first = load("toy", root, cache)
    path = only_file(cache)
    content = bytearray(path.read_bytes())
    content[content.index(first.images.tobytes()) + 50] ^= 1
    replacement = {
        "changed": bytes(content),
        "cut": bytes(content[: len(content) // 2]),
        "empty": b"",
        "text": b"no array",
    }
    if damage == "lacking":
        np.savez(path, images=first.images)
    else:
        path.write_bytes(replacement[damage])
    again = load("toy", root, cache)
    np.testing.assert_array_equal(again.images, first.images)
    assert f"cache {path} is damaged" in caplog.text
    caplog.clear()
    load("toy", root, cache)
    assert caplog.text == ""


def test_another_set_of_the_same_name_has_its_own_cache(root, cache, tmp_path):
    prepare_toy(root)
    other = tmp_path / "other"
    swapped = {"train": toy_examples("test"), "test": toy_examples("train")}
    prepare_toy(other, **swapped)
    one, two = load("toy", root, cache), load("toy", other, cache)
    assert pairs(one.images, one.labels) == pairs(two.test_images, two.test_labels)
    assert pairs(one.images, one.labels) != pairs(two.images, two.labels)
    shutil.rmtree(root / "toy")
    prepare_toy(root, train=toy_examples("train", 3), test=toy_examples("test", 3))
    assert len(load("toy", root, cache).images) == 3


def test_every_size_has_its_own_cache(toy, root, cache):
    shapes = [load("toy", root, cache, size=s).image_shape for s in (None, 4, 8, 4, None)]
    assert shapes == [(6, 5, 3), (4, 4, 3), (8, 8, 3), (4, 4, 3), (6, 5, 3)]
    assert len(list(cache.iterdir())) == 3


def test_cache_is_the_users_by_default(toy, root, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load("toy", root, None)
    assert only_file(tmp_path / "xdg" / "ftnas_jax").suffix == ".npz"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load("toy", root, None)
    assert only_file(tmp_path / "home" / ".cache" / "ftnas_jax").suffix == ".npz"


def test_no_space_for_the_cache(toy, root, cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 1000))
    message = error_line("toy", root, cache)
    assert message == (
        f"{cache} has 0 MB of free space and needs 1 MB; free some space or pass another cache_dir="
    )
    assert not cache.exists()


def test_disk_full_while_the_cache_is_written(toy, root, cache, monkeypatch):
    def fill(file, **arrays):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(np, "savez", fill)
        message = error_line("toy", root, cache)
    assert message.startswith(f"cannot write {cache}/toy-1.2.0-native-")
    assert message.endswith(": No space left on device; free some space or pass another cache_dir=")
    assert list(cache.iterdir()) == []
    assert len(load("toy", root, cache).images) == 7


def test_cache_dir_is_a_file(toy, root, cache):
    cache.write_text("")
    message = error_line("toy", root, cache)
    assert message.startswith(f"cannot write {cache}/toy-1.2.0-native-")
    assert message.endswith("; free some space or pass another cache_dir=")


@pytest.mark.parametrize("stage", ["download", "prepare"])
def test_no_space_for_preparing(root, cache, monkeypatch, stage):
    if stage == "prepare":
        write_archive(root / cifar.ARCHIVE, cifar_files(*cifar_records()))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 1000))
    message = error_line("cifar10", root, cache)
    needed = {"download": 170, "prepare": 1}[stage]
    assert message == (
        f"{root} has 0 MB of free space and needs {needed} MB; "
        "free some space or take another data_dir"
    )
    assert not (root / "cifar10").exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("write() failed: No space left on device; writing x"),  # array_record's
    ],
)
def test_disk_full_while_preparing(root, cache, monkeypatch, error):
    write_archive(root / cifar.ARCHIVE, cifar_files(*cifar_records()))

    def fill(image):
        raise error

    with monkeypatch.context() as full:
        full.setattr(cifar, "_png", fill)
        message = error_line("cifar10", root, cache)
    assert message.startswith(f"cannot write {root}: ")
    assert "No space left on device" in message
    assert message.endswith("; free some space or take another data_dir")
    assert not list(root.rglob("dataset_info.json"))
    assert len(load("cifar10", root, cache).images) == 5 * PER_BATCH


def test_data_dir_cannot_be_written(tmp_path, cache):
    (tmp_path / "file").write_text("")
    root = tmp_path / "file" / "below"
    message = error_line("cifar10", root, cache)
    assert message.startswith(f"cannot write {root}/downloads/{cifar.ARCHIVE}: Not a directory; ")


# the edge


def test_importing_is_light():
    code = (
        "import sys, ftnas_jax.data; heavy = {'tensorflow_datasets', 'tensorflow', 'sklearn', "
        "'PIL'}; print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_progress_is_shown_on_a_terminal_only(toy, root, cache, monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    data.load("toy", root, cache_dir=cache)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    load("toy", root, cache, size=3)
    assert capsys.readouterr().err == ""
    data.load("toy", root, cache_dir=cache, size=4)
    assert "decode toy" in capsys.readouterr().err


def test_quiet_restores_what_it_silences():
    logger = logging.getLogger("absl")
    before = logger.level, sys.stdout, sys.stderr
    with data_io.quiet(errors=True):
        assert logger.level == logging.ERROR
        assert sys.stdout is not before[1]
    assert (logger.level, sys.stdout, sys.stderr) == before
