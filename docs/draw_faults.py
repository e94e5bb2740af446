"""Pictures of the fault models for faults.md: what is sampled beside what the equations say.

    python -m docs.draw_faults

Writes PNG files to docs/pictures/, or to the directory given. Seeds are fixed. Dots are sampled,
their bars 95 % Clopper-Pearson intervals; lines and crosses are theory.
"""

import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from scipy import stats

import ftnas_jax as ft
from ftnas_jax.faults import (
    BitBias,
    BitFlip,
    Drift,
    LogNormal,
    MiBB,
    Place,
    ReciprocalNormal,
    StuckBits,
)
from ftnas_jax.nn.hardware import draw_maps, exposures_at
from ftnas_jax.plots.style import BLUE, GREEN, GREY, INK, ORANGE, PALE, STYLE, VERMILLION

TWOS, SIGNED = ft.FixedPoint(8, "twos_complement"), ft.FixedPoint(8, "sign_magnitude")
TOP = 127
COUNT, MANY = 2**18, 2**20
P0, P1 = 0.067, 0.013
MACS = np.array([1, 4, 9, 36, 144, 288, 576, 1152, 2304, 4608])
TIMES = np.array([1, 2, 4, 8, 16, 32])


def main(out: str = "docs/pictures") -> None:
    """Draw all pictures and print their paths."""
    Path(out).mkdir(parents=True, exist_ok=True)
    for draw in PICTURES:
        with matplotlib.rc_context(STYLE):
            figure = draw()
            path = Path(out) / f"{draw.__name__.removeprefix('draw_')}.png"
            figure.savefig(path, dpi=130, metadata={"Software": None})
        print(path)


def panels(*titles: str, height: float = 2.9) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each title."""
    figure = Figure(figsize=(9.2, height), layout="constrained")
    axes = list(figure.subplots(1, len(titles), squeeze=False)[0])
    for own, title in zip(axes, titles, strict=True):
        own.set_title(title)
    return figure, axes


def sample(model, count: int = COUNT, *, fmt=TWOS, macs: int = 1, seed: int = 0) -> np.ndarray:
    """One fault map [count]."""
    exposure = model.exposure(Place("layer", macs, count))
    return np.asarray(model.sample(jax.random.key(seed)[None], (count,), fmt, exposure)[0])


def hold(model, codes, fault_map, fmt=SIGNED) -> np.ndarray:
    """The codes with the faults of a map."""
    return np.asarray(model.apply(jnp.asarray(codes, jnp.int32), jnp.asarray(fault_map), fmt))


def draw_shares(axes: Axes, x, hits, count: int, *, color: str = BLUE, label="sampled") -> None:
    """Shares hits / count with their intervals."""
    found = [stats.binomtest(int(h), count).proportion_ci(0.95, "exact") for h in hits]
    shares = np.asarray(hits) / count
    errors = np.abs(np.array([(f.low, f.high) for f in found]).T - shares)
    axes.errorbar(x, shares, errors, fmt="o", ms=3.5, capsize=2, lw=1.2, color=color, label=label)


def draw_theory(axes: Axes, x, shares, *, label="theory") -> None:
    """Shares that an equation gives to single values."""
    axes.plot(x, shares, "x", ms=7, mew=1.2, color=INK, label=label)


def draw_mibb() -> Figure:
    """Biases are uniform over bits and signs; features are hit as the MACs behind them say."""
    figure, (left, right) = panels("The bias of a feature that is hit", "Features hit")
    found = sample(MiBB(0.2))
    values = np.array([*range(-8, 0), *range(1, 9)])
    hits = [np.sum(found == value) for value in values]
    draw_shares(left, np.arange(16), hits, int(np.sum(hits)))
    left.axhline(1 / 16, color=INK, lw=1, label="1/16")
    names = [f"{np.sign(value) * 2 ** (abs(value) - 1):+d}" for value in values]
    left.set_xticks(range(16), names, rotation=60, fontsize=7.5)
    left.set(xlabel="steps", ylabel="share", ylim=(0.055, 0.07))
    left.legend(loc="upper right")
    hits = [np.count_nonzero(sample(MiBB(1e-4), MANY, macs=m, seed=m)) for m in MACS]
    draw_shares(right, MACS, hits, MANY)
    right.plot(MACS, -np.expm1(MACS * np.log1p(-1e-4)), color=INK, lw=1, label="$1-(1-p_m)^{M_l}$")
    right.plot(MACS, MACS * 1e-4, "--", color=GREY, lw=1, label="$p_m M_l$ (form=linear)")
    right.set(xscale="log", yscale="log", xlabel="$M_l$, with $p_m = 10^{-4}$", ylabel="share")
    right.legend(loc="upper left")
    return figure


def exact_sum(bits: int, rate: float) -> np.ndarray:
    """Distribution of the sum of Eq. 7 over -(2^bits - 1) .. 2^bits - 1."""
    shares = np.ones(1)
    for bit in range(bits):
        one = np.zeros(2 * 2**bit + 1)
        one[[0, -1]], one[2**bit] = rate / 2, 1 - rate
        shares = np.convolve(shares, one)
    return shares


def draw_bit_bias() -> Figure:
    """The sum over all bits beside its exact distribution; hits beside those of MiBB."""
    figure, (left, right) = panels("Sum of biases, one bit in ten fails", "Features hit")
    found, exact = sample(BitBias(0.1)), exact_sum(8, 0.1)
    counts = np.bincount(found + 255, minlength=511)
    steps = np.arange(-255, 256)
    seen = counts > 0
    left.plot(steps, exact, color=INK, lw=0.6, label="theory")
    left.plot(steps[seen], counts[seen] / COUNT, ".", ms=3, color=BLUE, label="sampled")
    left.set(yscale="log", xlabel="steps", ylabel="share", ylim=(2e-6, 1))
    left.legend(loc="upper right")
    rate = 1e-5
    hits = [np.count_nonzero(sample(BitBias(rate), MANY, macs=m, seed=m)) for m in MACS]
    draw_shares(right, MACS, hits, MANY)
    label = "$1-(1-r_s)^{8 M_l}$"
    right.plot(MACS, -np.expm1(8 * MACS * np.log1p(-rate)), color=INK, lw=1, label=label)
    right.set(xscale="log", yscale="log", xlabel="$M_l$, with $r_s = 10^{-5}$", ylabel="share")
    right.legend(loc="upper left")
    return figure


def draw_bit_flip() -> Figure:
    """Every bit flips as often as the others, and on its own."""
    figure, (left, right) = panels("Flips of a bit", "Flips in a code")
    rate, words = 0.02, sample(BitFlip(0.02))
    flipped = (words[:, None] >> np.arange(8)) & 1
    draw_shares(left, np.arange(8), flipped.sum(0), COUNT)
    left.axhline(rate, color=INK, lw=1, label="$r_s$ = 0.02")
    left.set(xlabel="bit; 7 holds the sign", ylabel="share of codes", ylim=(0.018, 0.022))
    left.legend(loc="upper right")
    number = flipped.sum(1)
    x = np.arange(number.max() + 1)
    draw_theory(right, x, stats.binom.pmf(x, 8, rate), label="binomial")
    draw_shares(right, x, np.bincount(number), COUNT)
    right.set(yscale="log", xlabel="number of flips", ylabel="share of codes", xticks=x)
    right.legend(loc="upper right")
    return figure


STATES = ("sound", "SAF0", "SAF1")


def draw_stuck_at() -> Figure:
    """Codes asked for and held, of one cell and of a pair, and how often each state comes."""
    titles = ("cells=one", "cells=pair", "States of a pair (+, -)")
    figure, (one, pair, states) = panels(*titles, height=3.2)
    codes = np.repeat(np.arange(-TOP, TOP + 1, 2), 400)
    for axes, cells in ((one, "one"), (pair, "pair")):
        model = ft.faults.StuckAt(P0, P1, cells=cells)
        found = sample(model, codes.size)
        draw_transitions(axes, codes, hold(model, codes, found), changed=found != 0)
    one.legend(loc=(0.5, 0.16), markerscale=4, handletextpad=0, fontsize=7.5)
    found = sample(ft.faults.StuckAt(P0, P1, cells="pair"))
    rates = np.array([1 - P0 - P1, P0, P1])
    draw_theory(states, np.arange(9), np.outer(rates, rates).T.ravel())
    draw_shares(states, np.arange(9), np.bincount(found, minlength=9), COUNT)
    names = [f"{STATES[n % 3]}, {STATES[n // 3]}" for n in range(9)]
    states.set_xticks(range(9), names, rotation=60, ha="right", fontsize=7.5)
    states.set(yscale="log", ylabel="share of weights")
    states.legend(loc="upper right")
    return figure


def draw_transitions(axes: Axes, codes, held, *, changed) -> None:
    """Codes that are held against codes that were asked for."""
    axes.plot(codes[~changed], held[~changed], ".", ms=2, color=GREY, label="sound")
    axes.plot(codes[changed], held[changed], ".", ms=2, color=VERMILLION, label="a cell is stuck")
    axes.set(xlabel="code asked for", ylabel="code held")


def exact_stuck_bits(code: int, p0: float, p1: float) -> np.ndarray:
    """Distribution over 0 .. 127 of what a magnitude becomes by Eq. 10."""
    shares = np.ones(128)
    for bit in range(7):
        is_one = (np.arange(128) >> bit) & 1
        rate_of_one = 1 - p0 if (code >> bit) & 1 else p1
        shares *= np.where(is_one, rate_of_one, 1 - rate_of_one)
    return shares


def draw_stuck_bits() -> Figure:
    """How many bits of a magnitude are stuck, and what one magnitude becomes."""
    figure, (left, right) = panels("Stuck bits of a weight", "What 85 = 1010101 becomes")
    model = StuckBits(P0, P1)
    found = sample(model, fmt=SIGNED)
    number = ((found[:, None] >> np.arange(7)) & 1).sum(1)
    x = np.arange(number.max() + 1)
    draw_theory(left, x, stats.binom.pmf(x, 7, P0 + P1), label="binomial")
    draw_shares(left, x, np.bincount(number), COUNT)
    left.set(yscale="log", xlabel="stuck bits of 7", ylabel="share of weights", xticks=x)
    left.legend(loc="upper right")
    counts = np.bincount(hold(model, np.full(COUNT, 85), found), minlength=128)
    seen = counts > 0
    right.plot(np.arange(128), exact_stuck_bits(85, P0, P1), "_", ms=5, color=INK, label="theory")
    right.plot(np.flatnonzero(seen), counts[seen] / COUNT, ".", ms=4, color=BLUE, label="sampled")
    right.set(yscale="log", xlabel="magnitude held", ylabel="share of weights", ylim=(2e-6, 1.5))
    right.legend(loc="upper left")
    return figure


def draw_log_normal() -> Figure:
    """Factors beside the log-normal density."""
    return variation(LogNormal, lambda y, sigma: stats.lognorm.pdf(y, sigma))


def draw_reciprocal_normal() -> Figure:
    """Factors beside the density of the reciprocal of a normal number."""

    def density(y, sigma):
        return stats.norm.pdf((1 / y - 1) / sigma) / (sigma * y**2)

    return variation(ReciprocalNormal, density)


def variation(kind, density) -> Figure:
    """Densities of the factors of weights at two σ, and weights asked for and held at one."""
    figure, (left, right) = panels("Factor of a weight", "Weights at σ = 0.1")
    edges = np.linspace(0.3, 2.5, 89)
    y = np.linspace(0.3, 2.5, 500)
    for sigma, color in ((0.1, BLUE), (0.3, ORANGE)):
        model = kind(sigma)
        factors = hold(model, np.ones(COUNT), sample(model, fmt=SIGNED))
        shares = np.histogram(factors, edges)[0] / COUNT / np.diff(edges)
        left.stairs(
            shares, edges, fill=True, color=color, alpha=0.35, label=f"sampled, σ = {sigma}"
        )
        left.plot(y, density(y, sigma), color=color, lw=1.3)
    left.plot([], [], color=INK, lw=1.3, label="theory")
    left.set(xlabel="weight held / weight asked for", ylabel="density")
    left.legend(loc="upper right")
    model, codes = kind(0.1), np.repeat(np.arange(-TOP, TOP + 1, 2), 60)
    held = hold(model, codes, sample(model, codes.size, fmt=SIGNED))
    right.plot(codes, held, ".", ms=1.5, color=BLUE, alpha=0.4)
    right.plot((-TOP, TOP), (-TOP, TOP), color=INK, lw=1)
    right.set(xlabel="code asked for", ylabel="held, between the codes")
    return figure


def draw_drift() -> Figure:
    """Weights over time beside quantiles of the power law, and exponents beside the cut normal."""
    figure, (left, right) = panels("Weights of a chip over time", "Exponents of cells")
    model, times, x = Drift(), 10.0 ** np.arange(1, 9), np.geomspace(1, 1e8, 100)
    held = [
        hold(model, np.ones(COUNT), sample(model.at_time(t), fmt=SIGNED), SIGNED) for t in times
    ]
    cells = np.stack([np.ones(40), *(own[:40] for own in held)])
    left.plot([1, *times], cells, color=GREY, lw=0.5, alpha=0.5)
    for share, color in ((0.95, BLUE), (0.5, GREEN), (0.05, VERMILLION)):
        exponent = model.nu * (1 + model.spread * stats.norm.ppf(1 - share))
        left.plot(x, x**-exponent, color=color, lw=1)
        found = [np.quantile(own, share) for own in held]
        left.plot(times, found, "o", ms=3.5, color=color, label=f"{share:.0%} of cells lie below")
    left.plot([], [], color=INK, lw=1, label="$(t/t_0)^{-\\nu_i}$")
    left.set(xscale="log", xlabel="$t/t_0$", ylabel="weight held / weight asked for", ylim=(0.2, 1))
    left.legend(loc="lower left", fontsize=7.5)
    edges, y = np.linspace(0, 0.12, 61), np.linspace(0, 0.12, 400)
    for spread, color in ((0.16, BLUE), (0.5, ORANGE)):
        exponents = sample(Drift(spread=spread, time=np.e), fmt=SIGNED)
        shares = np.histogram(exponents[exponents > 0], edges)[0] / COUNT / np.diff(edges)
        label = f"sampled, spread = {spread}; {np.mean(exponents == 0):.1%} at 0"
        right.stairs(shares, edges, fill=True, color=color, alpha=0.35, label=label)
        right.plot(y, stats.norm.pdf(y, model.nu, spread * model.nu), color=color, lw=1.3)
    right.plot([], [], color=INK, lw=1.3, label="theory")
    right.set(xlabel="$\\nu_i$", ylabel="density", ylim=(0, 70))
    right.legend(loc="upper right", fontsize=7.5)
    return figure


def draw_defect_map() -> Figure:
    """The cells that a file asks for, and those that are found in the weights."""
    figure, (left, right) = panels("Stuck cells in the file", "Weights that changed", height=3.4)
    side = 24
    levels = np.full((side, side), -1)  # -1: sound
    levels[7], levels[:, 15] = 0, TOP
    places = np.random.default_rng(0).choice(side * side, 24, replace=False)
    levels.flat[places] = np.arange(24) * 5
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "chip.csv"
        rows = [f"dense,{p},{levels.flat[p]}" for p in np.flatnonzero(levels.ravel() >= 0)]
        file.write_text("layer,position,stuck_at\n" + "\n".join(rows) + "\n")
        hardware = ft.Hardware(faults=ft.faults.DefectMap(str(file)))
        # A weight of 127 makes the step 1; none of the levels above is 61, so that all show.
        parameters = {"dense": {"kernel": jnp.full((side, side), 61.0).at[0, 0].set(127.0)}}
        held = ft.hold(parameters, hardware, ft.Draw(jax.random.key(0)))["dense"]["kernel"]
    held = np.asarray(held)
    found = np.where(held == np.asarray(parameters["dense"]["kernel"]), -1, held)
    for axes, values in ((left, levels), (right, found)):
        shown = np.ma.masked_less(values, 0)
        image = axes.imshow(shown, cmap="viridis", vmin=0, vmax=TOP, interpolation="nearest")
        axes.set(xlabel="column", ylabel="row")
        axes.grid(visible=False)
    figure.colorbar(image, ax=[left, right], label="level, in codes")
    return figure


def draw_per() -> Figure:
    """Which of eight images, in two batches, have which faults, by when maps are drawn."""
    figure, axes = panels(*(f"per={per}" for per in ("image", "batch", "chip")), height=2.3)
    for own, per in zip(axes, ("image", "batch", "chip"), strict=True):
        hardware = ft.Hardware(faults=MiBB(0.08, per=per))
        exposures = exposures_at(hardware, "features", Place("layer", 1))
        maps = []
        for first in (0, 4):
            draw = ft.Draw(jax.random.key(3), first=first)
            drawn = draw_maps(hardware, "features", draw, (4, 40), exposures)
            maps.append(np.broadcast_to(np.asarray(drawn[0]) != 0, (4, 40)))
        own.imshow(np.concatenate(maps), cmap=ListedColormap(["white", VERMILLION]), aspect="auto")
        own.axhline(3.5, color=INK, lw=1)
        own.set(xlabel="feature", ylabel="image", yticks=range(8))
        own.grid(visible=False)
    return figure


def draw_accumulated() -> Figure:
    """Faulty cells by M_p beside 1 - (1 - p)^M_p, and when each cell of one chip failed."""
    figure, (left, right) = panels(
        "Faulty cells of a chip", "Since when a cell is stuck", height=3.2
    )
    models = {"stuck_at": (ft.faults.StuckAt, 0.02, BLUE), "bit_flip": (BitFlip, 2e-3, GREEN)}
    for name, (kind, rate, color) in models.items():
        hits = [np.count_nonzero(sample(aged(kind, t), fmt=SIGNED)) for t in TIMES]
        draw_shares(left, TIMES, hits, COUNT, color=color, label=f"{name}, sampled")
        rate = rate if name == "stuck_at" else -np.expm1(8 * np.log1p(-rate))
        left.plot(TIMES, -np.expm1(TIMES * np.log1p(-rate)), color=color, lw=1)
    left.plot([], [], color=INK, lw=1, label="$1-(1-p)^{M_p}$")
    left.set(xscale="log", yscale="log", xlabel="$M_p$", ylabel="share of weights")
    left.set_xticks(TIMES, TIMES)
    left.set_yticks([0.02, 0.05, 0.1, 0.2, 0.4], ["2 %", "5 %", "10 %", "20 %", "40 %"])
    left.minorticks_off()
    left.legend(loc="lower right")
    maps = np.stack([sample(aged(ft.faults.StuckAt, t), 16 * 40) != 0 for t in TIMES])
    assert np.all(maps[1:] >= maps[:-1]), "the faults of a chip grow"
    since = np.where(maps.any(0), maps.argmax(0), len(TIMES)).reshape(16, 40)
    colors = [*matplotlib.colormaps["plasma"](np.linspace(0, 0.9, len(TIMES))), PALE]
    image = right.imshow(since, cmap=ListedColormap(colors), vmin=-0.5, vmax=len(TIMES) + 0.5)
    right.set(xticks=[], yticks=[], xlabel="640 weights of one chip")
    right.grid(visible=False)
    bar = figure.colorbar(image, ax=right, shrink=0.8)
    bar.set_ticks(range(len(TIMES) + 1), labels=[*map("$M_p$ = {}".format, TIMES), "sound"])
    return figure


def aged(kind, times: float):
    """A model at a rate of 2 % of stuck cells, or 0.2 % of flipped bits, met some times over."""
    if kind is BitFlip:
        return BitFlip(2e-3, accumulated=float(times))
    return kind(0.015, 0.005, accumulated=float(times))


PICTURES = (
    *(draw_mibb, draw_bit_bias, draw_bit_flip, draw_stuck_at, draw_stuck_bits),
    *(draw_log_normal, draw_reciprocal_normal, draw_drift, draw_defect_map),
    *(draw_per, draw_accumulated),
)

if __name__ == "__main__":
    main(*sys.argv[1:])
