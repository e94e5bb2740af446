"""Rows on the disk: whole after any kill, and refused where they are of something else."""

import numpy as np
import pytest

from ftnas_jax.campaigns.points import Point, as_models
from ftnas_jax.campaigns.table import CHIPS, COLUMNS, RIGHTS, ChipTable, count_rights
from ftnas_jax.checkpoints import RunError

POINT = Point(as_models("stuck_at:p0=0.1,p1=0.2"), rate=0.3)
IMAGES = 11


def _filled(folder, chips=3) -> ChipTable:
    table = ChipTable(IMAGES, folder)
    right, changed = _passes(chips)
    table.add("net, a", POINT, range(chips), right, changed)
    return table


def _passes(chips: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.random((chips, IMAGES)) < 0.7, rng.random((chips, IMAGES)) < 0.2


def test_what_is_written_is_read(tmp_path):
    before = _filled(tmp_path)
    after = ChipTable(IMAGES, tmp_path)
    assert after.cells == before.cells
    right, changed = _passes(3)
    chips = after.chips("net, a", POINT)
    np.testing.assert_array_equal([chip.correct for chip in chips], right.sum(1))
    np.testing.assert_array_equal([chip.changed for chip in chips], changed.sum(1))
    np.testing.assert_array_equal(count_rights(chips, IMAGES), right.sum(0))


def test_a_row_says_all_of_a_chip(tmp_path):
    _filled(tmp_path, 1)
    right, changed = _passes(1)
    lines = (tmp_path / CHIPS).read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    correct, others = right.sum(), changed.sum()
    assert lines[1] == (
        f'"net, a","stuck_at:p0=0.1,p1=0.2",0.3,,0,11,{correct},{correct / 11},'
        f"{others},{others / 11}"
    )


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_torn_last_row_is_made_again(tmp_path, cut):
    whole = _filled(tmp_path)
    path = tmp_path / CHIPS
    path.write_bytes(path.read_bytes()[:-cut])
    table = ChipTable(IMAGES, tmp_path)
    assert table.chips("net, a", POINT) == whole.chips("net, a", POINT)[:2]
    right, changed = _passes(3)
    table.add("net, a", POINT, [2], right[2:], changed[2:])
    assert ChipTable(IMAGES, tmp_path).cells == whole.cells


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_rows_without_their_bits_are_refused_and_stay(tmp_path, cut):
    _filled(tmp_path)
    path = tmp_path / RIGHTS
    path.write_bytes(path.read_bytes()[:-cut])
    before = [(tmp_path / name).read_bytes() for name in (CHIPS, RIGHTS)]
    with pytest.raises(RunError, match=r"rights.bin is damaged or missing: .* restore it") as said:
        ChipTable(IMAGES, tmp_path)
    assert "\n" not in str(said.value)
    assert [(tmp_path / name).read_bytes() for name in (CHIPS, RIGHTS)] == before


def test_a_table_whose_bits_are_gone_is_refused_and_stays(tmp_path):
    _filled(tmp_path)
    (tmp_path / RIGHTS).unlink()
    before = (tmp_path / CHIPS).read_bytes()
    with pytest.raises(RunError, match=r"rights.bin is damaged or missing"):
        ChipTable(IMAGES, tmp_path)
    assert (tmp_path / CHIPS).read_bytes() == before


def test_the_head_comes_with_the_first_row(tmp_path):
    ChipTable(IMAGES, tmp_path)
    assert not (tmp_path / CHIPS).exists()
    _filled(tmp_path, 1)
    assert len((tmp_path / CHIPS).read_text().splitlines()) == 2


@pytest.mark.parametrize(("old", "new"), [(b"net", b"n\xff\xfe"), (b'a"', b"a"), (b'"n', b"n")])
def test_bytes_that_are_no_text_and_lost_quotes_are_refused(tmp_path, old, new):
    _filled(tmp_path)
    path = tmp_path / CHIPS
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(RunError, match=r"chips.csv is damaged") as said:
        ChipTable(IMAGES, tmp_path)
    assert "\n" not in str(said.value)


def test_bits_without_their_row_are_cut_off(tmp_path):
    whole = _filled(tmp_path)
    with open(tmp_path / RIGHTS, "ab") as file:
        file.write(b"abc")
    assert ChipTable(IMAGES, tmp_path).cells == whole.cells
    assert (tmp_path / RIGHTS).stat().st_size == 6


def test_reading_alone_changes_no_file(tmp_path):
    whole = _filled(tmp_path)
    with open(tmp_path / CHIPS, "ab") as file:
        file.write(b"torn")
    before = (tmp_path / CHIPS).read_bytes()
    reader = ChipTable(IMAGES, tmp_path, write=False)
    assert reader.cells == whole.cells
    right, changed = _passes(1)
    reader.add("net, a", POINT, [3], right, changed)
    assert (tmp_path / CHIPS).read_bytes() == before


def test_another_file_is_refused(tmp_path):
    (tmp_path / CHIPS).write_text("a,b\n1,2\n")
    with pytest.raises(RunError, match="no table of chips"):
        ChipTable(IMAGES, tmp_path)


@pytest.mark.parametrize(
    ("old", "new"), [(",0,11,", ",7,11,"), (",11,", ",12,"), (",0.3,,0,11,", ",0.3,,0,x,")]
)
def test_a_damaged_row_is_named(tmp_path, old, new):
    _filled(tmp_path)
    path = tmp_path / CHIPS
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(RunError, match=r"chips.csv is damaged, or of another campaign: chip"):
        ChipTable(IMAGES, tmp_path)


def test_bits_that_do_not_fit_their_row_are_found(tmp_path):
    _filled(tmp_path)
    path = tmp_path / RIGHTS
    bits = path.read_bytes()
    path.write_bytes(bytes([bits[0] ^ 1]) + bits[1:])
    with pytest.raises(RunError, match="damaged"):
        ChipTable(IMAGES, tmp_path)
