"""Asked and realised rates of faults, and the codes that they hit, tensor by tensor."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ftnas_jax.graph.exposure import ExposureRow
from ftnas_jax.plots.style import BLUE, GREEN, GREY, ORANGE, PURPLE, STYLE, VERMILLION


def draw_exposure(rows: Sequence[ExposureRow]) -> Figure:
    """Two panels side by side, with a line for each row of an exposure table.

    Left: the asked rate as a bar across, the realised one as a dot with its 95 % interval, coloured
    by fault model. Right: the range of codes that were hit, and of what became of them.
    """
    models = list(dict.fromkeys(row.faults for row in rows))
    colors = dict(
        zip(models, [BLUE, VERMILLION, GREEN, ORANGE, PURPLE] * len(models), strict=False)
    )
    places = np.arange(len(rows))[::-1]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.5, 1.4 + 0.24 * len(rows)), layout="constrained")
        rates, codes = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        for place, row in zip(places, rows, strict=True):
            color = colors[row.faults]
            rates.plot([row.asked] * 2, [place - 0.35, place + 0.35], color=GREY, zorder=1)
            if row.hits:
                rates.plot([max(row.low, 1e-12), row.high], [place] * 2, color=color)
                rates.plot(row.realised, place, "o", markersize=4, color=color)
            for pair, shift, alpha in ((row.before, 0.14, 0.45), (row.after, -0.14, 1.0)):
                if pair is not None:
                    line = [place + shift] * 2
                    codes.plot(pair, line, color=color, alpha=alpha, linewidth=3)
        rates.set_yticks(places, [row.tensor for row in rows])
        rates.set(title="Rate of hit elements", xlabel="asked (grey), realised with interval")
        if any(row.hits for row in rows):
            rates.set_xscale("log")
        codes.set(title="Codes hit", xlabel="sound (pale), faulty")
        for model in models:
            rates.plot([], [], "o-", markersize=4, color=colors[model], label=model)
        figure.legend(loc="outside upper left", ncols=1)
    return figure
