"""The loop of a long job: epochs of compiled steps, saved so that it can go on at any of them."""

import bisect
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from ftnas_jax.loop import Progress, Terminator, attentive
from ftnas_jax.run import RunDir

_SECONDS_A_CALL = 5.0
"""A compiled call is to return about this often, for the progress display and for signals."""

Call = Callable[[Any, int, int, int], Any]
"""(state, epoch, start, stop) → the state after these steps of a phase."""


class Phase(NamedTuple):
    """A part of an epoch.

    Attributes:
        call: makes its steps.
        steps: how many there are.
    """

    call: Call
    steps: int


class EpochEnd(NamedTuple):
    """What there is to tell of an epoch.

    Attributes:
        line: to print.
        shown: beside the progress bar, by name.
        state: at the start of the next epoch.
        anew: whether that is the first one again.
    """

    line: str
    shown: Mapping[str, Any]
    state: Any
    anew: bool = False


class Loop:
    """Epochs of phases.

    Args:
        title: of the progress bar.
        epochs: how many there are.
        phases: those of an epoch, counted from 0.
        end_epoch: (state, epoch) → what there is to tell; it writes the epoch's rows.
    """

    def __init__(
        self,
        title: str,
        epochs: int,
        phases: Callable[[int], Sequence[Phase]],
        end_epoch: Callable[[Any, int], EpochEnd],
    ):
        self.title, self.epochs = title, epochs
        self._phases, self._end_epoch = phases, end_epoch
        self._paced: dict[Call, _Paced] = {}
        self._ends = list(itertools.accumulate(map(self._steps, range(epochs))))
        self.total = self._ends[-1]

    def run(
        self,
        state: Any,
        done: int,
        run: RunDir,
        stop: Terminator,
        checkpoint_minutes: float,
        given_up: int = 0,
    ) -> Any:
        """From `done` steps on to the end, or to a signal; saves whenever it stops, and meanwhile.

        Args:
            state: after `done` steps; it may be donated to the calls.
            done: steps of all phases together: a checkpoint's step.
            run: where checkpoints go, at the end of every epoch too.
            stop: asks the loop to stop after the call at hand.
            checkpoint_minutes: at most so long, and a call, from one checkpoint to the next.
            given_up: how many of the steps done came before the epochs last began anew.
        """
        done -= given_up
        saved, shown = time.monotonic(), {}
        with Progress(self.total, title=self.title) as progress:
            progress.update(done)
            if 0 < done < self.total:
                epoch = self._position(done)[0]
                progress.log(f"going on in epoch {epoch + 1}, after {done} steps")
            while done < self.total and not stop.requested:
                epoch, phase, first = self._position(done)
                state, steps = self._pace(phase.call)(state, epoch, first, phase.steps)
                done += steps
                epoch_ends = done == self._ends[epoch]
                if epoch_ends:
                    line, shown, state, anew = self._end_epoch(state, epoch)
                    progress.log(line)
                    given_up, done = (given_up + done, 0) if anew else (given_up, done)
                progress.update(done, epoch=f"{epoch + 1}/{self.epochs}", **shown)
                late = time.monotonic() - saved > 60 * checkpoint_minutes
                if epoch_ends or stop.requested or late:
                    whole = given_up + done
                    run.write_timing({"steps": whole, "seconds": time.monotonic() - saved})
                    run.save(whole, state)
                    saved = time.monotonic()
        return state

    def _position(self, done: int) -> tuple[int, Phase, int]:
        """(epoch, phase, its first step) to go on with after `done` steps, which are not all."""
        epoch = bisect.bisect_right(self._ends, done)
        done -= self._ends[epoch] - self._steps(epoch)
        for phase in self._phases(epoch):
            if done < phase.steps:
                return epoch, phase, done
            done -= phase.steps
        raise AssertionError("an epoch has as many steps as its phases")

    def _steps(self, epoch: int) -> int:
        return sum(phase.steps for phase in self._phases(epoch))

    def _pace(self, call: Call) -> "_Paced":
        return self._paced.setdefault(call, _Paced(call))


class _Paced:
    """A phase's compiled call, run for as many steps as take about `_SECONDS_A_CALL`."""

    def __init__(self, call: Call):
        self._call = call
        self._steps = 1

    def __call__(self, state: Any, epoch: int, first: int, end: int) -> tuple[Any, int]:
        """(state, steps made)."""
        steps = min(self._steps, end - first)
        began = time.monotonic()
        state = finished(self._call, state, epoch, first, first + steps)
        seconds = (time.monotonic() - began) / steps
        self._steps = max(1, min(4 * steps, int(_SECONDS_A_CALL / seconds)))
        return state, steps


def finished(call: Callable[..., Any], *args: Any) -> Any:
    """What a compiled call returns, when it is there; signals are attended to meanwhile."""
    return attentive(lambda: jax.block_until_ready(call(*args)))
