"""Pictures: cells as graphs, the course of a search, samples of candidates.

Every function returns a `matplotlib.figure.Figure` that no global state knows of, so it works
without a display and leaves nothing behind. Colours are Okabe and Ito's, which colour-blind
readers can tell apart.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Patch
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator
from scipy import stats

from ftnas_jax.space import CELL_TYPES, INPUT_NODES, Architecture, Cell, Space, target_node

_BLUE, _ORANGE, _GREEN, _SKY = "#0072B2", "#E69F00", "#009E73", "#56B4E9"
_VERMILLION, _PURPLE = "#D55E00", "#CC79A7"
_INK, _WIRE, _GREY, _PALE = "#1F2328", "#59636E", "#8C959F", "#D1D9E0"

_KINDS = {
    "conv": ("convolution", _SKY),
    "relu_conv": ("ReLU-convolution-BN", _BLUE),
    "sep_conv": ("separable", _GREEN),
    "dil_conv": ("dilated", _ORANGE),
    "pool": ("pooling", _PURPLE),
    "skip": ("skip", _WIRE),
    "none": ("none", _GREY),
}
"""Kind of operation → (name in the legend, colour)."""

_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "mathtext.fontset": "dejavusans",
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": _GREY,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "text.color": _INK,
    "xtick.color": _WIRE,
    "ytick.color": _WIRE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6EAEF",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "white",
    "figure.constrained_layout.h_pad": 0.09,
    "figure.constrained_layout.w_pad": 0.09,
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "ftnas_jax",
}

# Cells are drawn in inches, so that text keeps its size and its place.
_ROW = 0.34
_PILL_HEIGHT = 0.235
_RADIUS = 0.165
_LABEL_SIZE = 8.5


def save_figure(figure: Figure, path: str | os.PathLike, *, dpi: int = 200) -> list[Path]:
    """Write `path`.png and `path`.svg, and return their paths.

    The SVG of a figure is the same, byte for byte, whenever it is written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg")]
    with matplotlib.rc_context(_STYLE):
        figure.savefig(written[0], dpi=dpi)
        figure.savefig(written[1], metadata={"Date": None})
    return written


def draw_cells(space: Space, architecture: Architecture, *, title: str | None = None) -> Figure:
    """Both cells of an architecture as graphs that read from left to right.

    Nodes step down a staircase. A node hands its output down its own rail; a dot marks where a
    connection leaves the rail, and each connection has a row of its own, with its operation just
    before the node it feeds. So no line passes through a node or a label, and two connections
    between the same nodes stay apart. Every inner node goes into the concatenation `c_k`.

    Raises:
        ValueError: the architecture is not of this space.
    """
    space.check(architecture)
    with matplotlib.rc_context(_STYLE):
        layout = _Layout(space)
        head = 0.55 if title else 0.08
        foot = 0.42
        height = head + foot + len(CELL_TYPES) * layout.height
        figure = Figure(figsize=(layout.width, height))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, layout.width), ylim=(-height, 0))
        axes.set_axis_off()
        if title:
            axes.text(layout.margin, -0.3, title, size=13, weight="bold", va="center")
        for i, (name, cell) in enumerate(zip(CELL_TYPES, architecture, strict=True)):
            layout.draw(axes, f"{name} cell", cell, top=-head - i * layout.height)
        _draw_kinds(axes, space, architecture, at=(layout.width / 2, -height + foot / 2))
    return figure


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
                "faulty": ("weights/loss_faulty", _VERMILLION, "--"),
                "weighted": ("weights/loss", _INK, "-"),
                "clean": ("weights/loss_clean", _BLUE, "-"),
            },
        ),
        (
            "Reward of the controller",
            {
                "clean accuracy": ("controller/accuracy_clean", _BLUE, "-"),
                "reward": ("controller/reward", _INK, "-"),
                "faulty accuracy": ("controller/accuracy_faulty", _VERMILLION, "--"),
            },
        ),
        ("Entropy of the controller (nats)", {"": ("controller/entropy", _GREEN, "-")}),
    )
    with matplotlib.rc_context(_STYLE):
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
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8.5, 0.9 + 0.8 * max(len(samples), 1)), layout="constrained")
        axes = figure.subplots()
        colors = (_BLUE, _ORANGE, _GREEN, _PURPLE, _VERMILLION, _SKY)
        for row, values in enumerate(samples.values()):
            _draw_sample(axes, row, values, colors[row % len(colors)])
        axes.set(yticks=range(len(samples)), ylim=(len(samples) - 0.45, -0.55), xlabel=xlabel)
        axes.set_yticklabels(list(samples), color=_INK, size=10)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
    return figure


class _Layout:
    """Where the parts of a cell lie. Inches; x from the left, y down from the cell's top."""

    margin = 0.25

    def __init__(self, space: Space):
        self.space = space
        self.pill = max(_text_width(name) for name in space.primitives) + 0.24
        self.column = self.pill + 2 * _RADIUS + 0.44
        self.out_left = self.node_x(space.nodes - 1) + _RADIUS + 0.4
        self.width = self.out_left + 0.5 + self.margin
        self.title = 0.34
        self.height = self.title + (2 * space.inner_nodes + 2.35) * _ROW

    def node_x(self, node: int) -> float:
        if node < INPUT_NODES:
            return self.margin + 0.3 + 0.5 * node
        last_input = self.margin + 0.3 + 0.5 * (INPUT_NODES - 1)
        return last_input + (node - INPUT_NODES + 1) * self.column - 0.12

    def node_y(self, node: int) -> float:
        if node < INPUT_NODES:
            return self.title + (0.5 + node) * _ROW
        return (self.row_y(2 * (node - INPUT_NODES)) + self.row_y(2 * (node - INPUT_NODES) + 1)) / 2

    def row_y(self, connection: int) -> float:
        return self.title + (INPUT_NODES + 0.5 + connection) * _ROW

    def draw(self, axes: Axes, title: str, cell: Cell, *, top: float) -> None:
        axes.text(self.margin, top - 0.12, title, size=10, weight="bold", va="center")
        self._draw_rails(axes, cell, top)
        for place in range(len(cell)):
            self._draw_connection(axes, cell, place, top)
        self._draw_output(axes, top)
        for node in range(self.space.nodes):
            self._draw_node(axes, node, top)

    def _draw_rails(self, axes: Axes, cell: Cell, top: float) -> None:
        """From each node down to the last row that takes its output, faint where none uses it."""
        for node in range(self.space.nodes):
            rows = [place for place, connection in enumerate(cell) if connection.input == node]
            used = [place for place in rows if not self._is_none(cell, place)]
            x, start = self.node_x(node), top - self.node_y(node)
            for places, faint in ((used, False), (rows, True)):
                if places and (end := top - self.row_y(places[-1])) < start:
                    axes.plot((x, x), (start, end), zorder=1, **_wire(faint))
                    start = end

    def _draw_connection(self, axes: Axes, cell: Cell, place: int, top: float) -> None:
        source, op = cell[place]
        name = self.space.primitives[op]
        target = target_node(place)
        y, node_y = top - self.row_y(place), top - self.node_y(target)
        start, end = self.node_x(source), self.node_x(target)
        right = end - _RADIUS - 0.2
        none = self._is_none(cell, place)
        wire = _wire(none)
        # The white line beneath breaks the rails that this connection only crosses.
        axes.plot((start + 0.08, right - self.pill), (y, y), zorder=1.1, color="white", linewidth=5)
        axes.plot((start, right - self.pill), (y, y), zorder=1.2, **wire)
        dot = {"marker": "o", "markersize": 3.6, "color": wire["color"]}
        axes.plot([start], [y], zorder=0.9 if none else 2, **dot)
        # Into the node at an angle, so that its two arrows do not meet before it.
        slope = math.copysign(_RADIUS * 0.55, y - node_y)
        tip = (end - _RADIUS * 0.87, node_y + slope)
        axes.annotate("", tip, (right, y), arrowprops=_arrow(wire), zorder=2)
        _draw_pill(axes, name, (right - self.pill, y), self.pill)

    def _draw_output(self, axes: Axes, top: float) -> None:
        """Every inner node runs level into the bar that stands for the concatenation."""
        inner = range(INPUT_NODES, self.space.nodes)
        for node in inner:
            y = top - self.node_y(node)
            axes.annotate(
                "", (self.out_left, y), (self.node_x(node), y), arrowprops=_arrow(_wire()), zorder=1
            )
        low = top - self.node_y(inner[-1]) - _RADIUS - 0.04
        high = top - self.node_y(inner[0]) + _RADIUS + 0.04
        _draw_box(axes, (self.out_left, low), 0.44, high - low, face=_INK, edge=_INK)
        middle = (self.out_left + 0.22, (low + high) / 2)
        axes.text(*middle, "$c_k$", color="white", size=12, ha="center", va="center", zorder=4)

    def _draw_node(self, axes: Axes, node: int, top: float) -> None:
        x, y = self.node_x(node), top - self.node_y(node)
        if node < INPUT_NODES:
            text = ("$c_{k-2}$", "$c_{k-1}$")[node]
            _draw_box(axes, (x - 0.27, y - 0.14), 0.54, 0.28, face=_INK, edge=_INK)
            axes.text(x, y, text, color="white", size=10.5, ha="center", va="center", zorder=4)
            return
        _draw_box(
            axes, (x - _RADIUS, y - _RADIUS), 2 * _RADIUS, 2 * _RADIUS, face="white", edge=_INK
        )
        label = str(node - INPUT_NODES)
        axes.text(x, y, label, size=10, weight="bold", ha="center", va="center_baseline", zorder=4)

    def _is_none(self, cell: Cell, place: int) -> bool:
        return self.space.primitives[cell[place].op] == "none"


def _kind(primitive: str) -> str:
    """The key of `_KINDS` for a primitive."""
    if "pool" in primitive:
        return "pool"
    return max((k for k in _KINDS if primitive.startswith(k)), key=len, default="conv")


def _wire(faint: bool = False) -> dict[str, Any]:
    if faint:
        return {"color": _PALE, "linewidth": 1.0, "linestyle": (0, (3, 2))}
    return {"color": _WIRE, "linewidth": 1.2, "linestyle": "-", "solid_capstyle": "round"}


def _arrow(wire: Mapping[str, Any]) -> dict[str, Any]:
    style = {k: wire[k] for k in ("color", "linewidth", "linestyle")}
    return style | {
        "arrowstyle": "-|>,head_width=0.16,head_length=0.32",
        "shrinkA": 0,
        "shrinkB": 0,
    }


def _draw_pill(axes: Axes, name: str, left: tuple[float, float], width: float) -> None:
    color = _KINDS[_kind(name)][1]
    corner = (left[0], left[1] - _PILL_HEIGHT / 2)
    none = name == "none"
    _draw_box(
        axes,
        corner,
        width,
        _PILL_HEIGHT,
        face="white" if none else _tint(color),
        edge=color,
        linestyle="--" if none else "-",
    )
    axes.text(
        left[0] + width / 2,
        left[1],
        name,
        size=_LABEL_SIZE,
        color=_GREY if none else _INK,
        ha="center",
        va="center_baseline",
        zorder=4,
    )


def _draw_box(axes: Axes, corner, width, height, *, face, edge, linestyle="-") -> None:
    rounding = min(width, height) / 2 if height < 0.3 else 0.08
    axes.add_patch(
        FancyBboxPatch(
            corner,
            width,
            height,
            boxstyle=f"round,pad=0,rounding_size={rounding}",
            facecolor=face,
            edgecolor=edge,
            linewidth=1.3,
            linestyle=linestyle,
            zorder=3,
        )
    )


def _draw_kinds(axes: Axes, space: Space, architecture: Architecture, *, at) -> None:
    used = {_kind(space.primitives[c.op]) for cell in architecture for c in cell}
    handles = [
        Patch(
            facecolor="white" if kind == "none" else _tint(color),
            edgecolor=color,
            linestyle="--" if kind == "none" else "-",
            linewidth=1.3,
            label=name,
        )
        for kind, (name, color) in _KINDS.items()
        if kind in used
    ]
    axes.legend(
        handles=handles,
        loc="center",
        bbox_to_anchor=at,
        bbox_transform=axes.transData,
        ncols=len(handles),
        handlelength=1.4,
        handleheight=0.9,
        columnspacing=1.6,
    )


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
        margin = stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n)
        axes.plot((mean - margin, mean + margin), (row, row), color=_INK, linewidth=3)
        digits = max(0, 1 - math.floor(math.log10(margin))) if margin else 4
        text = f"{mean:.{digits}f} ± {margin:.{digits}f}  (n = {n})"
    axes.plot([mean], [row], marker="D", markersize=7, color=_INK, markeredgecolor="white")
    axes.annotate(
        text, (mean, row), (0, 17), textcoords="offset points", ha="center", color=_INK, size=9
    )


def _tint(color: str, share: float = 0.2) -> tuple[float, float, float]:
    """`share` of the colour on white."""
    red, green, blue = (1 - share * (1 - c) for c in to_rgb(color))
    return red, green, blue


def _text_width(text: str) -> float:
    """Inches that a label takes, by the font's own metrics."""
    return TextPath((0, 0), text, size=_LABEL_SIZE).get_extents().width / 72
