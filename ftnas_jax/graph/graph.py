"""The operations of a traced function in one flat list, whatever framework the function is from.

Calls that only group operations (jit, remat) are opened up. Loops and branches keep their bodies as
graphs of their own. Everything else stays as JAX traced it.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.extend.core as jex
from jax.extend import source_info_util

_OPENED = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr"}
_OPENED |= {"remat": "jaxpr", "remat2": "jaxpr", "checkpoint": "jaxpr"}
"""Primitives that compute what a jaxpr among their parameters says, and its name there."""

_LAYERS = ("conv_general_dilated", "dot_general", "ragged_dot", "ragged_dot_general")


class Value:
    """One array of a graph, compared by identity.

    Attributes:
        aval: its shape and type.
        node: what computes it; None for an input or a constant.
        users: the nodes that read it, in order.
    """

    def __init__(self, aval: Any, node: "Node | None" = None):
        self.aval, self.node, self.users = aval, node, []

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.aval.shape


@dataclasses.dataclass(eq=False)
class Node:
    """One operation.

    Attributes:
        equation: as JAX traced it.
        inputs: what it reads.
        outputs: what it computes.
        bodies: of a loop or a branch, else empty.
    """

    equation: Any
    inputs: list[Value]
    outputs: list[Value]
    bodies: "list[Graph]"

    @property
    def name(self) -> str:
        """Of its primitive."""
        return self.equation.primitive.name

    @property
    def params(self) -> dict[str, Any]:
        """Of its primitive."""
        return self.equation.params


@dataclasses.dataclass(eq=False)
class Graph:
    """A function of arrays.

    Attributes:
        inputs: its arguments.
        constants: arrays known while tracing, by value.
        nodes: in an order in which they can run.
        outputs: what it returns.
    """

    inputs: list[Value]
    constants: dict[Value, Any] = dataclasses.field(default_factory=dict)
    nodes: list[Node] = dataclasses.field(default_factory=list)
    outputs: list[Value] = dataclasses.field(default_factory=list)


def trace(function: Callable[..., Any], *args: Any) -> tuple[Graph, Any]:
    """The graph of a function of trees of arrays, and the tree structure of what it returns.

    Raises:
        ValueError: a layer stands where faults cannot reach it; names where.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    return _graph(closed), jax.tree.structure(shape)


def _graph(closed: Any) -> Graph:
    graph = Graph([Value(v.aval) for v in closed.jaxpr.invars])
    graph.outputs = _inline(graph, closed.jaxpr, closed.consts, graph.inputs)
    return graph


def _inline(graph: Graph, jaxpr: Any, constants: Sequence[Any], inputs: Sequence[Value]):
    """Add the operations of a jaxpr; returns its outputs."""
    known = dict(zip(jaxpr.invars, inputs, strict=True))
    for variable, constant in zip(jaxpr.constvars, constants, strict=True):
        known[variable] = _constant(graph, variable.aval, constant)

    def read(atom) -> Value:
        if isinstance(atom, jex.Literal):
            return _constant(graph, atom.aval, atom.val)
        return known[atom]

    for equation in jaxpr.eqns:
        own = [read(atom) for atom in equation.invars]
        outputs = _add(graph, equation, own)
        known.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _constant(graph: Graph, aval: Any, constant: Any) -> Value:
    value = Value(aval)
    graph.constants[value] = constant
    return value


def _add(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    name = equation.primitive.name
    if name in _OPENED:
        inner = equation.params[_OPENED[name]]
        jaxpr = getattr(inner, "jaxpr", inner)
        return _inline(graph, jaxpr, getattr(inner, "consts", ()), inputs)
    bodies = []
    if name == "scan":
        bodies = [_graph(equation.params["jaxpr"])]
    elif name == "cond":
        bodies = [_graph(branch) for branch in equation.params["branches"]]
    elif name.startswith("ragged_dot"):
        raise ValueError(f"{where(equation)}: faults are not known of {name}; use a dot_general")
    elif hidden := next(_hidden_layers(equation.params), None):
        raise ValueError(
            f"{where(equation)}: a {hidden} inside {name} is out of the reach of faults; "
            f"{_advice(name)}"
        )
    node = Node(equation, inputs, [], bodies)
    node.outputs = [Value(variable.aval, node) for variable in equation.outvars]
    for value in dict.fromkeys(inputs):
        value.users.append(node)
    graph.nodes.append(node)
    return node.outputs


def _advice(name: str) -> str:
    if name == "while":
        return "write the loop with a known number of turns, as lax.scan or fori_loop"
    if name.startswith("custom_"):
        return "call the function without its custom gradient"
    return "call an equivalent that jax.make_jaxpr shows as a convolution or a dot_general"


def _hidden_layers(params: dict[str, Any]) -> Iterator[str]:
    for jaxpr in jex.jaxprs_in_params(params):
        for equation in jaxpr.eqns:
            if equation.primitive.name in _LAYERS:
                yield equation.primitive.name
            yield from _hidden_layers(equation.params)


def where(equation: Any) -> str:
    """The line of the user's code that an operation comes from."""
    return source_info_util.summarize(equation.source_info)


def evaluate(node: Node, values: Sequence[Any], **changed: Any) -> Sequence[Any]:
    """What a node without bodies computes of the values of its inputs, some parameters changed."""
    equation = node.equation
    bound = equation.primitive.get_bind_params(equation.params | changed)
    # Some versions of jax give functions apart from parameters.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    with equation.ctx.manager:
        out = equation.primitive.bind(*functions, *values, **params)
    return out if equation.primitive.multiple_results else [out]
