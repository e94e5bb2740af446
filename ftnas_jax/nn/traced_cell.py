"""A cell whose architecture is a traced array: one program for all architectures.

The program is a loop over the connections and, within it, a loop over the layers of the chosen
operation. A layer chooses its window by a switch; all else about it (ReLU, BatchNorm, fixed point,
faults) is numbers out of a table, and written once for all layers.

The gradient is written by hand: autodiff through a switch would keep what every branch needs, and
through a loop it would copy the gradient of every node at every connection. What the backward loops
need is kept in memories with a slot for every layer: the features as codes, and before their
BatchNorm as float32.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ftnas_jax.fixed_point import length_for_range, power_of_two, to_codes
from ftnas_jax.nn.cell import CellSpec, edge_rows
from ftnas_jax.nn.hardware import Draw, hold_segments
from ftnas_jax.nn.layer import (
    Features,
    Memory,
    Norm,
    Slot,
    Window,
    code_dtype,
    images_in_slot,
    layer_gradients,
    normalization,
    over_devices,
    range_of,
    run_window,
    write,
)
from ftnas_jax.nn.primitives import (
    MAX_LAYERS,
    NORM_SLOTS,
    count_kernels,
    kernel_shapes,
    layers_of,
    parameter_names,
)
from ftnas_jax.nn.window import WindowShape
from ftnas_jax.space import INPUT_NODES, edge_index, target_node


def traced_cell(spec: CellSpec, params, running, inputs, cell: jax.Array, draw: Draw):
    """As `ftnas_jax.nn.cell.static_cell`, for a traced `cell` of int32 [connections, 2]."""
    static = draw.faulty if isinstance(draw.faulty, bool) else None
    faulty = None if static is not None else draw.faulty
    return _traced(spec, static, params, running, jnp.stack(inputs), cell, draw.key, faulty)


# What the operations are, as tables


class Tables(NamedTuple):
    """Numbers by choice, see `CellSpec.choices`, and layer; int32 if not said otherwise.

    Attributes:
        layers: [choices] how many layers there are.
        window: [choices, MAX_LAYERS] place among the windows of its stride.
        floor: float32 [choices, MAX_LAYERS] 0 for a ReLU before the window, else -inf.
        norm: [choices, MAX_LAYERS] which BatchNorm of the operation it has, NORM_SLOTS for none.
        start: [choices, MAX_LAYERS] where its weights begin among those of the operation.
        ends: [choices, kernels] where each kernel ends.
    """

    layers: np.ndarray
    window: np.ndarray
    floor: np.ndarray
    norm: np.ndarray
    start: np.ndarray
    ends: np.ndarray


@dataclasses.dataclass(frozen=True)
class Program:
    """What a traced cell of a given width runs.

    Attributes:
        spec: the cell's settings.
        channels: of every node.
        affine: whether BatchNorms have scale and offset.
    """

    spec: CellSpec
    channels: int
    affine: bool

    @functools.cached_property
    def windows(self) -> dict[int, list[WindowShape]]:
        """The windows among which layers choose, by stride; those of no stride are left out."""
        found: dict[int, list[WindowShape]] = {}
        for name, stride in self.spec.choices:
            for layer in layers_of(name, stride=stride, pool_norm=self.spec.pool_norm):
                own = found.setdefault(layer.window.stride, [])
                if layer.window not in own:
                    own.append(layer.window)
        return found

    @functools.cached_property
    def tables(self) -> Tables:
        """See `Tables`."""
        choices = self.spec.choices
        shape = (len(choices), MAX_LAYERS)
        tables = Tables(
            np.zeros(len(choices), np.int32),
            np.zeros(shape, np.int32),
            np.zeros(shape, np.float32),
            np.full(shape, NORM_SLOTS, np.int32),
            np.zeros(shape, np.int32),
            np.zeros(shape, np.int32),
        )
        for row, (name, stride) in enumerate(choices):
            layers = layers_of(name, stride=stride, pool_norm=self.spec.pool_norm)
            kernels = kernel_shapes(name, self.channels, self.channels, stride=stride)
            sizes = [[int(np.prod(shape)) for shape in own] for own in kernels]
            flat = [size for own in sizes for size in own]
            tables.ends[row] = sum(flat)
            tables.ends[row, : len(flat)] = np.cumsum(flat)
            tables.layers[row] = len(layers)
            norms = 0
            for place, layer in enumerate(layers):
                tables.window[row, place] = self.windows[layer.window.stride].index(layer.window)
                tables.floor[row, place] = 0.0 if layer.relu else -np.inf
                tables.start[row, place] = sum(sum(own) for own in sizes[:place])
                if layer.norm:
                    tables.norm[row, place] = norms
                    norms += 1
        return tables

    @property
    def weights(self) -> int:
        """Number of weights of the operation that has most of them."""
        return max(
            count_kernels(name, self.channels, self.channels, stride=self.spec.stride(0))
            for name in self.spec.space.primitives
        )

    def window(self, stride: int, choice, layer) -> Window:
        """The window of a traced layer of a traced choice."""
        shapes = self.windows[stride]
        place, start = (
            jnp.asarray(table)[choice, layer] for table in (self.tables.window, self.tables.start)
        )

        def own_kernel(shape: WindowShape, kernel):
            size = shape.kernel_size(self.channels, self.channels)
            return lax.dynamic_slice_in_dim(kernel, start, size)

        def apply_one(shape: WindowShape, x, kernel):
            return shape.apply(x, own_kernel(shape, kernel), out_channels=self.channels)

        def differentiate_one(shape: WindowShape, x, kernel, df):
            window = shape.window(self.channels)
            dx, own = window.differentiate(x, own_kernel(shape, kernel), df)
            return dx, lax.dynamic_update_slice_in_dim(jnp.zeros_like(kernel), own, start, 0)

        def switch(function):
            branches = [functools.partial(function, shape) for shape in shapes]
            return lambda *operands: lax.switch(place, branches, *operands)

        return Window(switch(apply_one), switch(differentiate_one))


# Parameters of the chosen operations, in one form for all


class Chosen(NamedTuple):
    """Parameters of one operation on one edge, whatever operation it is.

    Attributes:
        kernel: [weights], its kernels one after the other, then zeros.
        scale: [MAX_LAYERS, C], 1 where a layer has none.
        offset: [MAX_LAYERS, C], of a BatchNorm, or a bias; 0 where a layer has none.
    """

    kernel: jax.Array
    scale: jax.Array
    offset: jax.Array


def _choose(program: Program, name: str, rows) -> Chosen:
    """From the parameters of operation `name` on an edge."""
    names = parameter_names(name, stride=program.spec.stride(0), affine=program.affine)
    flat = [rows[part][field].ravel() for own in names for part, field in own.kernels]
    kernel = jnp.concatenate([*flat, jnp.zeros(0, jnp.float32)])
    kernel = jnp.pad(kernel, (0, program.weights - kernel.size))

    def stack(places, default):
        default = jnp.full(program.channels, default, jnp.float32)
        own = [default if p is None else rows[p[0]][p[1]] for p in places]
        return jnp.stack(own + [default] * (MAX_LAYERS - len(own)))

    scale, offset = stack([n.scale for n in names], 1.0), stack([n.offset for n in names], 0.0)
    return Chosen(kernel, scale, offset)


def _choose_traced(program: Program, params, edge, op) -> Chosen:
    branches = [
        lambda params, edge, name=name: _choose(
            program, name, edge_rows(params.get(name, {}), edge)
        )
        for name in program.spec.space.primitives
    ]
    return lax.switch(op, branches, params, edge)


def _gradients_by_edge(program: Program, params, cell, chosen: Chosen):
    """Gradients like `params` out of those of every connection's chosen parameters."""
    edges = edge_index(cell[:, 0], target_node(jnp.arange(cell.shape[0])))
    gradients = {}
    for op, name in enumerate(program.spec.space.primitives):
        if name not in params:
            continue
        row = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape[1:], p.dtype), params[name])
        transposed = jax.linear_transpose(functools.partial(_linear_choose, program, name), row)
        rows = jax.vmap(lambda own, transposed=transposed: transposed(own)[0])(chosen)
        mine = cell[:, 1] == op

        def add(p, own, mine=mine):
            own = jnp.where(mine.reshape(-1, *[1] * (own.ndim - 1)), own, 0.0)
            return jnp.zeros_like(p).at[edges].add(own)

        gradients[name] = jax.tree.map(add, params[name], rows)
    return gradients


def _linear_choose(program: Program, name: str, rows) -> Chosen:
    """`_choose` without its constants."""
    zero = jax.tree.map(jnp.zeros_like, rows)
    return jax.tree.map(jnp.subtract, _choose(program, name, rows), _choose(program, name, zero))


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
    return outputs, (params, inputs, cell, tape, held)


def _run_connection(program: Program, params, running, inputs: Memory, tape, connection, draw):
    """Run the chosen operation and add to the target node; returns tape and held kernels."""
    spec, tables = program.spec, jax.tree.map(jnp.asarray, program.tables)
    place, source, op = connection
    edge, choice = edge_index(source, target_node(place)), spec.choice(source, op)
    chosen = _choose_traced(program, params, edge, op)
    maps = spec.draw(draw, place, source, op, inputs.codes.shape[1:])
    held = hold_segments(chosen.kernel, tables.ends[choice], spec.hardware, maps.weights)
    stats = None if running is None else running[edge, op]

    def layer(stride, place_of_layer, tape: Tape) -> Tape:
        slot = _layer_slot(program, tape.memory, place, place_of_layer)
        if stride == 1:
            before = jnp.where(place_of_layer == 0, source - _first_node(spec), slot - 1)
            x = Slot(tape.memory, before)
        else:
            x = Slot(inputs, source)
        norm_slot = tables.norm[choice, place_of_layer]
        feature_slot = _feature_slot(place, norm_slot, tape)

        def store(features, f, start):
            begin = [jnp.asarray(i, jnp.int32) for i in (feature_slot, start, 0, 0, 0)]
            return lax.dynamic_update_slice(features, f[None], begin)

        features, own = run_window(
            program.window(stride, choice, place_of_layer),
            held,
            x,
            tables.floor[choice, place_of_layer],
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
            faults = tuple(m[jnp.minimum(place_of_layer, len(m) - 1)] for m in maps.features)
        f = lax.dynamic_index_in_dim(features, feature_slot, keepdims=False)
        models = spec.hardware.faults_at("features")
        y = write(f, norm, moments, spec.hardware.features, models, faults)
        variance = moments.variance if stats is None else stats[norm_slot, 1]
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
    return tape._replace(memory=_add_to_node(program, tape.memory, connection, count)), held


def _add_to_node(program: Program, memory: Memory, connection: _Connection, count) -> Memory:
    """Add the output of a connection of `count` layers to its node."""
    spec = program.spec
    node = target_node(connection.place) - _first_node(spec)
    source = jnp.maximum(connection.source - _first_node(spec), 0)
    last = _layer_slot(program, memory, connection.place, count - 1)
    y = memory.read(jnp.where(count == 0, source, last))
    present = jnp.where(_is_identity(program, connection, count) | (count > 0), y.step, 0.0)
    total = memory.read(node).values + y._replace(step=present).values
    fmt, axis = spec.hardware.features, spec.hardware.batch_axis
    if fmt is None:
        return memory.write(node, Features(total, jnp.float32(1)))
    # A first summand is representable already: rounding it changes nothing.
    length = length_for_range(*range_of(total, axis), fmt)
    codes = to_codes(total, length, fmt).astype(code_dtype(fmt))
    return memory.write(node, Features(codes, power_of_two(-length)))


def _is_identity(program: Program, connection: _Connection, count):
    """Whether a connection passes its source on as it is."""
    spec = program.spec
    if "skip_connect" not in spec.space.primitives:
        return jnp.bool_(False)
    skip = connection.op == spec.space.primitives.index("skip_connect")
    return skip & (count == 0)


# Backward


def _traced_backward(spec, static_faulty, residuals, cotangents):
    params, inputs, cell, tape, held = residuals
    program = _program(spec, params, inputs)
    strided = Memory(inputs, jnp.ones(INPUT_NODES, jnp.float32))
    nodes = spec.space.nodes - _first_node(spec)
    inner = cotangents[0]
    start = jnp.zeros((nodes, *inner.shape[1:]), jnp.float32).at[-inner.shape[0] :].set(inner)
    zeros = (jnp.zeros(inputs.shape, jnp.float32),) if spec.reduction else ()

    def step(gradients, xs):
        connection, own = _Connection(*xs[0]), xs[1]
        return _differentiate_connection(program, strided, tape, gradients, connection, own)

    xs = (_connections(cell), held)
    gradients, chosen = lax.scan(step, (start, *zeros), xs, reverse=True)
    d_inputs = gradients[1] if spec.reduction else gradients[0][:INPUT_NODES]
    return _gradients_by_edge(program, params, cell, chosen), None, d_inputs, None, None, None


def _differentiate_connection(
    program: Program, inputs: Memory, tape: Tape, gradients, connection, held
):
    """Gradients of nodes with what comes through a connection, and of its chosen parameters."""
    spec, tables = program.spec, jax.tree.map(jnp.asarray, program.tables)
    place, source, op = connection
    choice = spec.choice(source, op)
    count = tables.layers[choice]

    def differentiate(stride, place_of_layer, g, chosen: Chosen):
        slot = _layer_slot(program, tape.memory, place, place_of_layer)
        before = jnp.where(place_of_layer == 0, source - _first_node(spec), slot - 1)
        feature_slot = _feature_slot(place, tables.norm[choice, place_of_layer], tape)
        own = layer_gradients(
            program.window(stride, choice, place_of_layer),
            held,
            Slot(tape.memory, before) if stride == 1 else Slot(inputs, source),
            tables.floor[choice, place_of_layer],
            functools.partial(images_in_slot, tape.features, feature_slot),
            g,
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
            memory = memory.write(node, _encode(inputs[node], spec.hardware))
    vectors = jnp.zeros((connections, MAX_LAYERS, program.channels), jnp.float32)
    by_batch = jnp.zeros((connections, MAX_LAYERS), bool)
    norms = Norm(vectors, vectors, vectors, vectors, by_batch)
    features = jnp.zeros((kept * NORM_SLOTS + 1, *halved), jnp.float32)
    statistics = jnp.zeros((connections, NORM_SLOTS + 1, 2, program.channels), jnp.float32)
    return Tape(memory, features, norms, statistics)


def _encode(x: jax.Array, hardware) -> Features:
    """Values that are representable as codes."""
    if hardware.features is None:
        return Features(x, jnp.float32(1))
    length = length_for_range(*range_of(x, hardware.batch_axis), hardware.features)
    codes = to_codes(x, length, hardware.features).astype(code_dtype(hardware.features))
    return Features(codes, power_of_two(-length))


def _first_node(spec: CellSpec) -> int:
    """The node in the first slot; input nodes of a reduction cell are larger than the slots."""
    return INPUT_NODES if spec.reduction else 0


def _layer_slot(program: Program, memory: Memory, place, layer):
    """Where a layer's codes lie in the memory: behind the nodes."""
    nodes = program.spec.space.nodes - _first_node(program.spec)
    for_one = memory.codes.shape[0] == nodes + MAX_LAYERS
    return nodes + (0 if for_one else place * MAX_LAYERS) + layer


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
