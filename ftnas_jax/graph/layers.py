"""What a layer is, read off its operation: operands, multiply-accumulates, channels.

Layers are convolutions and products of matrices (Dense, Einsum, attention), and tables of which
rows are read (Embed).
"""

import math
from typing import NamedTuple

from ftnas_jax.graph.graph import Node, Value

_LAYOUT = ("reshape", "transpose", "squeeze", "broadcast_in_dim", "convert_element_type")
_LAYOUT += ("rev", "copy", "copy_p", "expand_dims", "reduce_precision")
_PARTS = ("slice", "split", "dynamic_slice")
ELEMENTWISE = ("add", "add_any", "sub", "mul", "div", "neg", "square", "integer_pow", "pow")
ELEMENTWISE += ("sqrt", "rsqrt", "exp", "log", "max", "min", "abs", "select_n", "tanh", "logistic")
ELEMENTWISE += ("convert_element_type", "stop_gradient")


class Product(NamedTuple):
    """A convolution or a product of matrices.

    Attributes:
        kind: `conv` or `dot`.
        macs: M_l, multiply-accumulates behind one element of the output.
        channels: for the left and for the right operand, dimensions of the output along which it
            alone decides: those of a kernel are the channels.
    """

    kind: str
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
    return Product("conv", macs, (others, frozenset({channel})))


def _dot(node: Node) -> Product:
    (contract, _), (batch, _) = node.params["dimension_numbers"]
    left, right = (value.shape for value in node.inputs)
    macs = math.prod(left[i] for i in contract)
    batches = len(batch)
    free = len(left) - batches - len(contract)
    rank = batches + free + len(right) - batches - len(contract)
    own = frozenset(range(batches, batches + free))
    return Product("dot", macs, (own, frozenset(range(batches + free, rank))))


def is_lookup(node: Node) -> bool:
    """Whether a node reads rows of a table, its first input, at places given by its second."""
    return node.name == "gather"


def source(value: Value, *, parts: bool = False) -> Value:
    """The array that `value` shows in another layout; with `parts` also what it is a part of."""
    names = (*_LAYOUT, *_PARTS) if parts else _LAYOUT
    while value.node is not None and value.node.name in names:
        value = value.node.inputs[0]
    return value


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
