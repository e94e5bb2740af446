"""What a finished search leaves behind for its reader: genotype, pictures, README.md."""

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from experiments.durations import duration
from ftnas_jax import machine, plots
from ftnas_jax.equivalence import canonical, cells_in_use, unused_types
from ftnas_jax.models.cells import FOUND_WITH
from ftnas_jax.run import RunDir
from ftnas_jax.search import Scores, Search
from ftnas_jax.search_config import SearchConfig
from ftnas_jax.space import CELL_TYPES, Architecture, Space

CONFIDENCE = 0.95

GROUPS = ("controller", "random", "given")
"""Where candidates come from; `given` ones are the user's, of `candidates.genotypes`."""


def candidate_row(space: Space, group: str, architecture: np.ndarray, scores: Scores) -> dict:
    """One row of candidates.json; `group` is one of `GROUPS`."""
    return {
        "group": group,
        "genotype": space.format(Architecture.from_array(architecture)),
        **{name: float(value) for name, value in scores._asdict().items()},
    }


def write(run: RunDir, config: Mapping[str, Any], job: Search, candidates: list[dict]) -> None:
    """Write genotype.json, the pictures and README.md of a finished search."""
    settings = job.config
    ranked = rank(settings, candidates)[: config["candidates"]["top"]]
    best = settings.space.parse(ranked[0]["genotype"])
    genotypes = {
        "best": ranked[0] | {"aw_nas": settings.space.format(best, style="aw_nas")},
        "top": ranked,
        "network": {name: getattr(settings.network, name) for name in FOUND_WITH},
    }
    run.write_json("genotype.json", genotypes)
    path = run.path
    history = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    title = f"{path.name}: reward {ranked[0]['reward']:.3f}"
    unused = unused_types(settings.network, settings.space, best)
    cells = plots.draw_cells(settings.space, best, title=title, unused=unused)
    plots.save_figure(cells, path / "cells")
    plots.save_figure(plots.draw_search(history), path / "search")
    rewards = {group: rewards_of(candidates, group) for group in GROUPS}
    rewards = {group: values for group, values in rewards.items() if len(values)}
    plots.save_figure(plots.draw_candidates(rewards), path / "candidates")
    seconds = _seconds(path / "timing.jsonl")
    time = f"{duration(seconds)} of training on {machine.describe(job.mesh.devices)}"
    text = _readme(path, config, settings, candidates, ranked, history, time)
    run.write_text("README.md", text)


def rank(settings: SearchConfig, candidates: list[dict]) -> list[dict]:
    """The controller's candidates, best reward first, each network once; equals stay in order.

    Of several that make one network, as `equivalence.canonical` tells, the first counts.
    """
    distinct: dict[Architecture, dict] = {}
    for row in candidates:
        if row["group"] == "controller":
            architecture = settings.space.parse(row["genotype"])
            distinct.setdefault(canonical(settings.network, settings.space, architecture), row)
    return sorted(distinct.values(), key=lambda row: -row["reward"])


def rewards_of(candidates: list[dict], group: str) -> np.ndarray:
    """Rewards of one group, float64 [n]."""
    return np.array([row["reward"] for row in candidates if row["group"] == group])


def difference(candidates: list[dict]) -> tuple[float, float, float] | None:
    """Mean reward of the controller's candidates minus that of random ones, with its interval.

    Welch's t-interval over architectures; None where a group has fewer than two.
    """
    ours, random = (rewards_of(candidates, group) for group in ("controller", "random"))
    if min(len(ours), len(random)) < 2:
        return None
    low, high = scipy.stats.ttest_ind(ours, random, equal_var=False).confidence_interval(CONFIDENCE)
    return ours.mean() - random.mean(), low, high


def _seconds(path: Path) -> float:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return sum(row["seconds"] for row in rows)


def _readme(path, config, settings: SearchConfig, candidates, ranked, history, time: str) -> str:
    best = ranked[0]
    return "\n".join(
        [
            f"# Search {path.name}",
            "",
            *_what_it_was(config, settings, history, time),
            "",
            "## What it found",
            "",
            "```",
            best["genotype"].replace("], reduction", "],\nreduction"),
            "```",
            "",
            *idle_cells(settings, best["genotype"]),
            "![The normal and the reduction cell](cells.png)",
            "",
            *_score_table(ranked, config, settings),
            "",
            "## Did the controller learn?",
            "",
            *_comparison(candidates),
            "",
            "![Rewards of the candidates](candidates.png)",
            "",
            "![Losses, rewards and entropy by epoch](search.png)",
            "",
            *_FILES,
            "",
        ]
    )


def _what_it_was(config, settings: SearchConfig, history, time: str) -> list[str]:
    network, quantization = config["network"], config["quantization"]
    space = settings.space
    method = "FTT-NAS" if settings.alpha_l > 0 else "FT-NAS"
    return [
        f"{method} on {config['data']['name']} under `{config['faults']}`, "
        f"{_epochs(len(history))} of batches of {settings.batch_size}, seed {settings.seed}.",
        "",
        "```",
        f"python -m experiments.search {shlex.join(sys.argv[1:])}",
        "```",
        "",
        f"- network: {network['cells']} cells, reductions at {list(network['reductions'])}, "
        f"{network['channels']} channels, preprocessing {network['preprocess']}",
        f"- space: {space.nodes} nodes a cell, {len(space.primitives)} operations, "
        f"{space.size():.1e} architectures",
        f"- loss: {1 - settings.alpha_l:g} clean + {settings.alpha_l:g} faulty; "
        f"reward: {1 - settings.alpha_r:g} clean + {settings.alpha_r:g} faulty",
        f"- fixed point: weights of {quantization['weight_bits']} bits in "
        f"{quantization['weight_encoding']}, features of {quantization['feature_bits']} bits",
        f"- time: {time}",
        "",
        "Every field is in [config.json](config.json).",
    ]


def idle_cells(settings: SearchConfig, genotype: str) -> list[str]:
    """Which cells the logits do not depend on, if any."""
    used = cells_in_use(settings.network, settings.space, settings.space.parse(genotype))
    idle = [
        f"{place} ({CELL_TYPES[place in settings.network.reductions]})"
        for place in range(settings.network.cells)
        if place not in used
    ]
    if not idle:
        return []
    cells = f"cell{'s' if len(idle) > 1 else ''} {', '.join(idle)}"
    return [
        f"Logits do not depend on {cells}, counted from 0: no cell that they depend on reads its "
        "output.",
        "",
    ]


def _epochs(count: int) -> str:
    return f"{count} epoch" + ("s" if count != 1 else "")


def _score_table(ranked, config, settings: SearchConfig) -> list[str]:
    images = config["candidates"]["batches"] * settings.batch_size
    rows = [
        f"| {place} | {row['reward']:.3f} | {row['accuracy_clean']:.3f} "
        f"| {row['accuracy_faulty']:.3f} |"
        for place, row in enumerate(ranked, 1)
    ]
    return [
        f"With the shared weights, on at most {images} held-out images that every candidate sees, "
        "one fault map a batch:",
        "",
        "| rank | reward | clean accuracy | faulty accuracy |",
        "|---|---|---|---|",
        *rows,
        "",
        "The first row is the best of several on the same images, so it flatters; an architecture "
        "is judged by training it from scratch.",
    ]


def _comparison(candidates: list[dict]) -> list[str]:
    lines = [
        "| architectures | n | mean reward | standard deviation | best |",
        "|---|---|---|---|---|",
    ]
    for group in GROUPS:
        values = rewards_of(candidates, group)
        if len(values):
            deviation = f"{values.std(ddof=1):.3f}" if len(values) > 1 else "-"
            lines.append(
                f"| {group} | {len(values)} | {values.mean():.3f} | {deviation} "
                f"| {values.max():.3f} |"
            )
    result = difference(candidates)
    if result is not None:
        mean, low, high = result
        lines += [
            "",
            f"Controller minus random: {mean:+.3f}, {CONFIDENCE:.0%} interval "
            f"[{low:+.3f}, {high:+.3f}] over architectures (Welch), same weights, images and "
            "draws of faults.",
        ]
    return lines


_FILES = [
    "## Files",
    "",
    "| file | what is in it |",
    "|---|---|",
    "| config.json | every setting |",
    "| genotype.json | the best architectures, their scores, the preprocessing of cells |",
    "| candidates.json | all scored architectures |",
    "| draws.json | by which version of the sampler faults are drawn |",
    "| metrics.jsonl | means over each epoch |",
    "| timing.jsonl | seconds up to each checkpoint |",
    "| tensorboard/ | the metrics, as events |",
    "| checkpoints/ | the newest states |",
]
