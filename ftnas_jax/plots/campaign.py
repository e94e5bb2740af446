"""Accuracy under faults: curves over a rate or over time, and the chips behind a single point."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ftnas_jax.campaigns.outcome import Outcome, Report
from ftnas_jax.plots.style import GREY, INK, PALETTE, STYLE, scale_rates


def draw_curves(report: Report) -> Figure:
    """A panel for each sweep, a line for each network (as the paper's Fig. 9).

    A line is the mean over chips, the band around it its interval, every pale dot one chip, the
    thin line below the accuracy that the worst 5 % of chips have at most. The mark at the left
    edge is the accuracy without faults.

    Args:
        report: of a sweep of rates or times.

    Raises:
        ValueError: nothing was swept.
    """
    panels = _panels(report)
    if not panels:
        raise ValueError("nothing was swept; draw_chips shows a single point")
    colors = dict(zip(report.by_network(), PALETTE * len(report.outcomes), strict=False))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.2 + 4.6 * len(panels), 4.0), layout="constrained")
        drawn = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, networks) in zip(drawn, panels.items(), strict=True):
            for network, outcomes in networks.items():
                _draw_curve(axes, outcomes, colors[network], network)
            _label(axes, title, next(iter(networks.values())))
        drawn[0].set_ylabel("accuracy (%)")
        drawn[0].plot([], [], ":", color=INK, linewidth=1.0, label="worst 5 % of chips")
        drawn[0].legend(loc="lower left")
    return figure


def draw_chips(report: Report) -> Figure:
    """A row for each network and point: every chip a dot, their mean with its interval."""
    outcomes = report.outcomes
    several = len(report.by_network()) > 1
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.5, 1.0 + 0.75 * len(outcomes)), layout="constrained")
        axes = figure.subplots()
        for row, outcome in enumerate(outcomes):
            _draw_row(axes, row, outcome, PALETTE[row % len(PALETTE)])
        names = [f"{o.network}\n{o.point.label}" if several else o.point.label for o in outcomes]
        axes.set(yticks=range(len(outcomes)), ylim=(len(outcomes) - 0.4, -0.6))
        axes.set_yticklabels(names, color=INK)
        axes.set(xlabel="accuracy (%): chips, mean with interval, worst 5 % (tick), clean (bar)")
        axes.grid(visible=False, axis="y")
    return figure


def _panels(report: Report) -> dict[str, dict[str, list[Outcome]]]:
    """The sweep's name → network → its outcomes there, in the order of the rates or times."""
    panels: dict[str, dict[str, list[Outcome]]] = {}
    for outcome in report.outcomes:
        if outcome.point.sweep is not None:
            panels.setdefault(outcome.point.sweep, {}).setdefault(outcome.network, []).append(
                outcome
            )
    for networks in panels.values():
        for own in networks.values():
            own.sort(key=lambda outcome: _value(outcome) or 0)
    return panels


def _value(outcome: Outcome) -> float | None:
    return outcome.point.rate if outcome.point.time is None else outcome.point.time


def _draw_curve(axes: Axes, outcomes: Sequence[Outcome], color: str, name: str) -> None:
    x = np.array([_value(outcome) for outcome in outcomes], float)
    means = [outcome.accuracy for outcome in outcomes]
    worst = [100 * outcome.worst(0.05).estimate for outcome in outcomes]
    low, high = ([100 * getattr(m, end) for m in means] for end in ("low", "high"))
    axes.fill_between(x, low, high, color=color, alpha=0.25, linewidth=0)
    axes.plot(x, [100 * m.estimate for m in means], "o-", color=color, markersize=4, label=name)
    axes.plot(x, worst, ":", color=color, linewidth=1.0)
    for place, outcome in zip(x, outcomes, strict=True):
        own = 100 * outcome.accuracies
        axes.scatter(np.full(own.shape, place), own, s=5, color=color, alpha=0.2, linewidths=0)
    axes.annotate(
        "",
        xy=(0.0, 100 * outcomes[0].clean),
        xytext=(-8, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        arrowprops={"arrowstyle": "-", "color": color, "linewidth": 2.5},
        annotation_clip=False,
    )


def _label(axes: Axes, title: str, outcomes: Sequence[Outcome]) -> None:
    values = [value for outcome in outcomes if (value := _value(outcome)) is not None]
    axes.set(title=title, xlabel=outcomes[0].point.parameter, ylim=(0, 101))
    scale_rates(axes, values)


def _draw_row(axes: Axes, row: int, outcome: Outcome, color: str) -> None:
    values, mean = 100 * outcome.accuracies, outcome.accuracy
    jitter = np.random.default_rng(0).uniform(-0.14, 0.14, values.size)
    axes.scatter(values, row + jitter, s=16, color=color, alpha=0.45, linewidths=0)
    axes.plot([100 * mean.low, 100 * mean.high], [row, row], color=INK, linewidth=3)
    axes.plot([100 * mean.estimate], [row], "D", markersize=6, color=INK, markeredgecolor="white")
    worst, clean = 100 * outcome.worst(0.05).estimate, 100 * outcome.clean
    axes.plot([worst, worst], [row - 0.2, row + 0.2], color=color, linewidth=1.2)
    axes.plot([clean, clean], [row - 0.3, row + 0.3], color=GREY, linewidth=2.5)
