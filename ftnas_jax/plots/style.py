"""What all pictures share: colours, type, files.

Colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

BLUE, ORANGE, GREEN, SKY = "#0072B2", "#E69F00", "#009E73", "#56B4E9"
VERMILLION, PURPLE = "#D55E00", "#CC79A7"
INK, WIRE, GREY, PALE = "#1F2328", "#59636E", "#8C959F", "#D1D9E0"

_LOG_SPAN = 20
"""Largest over smallest value from which an axis is logarithmic."""

PALETTE = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY)
"""Of lines side by side."""

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "mathtext.fontset": "dejavusans",
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": WIRE,
    "ytick.color": WIRE,
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


def scale_rates(axes: Axes, values: Sequence[float]) -> None:
    """An x axis of rates or times, logarithmic where they span a wide range."""
    if min(values) > 0 and max(values) / min(values) >= _LOG_SPAN:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))


def save_figure(figure: Figure, path: str | os.PathLike, *, dpi: int = 200) -> list[Path]:
    """Write `path`.png and `path`.svg, and return their paths.

    The SVG of a figure is the same, byte for byte, whenever it is written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg")]
    with matplotlib.rc_context(STYLE):
        figure.savefig(written[0], dpi=dpi)
        figure.savefig(written[1], metadata={"Date": None})
    return written
