"""Residual blocks with BatchNorm (Flax nnx) under MiBB: which layer costs most accuracy?

    python -m examples.resnet_blocks --out runs/examples

It shows how to put an nnx model on hardware, how BatchNorm is folded away, and how one compiled
program measures every combination of layers: one MiBB model for each layer, with a rate of its own.
The upsets are those of an FPGA's configuration: they stay until it is loaded again (`per=chip`).

Ends in resnet_blocks.png and resnet_blocks.svg, after 33 s on two cores of an AMD EPYC beside other
work.
"""

from pathlib import Path

import jax
import matplotlib
import numpy as np
import optax
from flax import nnx
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import ftnas_jax as ft
from examples import digits
from ftnas_jax.plots.style import BLUE, GREY, INK, STYLE, VERMILLION

RATES = np.array([0, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3], np.float32)  # p_m
PICKED = 1e-3  # p_m at which layers are compared


class Block(nnx.Module):
    """Two convolutions with BatchNorm, and a shortcut: a convolution where widths differ."""

    def __init__(self, before: int, width: int, *, stride: int, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(before, width, (3, 3), strides=stride, use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        self.conv2 = nnx.Conv(width, width, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        resized = nnx.Conv(before, width, (1, 1), strides=stride, rngs=rngs)
        self.shortcut = resized if before != width else None

    def __call__(self, x):  # [B, H, W, before] → [B, H / stride, W / stride, width]
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nnx.Module):
    """A stem, three blocks, a mean over all pixels, and a classifier."""

    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        sizes = ((16, 16, 1), (16, 32, 2), (32, 32, 1))
        self.blocks = nnx.List([Block(b, w, stride=s, rngs=rngs) for b, w, s in sizes])
        self.head = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x):  # [B, H, W, C] → [B, 10]
        x = nnx.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


def main() -> None:
    options = digits.arguments(__doc__, steps=300, chips=32).parse_args()
    run(options.out, seed=options.seed, steps=options.steps, chips=options.chips)


def run(out: str, *, seed: int, steps: int, chips: int) -> dict[str, np.ndarray]:
    """Train, measure, print and draw; returns accuracies [N, scenarios] by what they show."""
    data = digits.load(seed)
    model = ResNet(nnx.Rngs(seed))
    train(model, data, steps=steps, seed=seed)
    chip = ft.calibrate(ft.on_hardware(model, ft.Hardware()), [(data.images,)])
    print("On sound hardware:", ft.accuracies(chip, [(data.test_images,)], [data.test_labels]))

    sites = chip.sites(data.test_images)
    macs = {t.path: t.macs for t in sites.tensors if t.macs and t.kind != "weights"}
    measure = campaign(model, chip.lengths, list(macs), data, seed=seed, chips=chips)
    eye, every = np.eye(len(macs)), np.ones(len(macs))
    accuracies = {
        "rates": measure(RATES[:, None] * every),
        "alone": measure(PICKED * eye),
        "protected": measure(PICKED * (every - eye)),
        "none protected": measure(PICKED * every[None]),
    }
    print(table(accuracies, macs))
    print(*ft.plots.save_figure(draw(accuracies, macs), Path(out) / "resnet_blocks"))
    return accuracies


def train(model: ResNet, data: digits.Digits, *, steps: int, seed: int) -> None:
    """Train in float32, in place, and leave the model ready for evaluation."""
    model.train()
    adam = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    optimizer = nnx.Optimizer(model, adam, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, key):
        own = jax.random.choice(key, len(data.labels), (128,), replace=False)

        def loss(model):
            return digits.cross_entropy(model(data.images[own]), data.labels[own])

        optimizer.update(model, nnx.grad(loss)(model))

    for key in jax.random.split(jax.random.key(seed), steps):
        step(model, optimizer, key)
    model.eval()


def campaign(model: ResNet, lengths, layers: list[str], data: digits.Digits, *, seed, chips):
    """A function of rates [scenarios, layers] that returns accuracies [N, scenarios]."""
    graph, state = nnx.split(model)

    def accuracy(state, rates, key):
        faults = tuple(
            ft.faults.MiBB(rate, layers=layer, per="chip")
            for rate, layer in zip(rates, layers, strict=True)
        )
        # A model of this trace's own, for BatchNorm writes its state at every call.
        chip = ft.on_hardware(nnx.merge(graph, state), ft.Hardware(faults=faults), lengths=lengths)
        logits = chip(data.test_images, draw=ft.Draw(key))
        return digits.accuracy(logits, data.test_labels)

    on_chips = jax.jit(jax.vmap(accuracy, (None, None, 0)))
    keys = jax.random.split(jax.random.key(seed + 1), chips)

    def measure(scenarios: np.ndarray) -> np.ndarray:
        rows = np.asarray(scenarios, np.float32)
        return np.stack([on_chips(state, row, jax.random.clone(keys)) for row in rows], 1)

    return measure


def costs(accuracies: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Shares of images [N, layers] on the same chips: lost by one layer, regained by one."""
    sound, failing = accuracies["rates"][:, :1], accuracies["none protected"]
    return {
        "lost where it alone fails": sound - accuracies["alone"],
        "regained where it alone is protected": accuracies["protected"] - failing,
    }


def table(accuracies: dict[str, np.ndarray], macs: dict[str, int]) -> str:
    """Accuracies by rate, then by layer what it costs alone and what protecting it regains."""
    lines = ["\n    p_m  accuracy where all layers fail"]
    for rate, own in zip(RATES, accuracies["rates"].T, strict=True):
        lines.append(f"{rate:7.0e}  {digits.plus_minus(*digits.interval(own))}")
    lost, regained = (digits.interval(own) for own in costs(accuracies).values())
    lines.append(f"\n{f'p_m = {PICKED:g}':<16}   M_l   lost by it alone  regained by protecting it")
    for place, (layer, count) in enumerate(macs.items()):
        cells = [digits.plus_minus(m[place], margin[place]) for m, margin in (lost, regained)]
        lines.append(f"{layer:<16}  {count:4}  {cells[0]:>17}  {cells[1]:>24}")
    none = digits.plus_minus(*digits.interval(accuracies["none protected"][:, 0]))
    chips = len(accuracies["rates"])
    lines.append(f"where all fail the accuracy is {none.strip()}")
    return "\n".join([*lines, f"{chips} chips; intervals at 95 %, Student's t over chips"])


def draw(accuracies: dict[str, np.ndarray], macs: dict[str, int]) -> Figure:
    """Left accuracy against p_m, right what each layer costs, alone and among the others."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(2, 3))
        digits.draw_band(left, RATES, accuracies["rates"], color=INK, label="all layers fail")
        left.set_xscale("symlog", linthresh=RATES[1])
        left.set(title="Accuracy of a small ResNet (%)", ylim=(0, 102))
        left.set_xlabel("$p_m$, error rate of one multiply-accumulate")
        left.axvline(PICKED, color=GREY, lw=1, ls=":", label="compared at right")
        left.legend(loc="lower left")
        draw_costs(right, costs(accuracies), macs)
    return figure


def draw_costs(axes: Axes, by_layer: dict[str, np.ndarray], macs: dict[str, int]) -> None:
    """Means and intervals, a line for each layer, in the order in which they run."""
    places = np.arange(len(macs))
    looks = ((-0.13, VERMILLION), (0.13, BLUE))
    for (label, own), (shift, color) in zip(by_layer.items(), looks, strict=True):
        mean, margin = (100 * part for part in digits.interval(own))
        look = {"fmt": "o", "ms": 4, "capsize": 2, "color": color, "label": label}
        axes.errorbar(mean, places + shift, xerr=margin, **look)
    axes.axvline(0, color=GREY, lw=1)
    axes.set_yticks(places, [f"{layer}  ($M_l$ = {count})" for layer, count in macs.items()])
    axes.invert_yaxis()
    axes.set(title=f"What one layer costs at $p_m$ = {PICKED:g}", xlabel="points of accuracy")
    axes.legend(loc="lower right")


if __name__ == "__main__":
    main()
