"""What every experiment's main does: read flags, report bad input in one line, exit with a code.

Exit codes: 0 done, 2 bad input, 128 + n stopped by signal n with all work saved. Where no work is
done yet, and at a second signal, the process dies of the signal itself; shells count alike.
"""

import contextlib
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from ml_collections import config_flags

from experiments import devices
from ftnas_jax.checkpoints import explain_os_errors
from ftnas_jax.errors import InputError

_DEFAULT_COMPILATION_CACHE = "~/.cache/ftnas_jax/xla"

_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; a run in it goes on.")
_COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache",
    _DEFAULT_COMPILATION_CACHE,
    "Folder for compiled programs, so that a second start is quick; empty for none.",
)
_DEVICES = flags.DEFINE_integer(
    "devices",
    0,
    "How many devices to use; 0 for all GPUs or TPU cores, or else for a CPU as two devices. A CPU "
    "can be as many devices as it has cores.",
    lower_bound=0,
)


def run(job: Callable[[dict, str, list[Any]], int]) -> None:
    """Run `job(config, workdir, devices)`, which returns an exit code, from the command line."""
    config = config_flags.DEFINE_config_file(
        "config", None, "Python file with get_config(); override fields as --config.FIELD=VALUE."
    )

    def read_config() -> None:
        if config.value is None:
            raise InputError("name a config: --config configs/mibb.py")
        config.value.keys()  # ml_collections raises only now where it could not read the file

    launch(lambda workdir, there: job(config.value.to_dict(), workdir, there), read_config)


def launch(job: Callable[[str, list[Any]], int], check: Callable[[], None] = lambda: None) -> None:
    """Run `job(workdir, devices)`, which returns an exit code, from the command line.

    Args:
        job: reads its own flags.
        check: raises where they are wrong, as soon as they are read.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    _let_ctrl_c_end_at_once()
    with one_line_errors():
        _read_flags(sys.argv, check)
        _use_compilation_cache(_COMPILATION_CACHE.value or "")
        devices.make_cpu_devices(_DEVICES.value)
        there = devices.take(_DEVICES.value)
        code = job(_WORKDIR.value or "", there)
    sys.exit(code)


def launch_without_devices(job: Callable[[str], int], check: Callable[[], None]) -> None:
    """As `launch`, for a job that only starts others: it leaves accelerators to them."""
    with one_line_errors():
        _read_flags(sys.argv, check)
        jax.config.update("jax_platforms", "cpu")
        code = job(_WORKDIR.value or "")
    sys.exit(code)


def devices_asked() -> int:
    """What --devices says."""
    return _DEVICES.value


def _let_ctrl_c_end_at_once() -> None:
    """Python's own handler would wait for compiled code to return, and then print a traceback."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # else it may be ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _read_flags(argv: list[str], check: Callable[[], None]) -> None:
    """Parse the command line; every mistake in it is an InputError. --help prints and exits."""
    app.define_help_flags()
    try:
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise InputError(f"cannot read the argument {rest[1]!r}; flags begin with --")
        check()
    except InputError:
        raise
    except OSError as error:
        problem = str(error).rpartition("] ")[2]  # behind "[Errno 2] "
        raise InputError(f"cannot read the config: {problem}") from error
    except (AttributeError, KeyError) as error:
        # ml_collections reports an unknown field as its name in quotes of several kinds.
        field = re.match(r"""["'\\]+(\w+)""", str(error))
        problem = f"the config has no field {field[1]!r}" if field else _first_line(error)
        raise InputError(problem) from error
    except (flags.Error, TypeError, SyntaxError, ImportError, ValueError) as error:
        raise InputError(_first_line(error)) from error
    if not _WORKDIR.value:
        raise InputError("name a run directory: --workdir runs/NAME")


def _use_compilation_cache(folder: str) -> None:
    if not folder:
        return
    path = Path(os.path.expanduser(folder))
    with explain_os_errors(f"keep compiled programs in {path}"):
        path.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(path))


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Bad input and a failing disk end in one line on stderr; bugs show all they have."""
    try:
        yield
    except (InputError, OSError) as error:
        print(f"error: {_first_line(error)}", file=sys.stderr)
        sys.exit(2)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
