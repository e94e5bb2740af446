"""What may fail of a model, as a list to read."""

import dataclasses
import textwrap
from collections.abc import Iterable

from ftnas_jax.graph.plan import Tensor

_WRAPPED = {"subsequent_indent": "  ", "break_long_words": False, "break_on_hyphens": False}


@dataclasses.dataclass(frozen=True)
class Sites:
    """What the hardware holds and writes of a model.

    Attributes:
        tensors: every tensor that may fail, in the order in which they are computed.
        floats: paths of parameters that stay in float32: biases, scales, unused ones.
        fixed: products of data with constants, which never fail, where the code has them. A
            kernel that is no parameter is among them.
    """

    tensors: tuple[Tensor, ...]
    floats: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()

    def __str__(self) -> str:
        table = text_table([("tensor", "kind", "M_l", "shape"), *map(_cells, self.tensors)])
        notes = [f"in float32: {', '.join(self.floats) or 'nothing'}"]
        notes += [f"by constants, never faulty: {', '.join(self.fixed)}"] if self.fixed else []
        lines = [line for note in notes for line in textwrap.wrap(note, 100, **_WRAPPED)]
        return "\n".join([table, *lines])


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
