"""The networks of `ftnas_jax.supernet` in PyTorch eager, channels-last on CPU.

Of a supernet only the operations of a sampled architecture run. Two connections with equal edge and
operation hold the same faulty weights, as in the JAX network.

Parameters have the names of the JAX network's tree, with the number of the edge in between.
"""

import functools
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.torch_hardware import Pass
from benchmarks.torch_operations import Convolution, copy, join, operation, uniform
from ftnas_jax.space import (
    FAN_IN,
    INPUT_NODES,
    Architecture,
    Cell,
    Space,
    edge_index,
    target_node,
)
from ftnas_jax.supernet import STEM_WIDTH, NetworkConfig


class _Node:
    """Features [B, C, H, W], and what a ReLU leaves of them where it is asked for, once."""

    def __init__(self, x: Tensor):
        self.x = x

    @functools.cached_property
    def relu(self) -> Tensor:
        return F.relu(self.x)


class SearchCell(nn.Module):
    """A cell of the supernet with its two preprocessing operations.

    Args:
        inputs: channels of the older and of the newer input.
        channels: of every node.
        reduction: whether edges from the inputs have stride 2.
        halve_older: whether the older input has twice the resolution of the newer.
        last: whether no other cell follows, which would want the features after a ReLU.
        fixed: the only architecture of the cell; by default it has all operations.

    Attributes:
        rows: of a fixed cell, by operation the edges that it is on, in the order of connections.
    """

    def __init__(
        self,
        config: NetworkConfig,
        space: Space,
        inputs: tuple[int, int],
        channels: int,
        reduction: bool,
        halve_older: bool,
        last: bool,
        fixed: Cell | None = None,
    ):
        super().__init__()
        self.rows = None if fixed is None else _rows_of(fixed, space)
        self.space, self.reduction, self.last = space, reduction, last
        make = functools.partial(operation, affine=config.affine, pool_norm=config.pool_norm)
        for place, width in enumerate(inputs):
            stride = 2 if halve_older and place == 0 else 1
            name = config.preprocess if stride == 1 else config.preprocess_stride2
            module = make(name, width, channels, stride=stride)
            self.add_module(f"preprocess{place}", nn.ModuleDict({name: module}))
        self.edges = nn.ModuleList()
        for target in range(INPUT_NODES, space.nodes):
            for source in range(target):
                stride = 2 if reduction and source < INPUT_NODES else 1
                names = self._names(edge_index(source, target))
                made = {n: make(n, channels, channels, stride=stride) for n in names}
                self.edges.append(nn.ModuleDict({n: m for n, m in made.items() if m is not None}))

    def _names(self, edge: int) -> list[str]:
        """Operations that there are on an edge."""
        rows = self.rows
        return [n for n in self.space.primitives if rows is None or edge in rows.get(n, ())]

    def row(self, name: str, edge: int) -> int:
        """Place of an edge among those over which the JAX network stacks an operation."""
        if self.rows is None:
            return edge
        return [own for own in self.rows[name] if name in self.edges[own]].index(edge)

    def preprocessing(self) -> list[nn.Module]:
        """What acts on the older and on the newer input."""
        return [next(iter(module.values())) for module in (self.preprocess0, self.preprocess1)]

    def chosen(self, cell: Cell) -> Iterator[nn.Module]:
        """The modules that run, preprocessing too; one may come twice."""
        yield from self.preprocessing()
        for place, (source, op) in enumerate(cell):
            edge, name = self._edge(place, source), self.space.primitives[op]
            if name in edge:
                yield edge[name]

    def _edge(self, place: int, source: int) -> nn.ModuleDict:
        return self.edges[edge_index(source, target_node(place))]

    def forward(self, older: Tensor, newer: Tensor, cell: Cell, run: Pass) -> Tensor:
        """Inputs after a ReLU → [B, inner nodes · channels, h, w], before it in the last cell."""
        inputs = zip(self.preprocessing(), (older, newer), strict=True)
        nodes = [_Node(module(x, run)) for module, x in inputs]
        for first in range(0, len(cell), FAN_IN):
            places = range(first, first + FAN_IN)
            terms = [self._connect(place, *cell[place], nodes, run) for place in places]
            terms = [term for term in terms if term is not None]
            if len(terms) == FAN_IN:
                nodes.append(_Node(run.write_(terms[0] + terms[1])))
            else:
                # One term alone is representable as it is.
                nodes.append(_Node(terms[0] if terms else self._zeros(nodes[0].x)))
        return join([node.x for node in nodes[INPUT_NODES:]], relu=not self.last)

    def _connect(self, place: int, source: int, op: int, nodes, run: Pass) -> Tensor | None:
        """The features of a connection; None for zeros."""
        name, edge, node = self.space.primitives[op], self._edge(place, source), nodes[source]
        if name in edge:
            module = edge[name]
            return module(node.relu if module.after_relu else node.x, run)
        return None if name == "none" else node.x

    def _zeros(self, x: Tensor) -> Tensor:
        x = x[:, :, ::2, ::2] if self.reduction else x
        return copy(torch.zeros(x.shape))


def _rows_of(cell: Cell, space: Space) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for place, (source, op) in enumerate(cell):
        edges = rows.setdefault(space.primitives[op], [])
        edge = edge_index(source, target_node(place))
        if edge not in edges:
            edges.append(edge)
    return rows


class SearchNetwork(nn.Module):
    """Images to logits with the parameters of all architectures, or of a fixed one."""

    def __init__(
        self,
        config: NetworkConfig,
        space: Space,
        image_channels: int,
        fixed: Architecture | None = None,
    ):
        super().__init__()
        self.config, self.space = config, space
        older = newer = STEM_WIDTH * config.channels
        stem = operation(
            "conv_bn_3x3", image_channels, newer, stride=1, affine=True, pool_norm=False
        )
        self.stem = nn.ModuleDict({"conv_bn_3x3": stem})
        channels, halve = config.channels, False
        for place in range(config.cells):
            reduction = place in config.reductions
            channels *= 2 if reduction else 1
            last = place == config.cells - 1
            own = None if fixed is None else fixed[reduction]
            cell = SearchCell(config, space, (older, newer), channels, reduction, halve, last, own)
            self.add_module(f"cell{place}", cell)
            older, newer, halve = newer, space.inner_nodes * channels, reduction
        self.kernel = uniform((config.num_classes, newer), newer)
        self.bias = uniform((config.num_classes,), newer)

    def _cells(self) -> list[SearchCell]:
        return [getattr(self, f"cell{place}") for place in range(self.config.cells)]

    def hold_weights(self, architecture: Architecture, run: Pass) -> None:
        """Give `run` the weights of all convolutions that will run, and of the classifier."""
        modules = [self.stem]
        for cell in self._cells():
            modules += cell.chosen(architecture[cell.reduction])
        kernels = dict.fromkeys(
            conv.kernel
            for module in modules
            for conv in module.modules()
            if isinstance(conv, Convolution)
        )
        run.hold(list(kernels), [self.kernel])

    def forward(self, images: Tensor, architecture: Architecture, run: Pass, train: bool) -> Tensor:
        """Logits [B, num_classes] of float32 images [B, C, H, W], channels last and ours to change.

        Dropout acts where `train` is true.
        """
        self.hold_weights(architecture, run)
        x = run.write_(images)
        x = self.stem["conv_bn_3x3"](x, run)
        # Every preprocessing begins with a ReLU, and two cells preprocess the same features.
        older = newer = F.relu(x, inplace=True)
        for cell in self._cells():
            older, newer = newer, cell(older, newer, architecture[cell.reduction], run)
        pooled = run.write_(newer.mean((2, 3)))
        if train and self.config.dropout:
            kept = torch.rand(pooled.shape, generator=run.generator) >= self.config.dropout
            pooled = pooled * (kept / (1 - self.config.dropout))
        return F.linear(pooled, run.held[self.kernel], self.bias)

    def tree_path(self, name: str) -> tuple[tuple[str, ...], int | None]:
        """Path and row, None where it is not stacked, of a parameter in the JAX network's tree.

        `cell0.edges.3.conv_1x1.conv0.bias` is in cell0, conv_1x1, conv0; its row is 3, or of a
        fixed architecture the place of edge 3 among those that have the operation.
        """
        parts = tuple(name.split("."))
        if "edges" not in parts:
            return parts, None
        cell, _, edge, op, *_ = parts
        return (cell, *parts[3:]), getattr(self, cell).row(op, int(edge))


# Parameters as arrays


def from_jax(array: np.ndarray) -> Tensor:
    """A parameter from its layout in JAX: [k, k, I, O], depthwise [k, k, C], dense [I, O]."""
    x = torch.tensor(np.asarray(array))
    if x.dim() == 4:
        x = x.permute(3, 2, 0, 1)
    elif x.dim() == 3:
        x = x.permute(2, 0, 1)[:, None]
    elif x.dim() == 2:
        x = x.T
    return x


def to_jax(x: Tensor, dimensions: int) -> np.ndarray:
    """The inverse of `from_jax`, for an array of so many dimensions."""
    if dimensions == 4:
        x = x.permute(2, 3, 1, 0)
    elif dimensions == 3:
        x = x[:, 0].permute(1, 2, 0)
    elif dimensions == 2:
        x = x.T
    return x.detach().numpy()
