"""Faulty weights alone, for any framework: a pure function on a tree of parameters.

    faulty = ft.hold(parameters, ft.Hardware(faults=ft.faults.StuckAt()), ft.Draw(key))

The result is a tree of the same shapes for Haiku, Equinox, Flax or plain JAX to compute with.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ftnas_jax.faults import check_layers
from ftnas_jax.graph.model import matches, path_name
from ftnas_jax.graph.plan import Tensor, layer_path
from ftnas_jax.nn.hardware import CLEAN, Draw, Hardware, draw_maps, exposures_at, hold_weights


def hold(parameters: Any, hardware: Hardware, draw: Draw = CLEAN, *, weights: str = "") -> Any:
    """The parameters as the hardware holds them: weights quantized, and with their faults.

    By the same draw a weight has the same faults here and in a model that is `on_hardware`, if its
    path is the same. Of a stack of layers that the model scans over, here the whole is one tensor
    with one fraction length, there every layer is one.

    Args:
        parameters: a tree of arrays.
        hardware: number formats and faults; faults of features have no say.
        draw: its key is consumed. By default there are no faults.
        weights: patterns of paths, joined by `|`, of the leaves that are weights. By default all
            of two or more dimensions in floating point: biases and scales have one.

    Raises:
        ValueError: no leaf is a weight, or the faults name a layer that is not there.
    """
    held, structure = jax.tree.flatten(parameters)
    chosen = _weight_leaves(parameters, weights)
    models = hardware.models("weights")
    paths = [layer_path(name) for _, name in chosen]
    check_layers(models, {"weights": paths, "features": (), "activations": ()})
    for place, name in chosen:
        held[place] = _hold_one(name, held[place], hardware, draw)
    return jax.tree.unflatten(structure, held)


def _weight_leaves(parameters: Any, weights: str) -> list[tuple[int, str]]:
    """Which leaves of a tree are weights: place among all leaves, and path."""
    named = named_leaves(parameters)
    chosen = [(place, name) for place, name, leaf in named if _is_weight(name, leaf, weights)]
    if not chosen:
        names = ", ".join(name for _, name, _ in named)
        raise ValueError(f"no parameter is a weight by weights={weights!r}; there are {names}")
    return chosen


def named_leaves(parameters: Any) -> list[tuple[int, str, Any]]:
    """Place among all leaves, path, and leaf; of linen variables those of `params` alone."""
    leaves = jax.tree_util.tree_leaves_with_path(parameters)
    paths = [path_name(path) for path, _ in leaves]
    prefix = "params/" if any(path.startswith("params/") for path in paths) else ""
    return [
        (place, path.removeprefix(prefix), leaf)
        for place, (path, (_, leaf)) in enumerate(zip(paths, leaves, strict=True))
        if path.startswith(prefix)
    ]


def _is_weight(name: str, leaf: Any, patterns: str) -> bool:
    if not patterns:
        return jnp.ndim(leaf) > 1 and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return matches(name, patterns)


def _hold_one(name: str, leaf: Any, hardware: Hardware, draw: Draw) -> jax.Array:
    w = jnp.asarray(leaf)
    tensor = Tensor(name, layer_path(name), "weights", 0, w.shape)
    exposures = exposures_at(hardware, "weights", tensor.place)
    maps = draw_maps(hardware, "weights", draw.at(tensor.number), w.shape, exposures)
    return hold_weights(w.astype(jnp.float32), hardware, maps).astype(w.dtype)
