"""CIFAR-10 out of its binary archive."""

import errno
import gzip
import hashlib
import shutil
import sys

import numpy as np
import pytest
from sets import (
    CLASSES,
    PER_BATCH,
    Usage,
    cifar_files,
    cifar_records,
    error_line,
    load,
    no_decoding,
    pairs,
    png,
    prepare_toy,
    toy_examples,
    toy_features,
    write_archive,
)

from ftnas_jax import cifar


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
