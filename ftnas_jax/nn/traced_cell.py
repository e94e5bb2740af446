"""A cell whose architecture is a traced array: one program for all architectures.

The program is a loop over the connections and, within it, a loop over the layers of the chosen
operation. A layer chooses its window by a switch; all else about it (ReLU, BatchNorm, fixed point,
faults) is numbers out of a table, and written once for all layers.

The gradient is written by hand: autodiff through a switch would keep what every branch needs, and
through a loop it would copy the gradient of every node at every connection. What the backward loops
need is kept in memories with a slot for every layer: the features as codes, and before their
BatchNorm as float32.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ftnas_jax.nn.cell import CellSpec
from ftnas_jax.nn.cell_program import Program
from ftnas_jax.nn.chosen import Chosen, choose, gradients_by_edge
from ftnas_jax.nn.hardware import Draw, hold_segments, mask, masked_positions
from ftnas_jax.nn.layer import (
    Memory,
    Norm,
    Slot,
    code_dtype,
    encode,
    images_in_slot,
    layer_gradients,
    normalization,
    over_devices,
    run_window,
    write,
)
from ftnas_jax.nn.primitives import MAX_LAYERS, NORM_SLOTS
from ftnas_jax.space import FAN_IN, INPUT_NODES, edge_index, target_node


def traced_cell(spec: CellSpec, params, running, inputs, cell: jax.Array, draw: Draw):
    """As `ftnas_jax.nn.cell.static_cell`, for a traced `cell` of int32 [connections, 2]."""
    static = draw.faulty if isinstance(draw.faulty, bool) else None
    faulty = None if static is not None else draw.faulty
    return _traced(spec, static, params, running, jnp.stack(inputs), cell, draw.key, faulty)


# Forward


class Tape(NamedTuple):
    """What the loops of a cell write, and its gradient reads.

    Attributes:
        memory: nodes (in a reduction cell only the inner ones), then layers of each connection.
        features: float32 [slots, B, h, w, C] f of the layers with BatchNorm, and a last slot
            for all others.
        norms: of every connection and layer, [connections, MAX_LAYERS, C].
        statistics: float32 [connections, NORM_SLOTS + 1, 2, C].
    """

    memory: Memory
    features: jax.Array
    norms: Norm
    statistics: jax.Array


class _Connection(NamedTuple):
    """One connection, traced."""

    place: Any
    source: Any
    op: Any


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _traced(spec, static_faulty, params, running, inputs, cell, key, faulty):
    arguments = (spec, static_faulty, params, running, inputs, cell, key, faulty)
    return _run_cell(*arguments, keep=False)[0]


def _traced_forward(*arguments):
    return _run_cell(*arguments, keep=True)


def _run_cell(spec, static_faulty, params, running, inputs, cell, key, faulty, *, keep: bool):
    """Outputs and residuals; `keep` says whether a gradient will read the tape."""
    program = _program(spec, params, inputs)
    draw = Draw(key, faulty if static_faulty is None else static_faulty)
    # The gradients of inputs are those of their values.
    strided = Memory(inputs, jnp.ones(INPUT_NODES, jnp.float32))

    def step(tape, connection):
        connection = _Connection(*connection)
        return _run_connection(program, params, running, strided, tape, connection, draw)

    tape, held = lax.scan(step, _empty_tape(program, inputs, cell, keep), _connections(cell))
    first = spec.space.nodes - spec.space.inner_nodes - _first_node(spec)
    inner = jax.vmap(lambda slot: tape.memory.read(slot).values)(
        jnp.arange(first, first + spec.space.inner_nodes)
    )
    outputs = (inner, tape.statistics[:, :NORM_SLOTS])
    return outputs, (params, inputs, cell, tape, held, key, faulty)


def _run_connection(program: Program, params, running, inputs: Memory, tape, connection, draw):
    """Run the chosen operation and add to the target node; returns tape and held kernels."""
    spec, tables = program.spec, jax.tree.map(jnp.asarray, program.tables)
    place, source, op = connection
    edge, choice = edge_index(source, target_node(place)), spec.choice(source, op)
    chosen = choose(program, params, edge, op)
    maps = spec.draw(draw, place, source, op, inputs.codes.shape[1:])
    held = hold_segments(chosen.kernel, tables.ends[choice], spec.hardware, maps.weights)
    stats = None if running is None else running[edge, op]

    def layer(stride, place_of_layer, tape: Tape) -> Tape:
        norm_slot = tables.norm[choice, place_of_layer]
        feature_slot = _feature_slot(place, norm_slot, tape)

        def store(features, f, start):
            begin = [jnp.asarray(i, jnp.int32) for i in (feature_slot, start, 0, 0, 0)]
            return lax.dynamic_update_slice(features, f[None], begin)

        features, own = run_window(
            program.window(stride, choice, place_of_layer),
            held,
            _input(program, inputs, tape.memory, connection, stride, place_of_layer),
            tables.floor[choice, place_of_layer],
            spec.hardware.operands,
            store,
            tape.features,
        )
        moments = over_devices(own, spec.hardware.batch_axis)
        norm = normalization(
            moments,
            None if stats is None else stats[jnp.minimum(norm_slot, NORM_SLOTS - 1)],
            chosen.scale[place_of_layer],
            chosen.offset[place_of_layer],
            norm_slot < NORM_SLOTS,
        )
        faults = None
        if maps.features is not None:
            faults = _of_layer(maps.features, place_of_layer)
        f = lax.dynamic_index_in_dim(features, feature_slot, keepdims=False)
        y = write(f, norm, moments, spec.hardware, faults)
        variance = moments.variance if stats is None else stats[norm_slot, 1]
        slot = _layer_slot(program, tape.memory, place, place_of_layer)
        return Tape(
            tape.memory.write(slot, y),
            features,
            jax.tree.map(functools.partial(_set, place, place_of_layer), tape.norms, norm),
            _set(place, norm_slot, tape.statistics, jnp.stack([norm.mean, variance])),
        )

    count, first = tables.layers[choice], jnp.int32(0)
    if 2 in program.windows:
        first = jnp.where(source < INPUT_NODES, jnp.minimum(count, 1), 0)
        tape = lax.fori_loop(0, first, functools.partial(layer, 2), tape)
    if 1 in program.windows:
        tape = lax.fori_loop(first, count, functools.partial(layer, 1), tape)
    memory = _add_to_node(program, tape.memory, connection, count, draw)
    return tape._replace(memory=memory), held


def _of_layer(maps, place_of_layer):
    """The maps of one layer out of those of an operation; poolings read any, which is sound."""
    return jax.tree.map(lambda m: m[jnp.minimum(place_of_layer, len(m) - 1)], maps)


def _add_to_node(
    program: Program, memory: Memory, connection: _Connection, count, draw: Draw
) -> Memory:
    """Add the output of a connection of `count` layers to its node, which fails once complete."""
    spec = program.spec
    node = target_node(connection.place) - _first_node(spec)
    source = jnp.maximum(connection.source - _first_node(spec), 0)
    last = _layer_slot(program, memory, connection.place, count - 1)
    y = memory.read(jnp.where(count == 0, source, last))
    present = jnp.where(_is_identity(program, connection, count) | (count > 0), y.step, 0.0)
    total = memory.read(node).values + y._replace(step=present).values
    complete = connection.place % FAN_IN == FAN_IN - 1
    faults = spec.draw_node(draw, target_node(connection.place), total.shape, complete)
    # A first summand is representable already: rounding it changes nothing.
    return memory.write(node, encode(total, spec.hardware, faults))


def _is_identity(program: Program, connection: _Connection, count):
    """Whether a connection passes its source on as it is."""
    spec = program.spec
    if "skip_connect" not in spec.space.primitives:
        return jnp.bool_(False)
    skip = connection.op == spec.space.primitives.index("skip_connect")
    return skip & (count == 0)


# Backward


def _traced_backward(spec, static_faulty, residuals, cotangents):
    params, inputs, cell, tape, held, key, faulty = residuals
    program = _program(spec, params, inputs)
    strided = Memory(inputs, jnp.ones(INPUT_NODES, jnp.float32))
    nodes = spec.space.nodes - _first_node(spec)
    inner = cotangents[0]
    start = jnp.zeros((nodes, *inner.shape[1:]), jnp.float32).at[-inner.shape[0] :].set(inner)
    zeros = (jnp.zeros(inputs.shape, jnp.float32),) if spec.reduction else ()

    draw = Draw(key, faulty if static_faulty is None else static_faulty)

    def step(gradients, xs):
        connection, own = _Connection(*xs[0]), xs[1]
        masks = _masks(program, strided, connection, draw)
        return _differentiate_connection(program, strided, tape, gradients, connection, own, masks)

    xs = (_connections(cell), held)
    gradients, chosen = lax.scan(step, (start, *zeros), xs, reverse=True)
    d_inputs = gradients[1] if spec.reduction else gradients[0][:INPUT_NODES]
    return gradients_by_edge(program, params, cell, chosen), None, d_inputs, None, None, None


class _Masks(NamedTuple):
    """Where no gradient of a connection passes, see `masked_positions`.

    Attributes:
        weights: [weights].
        layers: [sites, B or 1, h, w, C].
        node: of the sum that the connection is a part of.
    """

    weights: jax.Array | None
    layers: jax.Array | None
    node: jax.Array | None


def _masks(program: Program, inputs: Memory, connection: _Connection, draw: Draw) -> _Masks:
    """Draws the faults of the forward pass again, where gradients are masked."""
    spec = program.spec
    if spec.hardware.gradients != "masked":
        return _Masks(None, None, None)
    shape = inputs.codes.shape[1:]
    maps = spec.draw(draw, connection.place, connection.source, connection.op, shape)
    node = spec.draw_node(draw, target_node(connection.place), spec.inner_shape(shape))
    return _Masks(
        masked_positions(spec.hardware, "weights", maps.weights),
        masked_positions(spec.hardware, "features", maps.features),
        masked_positions(spec.hardware, "stored", node),
    )


def _differentiate_connection(
    program: Program, inputs: Memory, tape: Tape, gradients, connection, held, masks: _Masks
):
    """Gradients of nodes with what comes through a connection, and of its chosen parameters."""
    spec, tables = program.spec, jax.tree.map(jnp.asarray, program.tables)
    place, source, op = connection
    choice = spec.choice(source, op)
    count = tables.layers[choice]

    def differentiate(stride, place_of_layer, g, chosen: Chosen):
        feature_slot = _feature_slot(place, tables.norm[choice, place_of_layer], tape)
        own = layer_gradients(
            program.window(stride, choice, place_of_layer),
            held,
            _input(program, inputs, tape.memory, connection, stride, place_of_layer),
            tables.floor[choice, place_of_layer],
            functools.partial(images_in_slot, tape.features, feature_slot),
            mask(g, _of_layer(masks.layers, place_of_layer)),
            jax.tree.map(lambda all_: all_[place, place_of_layer], tape.norms),
            spec.hardware.batch_axis,
        )
        chosen = Chosen(
            chosen.kernel + own.kernel,
            lax.dynamic_update_index_in_dim(chosen.scale, own.scale, place_of_layer, 0),
            lax.dynamic_update_index_in_dim(chosen.offset, own.offset, place_of_layer, 0),
        )
        return own.x, chosen

    def inner_layer(turn, carry):
        return differentiate(1, count - 1 - turn, *carry)

    target = target_node(place) - _first_node(spec)
    g = lax.dynamic_index_in_dim(gradients[0], target, keepdims=False)
    g = mask(g, masks.node)
    vectors = jnp.zeros((MAX_LAYERS, program.channels), jnp.float32)
    chosen = Chosen(jnp.zeros_like(held), vectors, vectors)
    strided = (source < INPUT_NODES) & spec.reduction
    first = jnp.where(strided, jnp.minimum(count, 1), 0)
    if 1 in program.windows:
        g, chosen = lax.fori_loop(0, count - first, inner_layer, (g, chosen))
    if 2 in program.windows:

        def strided_layer(_, carry):
            to_inputs, chosen = carry
            dx, chosen = differentiate(2, jnp.int32(0), g, chosen)
            return _add_to_row(to_inputs, source, dx), chosen

        to_inputs, chosen = lax.fori_loop(0, first, strided_layer, (gradients[1], chosen))
        gradients = (gradients[0], to_inputs)
    chosen = chosen._replace(kernel=mask(chosen.kernel, masks.weights))
    passes = (count > 0) | _is_identity(program, connection, count)
    g = jnp.where(passes & ~strided, g, 0.0)
    row = jnp.maximum(source - _first_node(spec), 0)
    return (_add_to_row(gradients[0], row, g), *gradients[1:]), chosen


_traced.defvjp(_traced_forward, _traced_backward)


# Slots


def _program(spec: CellSpec, params, inputs) -> Program:
    affine = any("scale" in part for rows in params.values() for part in rows.values())
    return Program(spec, inputs.shape[-1], affine)


def _empty_tape(program: Program, inputs: jax.Array, cell: jax.Array, keep: bool) -> Tape:
    """With room for all connections, or for one at a time."""
    spec, connections = program.spec, cell.shape[0]
    fmt = spec.hardware.features
    halved = jax.eval_shape(lambda x: x[:, :, ::2, ::2] if spec.reduction else x, inputs).shape[1:]
    kept = connections if keep else 1
    slots = spec.space.nodes - _first_node(spec) + kept * MAX_LAYERS
    memory = Memory(jnp.zeros((slots, *halved), code_dtype(fmt)), jnp.zeros(slots, jnp.float32))
    if not spec.reduction:
        for node in range(INPUT_NODES):
            memory = memory.write(node, encode(inputs[node], spec.hardware, None))
    vectors = jnp.zeros((connections, MAX_LAYERS, program.channels), jnp.float32)
    by_batch = jnp.zeros((connections, MAX_LAYERS), bool)
    norms = Norm(vectors, vectors, vectors, vectors, by_batch)
    features = jnp.zeros((kept * NORM_SLOTS + 1, *halved), jnp.float32)
    statistics = jnp.zeros((connections, NORM_SLOTS + 1, 2, program.channels), jnp.float32)
    return Tape(memory, features, norms, statistics)


def _first_node(spec: CellSpec) -> int:
    """The node in the first slot; input nodes of a reduction cell are larger than the slots."""
    return INPUT_NODES if spec.reduction else 0


def _layer_slot(program: Program, memory: Memory, place, layer):
    """Where a layer's codes lie in the memory: behind the nodes."""
    nodes = program.spec.space.nodes - _first_node(program.spec)
    for_one = memory.codes.shape[0] == nodes + MAX_LAYERS
    return nodes + (0 if for_one else place * MAX_LAYERS) + layer


def _input(
    program: Program, inputs: Memory, memory: Memory, connection: _Connection, stride: int, layer
) -> Slot:
    """What a layer reads: its connection's source, or the layer before it."""
    if stride > 1:
        return Slot(inputs, connection.source)
    own = _layer_slot(program, memory, connection.place, layer)
    source = connection.source - _first_node(program.spec)
    return Slot(memory, jnp.where(layer == 0, source, own - 1))


def _feature_slot(place, norm_slot, tape: Tape):
    """Where a layer's f lies among the features: the last slot is for layers without BatchNorm."""
    spare = tape.features.shape[0] - 1
    first = 0 if spare == NORM_SLOTS else place * NORM_SLOTS
    return jnp.where(norm_slot < NORM_SLOTS, first + norm_slot, spare)


def _connections(cell: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return jnp.arange(cell.shape[0], dtype=cell.dtype), cell[:, 0], cell[:, 1]


def _set(row, column, table: jax.Array, x: jax.Array) -> jax.Array:
    """`table` [rows, columns, ...] with x in one place; faster than a scatter (CPU)."""
    start = [jnp.asarray(i, jnp.int32) for i in (row, column, *[0] * x.ndim)]
    return lax.dynamic_update_slice(table, x[None, None], start)


def _add_to_row(stack: jax.Array, row, x: jax.Array) -> jax.Array:
    own = lax.dynamic_index_in_dim(stack, row, keepdims=False)
    return lax.dynamic_update_index_in_dim(stack, own + x, row, 0)
