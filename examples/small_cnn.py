"""A small CNN (Flax linen) with stuck cells, trained without and with them.

    python -m examples.small_cnn --out runs/examples

It shows how to put a model on hardware, freeze its fraction lengths, see what rate is really
injected, measure accuracy over many chips at once, and train with faults in the loop.

Ends in small_cnn.png and small_cnn.svg, after 36 s on two cores of an AMD EPYC beside other work.
"""

import dataclasses
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import ftnas_jax as ft
from examples import digits
from ftnas_jax.plots.style import BLUE, GREY, INK, STYLE, VERMILLION

P0, P1 = 0.067, 0.013  # of SAF0 and SAF1, as in the paper's experiments
RATES = np.array([0, 0.01, 0.02, 0.04, 0.08, 0.12, 0.16], np.float32)  # p0 + p1


class SmallCNN(nn.Module):
    """Three convolutions and a classifier."""

    @nn.compact
    def __call__(self, x):  # [B, H, W, C] → [B, 10]
        for width, stride in ((16, 1), (32, 2), (32, 1)):
            x = nn.relu(nn.Conv(width, (3, 3), strides=stride)(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


def main() -> None:
    options = digits.arguments(__doc__, steps=400, chips=16).parse_args()
    run(options.out, seed=options.seed, steps=options.steps, chips=options.chips)


def run(out: str, *, seed: int, steps: int, chips: int) -> dict[str, np.ndarray]:
    """Train, measure, print and draw; returns accuracies [N, R] by the way of training."""
    data = digits.load(seed)
    model = SmallCNN()
    params = jax.jit(model.init)(jax.random.key(seed), data.images[:1])

    # A model on hardware, in three lines: 8-bit codes, stuck cells, one pass on one chip.
    hardware = ft.Hardware(faults=ft.faults.parse(f"stuck_at:p0={P0},p1={P1}"))
    chip = ft.on_hardware(model, hardware)
    logits = chip.apply(params, data.images[:2], draw=ft.Draw(jax.random.key(seed)))

    print(f"Logits of one chip: {logits.shape}. What rate is really injected:")
    print(f"\n{ft.exposure(chip, params, data.images[:2], key=jax.random.key(seed))}\n")
    losses = {"without faults": clean_loss(chip), "with faults": faulty_loss(chip)}
    accuracies = {}
    for name, loss in losses.items():
        trained = digits.train(loss, params, data, steps=steps, seed=seed)
        frozen = ft.calibrate(chip, [(trained, data.images)])
        print(f"Trained {name}, on sound hardware:", clean_accuracies(frozen, trained, data))
        accuracies[name] = sweep(frozen, trained, data, seed=seed, chips=chips)
    print(f"\n{table(accuracies)}")
    print(*ft.plots.save_figure(draw(accuracies), Path(out) / "small_cnn"))
    return accuracies


def clean_loss(chip):
    """The loss of a pass on sound hardware: 8-bit codes, no faults."""

    def loss(params, images, labels, key):
        del key
        return digits.cross_entropy(chip.apply(params, images), labels)

    return loss


def faulty_loss(chip):
    """Half the loss of a sound pass, half that of a pass on a chip that no step saw before."""

    def loss(params, images, labels, key):
        clean = chip.apply(params, images)
        faulty = chip.apply(params, images, draw=ft.Draw(key))
        return (digits.cross_entropy(clean, labels) + digits.cross_entropy(faulty, labels)) / 2

    return loss


def clean_accuracies(chip, params, data: digits.Digits) -> ft.Accuracies:
    return ft.accuracies(chip, [(params, data.test_images)], [data.test_labels])


def sweep(chip, params, data: digits.Digits, *, seed: int, chips: int) -> np.ndarray:
    """Accuracies [N, R] of the same chips at every rate; their stuck cells grow in number."""

    @jax.jit
    def measure(rate, keys):
        stuck = ft.faults.StuckAt(rate * P0 / (P0 + P1), rate * P1 / (P0 + P1))
        own = dataclasses.replace(chip, hardware=ft.Hardware(faults=stuck))

        def on_chip(key):
            logits = own.apply(params, data.test_images, draw=ft.Draw(key))
            return digits.accuracy(logits, data.test_labels)

        return jax.vmap(on_chip)(keys)

    keys = jax.random.split(jax.random.key(seed + 1), chips)
    return np.stack([measure(rate, jax.random.clone(keys)) for rate in jnp.asarray(RATES)], 1)


def table(accuracies: dict[str, np.ndarray]) -> str:
    """Accuracies by rate, with intervals over chips, and the gain on the same chips."""
    plain, hardened = accuracies.values()
    lines = [f"{'stuck':>6}  {'without faults':>14}  {'with faults':>14}  gain in points"]
    for r, rate in enumerate(RATES):
        cells = [digits.plus_minus(*digits.interval(a[:, r])) for a in (plain, hardened)]
        mean, margin = digits.interval(hardened[:, r] - plain[:, r])
        ends = f"{100 * (mean - margin):.1f} to {100 * (mean + margin):.1f}"
        lines.append(f"{rate:6.0%}  {cells[0]}  {cells[1]}  {100 * mean:.1f}, {ends}")
    return "\n".join([*lines, f"{len(plain)} chips; intervals at 95 %, Student's t over chips"])


def draw(accuracies: dict[str, np.ndarray]) -> Figure:
    """Left accuracy against the share of stuck cells, right the gain of training with faults."""
    plain, hardened = accuracies.values()
    gain, margin = digits.interval(hardened - plain)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.5, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        for (name, samples), color in zip(accuracies.items(), (VERMILLION, BLUE), strict=True):
            digits.draw_band(left, 100 * RATES, samples, color=color, label=f"trained {name}")
        left.set(title="Accuracy of a small CNN (%)", xlabel="stuck cells (%)", ylim=(0, 102))
        left.axvline(100 * (P0 + P1), color=GREY, lw=1, ls=":", label="rate while training")
        left.legend(loc="lower left")
        right.axhline(0, color=GREY, lw=1)
        right.errorbar(100 * RATES, 100 * gain, 100 * margin, fmt="o", color=INK, ms=4, capsize=3)
        right.set(title="Gain on the same chips (points)", xlabel="stuck cells (%)")
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
        right.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


if __name__ == "__main__":
    main()
