"""What the examples share: handwritten digits, a training loop, intervals and their drawing.

Axis letters: B images, H and W pixels, C channels, N chips, R rates.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


class Digits(NamedTuple):
    """1797 digits that come with scikit-learn, of which 540 are for the test.

    Attributes:
        images: float32 [B, H=8, W=8, C=1], from -1 to 1.
        labels: int32 [B].
        test_images: as `images`.
        test_labels: as `labels`.
    """

    images: jax.Array
    labels: jax.Array
    test_images: jax.Array
    test_labels: jax.Array


def load(seed: int) -> Digits:
    """The digits, split at random, with as many of each class on either side."""
    found = load_digits()
    images = np.asarray(found.images, np.float32)[..., None] / 8 - 1
    labels = np.asarray(found.target, np.int32)
    parts = train_test_split(images, labels, test_size=540, random_state=seed, stratify=labels)
    images, test_images, labels, test_labels = map(jnp.asarray, parts)
    return Digits(images, labels, test_images, test_labels)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean over the batch of logits [B, classes]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of images [B] whose largest logit is the right one."""
    return jnp.mean(jnp.argmax(logits, -1) == labels, dtype=jnp.float32)


def train(
    loss: Callable[..., jax.Array], params: Any, digits: Digits, *, steps: int, seed: int
) -> Any:
    """Parameters after Adam on `loss(params, images, labels, key)`, with a new key each step."""
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))

    @jax.jit
    def step(params, state, key):
        key, key_of_batch = jax.random.split(key)
        own = jax.random.choice(key_of_batch, len(digits.labels), (128,), replace=False)
        gradients = jax.grad(loss)(params, digits.images[own], digits.labels[own], key)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for key in jax.random.split(jax.random.key(seed), steps):
        params, state = step(params, state, key)
    return params


def interval(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over chips of samples [N, ...] and the margin of its 95 % interval, Student's t."""
    samples = np.asarray(samples, np.float64)
    error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    return samples.mean(0), stats.t.ppf(0.975, len(samples) - 1) * error


def plus_minus(mean: float, margin: float) -> str:
    """As in `93.1 ± 0.4 %`."""
    return f"{100 * mean:5.1f} ± {100 * margin:4.1f} %"


def draw_band(axes: Axes, x: np.ndarray, samples: np.ndarray, *, color: str, label: str) -> None:
    """Accuracies [N, R] in percent against rates [R]: every chip a dot, their mean a band."""
    mean, margin = interval(samples)
    axes.fill_between(x, 100 * (mean - margin), 100 * (mean + margin), color=color, alpha=0.2, lw=0)
    axes.plot(x, 100 * mean, "o-", color=color, markersize=4, label=label)
    every = np.broadcast_to(x, samples.shape)
    axes.scatter(every, 100 * samples, s=5, color=color, alpha=0.3, linewidths=0)


def arguments(description: str | None, *, steps: int, chips: int) -> argparse.ArgumentParser:
    """The options that every example has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="runs/examples", help="where the picture goes")
    parser.add_argument("--seed", type=int, default=0, help="of split, weights, batches and chips")
    parser.add_argument("--steps", type=int, default=steps, help="of training; %(default)s")
    parser.add_argument("--chips", type=int, default=chips, help="at least 2; %(default)s")
    return parser
