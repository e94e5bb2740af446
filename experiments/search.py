"""Fault-tolerant architecture search: `python -m experiments.search --config C --workdir W`.

The same command goes on with a run that was interrupted, to the same result. Fields of the config
are overridden as --config.network.channels=8; see `configs/search_defaults.py` for all of them.
"""

if __name__ == "__main__":
    from experiments import large_pages

    large_pages.restart()  # before the other imports, which would all be made again

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments import cli, genotypes, report
from experiments.configuration import search_config
from experiments.phases import EpochEnd, Loop, Phase, finished
from experiments.prepare import check_disk, load_data
from ftnas_jax import data
from ftnas_jax.errors import InputError, as_input_error
from ftnas_jax.loop import Progress, Terminator
from ftnas_jax.nn.hardware import DRAWS
from ftnas_jax.run import RunDir
from ftnas_jax.search import Search, SearchData, SearchState, make_mesh
from ftnas_jax.space import Architecture

_MAY_CHANGE = ("data.data_dir", "data.cache_dir", "checkpoint_minutes")
"""Fields that change no result, so that a run may go on with other values."""

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
    dataset = load_data(config["data"])
    run.pin("data.json", {"name": config["data"]["name"], "sha256": dataset.sha256()})
    run.pin("draws.json", {"draws": DRAWS})
    settings = search_config(config, dataset)
    parts = data.split(dataset, config["data"]["train_fraction"])
    arrays = (*parts[0], *parts[1], *dataset.mean_std())
    with as_input_error():
        job = Search(settings, SearchData(*map(jax.numpy.asarray, arrays)), devices)
    check_disk(run, job.shapes())
    Progress(0).log("compiling the search ...")
    job.compile()
    return job


def _train(job: Search, run: RunDir, stop: Terminator, checkpoint_minutes: float) -> SearchState:
    """Algorithm 1 from the newest checkpoint on; saves at the end of every epoch and in between."""
    phases = (
        Phase(job.train_weights, job.weight_steps),
        Phase(job.train_controller, job.controller_steps),
    )

    def end_epoch(state: SearchState, epoch: int) -> EpochEnd:
        row = _end_epoch(job, run, state, epoch)
        shown = {"reward": f"{row['controller/reward']:.3f}"}
        return EpochEnd(_line(row), shown, job.reset_totals(state))

    loop = Loop("search", job.config.epochs, lambda _: phases, end_epoch)
    state = job.init()
    state, done = run.restore(state) or (state, 0)
    if done < loop.total:
        run.remove(_CANDIDATES_FILE)  # its scores are of weights that this run has lost
    return loop.run(state, done, run, stop, checkpoint_minutes)


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
            scores = finished(job.score, state, architecture, batches)
            rows.append(report.candidate_row(job.config.space, group, architecture, scores))
            run.write_json(_CANDIDATES_FILE, rows)
            progress.update(len(rows), reward=rows[-1]["reward"])
    return rows


if __name__ == "__main__":
    cli.run(search)
