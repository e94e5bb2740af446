"""What may fail of a model, as a list to read."""

import dataclasses
import textwrap
from collections.abc import Iterable

from ftnas_jax.graph.plan import Tensor


@dataclasses.dataclass(frozen=True)
class Sites:
    """What the hardware holds and writes of a model.

    Attributes:
        tensors: every tensor that may fail, in the order in which they are computed.
        floats: paths of parameters that stay in float32: biases, scales, unused ones.
    """

    tensors: tuple[Tensor, ...]
    floats: tuple[str, ...]

    def __str__(self) -> str:
        table = text_table([("tensor", "kind", "M_l", "shape"), *map(_cells, self.tensors)])
        floats = f"in float32: {', '.join(self.floats) or 'nothing'}"
        return "\n".join([table, *textwrap.wrap(floats, 100, subsequent_indent="  ")])


def _cells(tensor: Tensor) -> tuple[str, ...]:
    kind = tensor.kind if tensor.faulty else "input"
    macs = "" if tensor.kind in ("weights", "stored") else str(tensor.macs)
    return tensor.name, kind, macs, "x".join(map(str, tensor.shape))


def text_table(rows: Iterable[tuple[str, ...]]) -> str:
    """Rows of cells as lines with aligned columns."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
