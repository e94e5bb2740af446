"""Decoded images are kept, and checked when they come back."""

import errno
import shutil

import numpy as np
import pytest
from sets import Usage, error_line, load, no_decoding, pairs, prepare_toy, toy_examples


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
