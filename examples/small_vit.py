"""A small vision transformer (Flax linen): which bit of a weight hurts, and faults together.

    python -m examples.small_vit --out runs/examples

It shows that attention, LayerNorm and residual streams need no change to be on hardware, flips one
bit position of all weights at a time (`bits=0` .. `bits=7`) in both encodings, and reads a
combination of fault models from text: stuck cells in the crossbars, flips in the feature buffer.

Ends in small_vit.png and small_vit.svg, after 33 s on two cores of an AMD EPYC beside other work.
"""

import dataclasses
from pathlib import Path

import flax.linen as nn
import jax
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import ftnas_jax as ft
from examples import digits
from ftnas_jax.plots.style import BLUE, GREEN, INK, ORANGE, STYLE, VERMILLION

BITS = 8
FLIPPED = 0.05  # rate of the one bit that may flip
ENCODINGS = {
    "two's complement": ft.FixedPoint(BITS, "twos_complement"),
    "sign-magnitude": ft.FixedPoint(BITS, "sign_magnitude"),
}
RATES = {  # p0 and p1 of stuck cells, rate of flips in the feature buffer
    "none": (0, 0, 0),
    "stuck cells": (0.067, 0.013, 0),
    "flips in the buffer": (0, 0, 0.003),
    "both": (0.067, 0.013, 0.003),
}
TEXT = "stuck_at:p0={},p1={}+bit_flip:rate={},site=activations"


class Block(nn.Module):
    """Attention, then two dense layers, each after a LayerNorm and beside a residual stream."""

    @nn.compact
    def __call__(self, x):  # [B, tokens, width]
        x = x + nn.MultiHeadDotProductAttention(num_heads=4)(nn.LayerNorm()(x))
        y = nn.gelu(nn.Dense(2 * x.shape[-1])(nn.LayerNorm()(x)))
        return x + nn.Dense(x.shape[-1])(y)


class SmallViT(nn.Module):
    """Patches of 2x2 pixels, blocks, and a classifier of all tokens."""

    width: int = 32
    depth: int = 1

    @nn.compact
    def __call__(self, x):  # [B, H, W, C] → [B, 10]
        x = nn.Conv(self.width, (2, 2), strides=2, name="patches")(x)
        x = x.reshape(len(x), -1, self.width)
        x = x + self.param("position", nn.initializers.normal(0.02), x.shape[1:])[None]
        for number in range(self.depth):
            x = Block(name=f"block_{number}")(x)
        return nn.Dense(10, name="head")(nn.LayerNorm()(x).reshape(len(x), -1))


def main() -> None:
    options = digits.arguments(__doc__, steps=500, chips=16).parse_args()
    run(options.out, seed=options.seed, steps=options.steps, chips=options.chips)


def run(out: str, *, seed: int, steps: int, chips: int) -> dict[str, np.ndarray]:
    """Train, measure, print and draw; returns accuracies [N], or [N, bits], by what fails."""
    data = digits.load(seed)
    model = SmallViT()
    params = jax.jit(model.init)(jax.random.key(seed), data.images[:1])

    def loss(params, images, labels, key):
        del key
        return digits.cross_entropy(model.apply(params, images), labels)

    params = digits.train(loss, params, data, steps=steps, seed=seed)
    chip = ft.calibrate(ft.on_hardware(model, ft.Hardware()), [(params, data.images)])
    calls = [(params, data.test_images)]
    print("On sound hardware:", ft.accuracies(chip, calls, [data.test_labels]))
    print(f"\n{chip.sites(params, data.test_images)}\n")

    keys = jax.random.split(jax.random.key(seed + 1), chips)
    by_bit = {
        name: flip_bits(campaign(chip, encoding, params, data, keys))
        for name, encoding in ENCODINGS.items()
    }
    measure = campaign(chip, ENCODINGS["sign-magnitude"], params, data, keys)
    together = {name: measure(TEXT.format(*rates)) for name, rates in RATES.items()}
    print(table(by_bit, together))
    print(*ft.plots.save_figure(draw(by_bit, together), Path(out) / "small_vit"))
    return by_bit | together


def campaign(chip, weights: ft.FixedPoint, params, data: digits.Digits, keys):
    """A function of the text of fault models that returns accuracies [N], a chip for each key.

    Models are trees of their rates. As arguments of a program they need no other one for others.
    """

    @jax.jit
    def on_chips(faults, keys):
        own = dataclasses.replace(chip, hardware=ft.Hardware(weights=weights, faults=faults))

        def on_chip(key):
            logits = own.apply(params, data.test_images, draw=ft.Draw(key))
            return digits.accuracy(logits, data.test_labels)

        return jax.vmap(on_chip)(keys)

    return lambda text: np.asarray(on_chips(ft.faults.parse(text), jax.random.clone(keys)))


def flip_bits(measure) -> np.ndarray:
    """Accuracies [N, bits] where one bit position of every weight may flip."""
    columns = []
    for flipped in range(BITS):
        rates = [FLIPPED if bit == flipped else 0 for bit in range(BITS)]
        models = [f"bit_flip:rate={rate},bits={bit}" for bit, rate in enumerate(rates)]
        columns.append(measure("+".join(models)))
    return np.stack(columns, 1)


def table(by_bit: dict[str, np.ndarray], together: dict[str, np.ndarray]) -> str:
    """Accuracies by bit and encoding, then by combination of faults."""
    lines = [f"{f'{FLIPPED:.0%} of one bit':<14}" + "".join(f"  {name:>16}" for name in by_bit)]
    for bit in range(BITS):
        cells = [digits.plus_minus(*digits.interval(own[:, bit])) for own in by_bit.values()]
        lines.append(f"bit {bit:<10}" + "".join(f"  {cell:>16}" for cell in cells))
    lines.append(f"\n{'stuck, flipped':<22}accuracy")
    for name, own in together.items():
        lines.append(f"{name:<22}{digits.plus_minus(*digits.interval(own))}")
    chips = len(together["none"])
    return "\n".join([*lines, f"{chips} chips; intervals at 95 %, Student's t over chips"])


def draw(by_bit: dict[str, np.ndarray], together: dict[str, np.ndarray]) -> Figure:
    """Left accuracy by the bit that flips, right by combination of faults."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        looks = ((-0.06, VERMILLION), (0.06, BLUE))
        for (name, own), (shift, color) in zip(by_bit.items(), looks, strict=True):
            digits.draw_band(left, np.arange(BITS) + shift, own, color=color, label=name)
        left.set(title=f"Accuracy with {FLIPPED:.0%} of one bit of all weights flipped (%)")
        left.set(xlabel="bit that flips; 0 is the lowest, 7 holds the sign", ylim=(0, 102))
        left.legend(loc="lower left")
        draw_together(right, together)
    return figure


def draw_together(axes: Axes, together: dict[str, np.ndarray]) -> None:
    """Every chip a dot, a line for each combination."""
    colors = (INK, ORANGE, GREEN, VERMILLION)
    for place, (own, color) in enumerate(zip(together.values(), colors, strict=True)):
        mean, margin = digits.interval(own)
        spread = np.linspace(-0.15, 0.15, len(own))
        axes.scatter(100 * own, place + spread, s=8, color=color, alpha=0.4, linewidths=0)
        axes.errorbar(100 * mean, place, xerr=100 * margin, fmt="D", ms=5, capsize=3, color=color)
    axes.set_yticks(range(len(together)), list(together))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set(title="Accuracy with faults together (%)", xlabel="every chip a dot; mean, interval")


if __name__ == "__main__":
    main()
