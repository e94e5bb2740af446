"""A table of the paper out of the runs that are there: Markdown, CSV and curves."""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from configs import paper_full
from experiments import trained
from experiments.paper.runs import Plan, search_of
from experiments.paper.tables import Row, Sweep, Table
from ftnas_jax.campaigns import statistics
from ftnas_jax.campaigns.outcome import write_rows
from ftnas_jax.costs import Costs, costs_at
from ftnas_jax.errors import InputError, as_input_error
from ftnas_jax.models import by_name
from ftnas_jax.plots.style import PALETTE, STYLE, save_figure, scale_rates
from ftnas_jax.run import read_json

_CIFAR10 = {"image_shape": (32, 32, 3), "num_classes": 10}
"""What networks are taken to be for while no training has said."""


class Cell(NamedTuple):
    """What was measured of a row at a rate, as shares from 0 to 1; NaN where nothing was.

    Attributes:
        estimate: mean over trainings of the mean over chips.
        low: of its 95 % interval: over trainings where there are several, else over chips.
        high: likewise.
        clean: mean accuracy without faults, on the same images.
        chips: of each training.
        trainings: how many there are.
    """

    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    clean: float = math.nan
    chips: int = 0
    trainings: int = 0


def write(table: Table, plan: Plan) -> str:
    """Write a table of what is there; returns its text.

    Raises:
        InputError: it would mix trainings on different data.
    """
    _check_data(table, plan)
    if not table.sweeps:
        text = _weights(table, plan)
    else:
        cells = {
            (row, sweep): _cells(plan, row, sweep) for row in table.rows for sweep in table.sweeps
        }
        costs = {row: _costs(plan, row) for row in table.rows}
        write_rows(plan.folder / f"table-{table.name}.csv", _csv(table, plan, cells, costs))
        text = _markdown(table, plan, cells, costs)
        there = any(cell.trainings for own in cells.values() for cell in own)
        if there and any(len(sweep.shown) > 2 for sweep in table.sweeps):
            save_figure(_draw(table, cells), plan.folder / f"table-{table.name}")
            text += f"\n![Accuracy over the rate](table-{table.name}.png)\n"
    (plan.folder / f"table-{table.name}.md").write_text(text, encoding="utf-8")
    return text


# What is there


def _check_data(table: Table, plan: Plan) -> None:
    """Refuse trainings on different data, as other machines may have them under the same name."""
    seen: dict[str, str] = {}
    for row in table.rows:
        for seed in range(plan.scale["seeds"]):
            run = plan.training(row, seed)
            if run.is_done(plan.folder):
                data = read_json(plan.folder / run.name / trained.DATA)
                seen.setdefault(data["sha256"], run.name)
    if len(seen) > 1:
        raise InputError(
            f"{' and '.join(seen.values())} in {plan.folder} were trained on different data; "
            "collect them in folders of their own"
        )


def _cells(plan: Plan, row: Row, sweep: Sweep) -> list[Cell]:
    """One for each rate."""
    found: dict[float, list[dict[str, str]]] = {rate: [] for rate in sweep.shown}
    for seed in range(plan.scale["seeds"]):
        campaign = plan.campaign(row, sweep, seed)
        if not campaign.is_done(plan.folder):
            continue
        for own in _read_csv(plan.folder / campaign.name / "summary.csv"):
            for rate in sweep.shown:
                if own["rate"] and math.isclose(float(own["rate"]), rate, rel_tol=1e-5):
                    found[rate].append(own)
    return [_cell(found[rate]) for rate in sweep.shown]


def _read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _cell(rows: Sequence[dict[str, str]]) -> Cell:
    """Of the campaigns of one or more trainings."""
    if not rows:
        return Cell()
    columns = ("accuracy", "accuracy_low", "accuracy_high", "clean")
    values = np.array([[float(row[name]) for name in columns] for row in rows])
    estimate, low, high, clean = values.mean(0)
    if len(rows) > 1:
        interval = statistics.mean(values[:, 0])
        low, high = interval.low, interval.high
    return Cell(estimate, low, high, clean, int(rows[0]["chips"]), len(rows))


def _costs(plan: Plan, row: Row) -> Costs | None:
    """None while the row's architecture is not found yet."""
    search = search_of(row.network)
    if search and not Path(plan.genotype_of(search, str(plan.folder))).expanduser().exists():
        return None
    data = read_json(plan.folder / plan.training(row, 0).name / trained.DATA) or _CIFAR10
    with as_input_error():
        network = by_name(plan.network(row.network), data["num_classes"])
        return costs_at(network, tuple(data["image_shape"]))


def _trained_under(plan: Plan, row: Row) -> str:
    """As in the paper's column Training."""
    if row.recipe == "clean":
        return "clean"
    if row.recipe == "adsaf":
        return "p=0.08"
    if row.recipe != "mibb":
        return f"p_m={row.recipe.removeprefix('mibb_')}"
    tried = plan.scale["p_m"]
    if "," not in tried:
        return f"p_m={tried}"
    kept = (_kept(plan, row, seed) for seed in range(plan.scale["seeds"]))
    return f"p_m={' or '.join(sorted({rate for rate in kept if rate})) or '?'}"


def _kept(plan: Plan, row: Row, seed: int) -> str | None:
    """The rate that the rule kept; None before the training has ended."""
    run = plan.training(row, seed)
    if not run.is_done(plan.folder):
        return None
    last = (plan.folder / run.name / "metrics.jsonl").read_text().splitlines()[-1]
    return f"{json.loads(last)['train/rate']:g}"


# As text


def _markdown(table: Table, plan: Plan, cells, costs: Mapping[Row, Costs | None]) -> str:
    columns = [
        f"{sweep.short} {rate:g}" if len(table.sweeps) > 1 else f"{rate:g}"
        for sweep in table.sweeps
        for rate in sweep.shown
    ]
    head = ["architecture", "trained", "", "clean", *columns, "MFLOPs", "Mparameters"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in table.rows:
        own = [cell for sweep in table.sweeps for cell in cells[row, sweep]]
        ours = [_number(own[0].clean), *map(_with_interval, own), *_millions(costs[row])]
        theirs = list(row.faulty) + [None] * (len(own) - len(row.faulty))
        paper = [row.clean, *theirs, row.flops, row.parameters]
        lines.append(f"| {row.label} | {_trained_under(plan, row)} | here | {' | '.join(ours)} |")
        lines.append(f"| | | paper | {' | '.join('-' if p is None else f'{p:g}' for p in paper)} |")
    return "\n".join([f"# {table.title}", "", *lines, "", *_remarks(table, plan, cells), ""])


def _remarks(table: Table, plan: Plan, cells) -> list[str]:
    there = [cell for own in cells.values() for cell in own if cell.trainings]
    scale = plan.scale
    images = scale["images"] or "all"
    wanted = scale["seeds"] * sum(map(len, cells.values()))
    missing = wanted - sum(cell.trainings for cell in there)
    lines = [
        f"Accuracy in percent, columns of {' and '.join(s.title for s in table.sweeps)}. Here: "
        f"trainings of {scale['epochs']} epochs, {_alternatives(c.trainings for c in there)} of "
        f"each network; baselines at {scale['width']:g} of their channels, cells of "
        f"{scale['channels']} channels; means over {_alternatives(c.chips for c in there)} chips "
        f"on {images} test images, with 95 % intervals over {_over(there)}, on "
        f"{scale['data']['name']}.",
        *_choices(scale),
    ]
    if table.remark:
        lines += ["", table.remark]
    searches = dict.fromkeys(search_of(row.network) for row in table.rows)
    elsewhere = [f"{name} is in {plan.found[name]}" for name in searches if name in plan.found]
    if elsewhere:
        lines += ["", f"What another search found in place of {', '.join(elsewhere)}."]
    if missing:
        lines += ["", f"{missing} of {wanted} accuracies are not there yet."]
    return lines


def _alternatives(numbers: Iterable[int]) -> str:
    return " or ".join(map(str, sorted(set(numbers)))) or "no"


def _over(cells: Sequence[Cell]) -> str:
    """What the intervals are over, as `_cell` takes them."""
    several = {cell.trainings > 1 for cell in cells}
    if several == {True, False}:
        return "trainings, of a single one over chips"
    return "trainings" if several == {True} else "chips"


def _choices(scale: Mapping[str, Any]) -> list[str]:
    """What the scale chooses otherwise than the paper."""
    said = {
        "norm_passes": "running statistics of BatchNorm average {} passes",
        "fraction_lengths": "in trainings fraction lengths of faulty passes are those of {} ones",
        "calibrate": "in campaigns fraction lengths are frozen by {} images",
        "recalibrate": "every chip takes statistics of BatchNorm anew by {} images",
    }
    usual = paper_full.get_config()
    others = [text.format(scale[name]) for name, text in said.items() if scale[name] != usual[name]]
    return ["", f"Other than in the paper, {'; '.join(others)}."] if others else []


def _millions(costs: Costs | None) -> tuple[str, str]:
    """FLOPs and parameters."""
    if costs is None:
        return "-", "-"
    return f"{costs.flops / 1e6:.1f}", f"{costs.parameters / 1e6:.3f}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _with_interval(cell: Cell) -> str:
    if math.isnan(cell.estimate):
        return "-"
    return f"{100 * cell.estimate:.1f} ± {50 * (cell.high - cell.low):.1f}"


def _csv(
    table: Table, plan: Plan, cells, costs: Mapping[Row, Costs | None]
) -> list[dict[str, Any]]:
    rows = []
    for row in table.rows:
        own, paper = costs[row], iter(row.faulty)
        for sweep in table.sweeps:
            for rate, cell in zip(sweep.shown, cells[row, sweep], strict=True):
                rows.append(
                    {
                        "architecture": row.label,
                        "trained": _trained_under(plan, row),
                        "faults": sweep.faults,
                        "rate": rate,
                        **{k: "" if v != v else v for k, v in cell._asdict().items()},
                        "paper": _share(next(paper, None)),
                        "paper_clean": _share(row.clean),
                        "flops": own and own.flops,
                        "parameters": own and own.parameters,
                    }
                )
    return rows


def _share(percent: float | None) -> float | None:
    return None if percent is None else round(percent / 100, 4)


# As a picture


def _draw(table: Table, cells) -> Figure:
    """A panel for each sweep, a line with its interval for each row, the paper's dashed.

    An architecture has one colour; hollow squares are trained without faults.
    """
    colors = dict(zip(dict.fromkeys(row.label for row in table.rows), PALETTE * 2, strict=False))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.6 + 4.2 * len(table.sweeps), 4.4), layout="constrained")
        panels = figure.subplots(1, len(table.sweeps), sharey=True, squeeze=False)[0]
        done = 0
        for axes, sweep in zip(panels, table.sweeps, strict=True):
            for row in table.rows:
                color, clean = colors[row.label], row.recipe == "clean"
                values = 100 * np.array([cell[:3] for cell in cells[row, sweep]])
                mark = {"marker": "s", "markerfacecolor": "white"} if clean else {"marker": "o"}
                label = row.label if clean else f"{row.label}, FTT"
                axes.plot(sweep.shown, values[:, 0], label=label, color=color, markersize=5, **mark)
                axes.fill_between(
                    sweep.shown, values[:, 1], values[:, 2], color=color, alpha=0.2, linewidth=0
                )
                paper = row.faulty[done : done + len(sweep.shown)]
                if len(paper) == len(sweep.shown) and None not in paper:
                    axes.plot(sweep.shown, paper, "--", color=color, linewidth=0.9, alpha=0.7)
            scale_rates(axes, sweep.shown)
            axes.set(title=sweep.title, xlabel="rate", ylim=(0, 101))
            done += len(sweep.shown)
        panels[0].set_ylabel("accuracy (%)")
        panels[-1].plot([], [], "--", color="grey", linewidth=0.9, label="paper")
        figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside right upper")
    return figure


# Magnitudes of weights

_KINDS = ("Conv 3x3", "Conv 1x1", "DepthwiseConv 3x3")


def _weights(table: Table, plan: Plan) -> str:
    """|w| of the kernels of random blocks, by kind, before their training and behind it."""
    run = plan.training(table.rows[0], 0)
    head = "| kernels | weights | mean magnitude | standard deviation | both before the training |"
    lines = [head, "|---|---|---|---|---|"]
    if run.is_done(plan.folder):
        network = trained.load(plan.folder / run.name)
        first = _magnitudes(network.initial_variables()["params"])
        for kind, w in _magnitudes(network.variables["params"]).items():
            before = f"{first[kind].mean():.4f}, {first[kind].std():.4f}"
            lines.append(f"| {kind} | {w.size:,} | {w.mean():.4f} | {w.std():.4f} | {before} |")
    how = f"After {plan.scale['epochs']} epochs, {plan.scale['channels']} channels."
    return "\n".join([f"# {table.title}", "", *lines, "", how, "", table.remark, ""])


def _magnitudes(params: Any) -> dict[str, np.ndarray]:
    found: dict[str, list[np.ndarray]] = {kind: [] for kind in _KINDS}
    for block, layers in params.items():
        if not block.startswith("block"):
            continue
        for layer, fields in layers.items():
            if "kernel" in fields:
                kernel = np.abs(np.asarray(fields["kernel"])).ravel()
                found[_kind(layer, fields["kernel"].shape)].append(kernel)
    return {kind: np.concatenate(own) for kind, own in found.items()}


def _kind(layer: str, shape: tuple[int, ...]) -> str:
    if layer.startswith("depthwise"):
        return _KINDS[2]
    return _KINDS[1] if shape[0] == 1 else _KINDS[0]
