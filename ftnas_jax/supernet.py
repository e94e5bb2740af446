"""The network of §4.2: stem, cells, classifier; as a supernet or for one architecture.

The module is Flax linen: `init` and `apply` are pure, and modules are hashable, so that a network
can be a static argument of jit. The architecture is given in one of three ways:

* as the module's attribute: only the operations of that architecture have parameters;
* as an `Architecture` to the call: the supernet's parameters, only the chosen operations traced;
* as an int32 array to the call: the supernet's parameters, one program for all architectures.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftnas_jax.faults import Place, Site, check_layers
from ftnas_jax.nn.cell import CellSpec, input_number, static_cell
from ftnas_jax.nn.conv import EXACT
from ftnas_jax.nn.fault_table import FaultTable
from ftnas_jax.nn.hardware import (
    CLEAN,
    Draw,
    Hardware,
    draw_maps,
    exposures_at,
    hold_weights,
    write_features,
)
from ftnas_jax.nn.norm import update_running
from ftnas_jax.nn.primitives import (
    NORM_SLOTS,
    apply_primitive,
    initialize,
    initialize_primitive,
    parameter_shapes,
    widest_site,
)
from ftnas_jax.nn.traced_cell import traced_cell
from ftnas_jax.space import INPUT_NODES, Architecture, Space, edge_index, target_node
from ftnas_jax.split_batch import own_part, whole_count

PREPROCESS = ("relu_conv_bn_1x1", "relu_conv_bn_3x3", "sep_conv_3x3")
FACTORIZED = "skip_connect"
"""The preprocessing at stride 2 that is a factorized reduction, by the name of its primitive."""

BATCH_NORM_MODES = ("batch", "running")
STEM_WIDTH = 3
"""Channels of the stem over channels of the first cell."""


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Everything about the network's shape but the architecture of its cells.

    Attributes:
        num_classes: width of the classifier.
        channels: C, channels of the first cell; they double at every reduction. The paper's 20.
        cells: number of cells, 8 in the paper.
        reductions: places of reduction cells, from 0. The published code has 2 and 5 of 8.
        preprocess: operation on a cell's two inputs, one of `PREPROCESS`. The paper's text says
            SepConv 3x3 for weight faults, its numbers need relu_conv_bn_3x3.
        preprocess_stride2: the same where an input has twice the resolution: one of `PREPROCESS`,
            or `skip_connect` for a factorized reduction.
        batch_norm: `batch` normalizes by the statistics of the batch at hand, in evaluation too,
            as the published search does; `running` evaluates with running averages, which
            training updates in its clean passes (in faulty ones where there are no others).
        affine: whether BatchNorms of cells have scale and offset (the stem's always has).
        pool_norm: whether a BatchNorm stands behind pooling. The published supernet has affine
            off and pool_norm on, its final networks the reverse.
        dropout: rate before the classifier.
    """

    num_classes: int = 10
    channels: int = 20
    cells: int = 8
    reductions: tuple[int, ...] = (2, 5)
    preprocess: str = "relu_conv_bn_1x1"
    preprocess_stride2: str = FACTORIZED
    batch_norm: str = "batch"
    affine: bool = False
    pool_norm: bool = True
    dropout: float = 0.1

    def __post_init__(self):
        object.__setattr__(self, "reductions", tuple(self.reductions))
        _check_at_least("channels", self.channels, 1)
        _check_at_least("cells", self.cells, 1)
        _check_at_least("num_classes", self.num_classes, 2)
        for place in self.reductions:
            if not isinstance(place, int) or not 0 <= place < self.cells:
                raise ValueError(
                    f"network.reductions names cell {place!r}; cells are 0 to {self.cells - 1}"
                )
        if list(self.reductions) != sorted(set(self.reductions)):
            raise ValueError(f"network.reductions {self.reductions} must increase")
        _check_choice("preprocess", self.preprocess, PREPROCESS)
        _check_choice("preprocess_stride2", self.preprocess_stride2, (*PREPROCESS, FACTORIZED))
        _check_choice("batch_norm", self.batch_norm, BATCH_NORM_MODES)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"network.dropout is {self.dropout}; it lies in [0, 1)")

    def check_image(self, height: int, width: int) -> None:
        """Raise ValueError where images of this size cannot be halved at every reduction."""
        factor = 2 ** len(self.reductions)
        if height % factor or width % factor:
            raise ValueError(
                f"images of {height}x{width} cannot be halved {len(self.reductions)} times; "
                f"resize them to a multiple of {factor} or give network.reductions fewer cells"
            )


def _check_at_least(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise ValueError(f"network.{name} is {value!r}; it is a whole number of at least {least}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"network.{name} is {value!r}; choose from {', '.join(choices)}")


class Network(nn.Module):
    """Images to logits on faulty hardware.

    Attributes:
        config: shape of the network.
        space: which cells there can be.
        hardware: number formats and faults.
        architecture: the one architecture of a final network; None makes a supernet.
    """

    config: NetworkConfig
    space: Space
    hardware: Hardware
    architecture: Architecture | None = None

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        architecture: Architecture | jax.Array | None = None,
        draw: Draw = CLEAN,
        *,
        train: bool = False,
    ) -> jax.Array:
        """The logits.

        Args:
            images: float32 [B, H, W, 3 or 1], normalized.
            architecture: for a supernet, static or int32 [2, 2(B-2), 2].
            draw: faults of this pass; its key is consumed.
            train: dropout on (needs an rng named `dropout`); in the running mode of BatchNorm
                also normalization by the batch, and an update of `batch_stats` if mutable.

        Returns:
            float32 [B, num_classes].
        """
        config = self.config
        config.check_image(*images.shape[1:3])
        chosen = self._chosen(architecture)
        check_layers(
            self.hardware.faults,
            layer_paths(config, self.space),
            _paths(config, self.space, chosen, "weights"),
        )
        block = {"config": config, "hardware": self.hardware, "train": train}
        x = write_features(images, self.hardware, None, self.hardware.length("input"))
        self.hardware.note("input", "input", "stored", 0, images, x, None)
        stem = Stem(**block, name="stem")(x, draw.at(0))
        older, newer, channels = stem, stem, config.channels
        for place in range(config.cells):
            reduction = place in config.reductions
            channels *= 2 if reduction else 1
            cell = Cell(
                **block,
                space=self.space,
                channels=channels,
                reduction=reduction,
                fixed=None if self.architecture is None else self.architecture[reduction],
                name=f"cell{place}",
            )
            out = cell(older, newer, chosen[int(reduction)], draw.at(1 + place))
            older, newer = newer, out
        return self._classify(newer, train, draw.at(1 + config.cells))

    def _chosen(self, architecture):
        if (self.architecture is None) == (architecture is None):
            raise ValueError(
                "a supernet is called with an architecture, a network of one architecture without"
            )
        given = self.architecture if architecture is None else architecture
        if not isinstance(given, Architecture):
            return jnp.asarray(given)
        self.space.check(given)
        return given

    def _classify(self, x: jax.Array, train: bool, draw: Draw) -> jax.Array:
        pooled = jnp.mean(x, (1, 2))
        stored = exposures_at(self.hardware, "stored", Place("pool"))
        faults = draw_maps(self.hardware, "stored", draw.at(0), pooled.shape, stored)
        held = write_features(pooled, self.hardware, faults, self.hardware.length("pool"))
        self.hardware.note("pool", "pool", "stored", 0, pooled, held, faults)
        pooled = held
        pooled = self._drop(pooled) if train else pooled
        classes = self.config.num_classes
        shapes = {"kernel": (pooled.shape[-1], classes), "bias": (classes,)}
        kernel = self.param("kernel", initialize, "kernel", shapes)
        bias = self.param("bias", initialize, "bias", shapes)
        place = Place("classifier", pooled.shape[-1], kernel.size)
        exposures = exposures_at(self.hardware, "weights", place)
        faults = draw_maps(self.hardware, "weights", draw.at(1), kernel.shape, exposures)
        held = hold_weights(kernel, self.hardware, faults)
        self.hardware.note(
            "classifier/kernel", place.path, "weights", place.macs, kernel, held, faults
        )
        return jnp.matmul(pooled, held, precision=EXACT) + bias[None]

    def _drop(self, x: jax.Array) -> jax.Array:
        rate, axis = self.config.dropout, self.hardware.batch_axis
        if rate == 0:
            return x
        shape = (whole_count(x.shape[0], axis), x.shape[1])
        kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, shape)
        return jnp.where(own_part(kept, axis), x / (1 - rate), 0)


def layer_paths(config: NetworkConfig, space: Space) -> dict[Site, list[str]]:
    """Paths of the layers that a supernet may have, for every site of faults."""
    return {site: list(_paths(config, space, None, site)) for site in get_args(Site)}


def _paths(config: NetworkConfig, space: Space, architecture: Any, site: Site) -> Iterator[str]:
    """Paths of an architecture where faults may sit; of an unknown one those that it may have."""
    yield "stem"
    yield from {"weights": ["classifier"], "activations": ["pool"]}.get(site, [])
    for place in range(config.cells):
        yield from (f"cell{place}/preprocess{i}" for i in range(INPUT_NODES))
        if site == "activations":
            yield from (f"cell{place}/node{n}" for n in range(INPUT_NODES, space.nodes))
        for source, target, op in _connections(space, architecture, place in config.reductions):
            yield f"cell{place}/edge{source}-{target}/{space.primitives[op]}"


def _connections(space: Space, architecture: Any, reduction: bool):
    if isinstance(architecture, Architecture):
        cell = architecture[reduction]
        return [(source, target_node(place), op) for place, (source, op) in enumerate(cell)]
    return [(*nodes, op) for nodes in space.edge_nodes for op in range(len(space.primitives))]


class _Block(nn.Module):
    """What the parts of the network share: settings, and storage of BatchNorm statistics."""

    config: NetworkConfig
    hardware: Hardware
    train: bool

    def _parameters(self, name: str, shapes, stack: int | None = None):
        """Parameters of one operation as `{layer: {field: array}}`, stacked where asked."""
        if not shapes:
            return {}
        return self.param(name, initialize_primitive, shapes, stack)

    def _running(self, name: str, shape: tuple[int, ...]):
        """The variable of running statistics [..., 2, C], or None in the batch mode."""
        if self.config.batch_norm == "batch":
            return None
        start = jnp.broadcast_to(jnp.array([0.0, 1.0])[:, None], shape)
        return self.variable("batch_stats", name, lambda: start)

    def _to_use(self, running):
        """Statistics to normalize with: None while training or in the batch mode."""
        return None if running is None or self.train else running.value

    def _record(self, running, update) -> None:
        """Store what `update` makes of the running statistics, where a training pass may."""
        mutable = self.is_mutable_collection("batch_stats") and not self.is_initializing()
        if running is not None and self.train and mutable:
            running.value = update(running.value)

    def _apply(self, name: str, x, features: int, draw: Draw, *, stride: int, affine: bool):
        """One operation that is always there, with parameters of its own."""
        shapes = parameter_shapes(name, x.shape[-1], features, stride=stride, affine=affine)
        width = widest_site(name, x.shape[-1], features)
        running = self._running(f"{name}/stats", (NORM_SLOTS, 2, width))
        paths = (("/".join(self.path),),)
        table = FaultTable(self.hardware, ((name, stride),), x.shape[-1], features, paths)
        out = (x.shape[0], x.shape[1] // stride, x.shape[2] // stride, width)
        y, statistics = apply_primitive(
            name,
            self._parameters(name, shapes),
            x,
            self._to_use(running),
            table.draw(0, 0, draw.at(0), draw.at(1), out),
            stride=stride,
            hardware=self.hardware,
            pool_norm=self.config.pool_norm,
            path="/".join(self.path),
        )
        self._record(running, lambda old: update_running(old, statistics))
        return y


class Stem(_Block):
    """3x3 convolution to 3C channels and BatchNorm, no ReLU: input of the first two cells."""

    @nn.compact
    def __call__(self, x: jax.Array, draw: Draw) -> jax.Array:
        """[B, H, W, image channels] → [B, H, W, 3C]."""
        return self._apply(
            "conv_bn_3x3", x, STEM_WIDTH * self.config.channels, draw, stride=1, affine=True
        )


class Cell(_Block):
    """A cell with its preprocessing; `fixed` is its architecture where only that has parameters."""

    space: Space
    channels: int
    reduction: bool
    fixed: tuple | None

    @nn.compact
    def __call__(self, older: jax.Array, newer: jax.Array, cell, draw: Draw) -> jax.Array:
        """Outputs of the two cells before → [B, h, w, (B-2) · channels]."""
        inputs = [
            Preprocess(self.config, self.hardware, self.train, name=f"preprocess{i}")(
                x, self.channels, x.shape[1] // newer.shape[1], draw.at(input_number(i))
            )
            for i, x in enumerate((older, newer))
        ]
        spec = CellSpec(
            self.space, self.reduction, self.hardware, self.config.pool_norm, "/".join(self.path)
        )
        edges = self._edges(spec)
        params = self._edge_parameters(spec, edges)
        primitives = len(self.space.primitives)
        shape = (self.space.edges, primitives, NORM_SLOTS, 2, self.channels)
        running = self._running("stats", shape)
        use = self._to_use(running)
        if isinstance(cell, jax.Array):
            outputs: Any = traced_cell(spec, params, use, inputs, cell, draw)
        else:
            outputs = static_cell(spec, params, use, inputs, cell, draw, edges)
        inner, statistics = outputs
        self._record(
            running, lambda old: _update_edges(old, statistics, jnp.asarray(cell, jnp.int32))
        )
        return jnp.concatenate(list(inner), axis=-1)

    def _edges(self, spec: CellSpec) -> dict[str, list[int]] | None:
        """For a fixed architecture: the edges on which each operation has parameters."""
        if self.fixed is None:
            return None
        edges: dict[str, list[int]] = {}
        for place, (source, op) in enumerate(self.fixed):
            name, edge = self.space.primitives[op], edge_index(source, target_node(place))
            if self._shapes(name, spec.stride(source)) and edge not in edges.get(name, ()):
                edges.setdefault(name, []).append(edge)
        return edges

    def _edge_parameters(self, spec: CellSpec, edges):
        """Parameters of all operations that have any, stacked by edge."""
        params = {}
        for name in self.space.primitives if edges is None else edges:
            rows = self.space.edges if edges is None else len(edges[name])
            # In a supernet's reduction cell all edges get the weights of a skip connection with
            # stride 2, those from inner nodes too, which never use them.
            params[name] = self._parameters(name, self._shapes(name, spec.stride(0)), rows)
        return params

    def _shapes(self, name: str, stride: int):
        return parameter_shapes(
            name, self.channels, self.channels, stride=stride, affine=self.config.affine
        )


def _update_edges(running: jax.Array, statistics: jax.Array, cell: jax.Array) -> jax.Array:
    """Running statistics [E, ops, ...] after a batch in which the connections of `cell` ran.

    Two connections that share an edge and an operation both count.
    """
    places = jnp.arange(cell.shape[0])
    edges, ops = edge_index(cell[:, 0], target_node(places)), cell[:, 1]
    old = running[edges, ops]
    return running.at[edges, ops].add(update_running(old, statistics) - old)


class Preprocess(_Block):
    """Brings an input of a cell to its channels and to the resolution of its other input."""

    @nn.compact
    def __call__(self, x: jax.Array, features: int, stride: int, draw: Draw) -> jax.Array:
        """[B, H, W, any] → [B, H/stride, W/stride, features]."""
        name = self.config.preprocess if stride == 1 else self.config.preprocess_stride2
        return self._apply(name, x, features, draw, stride=stride, affine=self.config.affine)
