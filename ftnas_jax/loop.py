"""What the loop of a long job needs from outside: to be told to stop, and to be watched."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

_STOPPING = "stopping after this call, saving; a second signal stops at once"

Result = TypeVar("Result")


def attentive(call: Callable[..., Result], *args: Any) -> Result:
    """`call(*args)` in another thread, so that this one, the main thread, attends to signals.

    Python looks at signals in its main thread alone, and compiled code keeps it from that.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call, *args).result()


class Terminator:
    """Within its `with`, SIGTERM and SIGINT (Ctrl-C) ask the loop to stop instead of killing it.

    It says on stderr that it was asked. The loop looks at `requested` between steps, saves, and
    exits with `exit_code`; it makes its steps by `attentive`. A second signal does what it would
    have done without the Terminator. A signal that the process ignores, as a script's background
    job ignores Ctrl-C, stays ignored. Outside the main thread, where Python allows no handlers, it
    does nothing.

    Attributes:
        signal: the signal that came, or None.
    """

    def __init__(self):
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """128 + the signal, as shells count: 143 for SIGTERM, 130 for SIGINT; 0 without one."""
        return 0 if self.signal is None else 128 + self.signal

    def __enter__(self) -> "Terminator":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        self._put_back()

    def _handle(self, number: int, _frame: Any) -> None:
        self.signal = number
        self._put_back()
        # Whoever listened may be gone, which must not keep the loop from saving.
        with contextlib.suppress(OSError, RuntimeError):
            print(_STOPPING, file=sys.stderr, flush=True)

    def _put_back(self) -> None:
        while self._previous:
            # A handler that was not installed from Python reads as None; default is all we can do.
            number, handler = self._previous.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class Progress:
    """A progress bar where stdout is a terminal; elsewhere only the lines given to `log`.

    Args:
        total: steps of the whole job.
        title: the word in front, as in "search".
        unit: what is counted.
    """

    def __init__(
        self, total: int, *, title: str = "", unit: str = "step", console: Console | None = None
    ):
        self._console = console or Console()
        self._bar = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            _SpeedColumn(unit),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[values]}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total, values="")

    def update(self, step: int, *, total: int | None = None, **values: Any) -> None:
        """Move the bar to `step` of the total, which may be another now, and show `values`.

        They are given as in `epoch="3/100", reward=0.71`. Numbers are shown with four digits.
        Values stay until the next update that names any. The first update tells where the job
        begins, for its speed.
        """
        self._bar.update(self._task, completed=step, total=total)
        if values:
            text = "  ".join(f"{name} {_short(value)}" for name, value in values.items())
            self._bar.update(self._task, values=text)

    def log(self, line: str) -> None:
        """Print a line: above the bar, or plainly (and at once) where there is no bar."""
        if self._console.is_terminal:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=self._console.file, flush=True)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()


class _SpeedColumn(ProgressColumn):
    """Steps a second, or seconds a step where that is the larger number."""

    def __init__(self, unit: str):
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(
            f"{speed:.1f} {self._unit}s/s" if speed >= 1 else f"{1 / speed:.1f} s/{self._unit}"
        )


def _short(value: Any) -> str:
    return str(value) if isinstance(value, (str, int)) else f"{float(value):.4g}"
