"""Measurements in turns: every side in a process of its own, idle while another one works.

Turns make drifts of the machine's speed common to all sides, and processes of their own give each
side the environment, the threads and the memory that it has in use.
"""

import multiprocessing
import os
import resource
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any


class Side:
    """An object that lives in a process of its own, until `close` or the end of a `with` block.

    Args:
        make: called there for the object; importable by name.
        args: for `make`.
        environment: variables of that process, beside those of this one.

    Raises:
        RuntimeError: `make`, or a method called later, raised there.
    """

    def __init__(self, make: Callable[..., Any], *args: Any, environment: Mapping[str, str]):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        before = dict(os.environ)
        os.environ.update(environment)  # a child begins with a copy
        try:
            self._process = context.Process(target=_serve, args=(theirs, make, args), daemon=True)
            self._process.start()
        finally:
            os.environ.clear()
            os.environ.update(before)
        theirs.close()
        self._receive()

    def call(self, method: str, *args: Any) -> Any:
        """What the object's method returns; waits for it."""
        self._pipe.send((method, args))
        return self._receive()

    def peak_memory(self) -> int:
        """The most memory of the host that the process has had so far, in bytes."""
        return self.call("")

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _receive(self) -> Any:
        try:
            value, error = self._pipe.recv()
        except EOFError as end:
            raise RuntimeError("a measuring process died; was there enough memory?") from end
        if error:
            raise RuntimeError(f"a measuring process failed:\n{error}")
        return value


def _serve(pipe: Any, make: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """The other process: build the object, then run the methods that are asked for."""
    try:
        there = make(*args)
        pipe.send((None, None))
        while True:
            method, args = pipe.recv()
            pipe.send((getattr(there, method)(*args) if method else _peak_memory(), None))
    except EOFError:
        return  # closed
    except Exception:
        pipe.send((None, traceback.format_exc()))


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes elsewhere
