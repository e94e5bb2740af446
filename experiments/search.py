"""Fault-tolerant architecture search: `python -m experiments.search --config C --workdir W`.

The same command goes on with a run that was interrupted, to the same result. Fields of the config
are overridden as --config.network.channels=8; see `configs/search_defaults.py` for all of them.
"""

if __name__ == "__main__":
    from experiments import large_pages

    large_pages.restart()  # before the other imports, which would all be made again

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from experiments import cli, genotypes, report
from experiments.configuration import search_config
from ftnas_jax import data
from ftnas_jax.data_io import check_space
from ftnas_jax.errors import InputError, as_input_error
from ftnas_jax.loop import Progress, Terminator, attentive
from ftnas_jax.run import RunDir
from ftnas_jax.search import Search, SearchData, SearchState, make_mesh
from ftnas_jax.space import Architecture

_MAY_CHANGE = ("data.data_dir", "data.cache_dir", "checkpoint_minutes")
"""Fields that change no result, so that a run may go on with other values."""

_SECONDS_A_CALL = 5.0
"""A compiled call is to return about this often, for the progress display and for signals."""

_CANDIDATES_FILE = "candidates.json"


def search(config: Mapping[str, Any], workdir: str, devices: list[Any] | None = None) -> int:
    """Run, or go on with, the search that `config` describes in `workdir`; returns an exit code.

    Args:
        config: as in `configs/search_defaults.py`.
        workdir: the run directory.
        devices: to run on; by default one.

    Raises:
        InputError: for bad input, before anything is compiled.
    """
    settings = search_config(config)  # before the directory or any data are touched
    with as_input_error():
        make_mesh(settings, devices)
    path = config["candidates"]["genotypes"]
    given = genotypes.read(path, settings.space) if path else []
    with RunDir(workdir, config, job="search", ignore=_MAY_CHANGE) as run:
        if given:
            run.pin("given.json", [settings.space.format(a) for a in given])
        job = _prepare(config, run, devices)
        with Terminator() as stop:  # until here nothing would be lost
            state = _train(job, run, stop, config["checkpoint_minutes"])
            if not stop.requested:
                candidates = _score_candidates(job, run, stop, state, given, config["candidates"])
            if not stop.requested:
                report.write(run, config, job, candidates)
                print(f"\nresults: {run.path / 'README.md'}")
            return stop.exit_code


def _prepare(config: Mapping[str, Any], run: RunDir, devices) -> Search:
    """The search on its data, checked and then compiled as far as the first step needs."""
    dataset = _load(config["data"])
    run.pin("data.json", {"name": config["data"]["name"], "sha256": dataset.sha256()})
    settings = search_config(config, dataset)
    parts = data.split(dataset, config["data"]["train_fraction"])
    arrays = (*parts[0], *parts[1], *dataset.mean_std())
    with as_input_error():
        job = Search(settings, SearchData(*map(jax.numpy.asarray, arrays)), devices)
    _check_disk(run, job.shapes())
    Progress(0).log("compiling the search ...")
    job.compile()
    return job


def _load(fields: Mapping[str, Any]) -> data.Dataset:
    return data.load(
        fields["name"],
        fields["data_dir"] or None,
        cache_dir=fields["cache_dir"] or None,
        size=fields["size"] or None,
    )


class _Position:
    """How many steps of a search are done, as one number: a checkpoint's step."""

    def __init__(self, job: Search):
        self.phases = (job.weight_steps, job.controller_steps)
        self.an_epoch = sum(self.phases)

    def next_phase(self, done: int) -> tuple[int, int, int, int]:
        """(epoch, phase, first step, end of the phase) after `done` steps."""
        epoch, step = divmod(done, self.an_epoch)
        if step < self.phases[0]:
            return epoch, 0, step, self.phases[0]
        return epoch, 1, step - self.phases[0], self.phases[1]


def _train(job: Search, run: RunDir, stop: Terminator, checkpoint_minutes: float) -> SearchState:
    """Algorithm 1 from the newest checkpoint on; saves at the end of every epoch and in between."""
    state = job.init()
    state, done = run.restore(state) or (state, 0)
    position = _Position(job)
    total = job.config.epochs * position.an_epoch
    calls = (_Paced(job.train_weights), _Paced(job.train_controller))
    saved, reward = time.monotonic(), "-"
    with Progress(total, title="search") as progress:
        progress.update(done)
        if done:
            progress.log(f"going on in epoch {done // position.an_epoch + 1}, after {done} steps")
        if done < total:
            run.remove(_CANDIDATES_FILE)  # its scores are of weights that this run has lost
        while done < total and not stop.requested:
            epoch, phase, first, end = position.next_phase(done)
            state, steps = calls[phase](state, epoch, first, end)
            done += steps
            epoch_ends = done % position.an_epoch == 0
            if epoch_ends:
                row = _end_epoch(job, run, state, epoch)
                progress.log(_line(row))
                reward = f"{row['controller/reward']:.3f}"
                state = job.reset_totals(state)
            progress.update(done, epoch=f"{epoch + 1}/{job.config.epochs}", reward=reward)
            late = time.monotonic() - saved > 60 * checkpoint_minutes
            if epoch_ends or stop.requested or late:
                run.write_timing({"steps": done, "seconds": time.monotonic() - saved})
                run.save(done, state)
                saved = time.monotonic()
    return state


def _check_disk(run: RunDir, shapes: SearchState) -> None:
    """Refuse to begin where the checkpoints that are still to come will not fit."""
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    # One more than are kept: the newest is whole before the oldest goes.
    to_come = run.checkpoints.max_to_keep + 1 - len(run.checkpoints.steps())
    check_space(run.path, size * max(to_come, 1), "free some, or choose another --workdir")


class _Paced:
    """A phase's compiled call, run for as many steps as take about `_SECONDS_A_CALL`."""

    def __init__(self, call: Callable[..., SearchState]):
        self._call = call
        self._steps = 1

    def __call__(self, state: SearchState, epoch: int, first: int, end: int):
        """(state, steps made)."""
        steps = min(self._steps, end - first)
        began = time.monotonic()
        state = _finished(self._call, state, epoch, first, first + steps)
        seconds = (time.monotonic() - began) / steps
        self._steps = max(1, min(4 * steps, int(_SECONDS_A_CALL / seconds)))
        return state, steps


def _finished(call: Callable[..., Any], *args: Any) -> Any:
    """What a compiled call returns, when it is there; signals are attended to meanwhile."""
    return attentive(lambda: jax.block_until_ready(call(*args)))


def _end_epoch(job: Search, run: RunDir, state: SearchState, epoch: int) -> dict:
    """Write the epoch's rows; a search that diverged ends here."""
    row = job.metrics(state, epoch)
    if not np.isfinite(row["weights/gradient_norm"]):
        raise InputError(
            f"the shared weights diverged in epoch {epoch + 1} (gradients are not finite); "
            "lower weights.learning_rate or weights.gradient_clip and start in a new workdir"
        )
    run.write_metrics(row)
    run.write_scalars(epoch + 1, row)
    return row


def _line(row: Mapping[str, float]) -> str:
    return (
        f"epoch {row['epoch']}: loss {row['weights/loss']:.3f}, "
        f"reward {row['controller/reward']:.3f} "
        f"(clean {row['controller/accuracy_clean']:.3f}, "
        f"faulty {row['controller/accuracy_faulty']:.3f}), "
        f"entropy {row['controller/entropy']:.1f}"
    )


def _score_candidates(
    job: Search, run: RunDir, stop: Terminator, state, given: list[Architecture], fields
) -> list[dict]:
    """The last line of Algorithm 1, with a choice: candidates on common images and fault maps.

    Every score is written as soon as it is there; a run that goes on begins behind the last one.
    """
    groups = {
        "controller": job.propose(state, fields["sampled"]),
        "random": job.propose_random(fields["random"]),
        "given": [architecture.to_array() for architecture in given],
    }
    batches = min(fields["batches"], job.controller_steps)
    todo = [(group, np.asarray(a)) for group, many in groups.items() for a in many]
    rows = run.read_json(_CANDIDATES_FILE) or []
    with Progress(len(todo), title="candidates") as progress:
        progress.update(len(rows))
        for group, architecture in todo[len(rows) :]:
            if stop.requested:
                break
            scores = _finished(job.score, state, architecture, batches)
            rows.append(report.candidate_row(job.config.space, group, architecture, scores))
            run.write_json(_CANDIDATES_FILE, rows)
            progress.update(len(rows), reward=rows[-1]["reward"])
    return rows


if __name__ == "__main__":
    cli.run(search)
