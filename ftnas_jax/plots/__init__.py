"""Pictures: cells as graphs, the course of a search, samples of candidates, rates of faults,
accuracy under them.

Every function returns a `matplotlib.figure.Figure` that no global state knows of, so it works
without a display and leaves nothing behind.
"""

from ftnas_jax.plots.campaign import draw_chips, draw_curves
from ftnas_jax.plots.cells import draw_cells
from ftnas_jax.plots.curves import draw_candidates, draw_search
from ftnas_jax.plots.exposure import draw_exposure
from ftnas_jax.plots.sensitivity import draw_sensitivity
from ftnas_jax.plots.style import save_figure

__all__ = [
    "draw_candidates",
    "draw_cells",
    "draw_chips",
    "draw_curves",
    "draw_exposure",
    "draw_search",
    "draw_sensitivity",
    "save_figure",
]
