"""Where in a graph weights are held, and where features are written and may fail.

* A product of a parameter with data is a layer. The parameter, or what is computed from parameters
  alone (a standardized kernel, say), is its weight, held by the hardware as one tensor.
* A layer's output is written after the affine chain behind it: bias, BatchNorm, a scale, whatever
  adds or multiplies channel by channel. Reading it for the statistics of a BatchNorm comes before.
* A product of data with data, as in attention, is a layer without weights.
* Whatever a layer reads is stored in the buffer by what computes it: pooled or normalized features,
  sums of a residual stream, probabilities. A table that rows are read from is held like a weight.
  What no layer has computed yet, as normalized images, is the input of the model.
* What the model returns stays in the accumulators, unless something else reads it too.
* A product of data with a constant, as patches are cut or images resized, is no layer: data in
  another layout. It is listed, since a kernel that is no parameter looks alike.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ftnas_jax.graph.graph import Graph, Node, Value, where
from ftnas_jax.graph.layers import (
    ELEMENTWISE,
    LAYOUT,
    Product,
    followed,
    is_lookup,
    product,
    source,
    varying,
)
from ftnas_jax.graph.plan import Plan, Tensor, layer_path

CONSTANT, PARAMETER, DATA = 0, 1, 2
"""What a value depends on: nothing given; parameters alone; data, that is arguments."""

_CHAIN = ("add", "sub", "mul", "div", "convert_element_type")
_REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax", "argmin")


class Input(NamedTuple):
    """What an input of a graph is.

    Attributes:
        origin: CONSTANT, PARAMETER or DATA.
        path: of a parameter.
        layer: path of the layer that computed it, empty for none.
        same: what is the same array has the same number.
        turns: of the loops around it, counted from the outermost, those in whose turns it differs.
        stored: whether what layers read of it is stored where it comes from, not in this graph.
    """

    origin: int
    path: str
    layer: str
    same: int
    turns: frozenset[int] = frozenset()
    stored: bool = False


class Planner:
    """Makes plans of a model's graphs.

    Attributes:
        ignored: whether a parameter may multiply features outside of layers, by its path.
        used: paths of parameters that weights are made of.
        order: of layers, by path, in which they run.
        held: weights by what they are, so that the same ones are held once.
        fixed: products of data with what is no parameter, where the code has them.
    """

    def __init__(self, ignored: Callable[[str], bool]):
        self.ignored = ignored
        self.used: set[str] = set()
        self.order: dict[str, int] = {}
        self.held: dict[int, Tensor] = {}
        self.fixed: list[str] = []
        self._names: dict[str, int] = {}
        self._known: dict[Any, int] = {}

    def plan(self, graph: Graph, origins: Sequence[int], paths: Sequence[str]) -> Plan:
        """The plan of a model.

        Args:
            graph: of the model.
            origins: for every input CONSTANT, PARAMETER or DATA.
            paths: for every input that is a parameter its path.
        """
        pairs = zip(origins, paths, strict=True)
        inputs = [Input(origin, path, "", self.same(object())) for origin, path in pairs]
        return Analysis(self, graph, inputs).run().plan

    def name(self, base: str) -> str:
        """`base`, with a number where the name is taken."""
        count = self._names[base] = self._names.get(base, 0) + 1
        return base if count == 1 else f"{base}#{count}"

    def same(self, what: Any) -> int:
        """A number for anything hashable, the same one for the same thing."""
        return self._known.setdefault(what, len(self._known))

    def place(self, tensor: Tensor) -> tuple[int, int]:
        """By layer, in the order in which layers run: weights, features, what is stored of them."""
        kinds = ("weights", "computed", "features", "stored")
        return self.order.get(tensor.path, -1), kinds.index(tensor.kind)


class Analysis:
    """How a graph becomes a plan.

    Attributes:
        plan: what is found.
        outer: features among the inputs that layers read, with the readers: stored outside.
    """

    def __init__(self, planner: Planner, graph: Graph, inputs: Sequence[Input], depth: int = -1):
        """Depth is the number of loops around a body, -1 for what is no body."""
        self.planner, self.graph, self.depth = planner, graph, max(depth, 0)
        self.body = depth >= 0
        self.plan = Plan()
        self.outer: list[tuple[Value, str]] = []
        own = dict(zip(graph.inputs, inputs, strict=True))
        self.given = own
        self.origin = {v: known.origin for v, known in own.items()}
        self.path = {v: known.path for v, known in own.items() if known.path}
        self.layer = {v: known.layer for v, known in own.items() if known.layer}
        self.turns = {v: known.turns for v, known in own.items()}
        self.pending: list[tuple[Node, Product, frozenset[int], str]] = []
        self.read: list[tuple[Value, str]] = []

    def run(self) -> "Analysis":
        """Visit all nodes, and plan what is held and written."""
        for node in self.graph.nodes:
            self._visit(node)
        for node, multiplied, channels, path in self.pending:
            self._write(node, multiplied, channels, path)
        for value, reader in self.read:
            self._store(value, reader)
        return self

    # What values are

    def _origin(self, value: Value) -> int:
        return self.origin.get(value, CONSTANT)

    def _visit(self, node: Node) -> None:
        if node.bodies:
            self._visit_bodies(node)
            return
        origins = [self._origin(value) for value in node.inputs]
        multiplied = product(node)
        path = self._inherited(node)
        if multiplied is not None and DATA in origins:
            path = self._visit_product(node, multiplied, origins, path)
        elif is_lookup(node) and origins[0] == PARAMETER and DATA in origins:
            path = self._hold(node.inputs[0], 0)
        elif node.name in ("mul", "div") and set(origins) == {PARAMETER, DATA}:
            self._check_scale(node, origins)
        self.planner.order.setdefault(path, len(self.planner.order))
        for value in node.outputs:
            self._inherit(node, value, max(origins, default=CONSTANT), path)

    def _inherit(self, node: Node, value: Value, origin: int, layer: str) -> None:
        self.origin[value] = origin
        self.turns[value] = frozenset().union(*(self.turns.get(v, ()) for v in node.inputs))
        if origin == DATA and layer:
            self.layer[value] = layer
        if origin == PARAMETER:
            self.path[value] = self._largest(node.inputs)

    def _largest(self, values: Sequence[Value]) -> str:
        """Path of the largest parameter among some values: that of a kernel, not of its scale."""
        named = [v for v in values if v in self.path]
        largest = max(named, key=lambda v: math.prod(source(v).shape), default=None)
        return "" if largest is None else self.path[largest]

    def _inherited(self, node: Node) -> str:
        """The layer that was the last to compute any of a node's inputs."""
        paths = [self.layer[v] for v in node.inputs if v in self.layer]
        return max(paths, key=lambda path: self.planner.order.get(path, -1), default="")

    def _visit_product(self, node: Node, multiplied: Product, origins, before: str) -> str:
        if CONSTANT in origins:
            self.planner.fixed.append(f"{node.name} at {where(node.equation)}")
            return before
        if PARAMETER in origins:
            place = origins.index(PARAMETER)
            path = self._hold(node.inputs[place], multiplied.macs)
            channels = multiplied.channels[place]
        else:
            paths = [self.layer.get(v, "") for v in node.inputs]
            path = "/".join(filter(None, (_common(paths), "product")))
            channels = frozenset()
        for value, origin in zip(node.inputs, origins, strict=True):
            if origin == DATA:
                self.read.append((value, path))
        self.pending.append((node, multiplied, channels, path))
        return path

    def _hold(self, operand: Value, macs: int) -> str:
        """Let the hardware hold an operand made of parameters; returns the layer's path."""
        weight = source(operand, parts=True)
        name = self.path[weight]
        self.planner.used |= self._made_of(weight)
        same = self._same(weight)
        if same not in self.planner.held:
            around = frozenset(range(self.depth)) - self.turns[weight]
            self.planner.held[same] = Tensor(
                self.planner.name(name),
                layer_path(name),
                "weights",
                macs,
                weight.shape,
                repeated=around,
            )
        self.plan.tensors[weight] = self.planner.held[same]
        return layer_path(name)

    def _made_of(self, weight: Value) -> set[str]:
        """Paths of all parameters that a weight is computed of."""
        found, waiting = {weight}, [weight]
        while waiting:
            value = waiting.pop()
            inputs = value.node.inputs if value.node is not None else ()
            waiting += [v for v in inputs if v not in found]
            found.update(inputs)
        return {self.path[v] for v in found if v in self.path and v.node is None}

    def _same(self, value: Value) -> int:
        """A number that values have in common if they are computed alike of the same inputs."""
        if value in self.given:
            return self.given[value].same
        node = value.node
        if node is None:
            constant = np.asarray(self.graph.constants[value])
            small = constant.size == 1 and constant.dtype.kind in "biufc"
            what = (str(constant.dtype), constant.item()) if small else value
            return self.planner.same(("constant", what, value.shape))
        inputs = tuple(self._same(v) for v in node.inputs)
        place = node.outputs.index(value)
        params = node if node.bodies else str(node.params)
        return self.planner.same((node.name, params, inputs, place))

    def _check_scale(self, node: Node, origins: list[int]) -> None:
        parameter = source(node.inputs[origins.index(PARAMETER)])
        name = self.path[parameter]
        wide = [size for size in parameter.shape if size > 1]
        if len(wide) > 1 and not self.planner.ignored(name):
            raise ValueError(
                f"{where(node.equation)}: the parameter {name} of shape {parameter.shape} "
                "multiplies features element by element, which is no layer that faults are known "
                f"for; compute it by a dot_general, or leave it in float32 with ignore={name!r}"
            )

    # Bodies of loops and branches

    def _visit_bodies(self, node: Node) -> None:
        before = self._inherited(node)
        origins, merged = self._settled(node)
        inputs = [
            self._body_input(node, place, value, origin)
            for place, (value, origin) in enumerate(zip(body_inputs(node), origins, strict=True))
        ]
        depth = self.depth + (node.name == "scan")
        bodies = [Analysis(self.planner, body, inputs, depth).run() for body in node.bodies]
        for body in bodies:
            self._lift(node, body)
        self.plan.bodies[node] = [body.plan for body in bodies]
        last = max(
            (t for body in bodies for t in body.plan.all_tensors() if t.kind != "weights"),
            key=self.planner.place,
            default=None,
        )
        for value, origin in zip(node.outputs, merged, strict=True):
            self._inherit(node, value, origin, before if last is None else last.path)

    def _settled(self, node: Node) -> tuple[list[int], list[int]]:
        """Origins of the inputs and outputs of bodies, when a loop has gone round often enough."""
        origins = [self._origin(v) for v in body_inputs(node)]
        chosen = self._origin(node.inputs[0]) if node.name == "cond" else CONSTANT
        while True:
            outputs = [_results(body, origins) for body in node.bodies]
            merged = [max(chosen, *own) for own in zip(*outputs, strict=True)]
            grown = list(origins)
            for place, out in carried(node):
                grown[place] = max(origins[place], merged[out])
            if grown == origins:
                return origins, merged
            origins = grown

    def _body_input(self, node: Node, place: int, value: Value, origin: int) -> Input:
        path = self.path.get(source(value, parts=True), "")
        layer, turns = self.layer.get(value, ""), self.turns.get(value, frozenset())
        if place in [i for i, _ in carried(node)]:
            path = path or self._largest(node.inputs)
            return Input(origin, path, layer, self.planner.same(object()), turns | {self.depth})
        same = self._same(value) if origin == PARAMETER else self.planner.same(object())
        if place in sliced(node):
            same = self.planner.same(("slice", same))
            turns |= {self.depth}
        return Input(origin, path, layer, same, turns, stored=True)

    def _lift(self, node: Node, body: "Analysis") -> None:
        """Hold weights that are the same in all turns, and store features, where they come from."""
        outside = dict(zip(body.graph.inputs, body_inputs(node), strict=True))
        for place, value in enumerate(body.graph.inputs):
            tensor = body.plan.tensors.get(value)
            if tensor is None or tensor.kind != "weights" or place in sliced(node):
                continue
            if place in [i for i, _ in carried(node)]:
                raise ValueError(
                    f"{where(node.equation)}: the weights {tensor.name} are carried "
                    "from turn to turn; close over them, or scan over them"
                )
            del body.plan.tensors[value]
            weight = source(outside[value], parts=True)
            repeated = tensor.repeated & frozenset(range(self.depth))
            own = dataclasses.replace(tensor, shape=weight.shape, repeated=repeated)
            self.planner.held[self._same(weight)] = self.plan.tensors.setdefault(weight, own)
        self.read += [(outside[value], reader) for value, reader in body.outer]

    # Where features are written

    def _write(self, node: Node, multiplied: Product, channels: frozenset[int], path: str) -> None:
        end = self._end_of_chain(node.outputs[0], channels)
        if self._is_only_returned(end):
            return
        value = source(end)
        name = self.planner.name(path)
        self.plan.tensors[value] = Tensor(name, path, "computed", multiplied.macs, value.shape)

    def _is_only_returned(self, value: Value) -> bool:
        """Whether a value, in whatever layout, leaves the model and is read by nothing else."""
        while len(value.users) == 1 and value.users[0].name in LAYOUT:
            if value in self.graph.outputs:
                return False
            value = value.users[0].outputs[0]
        return not value.users and not self.body and value in self.graph.outputs

    def _end_of_chain(self, value: Value, channels: frozenset[int]) -> Value:
        while True:
            readers = [u for u in value.users if not self._is_statistic(u, value, channels)]
            if len(readers) != 1 or value in self.graph.outputs:
                return value
            moved = followed(readers[0], channels)
            if moved is None and not self._is_affine(readers[0], value, channels):
                return value
            value, channels = readers[0].outputs[0], channels if moved is None else moved

    def _is_affine(self, node: Node, value: Value, channels: frozenset[int]) -> bool:
        if node.name not in _CHAIN or node.outputs[0].shape != value.shape:
            return False
        others = [v for v in node.inputs if v is not value]
        if len(others) != len(node.inputs) - 1 or (
            node.name == "div" and node.inputs[0] is not value
        ):
            return False
        rank = len(value.shape)
        return all(varying(v) <= channels and self._is_fixed(v, rank, channels) for v in others)

    def _is_fixed(self, value: Value, rank: int, channels: frozenset[int]) -> bool:
        """Whether a value is of no image's own: of parameters, or of statistics of all images."""
        found, waiting = {value}, [value]
        while waiting:
            value = waiting.pop()
            node = value.node
            if self._origin(value) != DATA or (
                node is not None
                and node.name in _REDUCTIONS
                and len(node.inputs[0].shape) == rank
                and _left(node) <= channels
            ):
                continue
            if node is None or node.bodies or product(node) is not None:
                return False
            waiting += [v for v in node.inputs if v not in found]
            found.update(node.inputs)
        return True

    def _is_statistic(self, node: Node, value: Value, channels: frozenset[int]) -> bool:
        """Whether all that comes of reading a value is one number for each channel."""
        if node.name in _REDUCTIONS:
            return _left(node) <= channels
        if node.name not in ELEMENTWISE or node.outputs[0].shape != value.shape:
            return False
        own = node.outputs[0]
        if own in self.graph.outputs or not own.users:
            return False
        return all(self._is_statistic(user, own, channels) for user in own.users)

    def _store(self, value: Value, reader: str) -> None:
        """What a layer reads is stored, with its own faults where nothing else wrote it."""
        stored = source(value)
        known = self.plan.tensors.get(stored)
        if known is not None and known.kind == "computed":
            self.plan.tensors[stored] = dataclasses.replace(known, kind="features")
        if known is not None or "float" not in str(stored.aval.dtype):
            return
        if stored in self.given and self.given[stored].stored:
            self.outer.append((stored, reader))
            return
        given = stored not in self.layer and not (self.body and stored in self.given)
        path = "input" if given else self.layer.get(stored, reader)
        name = self.planner.name(path if given else f"{path}/stored")
        self.plan.tensors[stored] = Tensor(name, path, "stored", 0, stored.shape, not given)


def _common(paths: list[str]) -> str:
    """What paths begin with in common, in whole parts."""
    parts = [path.split("/") for path in paths]
    common = []
    for own in zip(*parts, strict=False):
        if len(set(own)) > 1:
            break
        common.append(own[0])
    return "/".join(common)


def _results(body: Graph, origins: Sequence[int]) -> list[int]:
    """Origins of a body's outputs."""
    found = dict(zip(body.inputs, origins, strict=True))
    for inner in body.nodes:
        origin = max((found.get(v, CONSTANT) for v in inner.inputs), default=CONSTANT)
        found.update(dict.fromkeys(inner.outputs, origin))
    return [found.get(v, CONSTANT) for v in body.outputs]


def _left(node: Node) -> set[int]:
    """Dimensions that a reduction leaves, in those of what it reads."""
    return set(range(len(node.inputs[0].shape))) - set(node.params["axes"])


def body_inputs(node: Node) -> list[Value]:
    """The node's inputs that its bodies take, in their order."""
    return node.inputs[1:] if node.name == "cond" else node.inputs


def carried(node: Node) -> list[tuple[int, int]]:
    """For a loop the places of what it carries, among inputs and outputs of its body."""
    if node.name != "scan":
        return []
    first, count = node.params["num_consts"], node.params["num_carry"]
    return [(first + i, i) for i in range(count)]


def sliced(node: Node) -> range:
    """For a loop the places of the body's inputs of which every turn has a slice."""
    if node.name != "scan":
        return range(0)
    first = node.params["num_consts"] + node.params["num_carry"]
    return range(first, len(node.inputs))
