"""The cells of an architecture, drawn as graphs."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch
from matplotlib.textpath import TextPath

from ftnas_jax.plots.style import BLUE, GREEN, GREY, INK, ORANGE, PALE, PURPLE, SKY, STYLE, WIRE
from ftnas_jax.space import CELL_TYPES, INPUT_NODES, Architecture, Cell, Space, target_node

_KINDS = {
    "conv": ("convolution", SKY),
    "relu_conv": ("ReLU-convolution-BN", BLUE),
    "sep_conv": ("separable", GREEN),
    "dil_conv": ("dilated", ORANGE),
    "pool": ("pooling", PURPLE),
    "skip": ("skip", WIRE),
    "none": ("none", GREY),
}
"""Kind of operation → (name in the legend, colour)."""

# Cells are drawn in inches, so that text keeps its size and its place.
_ROW = 0.34
_PILL_HEIGHT = 0.235
_RADIUS = 0.165
_LABEL_SIZE = 8.5


def draw_cells(
    space: Space,
    architecture: Architecture,
    *,
    title: str | None = None,
    unused: Collection[str] = (),
) -> Figure:
    """Both cells of an architecture as graphs that read from left to right.

    Nodes step down a staircase. A node hands its output down its own rail; a dot marks where a
    connection leaves the rail, and each connection has a row of its own, with its operation just
    before the node it feeds. So no line passes through a node or a label, and two connections
    between the same nodes stay apart. Every inner node goes into the concatenation `c_k`. Nodes
    have their numbers of genotype text, in which the inputs `c_{k-2}` and `c_{k-1}` are 0 and 1.
    Cells that are `unused`, as `equivalence.unused_types` names them, say so.

    Raises:
        ValueError: the architecture is not of this space.
    """
    space.check(architecture)
    with matplotlib.rc_context(STYLE):
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
            heading = f"{name} cell" + (", not in use" if name in unused else "")
            layout.draw(axes, heading, cell, top=-head - i * layout.height)
        _draw_kinds(axes, space, architecture, at=(layout.width / 2, -height + foot / 2))
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
        _draw_box(axes, (self.out_left, low), 0.44, high - low, face=INK, edge=INK)
        middle = (self.out_left + 0.22, (low + high) / 2)
        axes.text(*middle, "$c_k$", color="white", size=12, ha="center", va="center", zorder=4)

    def _draw_node(self, axes: Axes, node: int, top: float) -> None:
        x, y = self.node_x(node), top - self.node_y(node)
        if node < INPUT_NODES:
            text = ("$c_{k-2}$", "$c_{k-1}$")[node]
            _draw_box(axes, (x - 0.27, y - 0.14), 0.54, 0.28, face=INK, edge=INK)
            axes.text(x, y, text, color="white", size=10.5, ha="center", va="center", zorder=4)
            return
        _draw_box(
            axes, (x - _RADIUS, y - _RADIUS), 2 * _RADIUS, 2 * _RADIUS, face="white", edge=INK
        )
        axes.text(
            x, y, str(node), size=10, weight="bold", ha="center", va="center_baseline", zorder=4
        )

    def _is_none(self, cell: Cell, place: int) -> bool:
        return self.space.primitives[cell[place].op] == "none"


def _kind(primitive: str) -> str:
    """The key of `_KINDS` for a primitive."""
    if "pool" in primitive:
        return "pool"
    return max((k for k in _KINDS if primitive.startswith(k)), key=len, default="conv")


def _wire(faint: bool = False) -> dict[str, Any]:
    if faint:
        return {"color": PALE, "linewidth": 1.0, "linestyle": (0, (3, 2))}
    return {"color": WIRE, "linewidth": 1.2, "linestyle": "-", "solid_capstyle": "round"}


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
        color=GREY if none else INK,
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


def _tint(color: str, share: float = 0.2) -> tuple[float, float, float]:
    """`share` of the colour on white."""
    red, green, blue = (1 - share * (1 - c) for c in to_rgb(color))
    return red, green, blue


def _text_width(text: str) -> float:
    """Inches that a label takes, by the font's own metrics."""
    return TextPath((0, 0), text, size=_LABEL_SIZE).get_extents().width / 72
