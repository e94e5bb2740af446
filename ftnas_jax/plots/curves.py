"""The course of a search or a training, and samples of candidates side by side."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import scipy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ftnas_jax.plots.style import BLUE, GREEN, INK, ORANGE, PURPLE, SKY, STYLE, VERMILLION


def draw_search(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Losses, rewards with the accuracies they are made of, and entropy, by epoch.

    Args:
        history: rows of a search's metrics.jsonl. A row without `epoch` is left out, and so is a
            series that no row has.
    """
    panels = (
        (
            "Loss of the shared weights",
            {
                "faulty": ("weights/loss_faulty", VERMILLION, "--"),
                "weighted": ("weights/loss", INK, "-"),
                "clean": ("weights/loss_clean", BLUE, "-"),
            },
        ),
        (
            "Reward of the controller",
            {
                "clean accuracy": ("controller/accuracy_clean", BLUE, "-"),
                "reward": ("controller/reward", INK, "-"),
                "faulty accuracy": ("controller/accuracy_faulty", VERMILLION, "--"),
            },
        ),
        ("Entropy of the controller (nats)", {"": ("controller/entropy", GREEN, "-")}),
    )
    return _draw_panels(history, panels)


def draw_training(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Losses, and accuracies on training and on test images, by epoch.

    Args:
        history: rows of a training's metrics.jsonl. A row without `epoch` is left out, and so is a
            series that no row has.
    """
    panels = (
        (
            "Loss",
            {
                "faulty": ("train/loss_faulty", VERMILLION, "--"),
                "weighted": ("train/loss", INK, "-"),
                "clean": ("train/loss_clean", BLUE, "-"),
            },
        ),
        *(
            (
                title,
                {
                    "clean": (f"{part}/accuracy_clean", BLUE, "-"),
                    "faulty": (f"{part}/accuracy_faulty", VERMILLION, "--"),
                },
            )
            for title, part in (("Accuracy while training", "train"), ("Test accuracy", "test"))
        ),
    )
    return _draw_panels(history, panels)


def _draw_panels(history, panels) -> Figure:
    """Panels side by side: a title, and series as {label: (key, colour, line)}."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.3), layout="constrained")
        for axes, (title, series) in zip(figure.subplots(1, len(panels)), panels, strict=True):
            axes.set(title=title, xlabel="epoch")
            for label, (key, color, line) in series.items():
                _draw_series(axes, history, key, label=label, color=color, linestyle=line)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            if np.ptp(axes.get_xlim()) < 1:  # a single epoch
                axes.set_xlim(np.mean(axes.get_xlim()) + np.asarray([-0.5, 0.5]))
            if axes.get_legend_handles_labels()[0]:
                axes.legend()
    return figure


def draw_candidates(rewards: Mapping[str, Iterable[float]], *, xlabel: str = "reward") -> Figure:
    """Samples of candidates side by side: every reward a dot, their mean with its 95 % interval.

    The interval is Student's t over the candidates; a single one has none.

    Args:
        rewards: name of the sample → its rewards, as in {"controller": [...], "random": [...]}.

    Raises:
        ValueError: a sample is empty.
    """
    samples = {name: np.asarray(list(values), float) for name, values in rewards.items()}
    for name, values in samples.items():
        if not values.size:
            raise ValueError(f"the sample {name!r} is empty; there is nothing to draw")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.5, 0.9 + 0.8 * max(len(samples), 1)), layout="constrained")
        axes = figure.subplots()
        colors = (BLUE, ORANGE, GREEN, PURPLE, VERMILLION, SKY)
        for row, values in enumerate(samples.values()):
            _draw_sample(axes, row, values, colors[row % len(colors)])
        axes.set(yticks=range(len(samples)), ylim=(len(samples) - 0.45, -0.55), xlabel=xlabel)
        axes.set_yticklabels(list(samples), color=INK, size=10)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
    return figure


def _draw_series(axes: Axes, history, key: str, **style) -> None:
    points = [(row["epoch"], row[key]) for row in history if "epoch" in row and key in row]
    if not points:
        return
    x, y = zip(*points, strict=True)
    axes.add_line(Line2D(x, y, marker="o" if len(x) <= 20 else "", markersize=4, **style))
    axes.autoscale_view()


def _draw_sample(axes: Axes, row: int, values: np.ndarray, color: str) -> None:
    n, mean = values.size, values.mean()
    jitter = np.random.default_rng(0).uniform(-0.14, 0.14, n)
    axes.scatter(values, row + jitter, s=18, color=color, alpha=0.5, linewidths=0)
    text = f"{mean:.4g}  (n = {n})"
    if n > 1:
        margin = scipy.stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n)
        axes.plot((mean - margin, mean + margin), (row, row), color=INK, linewidth=3)
        digits = max(0, 1 - math.floor(math.log10(margin))) if margin else 4
        text = f"{mean:.{digits}f} ± {margin:.{digits}f}  (n = {n})"
    axes.plot([mean], [row], marker="D", markersize=7, color=INK, markeredgecolor="white")
    axes.annotate(
        text, (mean, row), (0, 17), textcoords="offset points", ha="center", color=INK, size=9
    )
