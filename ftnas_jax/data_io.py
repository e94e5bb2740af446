"""What the readers of data sets share: one error, whole files, quiet libraries, progress."""

import contextlib
import logging
import os
import shutil
import sys
import uuid
from pathlib import Path

import numpy as np

from ftnas_jax.errors import InputError

ELSEWHERE = (
    "prepare it where TensorFlow is installed, with tfds and file_format='array_record', and "
    "point data_dir at it"
)
"""What to do about a data set that cannot be prepared here."""


class DataError(InputError):
    """A data set cannot be had. The message is one line: what is wrong, where, what to do."""


def resize(image, size: int | None) -> np.ndarray:
    """Pixels of a Pillow image, bilinear and square of side `size`, or as they are for None."""
    from PIL import Image

    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def reason(error: BaseException) -> str:
    """The first line of what an exception says, short enough for a message of one line."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return str(text).splitlines()[0][:200]


def check_space(folder: Path, needed: int, remedy: str) -> None:
    """Raise DataError unless the disk that holds `folder` (existing or not) has `needed` bytes."""
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise DataError(
            f"{folder} has {free / 1e6:.0f} MB of free space and needs {needed / 1e6:.0f} MB; "
            f"{remedy}"
        )


@contextlib.contextmanager
def writing(path: Path, remedy: str, *, kinds: tuple[type[Exception], ...] = (OSError,)):
    """Turn what goes wrong on the file system (full, read-only, ...) into a DataError.

    `kinds` are the exceptions by which whoever writes in the block reports that.
    """
    try:
        yield
    except kinds as error:
        raise DataError(f"cannot write {path}: {reason(error)}; {remedy}") from error


@contextlib.contextmanager
def replacing(path: Path):
    """A binary file that takes its place at `path` only when it was written to its end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")  # nobody else writes to it
    try:
        with part.open("wb") as file:
            yield file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def quiet(*, errors: bool = False):
    """Silence what tfds prints and logs, and its bars on standard error with `errors`."""
    loggers = [logging.getLogger(n) for n in ("absl", "urllib3")]
    levels = [logger.level for logger in loggers]
    with contextlib.ExitStack() as stack:
        nowhere = stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(contextlib.redirect_stdout(nowhere))
        if errors:
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        for logger, level in zip(loggers, levels, strict=True):
            stack.callback(logger.setLevel, level)
            logger.setLevel(logging.ERROR)
        yield


def interactive(progress: bool) -> bool:
    """Whether progress is wanted and standard error is a terminal to show it on."""
    return progress and sys.stderr.isatty()


def progress_bar(progress: bool, *, in_bytes: bool = False):
    """A rich progress bar on standard error, silent where that is not a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn() if in_bytes else MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(file=sys.stderr),
        disable=not interactive(progress),
    )
