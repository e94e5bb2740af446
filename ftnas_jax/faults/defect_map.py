"""The stuck cells of one chip that somebody measured, read from a file (§3.5)."""

import csv
import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ftnas_jax.faults.model import FaultModel, Place, Site
from ftnas_jax.fixed_point import MAX_BITS, FixedPoint

COLUMNS = ("layer", "position", "stuck_at")
_BOUND = "max"
_HIGHEST = 2 ** (MAX_BITS - 1) - 1
_LAST = np.iinfo(np.int64).max


class Cells(NamedTuple):
    """Stuck cells of one layer.

    Attributes:
        positions: int64 [n], places in the flat weight, row by row.
        levels: int32 [n], magnitudes stuck at, in codes; -1 for the largest of the format.
    """

    positions: np.ndarray
    levels: np.ndarray


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["only"],
    meta_fields=["file", "digest", "layers", "per"],
)
@dataclasses.dataclass(frozen=True)
class DefectMap(FaultModel):
    """Given cells are stuck at given levels, the same ones for every key.

    The file is a CSV table with the columns `layer` (its path), `position` (of a weight in the
    layer's flat kernel, row by row, from 0) and `stuck_at`: the magnitude that the cell holds, in
    codes, or `max` for the bound R_w. A weight keeps its sign; 0 counts as positive, as in Eq. 9.

    Attributes:
        file: path of the table.
        digest: begin of the SHA-256 of the file, which is checked where it is given: a map that
            changed is another chip.
    """

    file: str = ""
    digest: str = ""

    name: ClassVar[str] = "defect_map"
    site: ClassVar[Site] = "weights"
    rates: ClassVar[tuple[str, ...]] = ()
    crossbar: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if self.per != "chip":
            raise ValueError(f"defect_map: per is {self.per!r}; a given map is that of a chip")
        digest = _digest(self.file)
        if not digest.startswith(self.digest):
            raise ValueError(
                f"defect_map: {self.file} has changed: its digest is {digest}, not {self.digest}"
            )
        object.__setattr__(self, "digest", digest)
        _read(self.file, digest)

    @property
    def cells(self) -> Mapping[str, Cells]:
        """The stuck cells by layer."""
        return _read(self.file, self.digest)

    def at(self, path: str) -> "DefectMap":
        """The map as it is; what it has at a layer that stays sound is left out by `exposure`."""
        del path
        return self

    def exposure(self, place: Place) -> np.ndarray:
        """int32 [size]: 0 for a sound weight, else the level it is stuck at plus 1, or -1."""
        held = np.zeros(place.size, np.int32)
        own = self.cells.get(place.path)
        if own is None or not self.acts_at(place.path):
            return held
        beyond = own.positions[own.positions >= place.size]
        if beyond.size:
            raise ValueError(
                f"defect_map: {self.file} has position {beyond[0]} in {place.path}, "
                f"which has {place.size} weights"
            )
        held[own.positions] = np.where(own.levels < 0, -1, own.levels + 1)
        return held

    def probability(self, place: Place, fmt: FixedPoint | None = None) -> float:
        """The share of the place's weights that are stuck."""
        del fmt
        return np.count_nonzero(self.exposure(place)) / max(place.size, 1)

    def sample(
        self, keys: jax.Array, shape: tuple[int, ...], fmt: FixedPoint, exposure
    ) -> jax.Array:
        """int32 [n, *shape], as `exposure`, alike for every key."""
        del fmt
        return jnp.broadcast_to(jnp.asarray(exposure).reshape(shape)[None], (len(keys), *shape))

    def apply(self, codes: jax.Array, fault_map: jax.Array, fmt: FixedPoint) -> jax.Array:
        """The codes with stuck weights at their levels."""
        level = jnp.where(fault_map < 0, fmt.max_code, jnp.minimum(fault_map - 1, fmt.max_code))
        return jnp.where(fault_map == 0, codes, jnp.where(codes < 0, -level, level))


def _digest(file: str) -> str:
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise ValueError(f"defect_map: cannot read {file!r}: {error.strerror}") from None


@functools.cache
def _read(file: str, digest: str) -> dict[str, Cells]:
    del digest  # so that a changed file is read again
    found: dict[str, dict[int, int]] = {}
    for line, layer, position, level in _rows(file):
        own = found.setdefault(layer, {})
        if position in own:
            raise ValueError(
                f"defect_map: {file}, line {line}: position {position} of {layer} stands twice"
            )
        own[position] = level
    return {
        layer: Cells(np.array(list(own), np.int64), np.array(list(own.values()), np.int32))
        for layer, own in found.items()
    }


def _rows(file: str) -> Iterator[tuple[int, str, int, int]]:
    with Path(file).open(newline="", encoding="utf-8", errors="replace") as lines:
        table = csv.reader(lines)
        header = tuple(name.strip() for name in next(table, []))
        if header != COLUMNS:
            raise ValueError(
                f"defect_map: {file} begins with {','.join(header)!r}; "
                f"its columns are {','.join(COLUMNS)}"
            )
        for row in filter(None, table):
            yield table.line_num, *_parse(file, table.line_num, row)


def _parse(file: str, line: int, row: list[str]) -> tuple[str, int, int]:
    refusal = ValueError(
        f"defect_map: {file}, line {line}: {','.join(row)!r} is no layer, position from 0, "
        f"and magnitude of a code or max"
    )
    try:
        layer, position, stuck_at = (item.strip() for item in row)
        place = int(position)
        level = _HIGHEST if stuck_at == _BOUND else int(stuck_at)
    except ValueError:
        raise refusal from None
    if not layer or not 0 <= place <= _LAST or not 0 <= level <= _HIGHEST:
        raise refusal
    return layer, place, -1 if stuck_at == _BOUND else level
