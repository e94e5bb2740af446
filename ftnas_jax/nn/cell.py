"""A cell for one architecture: known while tracing, or a traced array.

Parameters are stacked by edge: `params[operation][layer][name]` is [E, ...]. Both forms read the
same parameters, draw the same faults and compute the same features.

The traced form is one scan over the connections with one switch over the operations inside, so its
program is the same for every architecture. Its gradient is written by hand: autodiff through a
switch would keep the residuals of every branch, and through a scan it would copy every node's
gradient at every connection. Instead the nodes are the only residuals, and the backward scan runs
the chosen operation once more for its own gradient.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from ftnas_jax.nn.fault_table import FaultTable
from ftnas_jax.nn.hardware import Draw, Hardware, write_features
from ftnas_jax.nn.primitives import FaultMaps, apply_primitive
from ftnas_jax.space import FAN_IN, INPUT_NODES, Cell, Space, edge_index, target_node

_WEIGHTS, _FEATURES = 0, 1  # the two kinds of sites, as folded into keys


@dataclasses.dataclass(frozen=True)
class CellSpec:
    """What is fixed about a cell beside its architecture.

    Attributes:
        space: nodes and operations.
        reduction: whether connections from the two input nodes have stride 2.
        hardware: number formats and faults.
        pool_norm: whether a BatchNorm stands behind pooling.
    """

    space: Space
    reduction: bool
    hardware: Hardware
    pool_norm: bool

    def stride(self, source: int) -> int:
        """Stride of connections from a node."""
        return 2 if self.reduction and source < INPUT_NODES else 1

    def faults(self, channels: int) -> FaultTable:
        """The operations on either kind of connection, in the order of `choice`."""
        strides = (2, 1) if self.reduction else (1,)
        operations = tuple((name, s) for s in strides for name in self.space.primitives)
        return FaultTable(self.hardware, operations, channels, channels)

    def choice(self, source, op):
        """Place of an operation on a connection from `source` in all of them; traceable."""
        if not self.reduction:
            return op
        inner = source >= INPUT_NODES
        return op + len(self.space.primitives) * (
            int(inner) if isinstance(inner, bool) else inner.astype(jnp.int32)
        )

    def draw(self, cell_draw: Draw, place, source, op, inputs_shape) -> FaultMaps:
        """Faults of one connection: weights of a shared edge fail alike, features on their own."""
        edge = edge_index(source, target_node(place))
        batch, height, width, channels = inputs_shape
        step = 2 if self.reduction else 1
        return self.faults(channels).draw(
            self.choice(source, op),
            cell_draw.at(_WEIGHTS, edge, op),
            cell_draw.at(_FEATURES, place),
            (batch, height // step, width // step, channels),
        )

    def connect(self, name, params, x, running, maps, *, stride):
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
        Inner nodes [B-2, B, h, w, C] and statistics [connections, NORM_SLOTS, 2, C].
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
        )
        statistics.append(used)
        summands.append(y)
        if len(summands) == FAN_IN:
            nodes.append(write_features(sum(summands[1:], summands[0]), spec.hardware, None))
            summands = []
    return jnp.stack(nodes[INPUT_NODES:]), jnp.stack(statistics)


def traced_cell(spec: CellSpec, params, running, inputs, cell: jax.Array, draw: Draw):
    """As `static_cell`, for a traced `cell` of int32 [connections, 2]."""
    static = draw.faulty if isinstance(draw.faulty, bool) else None
    faulty = None if static is not None else draw.faulty
    return _traced(spec, static, params, running, jnp.stack(inputs), cell, draw.key, faulty)


def _own_parameters(params, name: str, edge: int, edges):
    """Parameters of one operation on one edge; an identity has none in a fixed architecture."""
    if edges is None:
        return _rows(params.get(name, {}), edge)
    return _rows(params[name], edges[name].index(edge)) if edge in edges.get(name, ()) else {}


def _rows(params, edge):
    """Parameters of one edge out of those stacked by edge."""
    if isinstance(edge, int):
        return jax.tree.map(lambda p: p[edge], params)
    return jax.tree.map(lambda p: lax.dynamic_index_in_dim(p, edge, keepdims=False), params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _traced(spec, static_faulty, params, running, inputs, cell, key, faulty):
    outputs, _ = _traced_forward(spec, static_faulty, params, running, inputs, cell, key, faulty)
    return outputs


def _traced_forward(spec, static_faulty, params, running, inputs, cell, key, faulty):
    draw = Draw(key, faulty if static_faulty is None else static_faulty)

    def step(stacks, connection):
        y, used = _switch(_forward_branch, spec, params, running, stacks, connection, draw)
        return _add_to_node(spec, stacks, target_node(connection[0]), y), used

    start = _stacks(spec, inputs)
    stacks, statistics = lax.scan(step, start, _connections(cell))
    inner = stacks[-1][INPUT_NODES - _first_node(len(stacks) - 1) :]
    return (inner, statistics), (params, running, stacks, cell, key, faulty)


def _traced_backward(spec, static_faulty, residuals, cotangents):
    params, running, stacks, cell, key, faulty = residuals
    draw = Draw(key, faulty if static_faulty is None else static_faulty)

    def step(gradients, connection):
        place, source, _ = connection
        g = _node(gradients[-1], target_node(place) - _first_node(len(stacks) - 1))
        dparams, dx = _switch(_backward_branch, spec, params, running, stacks, connection, draw, g)
        return _add_to_source(gradients, dx, source), dparams

    inner = cotangents[0]
    start = tuple(jnp.zeros_like(stack) for stack in stacks)
    start = (*start[:-1], start[-1].at[-inner.shape[0] :].set(inner))
    gradients, by_connection = lax.scan(step, start, _connections(cell), reverse=True)
    places = jnp.arange(cell.shape[0])
    edges = edge_index(cell[:, 0], target_node(places))
    dparams = jax.tree.map(lambda p, d: jnp.zeros_like(p).at[edges].add(d), params, by_connection)
    return dparams, None, gradients[0][:INPUT_NODES], None, None, None


_traced.defvjp(_traced_forward, _traced_backward)


# Nodes live in stacks of equal shapes: one for a normal cell; for a reduction cell one for its
# input nodes and one, at half the resolution, for the others.


def _stacks(spec: CellSpec, inputs: jax.Array) -> tuple[jax.Array, ...]:
    halved = inputs[:, :, ::2, ::2] if spec.reduction else inputs
    inner = jnp.zeros((spec.space.inner_nodes, *halved.shape[1:]), inputs.dtype)
    return (inputs, inner) if spec.reduction else (jnp.concatenate([inputs, inner]),)


def _first_node(group: int) -> int:
    return INPUT_NODES * group


def _switch(branch, spec: CellSpec, params, running, stacks, connection, draw: Draw, *more):
    """`branch` for the operation of a connection, with the parameters and faults of its edge."""
    place, source, op = connection
    edge = edge_index(source, target_node(place))
    stats = None if running is None else running[edge, op]
    maps = spec.draw(draw, place, source, op, stacks[0].shape[1:])
    branches = [  # one for every operation on a node of every stack, in the order of `choice`
        functools.partial(branch, spec, name, group)
        for group in range(len(stacks))
        for name in spec.space.primitives
    ]
    operands = (params, stacks, source, edge, stats, maps, *more)
    return lax.switch(spec.choice(source, op), branches, *operands)


def _connections(cell: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return jnp.arange(cell.shape[0], dtype=cell.dtype), cell[:, 0], cell[:, 1]


def _node(stack: jax.Array, row) -> jax.Array:
    return lax.dynamic_index_in_dim(stack, row, keepdims=False)


def _add_to_node(spec: CellSpec, stacks, node, y):
    row = node - _first_node(len(stacks) - 1)
    # A first summand is representable already: rounding it changes nothing.
    total = write_features(_node(stacks[-1], row) + y, spec.hardware, None)
    return (*stacks[:-1], lax.dynamic_update_index_in_dim(stacks[-1], total, row, 0))


def _add_to_source(gradients, dx, source):
    """Add to the gradient of the source node; `dx` holds zeros for the stack it is not in."""
    out = []
    for group, (stack, d) in enumerate(zip(gradients, dx, strict=True)):
        row = jnp.clip(source - _first_node(group), 0, stack.shape[0] - 1)
        out.append(lax.dynamic_update_index_in_dim(stack, _node(stack, row) + d, row, 0))
    return tuple(out)


def _forward_branch(spec, name, group, params, stacks, source, edge, running, maps):
    x = _node(stacks[group], source - _first_node(group))
    stride = spec.stride(_first_node(group))
    rows = _rows(params.get(name, {}), edge)
    return spec.connect(name, rows, x, running, maps, stride=stride)


def _backward_branch(spec, name, group, params, stacks, source, edge, running, maps, g):
    stride = spec.stride(_first_node(group))

    def forward(rows, x):
        return spec.connect(name, rows, x, running, maps, stride=stride)[0]

    x = _node(stacks[group], source - _first_node(group))
    _, vjp = jax.vjp(forward, _rows(params.get(name, {}), edge), x)
    own, dx = vjp(g)
    zeros = {
        other: jax.tree.map(lambda p: jnp.zeros(p.shape[1:], p.dtype), stacked)
        for other, stacked in params.items()
    }
    dparams = zeros | ({name: own} if name in params else {})
    dxs = [dx if other == group else jnp.zeros_like(s[0]) for other, s in enumerate(stacks)]
    return dparams, tuple(dxs)
