"""What a layer is, read off its operation: operands, multiply-accumulates, channels.

Layers are convolutions and products of matrices (Dense, Einsum, attention), and tables of which
rows are read (Embed).
"""

import math
from typing import NamedTuple

from ftnas_jax.graph.graph import Node, Value

LAYOUT = ("reshape", "transpose", "squeeze", "broadcast_in_dim", "convert_element_type")
LAYOUT += ("rev", "copy", "copy_p", "expand_dims", "reduce_precision")
_PARTS = ("slice", "split", "dynamic_slice")
ELEMENTWISE = ("add", "add_any", "sub", "mul", "div", "neg", "square", "integer_pow", "pow")
ELEMENTWISE += ("sqrt", "rsqrt", "exp", "log", "max", "min", "abs", "select_n", "tanh", "logistic")
ELEMENTWISE += ("convert_element_type", "stop_gradient")


class Product(NamedTuple):
    """A convolution or a product of matrices.

    Attributes:
        macs: M_l, multiply-accumulates behind one element of the output.
        channels: for the left and for the right operand, dimensions of the output that are its own:
            those of a kernel are the channels. Of a product with batches each batch has a kernel.
    """

    macs: int
    channels: tuple[frozenset[int], frozenset[int]]


def product(node: Node) -> Product | None:
    """What a node multiplies, or None for any other node."""
    if node.name == "conv_general_dilated":
        return _convolution(node)
    if node.name == "dot_general":
        return _dot(node)
    return None


def _convolution(node: Node) -> Product:
    """M_l is k² · c of one group.

    A transposed convolution spreads its input with zeros, which need no accumulation: along each
    dimension at most every `lhs_dilation`-th tap meets a feature.
    """
    numbers = node.params["dimension_numbers"]
    kernel = node.inputs[1].shape
    taps = [kernel[i] for i in numbers.rhs_spec[2:]]
    spread = node.params["lhs_dilation"] or (1,) * len(taps)
    met = [math.ceil(k / s) for k, s in zip(taps, spread, strict=True)]
    macs = kernel[numbers.rhs_spec[1]] * math.prod(met)
    channel = numbers.out_spec[1]
    others = frozenset(range(len(numbers.out_spec))) - {channel}
    return Product(macs, (others, frozenset({channel})))


def _dot(node: Node) -> Product:
    (contract, _), (batch, _) = node.params["dimension_numbers"]
    left, right = (value.shape for value in node.inputs)
    macs = math.prod(left[i] for i in contract)
    batches = len(batch)
    free = len(left) - batches - len(contract)
    rank = batches + free + len(right) - batches - len(contract)
    own = frozenset(range(batches + free))
    others = frozenset({*range(batches), *range(batches + free, rank)})
    return Product(macs, (own, others))


def is_lookup(node: Node) -> bool:
    """Whether a node reads rows of a table, its first input, at places given by the others."""
    return node.name in ("gather", "dynamic_slice")


def source(value: Value, *, parts: bool = False) -> Value:
    """The array that `value` shows in another layout; with `parts` also what it is a part of."""
    names = (*LAYOUT, *_PARTS) if parts else LAYOUT
    while value.node is not None and value.node.name in names:
        value = value.node.inputs[0]
    return value


def followed(node: Node, dimensions: frozenset[int]) -> frozenset[int] | None:
    """Where a node that only lays its input out anew puts some dimensions; None for other nodes.

    None as well where one of the dimensions is cut, or laid together with others.
    """
    if node.name == "convert_element_type":
        return dimensions
    if node.name == "transpose":
        return frozenset(i for i, d in enumerate(node.params["permutation"]) if d in dimensions)
    if node.name not in ("reshape", "squeeze", "expand_dims"):
        return None
    before, after = node.inputs[0].shape, node.outputs[0].shape
    places = {(size, math.prod(after[i + 1 :])): i for i, size in enumerate(after) if size > 1}
    moved = [
        places.get((before[i], math.prod(before[i + 1 :]))) for i in dimensions if before[i] > 1
    ]
    return None if None in moved else frozenset(i for i in moved if i is not None)


def varying(value: Value) -> frozenset[int]:
    """Dimensions along which the elements of a value may differ."""
    node = value.node
    own = frozenset(i for i, size in enumerate(value.shape) if size > 1)
    if node is None:
        return own
    if node.name == "broadcast_in_dim":
        places = node.params["broadcast_dimensions"]
        return frozenset(places[i] for i in varying(node.inputs[0])) & own
    if node.name in ("reshape", "squeeze", "expand_dims"):
        before, after = (_wide(v.shape) for v in (node.inputs[0], value))
        if [size for _, size in before] != [size for _, size in after]:
            return own
        moved = dict(zip((i for i, _ in before), (i for i, _ in after), strict=True))
        return frozenset(moved[i] for i in varying(node.inputs[0]) if i in moved)
    if node.name in ELEMENTWISE:
        same = [v for v in node.inputs if len(v.shape) == len(value.shape)]
        return own & frozenset().union(*(varying(v) for v in same))
    return own


def _wide(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(i, size) for i, size in enumerate(shape) if size > 1]
