"""The weights of a network as hardware holds them, tensor by tensor, and flips of their bits."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ftnas_jax.campaigns.subject import Subject
from ftnas_jax.faults.bit_flip import from_words, to_words
from ftnas_jax.fixed_point import FixedPoint, fraction_length, from_codes, to_codes
from ftnas_jax.graph.hold import named_leaves
from ftnas_jax.graph.model import matches
from ftnas_jax.graph.network import NetworkOnHardware, rows_of_weights


class HeldWeights(NamedTuple):
    """A weight tensor that the hardware holds, as a part of a parameter laid out flat.

    Attributes:
        name: of the tensor.
        layer: path of its layer.
        leaf: place of the parameter among all leaves of the variables.
        start: of the part in it.
        size: number of weights.
        length: their fraction length.
    """

    name: str
    layer: str
    leaf: int
    start: int
    size: int
    length: int


def held_weights(
    subject: Subject, images: Any, patterns: str, fmt: FixedPoint
) -> tuple[HeldWeights, ...]:
    """All weights that the hardware holds in a call, or those whose names fit patterns."""
    sizes = jax.ShapeDtypeStruct((1, *np.shape(images)[1:]), jnp.float32)
    held = [t for t in subject.sites(sizes, ()).tensors if t.kind == "weights"]
    # Two equal connections share their weights; those of the second are the first's again.
    held = [t for t in held if "#" not in t.name]
    tensors = {t.name: t for t in held if not patterns or matches(t.name, patterns)}
    if not tensors:
        names = ", ".join(t.name for t in held)
        raise ValueError(f"no weight has a name by weights={patterns!r}; there are {names}")
    leaves = {
        name: (place, np.asarray(leaf)) for place, name, leaf in named_leaves(subject.variables)
    }
    rows = {name: (name, -1) for name in tensors}
    if isinstance(subject.chip, NetworkOnHardware):
        shapes = {name: leaf.shape for name, (_, leaf) in leaves.items()}
        rows = rows_of_weights(subject.chip.model, [t.name for t in held], shapes)
    found = []
    for name, tensor in tensors.items():
        path, row = rows[name]
        place, leaf = leaves.get(path, (-1, np.zeros(0)))
        own = leaf if row < 0 else leaf[row]
        if own.shape != tensor.shape:
            raise ValueError(
                f"single faults: the hardware holds {name} turn by turn of a loop, or made of "
                "other parameters; name weights that it holds as they are, by weights="
            )
        length = int(fraction_length(jnp.asarray(own, jnp.float32), fmt))
        found.append(
            HeldWeights(name, tensor.path, place, max(row, 0) * own.size, own.size, length)
        )
    return tuple(found)


def quantize(variables: Any, parts: Sequence[HeldWeights], fmt: FixedPoint) -> Any:
    """The variables with the weights that the hardware holds for them.

    Quantizing them again changes none, even after the flip of a bit: its code fits the fraction
    length that its tensor had, and where that grows all codes stay on the finer grid.
    """
    arrays, structure = jax.tree.flatten(variables)
    for part in parts:
        flat = np.array(arrays[part.leaf]).reshape(-1)
        own = slice(part.start, part.start + part.size)
        length = jnp.int32(part.length)
        codes = to_codes(jnp.asarray(flat[own], jnp.float32), length, fmt)
        flat[own] = np.asarray(from_codes(codes, length)).astype(flat.dtype)
        arrays[part.leaf] = flat.reshape(np.shape(arrays[part.leaf]))
    return jax.tree.unflatten(structure, arrays)


def flip(variables: Any, leaves: Sequence[int], fault: jax.Array, fmt: FixedPoint) -> Any:
    """Quantized variables with one bit of one weight flipped; none by a leaf of number -1."""
    arrays, structure = jax.tree.flatten(variables)
    number, place, bit, length = fault
    for leaf in leaves:
        flat = arrays[leaf].reshape(-1)
        position = jnp.clip(place, 0, flat.size - 1)
        words = to_words(to_codes(flat[position], length, fmt), fmt) ^ (1 << bit)
        value = from_codes(from_words(words, fmt), length).astype(flat.dtype)
        own = jnp.where(number == leaf, value, flat[position])
        arrays[leaf] = flat.at[position].set(own).reshape(arrays[leaf].shape)
    return jax.tree.unflatten(structure, arrays)
