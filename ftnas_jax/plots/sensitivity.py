"""What faults cost by group of layers and by bit: a heat map."""

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from ftnas_jax.campaigns.outcome import Outcome, Report
from ftnas_jax.plots.style import INK, STYLE, VERMILLION

_COLORS = LinearSegmentedColormap.from_list("cost", ["#FFFFFF", "#F2C9AE", VERMILLION, "#7A3200"])
_NUMBERS_UP_TO = 16
"""Columns up to which every cell shows its number."""


def draw_sensitivity(report: Report) -> Figure:
    """Points of accuracy that each group costs: a row for each, a column for each bit.

    Cells of a network whose groups are edges, as in `cell3/edge0-2/*`, have a row for each cell and
    a column for each edge. The number behind ± is half the width of the interval over chips, shown
    where there is one column only.

    Args:
        report: of `ftnas_jax.campaigns.sensitivity.sensitivity`, of one network.

    Raises:
        ValueError: no point names a group or a bit.
    """
    places = {_place(outcome): outcome for outcome in report.outcomes}
    if None in places or not places:
        raise ValueError("no groups of layers or bits; ask sensitivity for the report")
    rows = list(dict.fromkeys(place[0] for place in places if place))
    columns = list(dict.fromkeys(place[1] for place in places if place))
    costs = np.full((len(rows), len(columns)), np.nan)
    for place, outcome in places.items():
        assert place is not None
        costs[rows.index(place[0]), columns.index(place[1])] = _cost(outcome)
    with matplotlib.rc_context(STYLE):
        width, height = 2.8 + max(1.4, 0.55 * len(columns)), 1.2 + 0.26 * len(rows)
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        most = max(float(np.nanmax(costs)), 1e-9)
        image = axes.imshow(costs, cmap=_COLORS, vmin=0, vmax=most, aspect="auto")
        axes.set_yticks(range(len(rows)), rows)
        axes.set_xticks(range(len(columns)), columns, rotation=90 if len(columns) > 9 else 0)
        axes.grid(visible=False)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if len(columns) <= _NUMBERS_UP_TO:
            for place, outcome in places.items():
                assert place is not None
                row, column = rows.index(place[0]), columns.index(place[1])
                text = f"{round(_cost(outcome), 1) + 0.0:.1f}"  # no -0.0
                if len(columns) == 1:
                    text += f" ± {100 * outcome.accuracy.half_width:.1f}"
                color = "white" if _cost(outcome) > 0.6 * most else INK
                axes.text(column, row, text, ha="center", va="center", color=color, size=8)
        figure.colorbar(image, ax=axes, shrink=0.9).outline.set_visible(False)
        axes.set_title("Points of accuracy lost")
    return figure


def _place(outcome: Outcome) -> tuple[str, str] | None:
    """Row and column of a point."""
    group = getattr(outcome.point, "group", None)
    bit = getattr(outcome.point, "bit", None)
    if group is None and bit is None:
        return None
    name = (group or "all layers").removesuffix("/*")
    cell, slash, edge = name.rpartition("/")
    if bit is None and slash and edge.startswith("edge"):
        return cell, edge
    return name, "" if bit is None else f"bit {bit}"


def _cost(outcome: Outcome) -> float:
    """In points of accuracy; what noise makes of nothing may be below 0."""
    return 100 * (outcome.clean - outcome.accuracy.estimate)
