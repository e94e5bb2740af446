"""The search space of §4.2: what an architecture is, how it is written, how many there are.

An architecture is two cells, normal and reduction. A cell has `B` nodes: nodes 0 and 1 are its
inputs (the outputs of the two cells before it), every other node adds up two connections. A
connection is an (input node, operation) pair. Nodes count from 0 here, as in genotype text; the
paper counts from 1.

The same architecture has two forms. `Architecture` is made of Python ints and hashable, for static
use. The array form is int32 `[2, 2(B-2), 2]`: cell type, connection, (input node, operation), for
use as a traced argument. Connections 2j and 2j + 1 feed node j + 2.
"""

import dataclasses
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PRIMITIVES = (
    "none",
    "skip_connect",
    "avg_pool_3x3",
    "max_pool_3x3",
    "conv_1x1",
    "relu_conv_bn_3x3",
    "relu_conv_bn_5x5",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
CELL_TYPES = ("normal", "reduction")
INPUT_NODES = 2
"""Nodes of a cell that are outputs of earlier cells."""

FAN_IN = 2
"""Connections into every other node (M in §4.3)."""


class Connection(NamedTuple):
    """One connection: `input` is a node, `op` an index into the space's primitives."""

    input: int
    op: int


Cell = tuple[Connection, ...]


class Architecture(NamedTuple):
    """A hashable architecture: each cell lists its `2(B-2)` connections in node order."""

    normal: Cell
    reduction: Cell

    def to_array(self) -> np.ndarray:
        """int32 [2, 2(B-2), 2], the form for traced use."""
        return np.asarray([self.normal, self.reduction], np.int32)

    @classmethod
    def from_array(cls, array) -> "Architecture":
        """Read the array form; only its shape is checked, `Space.check` looks at the values."""
        array = np.asarray(array)
        if array.ndim != 3 or array.shape[0] != len(CELL_TYPES) or array.shape[2] != 2:
            raise ValueError(
                f"an architecture array has shape [2, connections, 2], not {array.shape}"
            )
        return cls(*(tuple(Connection(int(i), int(o)) for i, o in cell) for cell in array))


def target_node(connection):
    """The node that a connection (by its place in the cell) feeds. Traceable."""
    return INPUT_NODES + connection // FAN_IN


def edge_index(source, target):
    """Place of the edge source → target in parameters that are stacked by edge. Traceable."""
    return target * (target - 1) // 2 - 1 + source


@dataclasses.dataclass(frozen=True)
class Space:
    """Which architectures a search may choose from.

    Attributes:
        nodes: B, nodes of a cell with its two inputs, at least 3. The paper uses 6.
        primitives: operations a connection may carry; any subset of `PRIMITIVES`.
    """

    nodes: int = 6
    primitives: tuple[str, ...] = PRIMITIVES

    def __post_init__(self):
        object.__setattr__(self, "primitives", tuple(self.primitives))
        if self.nodes < INPUT_NODES + 1:
            raise ValueError(f"space.nodes is {self.nodes}; a cell needs at least 3 nodes")
        if not self.primitives:
            raise ValueError("space.primitives is empty; name at least one operation")
        for name in self.primitives:
            _primitive_index(PRIMITIVES, name)
        if len(set(self.primitives)) != len(self.primitives):
            raise ValueError(f"space.primitives names an operation twice: {list(self.primitives)}")

    @property
    def inner_nodes(self) -> int:
        """Nodes of a cell that are not its inputs, B - 2."""
        return self.nodes - INPUT_NODES

    @property
    def connections(self) -> int:
        """Connections of one cell, 2(B - 2)."""
        return FAN_IN * self.inner_nodes

    @property
    def edge_nodes(self) -> tuple[tuple[int, int], ...]:
        """(source, target) of every edge, in the order of `edge_index`."""
        pairs = [(s, t) for t in range(INPUT_NODES, self.nodes) for s in range(t)]
        return tuple(sorted(pairs, key=lambda pair: edge_index(*pair)))

    @property
    def edges(self) -> int:
        """Possible (input node, node) pairs of one cell: 14 for B = 6."""
        return self.nodes * (self.nodes - 1) // 2 - 1

    def size(self) -> int:
        """Number of architectures, (n^(B-2) (B-1)!)^4 for n operations: 9.5e24 for B = 6 (§4.2)."""
        choices = len(self.primitives) ** self.inner_nodes * math.factorial(self.nodes - 1)
        return choices ** (FAN_IN * len(CELL_TYPES))

    def check(self, architecture: Architecture) -> None:
        """Raise ValueError, in one line, where the architecture is not of this space."""
        for name, cell in zip(CELL_TYPES, architecture, strict=True):
            if len(cell) != self.connections:
                raise ValueError(
                    f"{name} cell: {len(cell)} connections, "
                    f"but {self.nodes} nodes need {self.connections}"
                )
            for place, (source, op) in enumerate(cell):
                target = target_node(place)
                if not 0 <= source < target:
                    raise ValueError(
                        f"{name} cell: node {target} takes its input from node {source}; "
                        f"it can only come from nodes 0 to {target - 1}"
                    )
                if not 0 <= op < len(self.primitives):
                    raise ValueError(f"{name} cell: operation {op} of {len(self.primitives)}")

    def random(self, key: jax.Array) -> jax.Array:
        """A uniformly random architecture as int32 [2, 2(B-2), 2]. Consumes `key`."""
        targets = jnp.asarray([target_node(c) for c in range(self.connections)])
        input_key, op_key = jax.random.split(key)
        shape = (len(CELL_TYPES), self.connections)
        inputs = jax.random.randint(input_key, shape, 0, targets[None, :])
        ops = jax.random.randint(op_key, shape, 0, len(self.primitives))
        return jnp.stack([inputs, ops], axis=-1).astype(jnp.int32)

    def first(self) -> Architecture:
        """The architecture of all first choices: node 0 and the first operation everywhere."""
        cell = (Connection(0, 0),) * self.connections
        return Architecture(cell, cell)

    def format(self, architecture: Architecture, style: str = "ftnas") -> str:
        """Genotype text, one list of (operation, from node, to node) a cell.

        `style="aw_nas"` names the cells as aw_nas's published genotypes do (normal_0, reduce_1).
        """
        names = {"ftnas": CELL_TYPES, "aw_nas": ("normal_0", "reduce_1")}[style]
        return ", ".join(
            f"{name}={[self._edge(place, c) for place, c in enumerate(cell)]}"
            for name, cell in zip(names, architecture, strict=True)
        )

    def _edge(self, place: int, connection: Connection) -> tuple[str, int, int]:
        return (self.primitives[connection.op], connection.input, target_node(place))

    def parse(self, text: str) -> Architecture:
        """Read genotype text in either style of `format`; ValueError says what is wrong."""
        cells: dict[str, Cell] = {}
        found = self._lists(text)
        names = [_cell_type(name) for name, _ in found]
        if sorted(names) != sorted(CELL_TYPES):
            raise ValueError(
                "a genotype reads \"normal=[('sep_conv_3x3', 0, 2), ...], reduction=[...]\"; "
                f"found the cells {names} in {text[:60]!r}"
            )
        for name, (_, body) in zip(names, found, strict=True):
            cells[name] = self._parse_cell(name, body)
        architecture = Architecture(*(cells[name] for name in CELL_TYPES))
        self.check(architecture)
        return architecture

    def _lists(self, text: str) -> list[tuple[str, str]]:
        """(name, body) of the lists in genotype text, those of concatenated nodes checked and off.

        aw_nas writes `normal_0_concat=[2, 3, 4, 5]`: every inner node, the only form we have.
        """
        pattern = r"(\w+)\s*=\s*\[(.*?)\]"
        found = re.findall(pattern, text, flags=re.DOTALL)
        stray = re.sub(pattern, "", text, flags=re.DOTALL).replace(",", "").strip()
        if found and stray:
            raise ValueError(f"cannot read {stray[:40]!r} in the genotype")
        lists = []
        for name, body in found:
            if not name.endswith("_concat"):
                lists.append((name, body))
            elif sorted(map(int, re.findall(r"\d+", body))) != list(range(2, self.nodes)):
                raise ValueError(
                    f"{name} is [{body}], but a cell's output joins the nodes 2 to {self.nodes - 1}"
                )
        return lists

    def _parse_cell(self, name: str, body: str) -> Cell:
        edge = r"\(\s*['\"](\w+)['\"]\s*,\s*(-?\d+)\s*,\s*(-?\d+)\s*\)"
        leftover = re.sub(edge, "", body).replace(",", "").strip()
        if leftover:
            raise ValueError(f"{name} cell: cannot read {leftover[:40]!r} in the genotype")
        into: dict[int, list[Connection]] = {n: [] for n in range(INPUT_NODES, self.nodes)}
        for op, source, target in re.findall(edge, body):
            if int(target) not in into:
                raise ValueError(
                    f"{name} cell: ({op}, {source}, {target}) feeds node {target}, but the nodes "
                    f"that take connections are {INPUT_NODES} to {self.nodes - 1}"
                )
            into[int(target)].append(Connection(int(source), _primitive_index(self.primitives, op)))
        for node, connections in into.items():
            if len(connections) != FAN_IN:
                raise ValueError(
                    f"{name} cell: node {node} has {len(connections)} connections, not {FAN_IN}"
                )
        return tuple(c for node in sorted(into) for c in into[node])


def _primitive_index(primitives: tuple[str, ...], name: str) -> int:
    if name not in primitives:
        raise ValueError(f"unknown operation {name!r}; choose from {', '.join(primitives)}")
    return primitives.index(name)


def _cell_type(name: str) -> str:
    """`normal_0` → normal, `reduce_1` and `reduction` → reduction; anything else as it is."""
    stem = re.sub(r"_\d+$", "", name)
    return {"normal": "normal", "reduce": "reduction", "reduction": "reduction"}.get(stem, name)
