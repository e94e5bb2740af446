"""Fraction lengths of features frozen for deployment, from a few batches.

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

from ftnas_jax.graph.plan import Tensor
from ftnas_jax.graph.run import Held

Chip = TypeVar("Chip")


def calibrate(chip: Chip, calls: Iterable[tuple[Any, ...]], **kwargs: Any) -> Chip:
    """A model on hardware with frozen fraction lengths.

    Args:
        chip: from `ftnas_jax.on_hardware`.
        calls: positional arguments of a call each; at least one.
        **kwargs: of all calls.

    Returns:
        The same with `lengths` of all its features.

    Raises:
        ValueError: there is no call, or the features are in float32.
    """
    free: Any = dataclasses.replace(chip, lengths={})  # pyright: ignore[reportArgumentType]
    if free.hardware.features is None:
        raise ValueError("features are in float32: they have no fraction lengths to calibrate")
    observe = jax.jit(lambda *args: free.observed(_length, *args, **kwargs)[1])
    lengths: dict[str, jax.Array] = {}
    for args in calls:
        for name, length in observe(*args).items():
            if length is not None:
                lengths[name] = jnp.minimum(lengths.get(name, length), length)
    if not lengths:
        raise ValueError("calibration needs at least one batch")
    return dataclasses.replace(free, lengths=lengths)


def _length(tensor: Tensor, held: Held) -> jax.Array | None:
    return None if tensor.kind == "weights" else held.length


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
        return {name: jnp.asarray(np.asarray(value, np.int32)) for name, value in known.items()}
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}") from None
    except (ValueError, AttributeError, OverflowError):
        raise ValueError(f"{file} holds no fraction lengths: names with whole numbers") from None
