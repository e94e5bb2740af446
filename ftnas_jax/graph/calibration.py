"""Fraction lengths of features on sound hardware: of a call, or frozen for deployment.

    chip = ft.calibrate(chip, [(variables, images) for images in batches])
    ft.save_lengths("lengths.json", chip.lengths)

While training, a tensor's fraction length follows the batch at hand (minimal overflow, §5.1). A
device has it fixed. Here it is the largest for which nothing in the given batches overflows.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ftnas_jax.graph.model import jitted
from ftnas_jax.graph.plan import Tensor
from ftnas_jax.graph.run import Held
from ftnas_jax.nn.hardware import Hardware

Chip = TypeVar("Chip")


def sound_lengths(chip: Any, *args: Any, **kwargs: Any) -> dict[str, jax.Array]:
    """The fraction lengths that features have in a call on sound hardware, by the tensor's name.

    Args:
        chip: from `ftnas_jax.graph.model.on_hardware`, whose lengths follow the batch.
        *args: of the call.
        **kwargs: of the call.
    """

    def length(tensor: Tensor, held: Held) -> jax.Array | None:
        return None if tensor.kind == "weights" else held.length

    seen = chip.observed(length, *args, **kwargs)[1]
    return {name: own for name, own in seen.items() if own is not None}


def calibrate(chip: Chip, calls: Iterable[tuple[Any, ...]], **kwargs: Any) -> Chip:
    """A model on hardware with frozen fraction lengths.

    Args:
        chip: from `ftnas_jax.graph.model.on_hardware`.
        calls: positional arguments of a call each; at least one.
        **kwargs: of all calls.

    Returns:
        The same with `lengths` of all its features.

    Raises:
        ValueError: there is no call, features are in float32, or weights or features are not
            finite.
    """
    free: Any = dataclasses.replace(chip, lengths={})  # pyright: ignore[reportArgumentType]
    if free.hardware.features is None:
        raise ValueError("features are in float32: they have no fraction lengths to calibrate")
    observe = jitted(lambda *args: free.observed(_length, *args, **kwargs)[1])
    lengths: dict[str, jax.Array] = {}
    batches = list(calls)
    if not batches:
        raise ValueError("calibration needs at least one batch")
    for args in batches:
        for name, (length, finite) in observe(*args).items():
            if not np.all(finite):
                raise ValueError(f"{name} is not finite: the model has diverged")
            if length is not None:
                before = lengths.get(name)
                lengths[name] = length if before is None else jnp.minimum(before, length)
    return dataclasses.replace(free, lengths=lengths)


def _length(tensor: Tensor, held: Held) -> tuple[jax.Array | None, jax.Array]:
    """Fraction length of features, and whether all of a tensor is finite: codes always are."""
    length = None if tensor.kind == "weights" else held.length
    return length, jnp.all(jnp.isfinite(held.x))


@dataclasses.dataclass(frozen=True)
class Accuracies:
    """Share of images classified rightly, without faults.

    Attributes:
        float32: by the model as it is.
        quantized: on the hardware.
        images: number of images.
    """

    float32: float
    quantized: float
    images: int

    def __str__(self) -> str:
        return (
            f"float32 {self.float32:.2%} | quantized {self.quantized:.2%} ({self.images:,} images)"
        )


def accuracies(
    chip: Any, calls: Iterable[tuple[Any, ...]], labels: Iterable[Any], **kwargs: Any
) -> Accuracies:
    """The quantized model's clean accuracy next to that of the model in float32.

    Args:
        chip: from `ftnas_jax.graph.model.on_hardware`; its model returns logits [B, classes].
        calls: positional arguments of a call each.
        labels: for each call int [B].
        **kwargs: of all calls.
    """
    bare = dataclasses.replace(chip, hardware=Hardware(weights=None, features=None))

    @jitted
    def rights(args, own):
        outputs = (which.observed(None, *args, **kwargs)[0] for which in (bare, chip))
        # An nnx model returns its state as well.
        logits = (out[0] if isinstance(out, tuple) else out for out in outputs)
        return jnp.stack([jnp.sum(jnp.argmax(one, -1) == own) for one in logits])

    total, images = np.zeros(2, np.int64), 0
    for args, own in zip(calls, labels, strict=True):
        total += np.asarray(rights(args, jnp.asarray(own)))
        images += len(own)
    if not images:
        raise ValueError("there are no images to measure the accuracy on")
    return Accuracies(float(total[0] / images), float(total[1] / images), images)


def save_lengths(file: str | Path, lengths: Mapping[str, jax.Array]) -> None:
    """Write fraction lengths as JSON, by the tensor's name; lists for tensors of loops."""
    known = {name: np.asarray(length).tolist() for name, length in lengths.items()}
    Path(file).write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def load_lengths(file: str | Path) -> dict[str, jax.Array]:
    """Read what `save_lengths` wrote.

    Raises:
        ValueError: the file cannot be read, or holds something else.
    """
    try:
        known = json.loads(Path(file).read_text(encoding="utf-8"))
        return {name: _whole(value) for name, value in known.items()}
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}") from None
    except (ValueError, AttributeError, OverflowError):
        raise ValueError(f"{file} holds no fraction lengths: names with whole numbers") from None


def _whole(value: Any) -> jax.Array:
    if np.asarray(value).dtype.kind != "i":
        raise ValueError
    return jnp.asarray(np.asarray(value, np.int32))
