"""CIFAR-10 from its own archive into a prepared data set of TFDS, without TensorFlow.

TFDS's builder opens files and encodes images with TensorFlow. This one keeps its features, version
and names, and only replaces how examples are made: the archive's binary batches are read with NumPy
and every image is handed over as PNG.

The archive is `cifar-10-binary.tar.gz` of https://www.cs.toronto.edu/~kriz/cifar.html. A record of
it is 3073 bytes: the label, then the red, the green and the blue plane, 32x32 each, row by row.
"""

import gzip
import hashlib
import http.client
import io
import re
import tarfile
import urllib.request
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from tensorflow_datasets.image_classification import cifar as tfds_cifar

from ftnas_jax.data_io import (
    ELSEWHERE,
    DataError,
    check_space,
    progress_bar,
    quiet,
    reason,
    replacing,
    writing,
)

NAME = "cifar10"
ARCHIVE = "cifar-10-binary.tar.gz"
URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
ARCHIVE_BYTES = 170_052_171

_SPLITS = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
_CLASSES = "batches.meta.txt"
_SIDE, _CHANNELS, _NUM_CLASSES = 32, 3, 10
_RECORD = 1 + _CHANNELS * _SIDE * _SIDE
_CHUNK = 2**20
_REMEDY = "free some space or take another data_dir"


def prepare(name: str, root: Path, *, progress: bool) -> None:
    """Write the prepared data set under `root`, a directory that need not exist yet.

    The archive is taken from `root` or `root`/downloads, or downloaded to the latter and checked.

    Args:
        name: `cifar10`, or with a version; there is only one that can be prepared.
        root: TFDS's data_dir.
        progress: show bars on a terminal.

    Raises:
        DataError: another version or config is asked for, the archive cannot be fetched or is
            damaged, or `root` cannot be written to.
    """
    _check_version(name)
    archive = _find_archive(root) or _download(root, progress)
    files = _read_archive(archive)
    # The PNGs are about as large as the records, and TFDS shuffles them through a second copy.
    check_space(root, 2 * sum(len(f) for f in files.values()), _REMEDY)
    kinds = (OSError, RuntimeError)  # array_record reports a full disk by a RuntimeError
    with writing(root, _REMEDY, kinds=kinds), progress_bar(progress) as bar, quiet(errors=True):
        builder = _Builder(files, bar, data_dir=root, file_format="array_record")
        builder.download_and_prepare()


def _check_version(name: str) -> None:
    version = str(_Builder.VERSION)
    asked = name.removeprefix(NAME)
    pattern = re.escape(asked.removeprefix(":")).replace(r"\*", r"\d+")
    if asked and not (asked.startswith(":") and re.fullmatch(pattern, version)):
        raise DataError(f"{name} cannot be prepared, only {NAME}:{version}; {ELSEWHERE}")


def _find_archive(root: Path) -> Path | None:
    candidates = (root / ARCHIVE, root / "downloads" / ARCHIVE)
    return next((path for path in candidates if path.is_file()), None)


def _download(root: Path, progress: bool) -> Path:
    target = root / "downloads" / ARCHIVE
    check_space(root, ARCHIVE_BYTES, _REMEDY)
    digest = hashlib.sha256()
    with (
        writing(target, _REMEDY),
        progress_bar(progress, in_bytes=True) as bar,
        replacing(target) as file,
    ):
        task = bar.add_task(f"download {NAME}", total=ARCHIVE_BYTES)
        for chunk in _chunks(target):
            file.write(chunk)
            digest.update(chunk)
            bar.advance(task, len(chunk))
        if digest.hexdigest() != SHA256:  # inside: what is wrong must not take its place
            raise DataError(f"what came from {URL} is not the archive of {NAME}; try again later")
    return target


def _chunks(target: Path):
    try:
        with urllib.request.urlopen(URL, timeout=30) as response:
            while chunk := response.read(_CHUNK):
                yield chunk
    except (OSError, http.client.HTTPException) as error:  # only the network's: writing is outside
        why = reason(getattr(error, "reason", None) or error)
        raise DataError(
            f"{NAME} is not prepared and {URL} cannot be fetched ({why}); put the archive at "
            f"{target}, or {ELSEWHERE}"
        ) from error


def _read_archive(path: Path) -> dict[str, bytes]:
    """The batches and the class names by file name, checked."""
    wanted = {_CLASSES, *_SPLITS["train"], *_SPLITS["test"]}
    files = {}
    try:
        with gzip.open(path) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                name = Path(member.name).name
                file = tar.extractfile(member) if name in wanted else None
                if file is not None:
                    files[name] = file.read()
            while stream.read(_CHUNK):  # the checksum comes after all the padding
                pass
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise _damaged(path, reason(error)) from error
    if missing := sorted(wanted - files.keys()):
        raise _damaged(path, f"it lacks {', '.join(missing)}")
    if len(_class_names(files)) != _NUM_CLASSES:
        raise _damaged(path, f"{_CLASSES} does not name {_NUM_CLASSES} classes")
    for name in wanted - {_CLASSES}:
        if not files[name] or len(files[name]) % _RECORD:
            raise _damaged(path, f"{name} is not made of records of {_RECORD} bytes")
        if max(files[name][::_RECORD]) >= _NUM_CLASSES:
            raise _damaged(path, f"{name} has labels beyond {_NUM_CLASSES - 1}")
    return files


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"{path} is not the binary archive of {NAME}: {why}; delete it and try again")


def _class_names(files: dict[str, bytes]) -> list[str]:
    return files[_CLASSES].decode("ascii", "replace").split()


class _Builder(tfds_cifar.Cifar10, skip_registration=True):
    """TFDS's builder of CIFAR-10 with another source of examples."""

    name = NAME

    def __init__(self, files: dict[str, bytes], bar, **kwargs):
        super().__init__(**kwargs)
        self._files = files
        self._bar = bar

    def _split_generators(self, dl_manager):
        self.info.features["label"].names = _class_names(self._files)  # type: ignore[union-attr]
        return {split: self._examples(split) for split in _SPLITS}

    def _examples(self, split: str):
        """Keys and ids as TFDS gives them, so that it shuffles into the same order."""
        records = [self._files[name] for name in _SPLITS[split]]
        records = np.frombuffer(b"".join(records), np.uint8).reshape(-1, _RECORD)
        progress = self._bar.track(records, description=f"prepare {NAME} {split}")
        for index, record in enumerate(progress):
            planes = record[1:].reshape(_CHANNELS, _SIDE, _SIDE)
            yield (
                index,
                {
                    "id": f"{split}_{index:05d}",
                    "image": _png(planes.transpose(1, 2, 0)),
                    "label": int(record[0]),
                },
            )


def _png(image: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "PNG")
    file.seek(0)
    return file
