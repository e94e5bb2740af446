"""Image classification data sets as NumPy arrays, read once from TFDS and then from a cache.

No TensorFlow is needed: `ftnas_jax.tfds_reader` says how. `digits` is a small set that comes with
scikit-learn, for tests and first steps without a network.

Letters: `N` images, `H W` space, `C` channels.
"""

import dataclasses
import hashlib
import logging
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ftnas_jax.data_io import DataError, check_space, reason, replacing, resize, writing

__all__ = ["DIGITS", "DataError", "Dataset", "Images", "load", "split"]

DIGITS = "digits"
DIGITS_SIZE = 16
"""Side of a digits image where no size is given; the originals are 8x8."""

_BLOCK = 1024  # images that are summed up at a time
_ARRAYS = ("images", "labels", "test_images", "test_labels", "classes")

_log = logging.getLogger(__name__)


class Images(NamedTuple):
    """A part of a data set: `images` uint8 [N, H, W, C], `labels` int32 [N]."""

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A whole data set on the host; pixels are 0 to 255, as they were stored.

    Attributes:
        name: the name it was loaded by.
        images: uint8 [N, H, W, C], training split.
        labels: int32 [N], each in [0, num_classes).
        test_images: uint8 [N_test, H, W, C].
        test_labels: int32 [N_test].
        classes: the classes' names, in the order of the labels.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)"""
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    def sha256(self) -> str:
        """A digest of all training images and labels, to tell one data set from another."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        for array in (self.images, self.labels):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def mean_std(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the training pixels in [0, 1] units, float32 [C] each."""
        channels = self.images.shape[-1]
        total = squares = np.zeros(channels, np.int64)
        for start in range(0, len(self.images), _BLOCK):  # a float copy of it all is 1 GB
            pixels = self.images[start : start + _BLOCK].reshape(-1, channels).astype(np.int64)
            total, squares = total + pixels.sum(0), squares + (pixels**2).sum(0)
        count = self.images.size // channels
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
        return (mean / 255).astype(np.float32), (std / 255).astype(np.float32)


def split(dataset: Dataset, fraction: float = 0.8) -> tuple[Images, Images]:
    """The training split in two: its first `fraction` to train on, the rest to validate on.

    The search learns the shared weights on the first part and rewards the controller on the
    second; 80 % and 20 %, without a shuffle, as in the published code. Both are views.
    """
    cut = int(len(dataset.images) * fraction) if 0 < fraction < 1 else 0
    if not 0 < cut < len(dataset.images):
        raise DataError(
            f"a fraction of {fraction} leaves one part of {len(dataset.images)} images empty; "
            "take one between 0 and 1"
        )
    return (
        Images(dataset.images[:cut], dataset.labels[:cut]),
        Images(dataset.images[cut:], dataset.labels[cut:]),
    )


def load(
    name: str,
    data_dir: str | os.PathLike | None = None,
    *,
    cache_dir: str | os.PathLike | None = None,
    size: int | None = None,
    progress: bool = True,
) -> Dataset:
    """Load `digits`, `cifar10` or any image classification set of TFDS.

    Args:
        name: as in TFDS: `name`, `name/config`, `name:version` or `name/config:version`.
        data_dir: TFDS's directory (default: TFDS's own). A set that is prepared in it is only
            read; one that is not is downloaded and prepared there.
        cache_dir: where decoded arrays are kept (default: `ftnas_jax` in the user's cache).
        size: side, in pixels, that images are resized to, bilinear and square. None leaves them
            as they are, but `digits`, of 8x8, is then 16x16.
        progress: show progress; never where standard error is not a terminal.

    Raises:
        DataError: the name is unknown, the set cannot be fetched, read or written, it is not for
            image classification, or its images differ in size and no size is given.
    """
    if size is not None and size < 1:
        raise DataError(f"size is {size}; it counts pixels, so take at least 1")
    if name == DIGITS:
        return _digits(size or DIGITS_SIZE)
    from ftnas_jax import tfds_reader  # it takes half a second to import tfds

    builder = tfds_reader.find_or_prepare(name, data_dir, progress=progress)
    stem = builder.info.full_name.replace("/", "-")
    key = f"{stem}-{size or 'native'}-{tfds_reader.fingerprint(builder)}"
    cache = Path(cache_dir or _user_cache()).expanduser() / f"{key}.npz"
    arrays = _read_cache(cache)
    if arrays is None:
        arrays = tfds_reader.decode(name, builder, size, progress=progress)
        _write_cache(arrays, cache)
    classes = tuple(str(c) for c in arrays.pop("classes"))
    return Dataset(name, **arrays, classes=classes)


def _digits(size: int) -> Dataset:
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits: Any = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # stored as 0 to 16
    images = np.stack([resize(Image.fromarray(p), size) for p in pixels])[..., None]
    labels = digits.target.astype(np.int32)
    # Neighbours in this set come from one writer, so it is shuffled before anyone cuts it.
    train, test = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0
    )
    classes = tuple(str(c) for c in digits.target_names)
    return Dataset(DIGITS, images[train], labels[train], images[test], labels[test], classes)


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "ftnas_jax"


def _read_cache(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays in a cache file; None where there is none or it is damaged (a zip has CRCs)."""
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in _ARRAYS}
    except FileNotFoundError:
        return None
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, KeyError, EOFError) as error:
        _log.warning("cache %s is damaged (%s); building it again", path, reason(error))
        return None


def _write_cache(arrays: dict[str, np.ndarray], path: Path) -> None:
    remedy = "free some space or pass another cache_dir="
    check_space(path.parent, sum(a.nbytes for a in arrays.values()) + 2**20, remedy)
    with writing(path, remedy), replacing(path) as file:
        np.savez(file, allow_pickle=False, **arrays)
