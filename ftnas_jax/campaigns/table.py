"""What became of every chip, in memory and, row by row, on the disk.

    chips.csv     a row for each network, faults and chip, appended as it goes
    rights.bin    for each row, one bit for each image: whether it was classified rightly

Both only ever grow at their end, and bits are on the disk before their row is. So a kill may tear
the last row, or leave bits without one: these are cut off when the files are opened again. Rows
without their bits are damage, and refused.
"""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ftnas_jax.campaigns.points import Visited
from ftnas_jax.checkpoints import RunError, explain_os_errors

CHIPS = "chips.csv"
RIGHTS = "rights.bin"
COLUMNS = (
    *("network", "faults", "rate", "time", "chip"),
    *("images", "correct", "accuracy", "changed", "sdc_rate"),
)


class Chip(NamedTuple):
    """One chip of a network under some faults.

    Attributes:
        correct: images classified rightly.
        changed: images classified otherwise than without faults.
        rights: bytes, a bit for each image, the first in the highest.
    """

    correct: int
    changed: int
    rights: bytes


class ChipTable:
    """Chips by (network, text of the faults); chip number i is the i-th of its list.

    Args:
        images: N, of the test set.
        folder: of the files, or None to keep all in memory.
        write: whether to; without it the files are only read.

    Raises:
        RunError: the files there are damaged, or of something else.
    """

    def __init__(self, images: int, folder: Path | None = None, *, write: bool = True):
        self.images = images
        self.cells: dict[tuple[str, str], list[Chip]] = {}
        self._folder = folder if write else None
        if folder is not None:
            with explain_os_errors(f"read the chips in {folder}"):
                kept = self._read(folder)
                if write:
                    _cut(folder / CHIPS, kept[0])
                    _cut(folder / RIGHTS, kept[1])

    def chips(self, network: str, point: Visited) -> list[Chip]:
        """Those that are there."""
        return self.cells.setdefault((network, point.text), [])

    def add(
        self,
        network: str,
        point: Visited,
        numbers: Sequence[int],
        right: np.ndarray,
        changed: np.ndarray,
    ) -> None:
        """Append chips, safe on disk on return.

        Args:
            network: its name.
            point: the faults.
            numbers: of the chips; they follow those that are there.
            right: bool [M, N], whether an image was classified rightly.
            changed: bool [M, N], whether otherwise than without faults.
        """
        own = self.chips(network, point)
        assert list(numbers) == list(range(len(own), len(own) + len(numbers)))
        packed = np.packbits(right, axis=1)
        new = [
            Chip(int(r.sum()), int(c.sum()), p.tobytes())
            for r, c, p in zip(right, changed, packed, strict=True)
        ]
        if self._folder is not None:
            lines = [
                _line(network, point, n, self.images, c) for n, c in zip(numbers, new, strict=True)
            ]
            with explain_os_errors(f"write {self._folder / CHIPS}"):
                # The bits first: no row is ever without them.
                _append(self._folder / RIGHTS, b"".join(chip.rights for chip in new))
                # The head with the first row: a table without rows is no work that is kept.
                head = [] if _size(self._folder / CHIPS) else [COLUMNS]
                _append(self._folder / CHIPS, _text([*head, *lines]))
        own += new

    def _read(self, folder: Path) -> tuple[int, int]:
        """Read all whole rows and their bits: how many bytes of each file those are."""
        known, rights = _bytes(folder / CHIPS), _bytes(folder / RIGHTS)
        known = known[: known.rfind(b"\n") + 1]
        if not known:
            return 0, 0
        rows, size = _rows(folder / CHIPS, known), -(-self.images // 8)
        if len(rights) < len(rows) * size:
            raise RunError(
                f"{folder / RIGHTS} is damaged or missing: it has {len(rights)} bytes for "
                f"{len(rows)} chips of {size}; restore it, or use another --workdir"
            )
        for place, row in enumerate(rows):
            self._read_row(folder / CHIPS, row, rights[place * size : (place + 1) * size])
        return len(known), len(rows) * size

    def _read_row(self, path: Path, row: dict[str, str], rights: bytes) -> None:
        try:
            own = self.cells.setdefault((row["network"], row["faults"]), [])
            chip = Chip(int(row["correct"]), int(row["changed"]), rights)
            whole = int(row["chip"]) == len(own) and int(row["images"]) == self.images
            whole = whole and chip.correct == count_rights([chip], self.images).sum()
        except (KeyError, TypeError, ValueError):
            whole = False
        if not whole:
            raise RunError(
                f"{path} is damaged, or of another campaign: chip {row.get('chip')} of "
                f"{row.get('network')} under {row.get('faults')}; use another directory"
            )
        own.append(chip)


def count_rights(chips: Iterable[Chip], images: int) -> np.ndarray:
    """How many of the chips classify each image rightly, int64 [N]."""
    return _count_bits((np.frombuffer(chip.rights, np.uint8) for chip in chips), images)


def count_unlike(first: Iterable[Chip], second: Iterable[Chip], images: int) -> np.ndarray:
    """On how many chips each image is classified rightly in one of both lists alone, int64 [N]."""
    pairs = (
        [np.frombuffer(c.rights, np.uint8) for c in pair]
        for pair in zip(first, second, strict=True)
    )
    return _count_bits((a ^ b for a, b in pairs), images)


def _count_bits(packed: Iterable[np.ndarray], images: int) -> np.ndarray:
    total = np.zeros(images, np.int64)
    for bits in packed:
        total += np.unpackbits(bits, count=images)
    return total


def _line(network: str, point: Visited, number: int, images: int, chip: Chip) -> list[str]:
    values = (network, point.text, point.rate, point.time, number, images)
    values += (chip.correct, chip.correct / images, chip.changed, chip.changed / images)
    return ["" if value is None else str(value) for value in values]


def _text(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _rows(path: Path, known: bytes) -> list[dict[str, str]]:
    """The rows of whole lines, the first of which is the head."""
    try:
        table = csv.DictReader(io.StringIO(known.decode(), newline=""))
        rows, head = list(table), table.fieldnames
    except (UnicodeDecodeError, csv.Error) as error:
        raise RunError(f"{path} is damaged ({error}); use another directory") from None
    if head is None or tuple(head) != COLUMNS:
        raise RunError(f"{path} is no table of chips; use another directory")
    return rows


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _cut(path: Path, size: int) -> None:
    """Cut a file back to so many bytes."""
    if _size(path) > size:
        os.truncate(path, size)


def _append(path: Path, more: bytes) -> None:
    with open(path, "ab") as file:
        file.write(more)
        file.flush()
        os.fsync(file.fileno())
