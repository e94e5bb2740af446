"""What is fixed about a cell, and the cell of an architecture that is known while tracing.

Parameters are stacked by edge: `params[operation][layer][name]` is [E, ...]. This form and that of
`ftnas_jax.nn.traced_cell` read the same parameters, draw the same faults and compute the same
features.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from ftnas_jax.faults import Place
from ftnas_jax.nn.fault_table import FaultTable, stack_exposures
from ftnas_jax.nn.hardware import (
    Draw,
    Hardware,
    Maps,
    draw_maps,
    exposures_at,
    write_features,
)
from ftnas_jax.nn.primitives import FaultMaps, apply_primitive
from ftnas_jax.space import FAN_IN, INPUT_NODES, Cell, Space, edge_index, target_node

_WEIGHTS, _FEATURES, _NODES = range(3)
"""What may fail in a cell: an edge's operation, a connection's features, a node."""


def _number(what: int, place):
    """One of the numbers by which faults of a cell are told apart: no two places share one."""
    return 3 * place + what


def input_number(node: int) -> int:
    """That of the preprocessing of an input node, which has no other faults."""
    return _number(_NODES, node)


@dataclasses.dataclass(frozen=True)
class CellSpec:
    """What is fixed about a cell beside its architecture.

    Attributes:
        space: nodes and operations.
        reduction: whether connections from the two input nodes have stride 2.
        hardware: number formats and faults.
        pool_norm: whether a BatchNorm stands behind pooling.
        path: of the cell, as fault models know it.
    """

    space: Space
    reduction: bool
    hardware: Hardware
    pool_norm: bool
    path: str

    def stride(self, source: int) -> int:
        """Stride of connections from a node."""
        return 2 if self.reduction and source < INPUT_NODES else 1

    @property
    def choices(self) -> tuple[tuple[str, int], ...]:
        """(name, stride) of the operations on either kind of connection."""
        strides = (2, 1) if self.reduction else (1,)
        return tuple((name, s) for s in strides for name in self.space.primitives)

    def faults(self, channels: int) -> FaultTable:
        """Of all `choices`."""
        paths = tuple(
            tuple(f"{self.path}/edge{source}-{target}/{name}" for name, _ in self.choices)
            for source, target in self.space.edge_nodes
        )
        return FaultTable(self.hardware, self.choices, channels, channels, paths)

    def choice(self, source, op):
        """Place of an operation on a connection from `source` among `choices`; traceable."""
        if not self.reduction:
            return op
        inner = source >= INPUT_NODES
        return op + len(self.space.primitives) * (
            int(inner) if isinstance(inner, bool) else inner.astype(jnp.int32)
        )

    def draw(self, cell_draw: Draw, place, source, op, inputs_shape) -> FaultMaps:
        """Faults of one connection: weights of a shared edge fail alike, features on their own."""
        edge = edge_index(source, target_node(place))
        return self.faults(inputs_shape[-1]).draw(
            edge,
            self.choice(source, op),
            cell_draw.at(_number(_WEIGHTS, len(self.space.primitives) * edge + op)),
            cell_draw.at(_number(_FEATURES, place)),
            self.inner_shape(inputs_shape),
        )

    def inner_shape(self, inputs_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the inner nodes behind input nodes of a shape (B, H, W, C)."""
        batch, height, width, channels = inputs_shape
        step = 2 if self.reduction else 1
        return batch, height // step, width // step, channels

    def draw_node(self, cell_draw: Draw, node, shape: tuple[int, ...], active=True) -> Maps:
        """Faults of the buffer in the sum at a node, known or traced, of `shape`."""
        if not self.hardware.buffer_fails:
            return None
        exposures = [
            exposures_at(self.hardware, "stored", Place(f"{self.path}/node{n}"))
            for n in range(INPUT_NODES, self.space.nodes)
        ]
        inner = node - INPUT_NODES
        own = (
            exposures[inner]
            if isinstance(node, int)
            else jax.tree.map(lambda table: jnp.asarray(table)[inner], stack_exposures(exposures))
        )
        return draw_maps(
            self.hardware, "stored", cell_draw.at(_number(_NODES, node)), shape, own, active
        )

    def connect(self, name, params, x, running, maps, *, stride, path):
        """The operation `name` with this cell's settings; see `apply_primitive`."""
        return apply_primitive(
            name,
            params,
            x,
            running,
            maps,
            stride=stride,
            hardware=self.hardware,
            pool_norm=self.pool_norm,
            path=path,
        )


def static_cell(spec: CellSpec, params, running, inputs, cell: Cell, draw: Draw, edges=None):
    """A cell whose architecture is known while tracing: only its operations are traced.

    Args:
        spec: the cell's settings.
        params: parameters stacked by edge.
        running: [E, operations, NORM_SLOTS, 2, C], or None to normalize by the batch.
        inputs: the two input nodes, each [B, H, W, C].
        cell: the connections.
        draw: the cell's faults.
        edges: by operation the edges that its parameters are stacked over; None for all edges.

    Returns:
        Inner nodes, each [B, h, w, C], and statistics [connections, NORM_SLOTS, 2, C].
    """
    nodes, statistics, summands = list(inputs), [], []
    for place, (source, op) in enumerate(cell):
        name = spec.space.primitives[op]
        edge = edge_index(source, target_node(place))
        y, used = spec.connect(
            name,
            _own_parameters(params, name, edge, edges),
            nodes[source],
            None if running is None else running[edge, op],
            spec.draw(draw, place, source, op, inputs[0].shape),
            stride=spec.stride(source),
            path=f"{spec.path}/edge{source}-{target_node(place)}/{name}",
        )
        statistics.append(used)
        summands.append(y)
        if len(summands) == FAN_IN:
            total = sum(summands[1:], summands[0])
            faults = spec.draw_node(draw, len(nodes), total.shape)
            node = f"{spec.path}/node{len(nodes)}"
            written = write_features(total, spec.hardware, faults, spec.hardware.length(node))
            spec.hardware.note(node, node, "stored", 0, total, written, faults)
            nodes.append(written)
            summands = []
    return nodes[INPUT_NODES:], jnp.stack(statistics)


def _own_parameters(params, name: str, edge: int, edges):
    """Parameters of one operation on one edge; an identity has none in a fixed architecture."""
    if edges is None:
        return edge_rows(params.get(name, {}), edge)
    return edge_rows(params[name], edges[name].index(edge)) if edge in edges.get(name, ()) else {}


def edge_rows(params, edge):
    """Parameters of one edge out of those stacked by edge."""
    if isinstance(edge, int):
        return jax.tree.map(lambda p: p[edge], params)
    return jax.tree.map(lambda p: lax.dynamic_index_in_dim(p, edge, keepdims=False), params)
