"""Given stuck cells: read from a table, put where it says, refused where it makes no sense."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import EIGHT_SIGNED, all_codes, many_maps
from hypothesis import given, settings
from hypothesis import strategies as st

from ftnas_jax.faults import BitFlip, DefectMap, Place, format_text, parse
from ftnas_jax.fixed_point import FixedPoint

HEAD = "layer,position,stuck_at\n"
TABLE = HEAD + "stem,0,0\nstem,5,max\n cell0/conv , 2 , 100 \n\nstem,3,7\n"


@pytest.fixture
def write(tmp_path):
    """A function that writes a table and returns its path."""

    def to_file(text, name="chip.csv"):
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        return str(file)

    return to_file


def held(model, codes, path="stem", fmt=EIGHT_SIGNED):
    """The weights that a layer holds."""
    place = Place(path, 0, codes.size)
    exposure = model.exposure(place)
    fault_map = model.sample(jax.random.key(0)[None], codes.shape, fmt, exposure)[0]
    return np.asarray(model.apply(jnp.asarray(codes), fault_map, fmt))


def stuck(codes, cells, bound):
    """Cell by cell: the magnitude is that of the table, the sign that of the weight."""
    out = codes.ravel().tolist()
    for position, level in cells.items():
        level = bound if level == "max" else min(level, bound)
        out[position] = -level if out[position] < 0 else level
    return np.reshape(out, codes.shape)


def test_the_cells_of_a_table_are_stuck(write):
    model = DefectMap(write(TABLE))
    codes = np.array([[9, -8, 7], [-6, 5, -4]], np.int32)
    np.testing.assert_array_equal(held(model, codes), [[0, -8, 7], [-7, 5, -127]])
    np.testing.assert_array_equal(held(model, codes, "cell0/conv"), [[9, -8, 100], [-6, 5, -4]])
    np.testing.assert_array_equal(held(model, codes, "head"), codes)


def test_zero_counts_as_positive(write):
    assert held(DefectMap(write(TABLE)), np.zeros(6, np.int32)).tolist() == [0, 0, 0, 7, 0, 127]


levels = st.one_of(st.just("max"), st.integers(0, 2**15 - 1))


@given(st.dictionaries(st.integers(0, 49), levels), st.integers(0, 1000), st.integers(2, 16))
@settings(deadline=None, max_examples=50)
def test_any_table_against_its_cells(tmp_path_factory, cells, seed, bits):
    file = tmp_path_factory.mktemp("map") / "chip.csv"
    file.write_text(HEAD + "".join(f"stem,{p},{level}\n" for p, level in cells.items()))
    fmt = FixedPoint(bits, "sign_magnitude")
    codes = np.random.default_rng(seed).choice(all_codes(fmt), (5, 10))
    model = DefectMap(str(file))
    got = held(model, codes, fmt=fmt)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, stuck(codes, cells, 2 ** (bits - 1) - 1))
    assert model.probability(Place("stem", 0, 50)) == len(cells) / 50


def test_a_map_is_the_same_for_every_key_and_in_a_trace(write):
    model = DefectMap(write(TABLE))
    exposure = model.exposure(Place("stem", 0, 6))
    draw = jax.jit(lambda keys, known: model.sample(keys, (2, 3), EIGHT_SIGNED, known))
    maps = draw(jax.random.split(jax.random.key(0), 3), jnp.asarray(exposure))
    assert maps.shape == (3, 2, 3)
    np.testing.assert_array_equal(maps, np.broadcast_to(exposure.reshape(2, 3), (3, 2, 3)))


def test_layers_that_stay_sound_are_left_out(write):
    file = write(TABLE)
    codes = np.full(6, 50, np.int32)
    for layers, path, sound in [
        ("!stem", "stem", True),
        ("!stem", "cell0/conv", False),
        ("cell*", "stem", True),
        ("stem|cell*", "stem", False),
    ]:
        model = DefectMap(file, layers=layers)
        assert np.array_equal(held(model.at(path), codes, path), codes) == sound
        assert (model.probability(Place(path, 0, 6)) == 0) == sound


def test_shares_are_those_of_the_table(write):
    model = DefectMap(write(TABLE))
    assert model.probability(Place("stem", 9, 6)) == 0.5
    assert model.probability(Place("stem", 9, 300)) == 0.01
    assert model.probability(Place("head", 9, 6)) == 0.0
    assert DefectMap(write(HEAD)).probability(Place("head", 0, 0)) == 0.0


def test_cells_are_given_by_layer(write):
    cells = DefectMap(write(TABLE)).cells
    assert set(cells) == {"stem", "cell0/conv"}
    assert cells["stem"].positions.tolist() == [0, 5, 3]
    assert cells["stem"].levels.tolist() == [0, -1, 7]


def test_a_digest_is_that_of_the_file_and_pins_it(write):
    file = write(TABLE)
    digest = DefectMap(file).digest
    assert hashlib.sha256(TABLE.encode()).hexdigest().startswith(digest)
    assert len(digest) == 16
    assert DefectMap(file, digest[:6]) == DefectMap(file) == DefectMap(file, digest)
    write(TABLE + "stem,4,1\n")
    with pytest.raises(ValueError, match=rf"has changed: its digest is \w+, not {digest}$"):
        DefectMap(file, digest)
    assert DefectMap(file).cells["stem"].positions.tolist() == [0, 5, 3, 4]


def test_text_names_the_file_and_its_digest(write):
    model = DefectMap(write(TABLE), layers="!head")
    text = format_text(model)
    assert text == f"defect_map:file={model.file},digest={model.digest},layers=!head"
    assert parse(text) == (model,)
    assert parse(f"defect_map:file={model.file}") == (dataclasses.replace(model, layers="*"),)
    assert parse(f"{text}+bit_flip") == (model, BitFlip())


@pytest.mark.parametrize("name", ["one,two.csv", "one+two.csv"])
def test_text_refuses_files_that_it_cannot_name(write, name):
    model = DefectMap(write(TABLE, name))
    with pytest.raises(ValueError, match=r"^defect_map: file is '.*'; text has no comma, outer"):
        format_text(model)


def test_a_model_is_a_hashable_pytree_without_leaves(write):
    model = DefectMap(write(TABLE))
    assert jax.tree.leaves(model) == []
    assert hash(model) == hash(DefectMap(model.file))
    assert many_maps(model, 2, (0,)).shape == (2, 0)


NO_ROW = "is no layer, position from 0, and magnitude of a code or max"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "begins with ''; its columns are layer,position,stuck_at"),
        ("layer,position\n", "begins with 'layer,position'; its columns are"),
        ("stem,0,0\n", "begins with 'stem,0,0'; its columns are"),
        (HEAD + "stem,0\n", f", line 2: 'stem,0' {NO_ROW}"),
        (HEAD + "stem,0,1,2\n", f", line 2: 'stem,0,1,2' {NO_ROW}"),
        (HEAD + "stem,0,1\n\nstem,x,1\n", f", line 4: 'stem,x,1' {NO_ROW}"),
        (HEAD + "stem,-1,1\n", f", line 2: 'stem,-1,1' {NO_ROW}"),
        (HEAD + f"stem,{2**63},1\n", f", line 2: 'stem,{2**63},1' {NO_ROW}"),
        (HEAD + "stem,1.5,1\n", f", line 2: 'stem,1.5,1' {NO_ROW}"),
        (HEAD + ",1,1\n", f", line 2: ',1,1' {NO_ROW}"),
        (HEAD + "stem,1,most\n", f", line 2: 'stem,1,most' {NO_ROW}"),
        (HEAD + "stem,1,-1\n", f", line 2: 'stem,1,-1' {NO_ROW}"),
        (HEAD + "stem,1,-2\n", f", line 2: 'stem,1,-2' {NO_ROW}"),
        (HEAD + "stem,1,32768\n", f", line 2: 'stem,1,32768' {NO_ROW}"),
        (HEAD + "stem,1,0\nhead,1,0\nstem,1,2\n", ", line 4: position 1 of stem stands twice"),
    ],
)
def test_tables_that_make_no_sense_are_refused_in_one_line(write, table, message):
    file = write(table)
    with pytest.raises(ValueError) as error:  # noqa: PT011, the whole text is compared below
        DefectMap(file)
    assert str(error.value).startswith(f"defect_map: {file}")
    assert str(error.value).removeprefix(f"defect_map: {file}").strip().startswith(message.strip())
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    for file, reason in [("missing.csv", "No such file or directory"), ("", "Is a directory")]:
        path = str(tmp_path / file)
        with pytest.raises(ValueError, match=rf"^defect_map: cannot read '{path}': {reason}$"):
            DefectMap(path)
    with pytest.raises(ValueError, match=r"^defect_map: cannot read '': Is a directory$"):
        DefectMap()


def test_positions_beyond_a_layer_are_refused(write):
    file = write(TABLE)
    model = DefectMap(file)
    model.exposure(Place("stem", 0, 6))
    message = f"defect_map: {file} has position 5 in stem, which has 5 weights"
    with pytest.raises(ValueError, match=f"^{message}$"):
        model.exposure(Place("stem", 0, 5))
    DefectMap(file, layers="!stem").exposure(Place("stem", 0, 5))


@pytest.mark.parametrize("per", ["batch", "image"])
def test_a_given_map_is_that_of_a_chip(write, per):
    with pytest.raises(
        ValueError, match=f"^defect_map: per is '{per}'; a given map|^defect_map: w"
    ):
        DefectMap(write(TABLE), per=per)
