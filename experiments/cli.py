"""What every experiment's main does: read flags, report bad input in one line, exit with a code.

Exit codes: 0 done, 2 bad input, 128 + n stopped by signal n with all work saved.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

_DEFAULT_COMPILATION_CACHE = "~/.cache/ftnas_jax/xla"

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Python file with get_config(); override fields as --config.FIELD=VALUE."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; a run in it goes on.")
_COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache",
    _DEFAULT_COMPILATION_CACHE,
    "Folder for compiled programs, so that a second start is quick; empty for none.",
)


def run(job: Callable[[dict, str], int]) -> None:
    """Run `job(config, workdir)`, a function that returns an exit code, from the command line."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    with _one_line_errors():
        _read_flags(sys.argv)
        _use_compilation_cache(_COMPILATION_CACHE.value or "")
        code = job(_CONFIG.value.to_dict(), _WORKDIR.value or "")
    sys.exit(code)


def _read_flags(argv: list[str]) -> None:
    """Parse the command line; every mistake in it is a ValueError. --help prints and exits."""
    app.define_help_flags()
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, OSError, SyntaxError) as error:
        # ml_collections reports an unknown field as AttributeError or KeyError.
        raise ValueError(_first_line(error)) from error
    if len(rest) > 1:
        raise ValueError(f"cannot read the argument {rest[1]!r}; flags begin with --")
    if _CONFIG.value is None:
        raise ValueError("name a config: --config configs/mibb.py")
    if not _WORKDIR.value:
        raise ValueError("name a run directory: --workdir runs/NAME")


def _use_compilation_cache(folder: str) -> None:
    if not folder:
        return
    import jax  # after the flags: a mistake in them is answered at once

    path = Path(os.path.expanduser(folder))
    path.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(path))


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Bad input, which is a ValueError by convention, ends the process in one line on stderr."""
    try:
        yield
    except ValueError as error:
        if os.environ.get("FTNAS_TRACEBACK"):
            raise
        print(f"error: {_first_line(error)}", file=sys.stderr)
        sys.exit(2)


def _first_line(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
