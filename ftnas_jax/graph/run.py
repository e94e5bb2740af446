"""A planned graph on hardware: weights held, features written, both with their faults."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ftnas_jax.faults import DefectMap
from ftnas_jax.fixed_point import fraction_length
from ftnas_jax.graph.convolutions import is_ours, run_convolution
from ftnas_jax.graph.graph import Graph, Node, Value, evaluate
from ftnas_jax.graph.lengths import Lengths
from ftnas_jax.graph.plan import Plan, Tensor
from ftnas_jax.nn.hardware import (
    Draw,
    Hardware,
    Kind,
    Maps,
    draw_maps,
    exposures_at,
    hold_weights,
    write_features,
)


class Held(NamedTuple):
    """A tensor as the hardware came to hold it.

    Attributes:
        x: float32, as computed.
        held: float32, quantized and with its faults.
        length: int32, its fraction length; 0 where there is no fixed point.
        maps: its fault maps.
        drawn: the same as they were drawn: for one image where all images have the same.
    """

    x: jax.Array
    held: jax.Array
    length: jax.Array
    maps: Maps
    drawn: Maps


Observe = Callable[[Tensor, Held], Any]
"""What to keep of a tensor: a tree of arrays."""

Observed = dict[str, Any]
"""What was observed, by the tensor's name; behind loops with the turns as first dimension."""


@dataclasses.dataclass(frozen=True)
class Run:
    """How graphs are run.

    Attributes:
        hardware: number formats and faults.
        batch: number of images in the pass, or None where there is no batch.
        lengths: frozen ones of features.
        observe: what to keep of every tensor, or None.
        turns: at which turn the loops around a body are, from the outermost.
    """

    hardware: Hardware
    batch: int | None
    lengths: Lengths
    observe: Observe | None
    turns: tuple[jax.Array, ...] = ()

    def graph(
        self, graph: Graph, plan: Plan, inputs: Sequence[Any], draw: Draw
    ) -> tuple[list[Any], Observed]:
        """Outputs of a graph, and what was observed. Consumes the draw's key."""
        known: dict[Value, Any] = dict(graph.constants)
        seen: Observed = {}

        def keep(value: Value, array: Any) -> None:
            tensor = plan.tensors.get(value)
            known[value] = array if tensor is None else self._hold(tensor, array, draw, seen)

        for value, array in zip(graph.inputs, inputs, strict=True):
            keep(value, array)
        for node in graph.nodes:
            own = [known[value] for value in node.inputs]
            outputs = self._node(node, plan, own, draw, seen)
            for value, array in zip(node.outputs, outputs, strict=True):
                keep(value, array)
        return [known[value] for value in graph.outputs], seen

    def _node(self, node: Node, plan: Plan, values, draw: Draw, seen: Observed):
        if node.name == "scan":
            return self._scan(node, plan.bodies[node][0], values, draw, seen)
        if node.name == "cond":
            return self._cond(node, plan.bodies[node], values, draw)
        if is_ours(node):
            return run_convolution(node, values)
        return evaluate(node, values, **self._precision(node))

    def _precision(self, node: Node) -> dict[str, Any]:
        """That of a product, where the model's own default would round what the hardware holds."""
        left_open = "precision" in node.params and node.params["precision"] is None
        if not (left_open and self.hardware.needs_float32):
            return {}
        return {"precision": (lax.Precision.HIGHEST,) * 2}

    def _scan(self, node: Node, plan: Plan, values, draw: Draw, seen: Observed):
        """A loop; every turn has faults of its own, but in weights that turns share."""
        params = node.params
        consts, carried = params["num_consts"], params["num_carry"]
        constants, start = values[:consts], values[consts : consts + carried]
        names = [t.name for t in plan.all_tensors() if t.name in self.lengths]
        lengths = {name: self.lengths[name] for name in names}

        def turn(carry, sliced):
            place, own, lengths = sliced
            inner = dataclasses.replace(self, lengths=lengths, turns=(*self.turns, place))
            inputs = [*constants, *carry, *own]
            outputs, found = inner.graph(node.bodies[0], plan, inputs, draw)
            return tuple(outputs[:carried]), (outputs[carried:], found)

        turns = jnp.arange(params["length"], dtype=jnp.int32)
        end, (stacked, found) = lax.scan(
            turn,
            tuple(start),
            (turns, values[consts + carried :], lengths),
            length=params["length"],
            reverse=params["reverse"],
            unroll=params["unroll"],
        )
        seen.update(found)
        return [*end, *stacked]

    def _cond(self, node: Node, plans: list[Plan], values, draw: Draw):
        if self.observe is not None and any(plan.all_tensors() for plan in plans):
            raise ValueError("layers in a branch cannot be observed: only one branch runs")

        def branch(body: Graph, plan: Plan):
            return lambda *own: tuple(self.graph(body, plan, own, draw)[0])

        branches = [branch(b, p) for b, p in zip(node.bodies, plans, strict=True)]
        return lax.switch(values[0], branches, *values[1:])

    # Tensors

    def _hold(self, tensor: Tensor, array: Any, draw: Draw, seen: Observed):
        """What the hardware holds for an array, of the array's own type."""
        x = jnp.asarray(array).astype(jnp.float32)
        shape = x.shape if tensor.kind == "weights" else by_image(x.shape, self.batch)
        drawn, length = self._draw(tensor, shape, draw), self.lengths.get(tensor.name)
        maps = jax.tree.map(lambda m: _like(m, shape, x.shape), drawn)
        if tensor.kind == "weights":
            held = hold_weights(x, self.hardware, maps)
        else:
            held = write_features(x, self.hardware, maps, length)
        if self.observe is not None:
            length = own_length(self.hardware, tensor.kind, x) if length is None else length
            seen[tensor.name] = self.observe(tensor, Held(x, held, length, maps, drawn))
        return held.astype(array.dtype)

    def _draw(self, tensor: Tensor, shape: tuple[int, ...], draw: Draw) -> Maps:
        if not tensor.faulty or draw.faulty is False:
            return None
        exposures = exposures_at(self.hardware, tensor.kind, tensor.place)
        turns = [turn for loop, turn in enumerate(self.turns) if loop not in tensor.repeated]
        if turns and tensor.kind == "weights":
            self._check_stack(tensor)
        own = draw.at(*turns, tensor.number)
        return draw_maps(self.hardware, tensor.kind, own, shape, exposures)

    def _check_stack(self, tensor: Tensor) -> None:
        for model in self.hardware.faults:
            if isinstance(model, DefectMap) and tensor.path in model.cells:
                raise ValueError(
                    f"defect_map: {tensor.path} is a stack of layers that a loop goes over; "
                    "its cells would be stuck in each of them: write the layers out"
                )


def own_length(hardware: Hardware, kind: Kind, x: jax.Array) -> jax.Array:
    """The fraction length that the hardware takes for a tensor, 0 where it has no fixed point."""
    fmt = hardware.format(kind)
    axis = None if kind == "weights" else hardware.batch_axis
    return jnp.int32(0) if fmt is None else fraction_length(x, fmt, axis)


def by_image(shape: tuple[int, ...], batch: int | None) -> tuple[int, ...]:
    """A shape whose first dimension counts images: 1 for features of which no part is an image's.

    Features that hold several rows for each image, one after the other, as windows or tokens, are
    taken apart.
    """
    if batch and shape and shape[0] % batch == 0:
        rows = shape[0] // batch
        return shape if rows == 1 else (batch, rows, *shape[1:])
    return (1, *shape)


def _like(maps: jax.Array, shape: tuple[int, ...], wanted: tuple[int, ...]) -> jax.Array:
    """Maps of a shape from `by_image`, or of one image of it, for features of the shape wanted."""
    if shape == wanted:
        return maps
    return jnp.broadcast_to(maps, shape).reshape(wanted)
