"""The run directory of a long job: its config, its metrics, its checkpoints, and who works in it.

    workdir/config.json      the job and its config, written once
    workdir/metrics.jsonl    one JSON line a row; after a kill and a resume, bit for bit as without
    workdir/timing.jsonl     the same for seconds and speeds, which never repeat
    workdir/checkpoints/     see `ftnas_jax.checkpoints`
    workdir/tensorboard/     the scalars, for those who want to watch

A loop writes its rows, then saves; every job that keeps this order resumes exactly:

    with RunDir(workdir, config, job="search") as run, Terminator() as terminator:
        restored = run.restore(state)
        state, step = restored or (state, 0)
        while step < steps and not terminator.requested:
            state, row = advance(state)
            step += 1
            run.write_metrics(row)
            run.save(step, state)
"""

import fcntl
import json
import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ftnas_jax.checkpoints import Checkpoints, RunError, explain_os_errors, write_atomically

__all__ = ["RunDir", "RunError", "read_json", "write_json", "write_text"]

logger = logging.getLogger(__name__)

_METRICS = "metrics.jsonl"
_ROWS = (_METRICS, "chips.csv")
"""Files that hold work as soon as there are rows in them."""
_CHECKPOINTS = "checkpoints"
_TIMING = "timing.jsonl"
_LAST_SCALARS = "tensorboard"
_SHOWN_DIFFERENCES = 5


class RunDir:
    """One job's directory: made, locked and checked on construction; resumable at any moment.

    Args:
        workdir: the directory; created where it is missing.
        config: nested plain mapping of what determines the results (JSON types, NumPy scalars).
        job: what runs here, as in "search"; another job may not go on in the same directory.
        ignore: dotted names of config fields that may change between the runs of one directory.
        max_to_keep: how many checkpoints to keep.

    Raises:
        RunError: the directory holds another config, another job or foreign files, another
            process works in it, or it cannot be written.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        config: Mapping[str, Any],
        *,
        job: str,
        ignore: Collection[str] = ("data.data_dir", "data.cache_dir"),
        max_to_keep: int = 3,
    ):
        self.path = Path(workdir).absolute()
        self._last_scalars = -1
        self._writer = None
        with explain_os_errors(f"use {self.path} as a run directory"):
            self.path.mkdir(parents=True, exist_ok=True)
            _refuse_foreign_files(self.path)
            self._lock: int | None = _lock(self.path)
            try:
                _check_config(self.path / "config.json", job, config, ignore)
                self.checkpoints = Checkpoints(self.path / _CHECKPOINTS, max_to_keep=max_to_keep)
                self.checkpoints.remove_partial()
            except BaseException:
                self._unlock()
                raise

    def save(self, step: int, state: Any) -> None:
        """Checkpoint `state` under `step`; see `Checkpoints.save`. Returns when it is on the disk.

        The checkpoint remembers how far the metrics went, so write a step's rows before its save.
        """
        extra = {name: _size(self.path / name) for name in (_METRICS, _TIMING)}
        self.checkpoints.save(step, state, extra=extra | {_LAST_SCALARS: self._last_scalars})

    def restore(self, template: Any) -> tuple[Any, int] | None:
        """(state, step) of the newest whole checkpoint, or None where there is none yet.

        Metrics and timings are rewound to where they stood at that checkpoint (without one, to
        nothing): rows beyond it, and a last line torn by a kill, will be written again.

        Args:
            template: a pytree like the saved one; see `Checkpoints.restore`.

        Raises:
            RunError: all checkpoints are damaged, or they hold another kind of state.
        """
        restored = self.checkpoints.restore(template)
        extra = restored.extra if restored else {}
        with explain_os_errors(f"rewind the metrics in {self.path}"):
            for name in (_METRICS, _TIMING):
                _truncate(self.path / name, extra.get(name, 0))
        self._last_scalars = extra.get(_LAST_SCALARS, -1)
        return (restored.state, restored.step) if restored else None

    def write_metrics(self, row: Mapping[str, Any]) -> None:
        """Append a row to metrics.jsonl, safe on disk on return. No times: those never repeat.

        Values are JSON types or arrays; a loss that is not finite is written as NaN or Infinity.
        """
        self._append(_METRICS, row)

    def write_timing(self, row: Mapping[str, Any]) -> None:
        """Append a row of seconds, speeds and the like to timing.jsonl."""
        self._append(_TIMING, row)

    def write_scalars(self, step: int, row: Mapping[str, Any]) -> None:
        """Show the numbers of a row in TensorBoard, at `step`.

        After a restore, what was shown beyond the checkpoint disappears from TensorBoard.
        """
        if self._writer is None:
            from tensorboardX import SummaryWriter  # slow to import, and not every job needs it

            self._writer = SummaryWriter(
                str(self.path / "tensorboard"),
                purge_step=self._last_scalars + 1,
                flush_secs=1,  # little is lost when the process is killed
                filename_suffix=f".{os.getpid()}",
            )
        for name, value in row.items():
            value = _to_json(value) if hasattr(value, "tolist") else value
            if isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, step)
        self._last_scalars = step

    def read_json(self, name: str) -> Any:
        """The value of the file `name`, or None where there is none yet."""
        return read_json(self.path / name)

    def pin(self, name: str, value: Any) -> None:
        """Write `value` to the file `name`, or refuse it where work was done under another.

        Raises:
            RunError: the run began with another value, or without any.
        """
        old, new = self.read_json(name), json.loads(_dump(value))
        if not _holds_work(self.path):
            self.write_json(name, new)
        elif old != new:
            if old is None:
                raise RunError(
                    f"{self.path} was begun by a version that wrote no {name}, so that it cannot "
                    "be gone on with for certain; use another --workdir"
                )
            raise RunError(
                f"{self.path} began with {_short(old)} in {name}, now it is {_short(new)}; "
                "use another --workdir, or what it began with"
            )

    def write_json(self, name: str, value: Any) -> None:
        """Write `value` to the file `name`, see the function `write_json`."""
        write_json(self.path / name, value)

    def write_text(self, name: str, text: str) -> None:
        """Write `text` to the file `name`, see the function `write_text`."""
        write_text(self.path / name, text)

    def remove(self, name: str) -> None:
        """Remove the file `name`, if it is there."""
        path = self.path / name
        with explain_os_errors(f"remove {path}"):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Finish the files and let another process in. Also done by the end of a `with`."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self.checkpoints.close()
        self._unlock()

    def __enter__(self) -> "RunDir":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        line = json.dumps(dict(row), default=_to_json) + "\n"
        with explain_os_errors(f"write {self.path / name}"), open(self.path / name, "ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())


def read_json(path: Path) -> Any:
    """The value of a JSON file, or None where there is none.

    Raises:
        RunError: it is damaged.
    """
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); remove it and start again") from None


def write_json(path: Path, value: Any) -> None:
    """Write `value` to a file, sorted and indented, atomically."""
    write_text(path, _dump(value))


def write_text(path: Path, text: str) -> None:
    """Write `text` to a file, atomically; its directory is made."""
    with explain_os_errors(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)


def _refuse_foreign_files(path: Path) -> None:
    """A directory with files but no config is not ours to write into; hidden files do not count."""
    names = sorted(p.name for p in path.iterdir() if not p.name.startswith("."))
    if names and "config.json" not in names:
        raise RunError(
            f"{path} has files in it ({names[0]}, ...) but is no run directory: "
            "it has no config.json; use an empty or a new directory"
        )


def _lock(path: Path) -> int:
    """Take the directory for this process; the kernel lets go of it however the process ends."""
    descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise RunError(
            f"another process (pid {owner}) is working in {path}; "
            "wait for it to end, or use another directory"
        ) from None
    except OSError as error:  # some network file systems have no locks
        logger.warning("cannot lock %s (%s); see that no other process uses it", path, error)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def _check_config(path: Path, job: str, config: Mapping[str, Any], ignore: Collection[str]) -> None:
    """Write the config on the first run; on later ones, refuse another once there is work."""
    new = json.loads(_dump({"job": job, "config": config}))
    if not _holds_work(path.parent):
        write_atomically(path, _dump(new))
        return
    try:
        old = json.loads(path.read_text())
        old_job, old_config = old["job"], old["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is not a run's config ({error}); use another directory") from None
    if old_job != job:
        raise RunError(
            f"{path.parent} holds a {old_job}, not a {job}; use another --workdir for this job"
        )
    found = differences(old_config, new["config"], ignore)
    if found:
        more = len(found) - _SHOWN_DIFFERENCES
        raise RunError(
            f"{path.parent} holds a {job} with another config: "
            + ", ".join(found[:_SHOWN_DIFFERENCES])
            + (f", and {more} more" if more > 0 else "")
            + "; use another --workdir, or the old values to go on with that run"
        )


def _holds_work(path: Path) -> bool:
    """Whether a run got as far as rows or checkpoints: a false start may be started anew."""
    return any(_size(path / name) for name in _ROWS) or any((path / _CHECKPOINTS).glob("[0-9]*"))


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], ignore: Collection[str] = ()
) -> list[str]:
    """What became of nested fields, `data.size was 0, now 8` each; names to ignore are dotted."""
    before, now = _flatten(old), _flatten(new)
    names = [name for name in {**now, **before} if name not in ignore]
    return [
        f"{name} was {before.get(name, 'not set')}, now {now.get(name, 'not set')}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted name → value as JSON text (in which NaN equals itself)."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = json.dumps(value)
    return flat


def _dump(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, default=_to_json) + "\n"


def _to_json(value: Any) -> Any:
    """For `json.dumps`: NumPy and JAX arrays as (nested lists of) Python numbers, paths as text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"JSON cannot hold {value!r}, a {type(value).__name__}")


def _short(value: Any) -> str:
    return json.dumps(value)[:120]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _truncate(path: Path, size: int) -> None:
    """Cut `path` back to `size` bytes, in one system call, so a kill cannot tear it."""
    if _size(path) < size:
        logger.warning("%s is shorter than its checkpoint recorded: rows were lost", path)
    elif path.exists():
        os.truncate(path, size)
