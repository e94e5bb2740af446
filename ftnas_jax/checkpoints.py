"""Checkpoints that survive a kill and own up to damage.

A checkpoint is one directory named after its step:

    12/state/       the pytree, written by orbax
    12/about.json   its step, the shape of every leaf, and the caller's `extra`
    12/SHA256SUMS   one line a file; `sha256sum -c SHA256SUMS` checks it by hand

It is written under the name `partial.12` and renamed when the last byte is on the disk, so a kill
leaves either all of it or a `partial.*` that the next save throws away. The checksums catch what a
rename cannot: truncated, missing, added and silently changed files.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from ftnas_jax.errors import InputError

logger = logging.getLogger(__name__)

_PARTIAL = "partial."
_ABOUT = "about.json"
_SUMS = "SHA256SUMS"
_HINTS = {
    errno.ENOSPC: "free some disk space and start again",
    errno.EDQUOT: "free some of your quota and start again",
    errno.EACCES: "choose a directory that you may write to",
    errno.EPERM: "choose a directory that you may write to",
    errno.EROFS: "choose a directory that you may write to",
    errno.ENOTDIR: "choose another directory; part of this path is a file",
    errno.EEXIST: "choose another directory; this path is a file",
}


class RunError(InputError):
    """A run that cannot go on. Its message is one line: what is wrong, where, what to do."""


class Restored(NamedTuple):
    """What `Checkpoints.restore` found.

    Attributes:
        state: the pytree, with the structure of the template.
        step: the step it was saved under.
        extra: the mapping that was saved with it.
    """

    state: Any
    step: int
    extra: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, in one directory.

    Reading needs no lock and changes nothing, so a finished or running search can be read from
    elsewhere. Only one process may save.
    """

    def __init__(self, directory: str | os.PathLike, *, max_to_keep: int = 3):
        if max_to_keep < 1:
            raise ValueError(f"max_to_keep is {max_to_keep}; keep at least one checkpoint")
        self.directory = Path(directory).absolute()
        self.max_to_keep = max_to_keep
        self._damaged: set[int] = set()
        self._orbax = ocp.Checkpointer(ocp.StandardCheckpointHandler())

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first, damaged ones included."""
        if not self.directory.is_dir():
            return []
        names = (entry.name for entry in self.directory.iterdir())
        return sorted(int(name) for name in names if name.isdecimal())

    def save(self, step: int, state: Any, *, extra: Mapping[str, Any] | None = None) -> None:
        """Write `state` to disk under `step`, then drop all but the newest `max_to_keep`.

        Returns when it is safe: a kill or power cut afterwards loses nothing.

        Args:
            step: what the caller counts, at least 0. An earlier save of this step is replaced.
            state: a pytree of arrays (not empty, no typed keys) and Python numbers.
            extra: anything JSON can hold, given back by `restore`.

        Raises:
            RunError: the disk refused. The earlier checkpoints are as they were.
            ValueError: a later step is already there, so this run did not start with `restore`.
        """
        later = [s for s in self.steps() if s > step and s not in self._damaged]
        if later:
            raise ValueError(
                f"cannot save step {step} in {self.directory}: step {later[-1]} is already there; "
                "restore it first, or use another directory"
            )
        partial = self.directory / f"{_PARTIAL}{step}"
        about = {"step": step, "leaves": describe_leaves(state), "extra": dict(extra or {})}
        self.remove_partial()
        try:
            with explain_os_errors(f"save checkpoint {step} in {self.directory}"):
                self._write(partial, state, about)
                self._publish(partial, step)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        self._prune()

    def restore(self, template: Any) -> Restored | None:
        """The newest checkpoint that is whole, or None where there are none at all.

        Damaged ones on the way are named in a warning of this module's logger.

        Args:
            template: a pytree with the structure, shapes and dtypes that were saved. Leaves are
                arrays or `jax.ShapeDtypeStruct`; the values are not looked at. Where an array
                has a sharding, the restored one gets it too.

        Raises:
            RunError: every checkpoint is damaged, or the newest whole one holds another state
                than the template; the message names the first leaf that differs.
        """
        steps = self.steps()
        for step in reversed(steps):
            problem = _damage(self.directory / str(step))
            if problem is None:
                return self._load(step, template)
            self._damaged.add(step)
            logger.warning(
                "checkpoint %s is damaged (%s); trying the one before it",
                self.directory / str(step),
                problem,
            )
        if steps:
            raise RunError(
                f"all {len(steps)} checkpoints in {self.directory} are damaged; "
                "restore the directory from a backup, or start anew in another one"
            )
        return None

    def remove_partial(self) -> None:
        """Throw away what a killed save left behind. Only for the process that saves."""
        for leftover in self.directory.glob(f"{_PARTIAL}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def close(self) -> None:
        """Let go of orbax's threads."""
        self._orbax.close()

    def _write(self, partial: Path, state: Any, about: Mapping[str, Any]) -> None:
        partial.mkdir(parents=True)
        try:
            self._orbax.save(partial / "state", args=ocp.args.StandardSave(state))  # pyright: ignore
        except OSError:
            raise
        except Exception as error:  # tensorstore reports a full disk in exceptions of its own
            reason = str(error).strip().split("\n")[0]
            raise RunError(
                f"cannot save checkpoint {about['step']} in {self.directory}: {reason}; "
                "the earlier checkpoints are untouched"
            ) from error
        (partial / _ABOUT).write_text(json.dumps(about, indent=1))
        sums = _checksums(partial, sync=True)
        write_atomically(
            partial / _SUMS, "".join(f"{digest}  {name}\n" for name, digest in sums.items())
        )

    def _publish(self, partial: Path, step: int) -> None:
        final = self.directory / str(step)
        if final.exists():
            final.rename(self.directory / f"{_PARTIAL}{step}.replaced")
        partial.rename(final)
        _sync_directory(self.directory)
        self._damaged.discard(step)

    def _prune(self) -> None:
        whole = [step for step in self.steps() if step not in self._damaged]
        for step in set(self.steps()) - set(whole[-self.max_to_keep :]):
            # The rename first: a kill in the midst of deleting must not leave a damaged one.
            (self.directory / str(step)).rename(self.directory / f"{_PARTIAL}{step}.old")
        self.remove_partial()

    def _load(self, step: int, template: Any) -> Restored:
        path = self.directory / str(step)
        about = json.loads((path / _ABOUT).read_text())
        difference = _first_difference(about["leaves"], describe_leaves(template))
        if difference:
            raise RunError(
                f"checkpoint {path} holds another state: {difference}; "
                "resume with the code and config that saved it, or use another directory"
            )
        target = jax.tree.map(_on_device, template)
        state = self._orbax.restore(path / "state", args=ocp.args.StandardRestore(target))  # pyright: ignore
        return Restored(state, step, about["extra"])


def describe_leaves(tree: Any) -> dict[str, str]:
    """Path of each leaf → its type and shape: {"params/stem/kernel": "float32[3,3,3,60]"}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): _describe(leaf)
        for path, leaf in leaves
    }


def write_atomically(path: Path, text: str) -> None:
    """Replace the file `path` by `text` (UTF-8), wholly or not at all, and wait for the disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_directory(path.parent)


@contextlib.contextmanager
def explain_os_errors(action: str) -> Iterator[None]:
    """Turn an OSError into a RunError that says what could not be done, and a way out."""
    try:
        yield
    except OSError as error:
        hint = _HINTS.get(error.errno or 0)
        raise RunError(
            f"cannot {action}: {error.strerror or error}" + (f"; {hint}" if hint else "")
        ) from error


def _describe(leaf: Any) -> str:
    if not hasattr(leaf, "dtype"):
        return type(leaf).__name__
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _first_difference(saved: Mapping[str, str], wanted: Mapping[str, str]) -> str | None:
    for name in [*wanted, *saved]:
        if saved.get(name) != wanted.get(name):
            return f"{name} is {saved.get(name, 'absent')} there, {wanted.get(name, 'absent')} here"
    return None


def _on_device(leaf: Any) -> Any:
    """A shape without a place would be restored as a NumPy array; give it the default device."""
    if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is None:
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
    return leaf


def _damage(path: Path) -> str | None:
    """What is wrong with the checkpoint at `path`, or None."""
    try:
        lines = (path / _SUMS).read_text(encoding="utf-8").splitlines()
        expected = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        found = _checksums(path)
    except (OSError, UnicodeDecodeError) as error:
        return f"{_SUMS}: {error}"
    if not expected:
        return f"{_SUMS} is empty"
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name!r} of {_SUMS} is missing"
        if name not in expected:
            return f"{name} is not in {_SUMS}"
        if found[name] != expected[name]:
            return f"{name} does not match {_SUMS}"
    return None


def _checksums(path: Path, *, sync: bool = False) -> dict[str, str]:
    """SHA-256 of each file below `path` but the list of them; `sync` waits for the disk."""
    sums = {}
    for file in sorted(p for p in path.rglob("*") if p.is_file() and p != path / _SUMS):
        with open(file, "rb") as stream:
            sums[file.relative_to(path).as_posix()] = hashlib.file_digest(
                stream, "sha256"
            ).hexdigest()
            if sync:
                os.fsync(stream.fileno())
    return sums


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
