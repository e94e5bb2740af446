"""Sets that TFDS has prepared or can prepare, read without TensorFlow."""

import json
import logging
import sys

import numpy as np
import pytest
import sets
import tensorflow_datasets as tfds
from PIL import Image
from sets import (
    ToyWithConfigs,
    error_line,
    load,
    pairs,
    png,
    prepare_toy,
    toy_examples,
    toy_features,
    toy_images,
)

from ftnas_jax import cifar, data, data_io, tfds_reader


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
    monkeypatch.setattr(sets, "toy_examples", examples)
    message = error_line("ftnas_jax_registered", root, cache)
    assert message.startswith(
        f"cannot prepare ftnas_jax_registered in {root}: it needs TensorFlow; prepare it where"
    )
    assert not list(root.rglob("dataset_info.json"))


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


def test_data_dir_cannot_be_written(tmp_path, cache):
    (tmp_path / "file").write_text("")
    root = tmp_path / "file" / "below"
    message = error_line("cifar10", root, cache)
    assert message.startswith(f"cannot write {root}/downloads/{cifar.ARCHIVE}: Not a directory; ")


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
