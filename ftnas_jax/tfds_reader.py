"""Data sets of TFDS without TensorFlow: find a prepared one or prepare it, and decode it.

Only the array_record format can be read so, and few data sets can be prepared so: most builders of
TFDS call TensorFlow. `cifar10` has its own way (`ftnas_jax.cifar`). What was prepared on another
machine can always be read.
"""

import difflib
import hashlib
import io
import os
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import constants, read_only_builder

from ftnas_jax import cifar
from ftnas_jax.data_io import (
    ELSEWHERE,
    DataError,
    interactive,
    progress_bar,
    quiet,
    reason,
    resize,
)

FORMAT = "array_record"

_BLOCK = 1024  # images that are read at a time
_LAYOUT = 1  # raise it when `decode` returns something else, so that no older cache is used
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's name for C channels of uint8
_NAME = r"(\w+)(/[\w.-]+)?(:(\d+|\*)(\.(\d+|\*)){2})?"  # name/config:version


def find_or_prepare(name: str, data_dir: str | os.PathLike | None, *, progress: bool):
    """A builder of TFDS for an image classification set whose files are there.

    A set that is prepared under `data_dir` (None: TFDS's own directory) is taken as it is, in its
    highest version if none is named; otherwise it is downloaded and prepared there.

    Raises:
        DataError: see `ftnas_jax.data.load`.
    """
    root = _local_directory(data_dir or constants.DATA_DIR)
    match = re.fullmatch(_NAME, name)
    if not match:
        raise _unknown(name)
    builder = _find(name, root)
    if builder is None:
        _prepare(name, match[1], root, progress)
        builder = _find(name, root)
    if builder is None:
        raise DataError(f"{name} was prepared in {root}, but in a form of its own; {ELSEWHERE}")
    _check_format(name, builder)
    _check_features(name, builder)
    _split_names(name, builder)
    return builder


def _local_directory(data_dir: str | os.PathLike) -> Path:
    text = os.fspath(data_dir)
    if "://" in text:
        raise DataError(f"data_dir {text} is not a local directory; copy the data set to one")
    path = Path(text).expanduser()
    if path.exists() and not path.is_dir():
        raise DataError(f"data_dir {path} is a file; name the directory that holds the data sets")
    return path


def _find(name: str, root: Path):
    try:
        with quiet():
            return read_only_builder.builder_from_files(name, data_dir=root)
    except tfds.core.DatasetNotFoundError:
        return None
    except Exception as error:  # whatever a damaged directory provokes
        raise DataError(
            f"cannot read what is prepared as {name} in {root}: {reason(error)}; prepare it again"
        ) from error


def _prepare(name: str, stem: str, root: Path, progress: bool) -> None:
    if stem not in tfds.list_builders(with_community_datasets=False):
        raise _unknown(name)
    if stem == cifar.NAME:
        cifar.prepare(name, root, progress=progress)
        return
    try:
        with quiet(errors=not interactive(progress)):  # on a terminal tfds draws its own bars
            builder = tfds.builder(name, data_dir=root, file_format=FORMAT)
            _check_network(builder)
            config = tfds.download.DownloadConfig(try_download_gcs=False)
            builder.download_and_prepare(download_config=config)
    except Exception as error:  # every builder fails in its own way
        why = "it needs TensorFlow" if isinstance(error, ImportError) else reason(error)
        raise DataError(f"cannot prepare {name} in {root}: {why}; {ELSEWHERE}") from error


def _unknown(name: str) -> DataError:
    known = ["digits", *tfds.list_builders(with_community_datasets=False)]
    close = difflib.get_close_matches(re.split("[/:]", name)[0], known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "digits and cifar10 are two of many"
    return DataError(f"unknown data set {name!r}; {hint}")


def _check_network(builder) -> None:
    """Fail at once where there is no network; tfds would try again for minutes."""
    url = urlsplit(next(iter(builder.url_infos or {}), ""))
    if not url.hostname or getproxies():
        return
    port = url.port or {"http": 80, "ftp": 21}.get(url.scheme, 443)
    try:
        socket.create_connection((url.hostname, port), timeout=10).close()
    except OSError as error:
        raise OSError(f"no connection to {url.hostname} ({reason(error)})") from error


def _check_format(name: str, builder) -> None:
    formats = {f.value for f in builder.info.available_file_formats()}
    if FORMAT not in formats:
        raise DataError(
            f"{name} in {builder.data_path} is in {' and '.join(sorted(formats))} format, which "
            "cannot be read without TensorFlow; take another data_dir, or prepare it again with "
            f"file_format={FORMAT!r}"
        )


def _check_features(name: str, builder) -> None:
    features = builder.info.features
    names = sorted(features) if isinstance(features, tfds.features.FeaturesDict) else []
    image = features["image"] if "image" in names else None
    label = features["label"] if "label" in names else None
    missing = ""
    if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
        missing = "an 'image' of uint8"
    elif not isinstance(label, tfds.features.ClassLabel) or not label.num_classes:
        missing = "a 'label' with classes"
    if missing:
        raise DataError(
            f"{name} in {builder.data_path} is no image classification set: it lacks {missing} "
            f"(it has {', '.join(names) or 'no named features'}); choose another data set"
        )


def _split_names(name: str, builder) -> tuple[str, str]:
    """The names of the training and the test split."""
    splits = list(builder.info.splits)
    test = next((s for s in ("test", "validation") if s in splits), None)
    if "train" not in splits or test is None:
        raise DataError(
            f"{name} in {builder.data_path} has the splits {splits}, but 'train' and 'test' (or "
            "'validation') are needed; choose another data set"
        )
    return "train", test


def fingerprint(builder) -> str:
    """16 hex digits that change when the prepared files (or what is made of them) change."""
    digest = hashlib.sha256(f"{_LAYOUT}".encode())
    for path in sorted(p for p in Path(builder.data_path).iterdir() if p.is_file()):
        stat = path.stat()
        digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        if path.suffix == ".json":
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def decode(name: str, builder, size: int | None, *, progress: bool) -> dict[str, np.ndarray]:
    """Decode a whole data set.

    Args:
        name: what messages call it.
        builder: from `find_or_prepare`.
        size: side that images are resized to; None leaves them as they are.
        progress: show a bar on a terminal.

    Returns:
        `images` uint8 [N, H, W, C], `labels` int32 [N], the same as `test_images` and
        `test_labels`, and `classes` str [classes].

    Raises:
        DataError: files are damaged, images differ in size, labels are not classes.
    """
    train, test = _split_names(name, builder)
    total = sum(builder.info.splits[s].num_examples for s in (train, test))
    try:
        with progress_bar(progress) as bar:
            task = bar.add_task(f"decode {name}", total=total)
            images, labels = _decode_split(builder, train, size, lambda n: bar.advance(task, n))
            tests, test_labels = _decode_split(builder, test, size, lambda n: bar.advance(task, n))
    except DataError:
        raise
    except Exception as error:  # damaged files fail in array_record, in tfds or in Pillow
        raise DataError(
            f"cannot read {name} in {builder.data_path}: {reason(error)}; prepare it again"
        ) from error
    _check_same_size(builder, images[0].shape, tests[0].shape)
    return {
        "images": images,
        "labels": labels,
        "test_images": tests,
        "test_labels": test_labels,
        "classes": np.array(builder.info.features["label"].names),
    }


def _decode_split(builder, split: str, size: int | None, advance) -> tuple[np.ndarray, np.ndarray]:
    # One thread: small images spend their time in Python, where a pool gained nothing.
    features = builder.info.features
    mode = _MODES.get(features["image"].shape[-1], "RGB")
    source = _source(builder, split)
    shape = _decode_image(source[0]["image"], mode, size).shape
    images = np.empty((len(source), *shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    for start in range(0, len(source), _BLOCK):
        places = range(start, min(start + _BLOCK, len(source)))
        for place, record in zip(places, source.__getitems__(list(places)), strict=True):
            image = _decode_image(record["image"], mode, size)
            _check_same_size(builder, shape, image.shape)
            images[place], labels[place] = image, record["label"]
        advance(len(places))
    _check_labels(builder, split, labels)
    return images, labels


def _source(builder, split: str):
    """Random access to the records of a split, with the image still encoded."""
    if builder.info.splits[split].num_examples == 0:
        raise DataError(f"split {split!r} of {builder.data_path} is empty; choose another data set")
    raw = {key: tfds.decode.SkipDecoding() for key in builder.info.features if key != "label"}
    with quiet():
        return builder.as_data_source(split, decoders=raw, file_format=FORMAT)


def _decode_image(encoded: bytes, mode: str, size: int | None) -> np.ndarray:
    pixels = resize(Image.open(io.BytesIO(encoded)).convert(mode), size)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _check_same_size(builder, one: tuple[int, ...], other: tuple[int, ...]) -> None:
    if one != other:
        sizes = " and ".join(f"{shape[0]}x{shape[1]}" for shape in (one, other))
        raise DataError(
            f"the images in {builder.data_path} differ in size ({sizes}); pass size= to resize them"
        )


def _check_labels(builder, split: str, labels: np.ndarray) -> None:
    num_classes = builder.info.features["label"].num_classes
    if labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(
            f"split {split!r} of {builder.data_path} has labels from {labels.min()} to "
            f"{labels.max()}, but there are {num_classes} classes; choose another data set"
        )
