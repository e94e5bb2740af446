"""Where in a graph weights are held, and where features are written and may fail.

* A product of a parameter with data is a layer. The parameter, or what is computed from parameters
  alone (a standardized kernel, say), is its weight, held by the hardware as one tensor.
* A layer's output is written after the affine chain behind it: bias, BatchNorm, a scale, whatever
  adds or multiplies channel by channel. Reading it for the statistics of a BatchNorm comes before.
* A product of data with data, as in attention, is a layer without weights.
* Whatever a layer reads is stored in the buffer by what computes it: pooled or normalized features,
  sums of a residual stream, probabilities. A table that rows are read from is held like a weight.
* What the model returns stays in the accumulators, unless something else reads it too.
"""

import dataclasses
import zlib
from collections.abc import Callable, Sequence

from ftnas_jax.faults import Place
from ftnas_jax.graph.graph import Graph, Node, Value, where
from ftnas_jax.graph.layers import ELEMENTWISE, Product, is_lookup, product, source, varying
from ftnas_jax.nn.hardware import Kind

CONSTANT, PARAMETER, DATA = 0, 1, 2
"""What a value depends on: nothing given; parameters alone; data, that is arguments."""

_CHAIN = ("add", "sub", "mul", "div", "convert_element_type")
_REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax", "argmin")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """What the hardware holds or writes at one place of a graph.

    Attributes:
        name: unique in the model: the path of a parameter, or of the layer that computes features,
            with what is special about them behind it.
        path: of the layer, as `FaultModel.layers` knows it.
        kind: weights, or what kind of features; see `ftnas_jax.nn.hardware.Kind`.
        macs: M_l.
        shape: of the tensor; of a loop's body, in one turn.
        faulty: False for the model's inputs, which are only quantized.
    """

    name: str
    path: str
    kind: Kind
    macs: int
    shape: tuple[int, ...]
    faulty: bool = True

    @property
    def number(self) -> int:
        """A stable integer in place of the name, to fold into keys."""
        return zlib.crc32(self.name.encode())

    def place(self, size: int) -> Place:
        """As fault models see it."""
        return Place(self.path, self.macs, size)


@dataclasses.dataclass(eq=False)
class Plan:
    """What happens at the values of a graph, and of the bodies of its loops and branches.

    Attributes:
        tensors: what is held or written, by value.
        bodies: plans of the bodies of a node.
    """

    tensors: dict[Value, Tensor] = dataclasses.field(default_factory=dict)
    bodies: dict[Node, "list[Plan]"] = dataclasses.field(default_factory=dict)

    def all_tensors(self) -> list[Tensor]:
        """Of this plan and of those of its bodies."""
        own = list(self.tensors.values())
        return own + [t for plans in self.bodies.values() for p in plans for t in p.all_tensors()]


class Planner:
    """Makes plans of a model's graphs.

    Attributes:
        ignored: whether a parameter may multiply features outside of layers, by its path.
        used: paths of parameters that are weights.
    """

    def __init__(self, ignored: Callable[[str], bool]):
        self.ignored = ignored
        self.used: set[str] = set()
        self._names: dict[str, int] = {}

    def plan(
        self,
        graph: Graph,
        origins: Sequence[int],
        paths: Sequence[str],
        *,
        body: bool = False,
    ) -> tuple[Plan, set[Value]]:
        """The plan of a graph.

        Args:
            graph: of the model or of a body.
            origins: for every input CONSTANT, PARAMETER or DATA.
            paths: for every input that is a parameter its path.
            body: whether the graph is the body of a loop or a branch.

        Returns:
            The plan, and the inputs that are weights of layers in it.
        """
        return _Analysis(self, graph, origins, paths, body).run()

    def name(self, base: str) -> str:
        """`base`, with a number where the name is taken."""
        count = self._names[base] = self._names.get(base, 0) + 1
        return base if count == 1 else f"{base}#{count}"


class _Analysis:
    def __init__(self, planner: Planner, graph: Graph, origins, paths, body: bool):
        self.planner, self.graph, self.body = planner, graph, body
        self.plan = Plan()
        self.origin = dict(zip(graph.inputs, origins, strict=True))
        self.path = {v: p for v, p in zip(graph.inputs, paths, strict=True) if p}
        self.layer: dict[Value, str] = {}
        self.order: dict[str, int] = {}
        self.weights: set[Value] = set()
        self.pending: list[tuple[Node, Product, frozenset[int], str]] = []
        self.read: list[tuple[Value, str]] = []

    def run(self) -> tuple[Plan, set[Value]]:
        for node in self.graph.nodes:
            self._visit(node)
        for node, multiplied, channels, path in self.pending:
            self._write(node, multiplied, channels, path)
        for value, reader in self.read:
            self._store(value, reader)
        self.plan.tensors = dict(sorted(self.plan.tensors.items(), key=self._place_of))
        return self.plan, self.weights

    def _place_of(self, item: tuple[Value, Tensor]) -> tuple[int, int]:
        """By layer, in the order in which layers run: weights, features, what is stored of them."""
        tensor = item[1]
        kinds = ("weights", "computed", "features", "stored")
        return self.order.get(tensor.path, -1), kinds.index(tensor.kind)

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
        elif is_lookup(node) and origins[:2] == [PARAMETER, DATA]:
            path = self._hold(node.inputs[0], 0)
        elif node.name in ("mul", "div") and set(origins) == {PARAMETER, DATA}:
            self._check_scale(node, origins)
        self.order.setdefault(path, len(self.order))
        for value in node.outputs:
            self.origin[value] = max(origins, default=CONSTANT)
            self._inherit(node, value, path)

    def _inherit(self, node: Node, value: Value, path: str) -> None:
        if self.origin[value] == DATA and path:
            self.layer[value] = path
        if self.origin[value] == PARAMETER:
            own = [self.path[v] for v in node.inputs if v in self.path]
            if own:
                self.path[value] = own[0]

    def _inherited(self, node: Node) -> str:
        """The layer that was the last to compute any of a node's inputs."""
        paths = [self.layer[v] for v in node.inputs if v in self.layer]
        return max(paths, key=lambda path: self.order.get(path, -1), default="")

    def _visit_product(self, node: Node, multiplied: Product, origins, before: str) -> str:
        if CONSTANT in origins:
            return before  # a fixed filter, as patches are cut with: data in another layout
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
        self.planner.used.add(name)
        if weight in self.graph.inputs:
            self.weights.add(weight)
        if weight not in self.plan.tensors:
            path = layer_path(name)
            self.plan.tensors[weight] = Tensor(
                self.planner.name(name), path, "weights", macs, weight.shape
            )
        return layer_path(name)

    def _check_scale(self, node: Node, origins: list[int]) -> None:
        parameter = source(node.inputs[origins.index(PARAMETER)], parts=True)
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
        carried = _carried(node)
        origins = [self._origin(v) for v in _body_inputs(node)]
        before = self._inherited(node)
        while True:
            outputs = [self._results(body, origins) for body in node.bodies]
            merged = [max(own) for own in zip(*outputs, strict=True)]
            grown = [max(origins[i], merged[o]) for i, o in carried]
            if grown == [origins[i] for i, _ in carried]:
                break
            for (i, _), origin in zip(carried, grown, strict=True):
                origins[i] = origin
        paths = [self.path.get(source(v, parts=True), "") for v in _body_inputs(node)]
        plans = []
        for body in node.bodies:
            plan, weights = self.planner.plan(body, origins, paths, body=True)
            self._lift(node, body, plan, weights)
            plans.append(plan)
        self.plan.bodies[node] = plans
        last = [t.path for plan in plans for t in plan.all_tensors() if t.kind != "weights"]
        for value, origin in zip(node.outputs, merged, strict=True):
            self.origin[value] = origin
            if origin == DATA and (path := last[-1] if last else before):
                self.order.setdefault(path, len(self.order))
                self.layer[value] = path

    def _results(self, body: Graph, origins) -> list[int]:
        """Origins of a body's outputs."""
        found = dict(zip(body.inputs, origins, strict=True))
        for inner in body.nodes:
            origin = max((found.get(v, CONSTANT) for v in inner.inputs), default=CONSTANT)
            found.update(dict.fromkeys(inner.outputs, origin))
        return [found.get(v, CONSTANT) for v in body.outputs]

    def _lift(self, node: Node, body: Graph, plan: Plan, weights: set[Value]) -> None:
        """Hold weights that are the same in all turns where they come from."""
        for place, value in enumerate(body.inputs):
            if value not in weights or place in _sliced(node):
                continue
            if place in [i for i, _ in _carried(node)]:
                raise ValueError(
                    f"{where(node.equation)}: the weights {plan.tensors[value].name} are carried "
                    "from turn to turn; close over them, or scan over them"
                )
            tensor = plan.tensors.pop(value)
            weight = source(_body_inputs(node)[place], parts=True)
            whole = dataclasses.replace(tensor, shape=weight.shape)
            self.plan.tensors.setdefault(weight, whole)
            if weight in self.graph.inputs:
                self.weights.add(weight)

    # Where features are written

    def _write(self, node: Node, multiplied: Product, channels: frozenset[int], path: str) -> None:
        value = self._end_of_chain(node.outputs[0], channels)
        if not value.users and not self.body and value in self.graph.outputs:
            return
        name = self.planner.name(path)
        self.plan.tensors[value] = Tensor(name, path, "computed", multiplied.macs, value.shape)

    def _end_of_chain(self, value: Value, channels: frozenset[int]) -> Value:
        while True:
            readers = [u for u in value.users if not self._is_statistic(u, value, channels)]
            if len(readers) != 1 or value in self.graph.outputs:
                return value
            if not self._is_affine(readers[0], value, channels):
                return value
            value = readers[0].outputs[0]

    def _is_affine(self, node: Node, value: Value, channels: frozenset[int]) -> bool:
        if node.name not in _CHAIN or node.outputs[0].shape != value.shape:
            return False
        others = [v for v in node.inputs if v is not value]
        if len(others) != len(node.inputs) - 1 or (
            node.name == "div" and node.inputs[0] is not value
        ):
            return False
        return all(varying(other) <= channels for other in others)

    def _is_statistic(self, node: Node, value: Value, channels: frozenset[int]) -> bool:
        """Whether all that comes of reading a value is one number for each channel."""
        if node.name in _REDUCTIONS:
            left = set(range(len(value.shape))) - set(node.params["axes"])
            return all(i in channels or value.shape[i] == 1 for i in left)
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
        given = stored in self.graph.inputs and not self.body
        path = self.layer.get(stored, "input" if given else reader)
        name = self.planner.name(path if given else f"{path}/stored")
        self.plan.tensors[stored] = Tensor(name, path, "stored", 0, stored.shape, not given)


def layer_path(name: str) -> str:
    """The path of the layer that a parameter belongs to."""
    parts = name.split("/")
    conventional = parts[-1] in ("kernel", "weight", "w", "embedding")
    return "/".join(parts[:-1]) if conventional and len(parts) > 1 else name


def _common(paths: list[str]) -> str:
    """What paths begin with in common, in whole parts."""
    parts = [path.split("/") for path in paths]
    common = []
    for own in zip(*parts, strict=False):
        if len(set(own)) > 1:
            break
        common.append(own[0])
    return "/".join(common)


def _body_inputs(node: Node) -> list[Value]:
    """The node's inputs that its bodies take, in their order."""
    return node.inputs[1:] if node.name == "cond" else node.inputs


def _carried(node: Node) -> list[tuple[int, int]]:
    """For a loop the places of what it carries, among inputs and outputs of its body."""
    if node.name != "scan":
        return []
    first, count = node.params["num_consts"], node.params["num_carry"]
    return [(first + i, i) for i in range(count)]


def _sliced(node: Node) -> range:
    """For a loop the places of the body's inputs of which every turn has a slice."""
    if node.name != "scan":
        return range(0)
    first = node.params["num_consts"] + node.params["num_carry"]
    return range(first, len(node.inputs))
