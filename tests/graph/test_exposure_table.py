"""Realised rates of faults against maps drawn by hand, and against probability."""

import csv
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from networks import SOUND, array, fixed, perceptron, perceptron_parameters, quick
from scipy import stats

import ftnas_jax as ft
from ftnas_jax.faults import BitFlip, DefectMap, MiBB, Place, StuckAt
from ftnas_jax.faults.text import format_text

P, X = perceptron_parameters(), array(4, 6)
FAULTS = (StuckAt(0.1, 0.05), MiBB(0.02), BitFlip(0.01, site="activations", per="chip"))
HARDWARE = ft.Hardware(faults=FAULTS)
MAPS = 8


@pytest.fixture(scope="module")
def exposed():
    chip = ft.on_hardware(perceptron, HARDWARE)
    return ft.exposure(chip, P, X, key=jax.random.key(7), maps=MAPS)


def row_of(table, tensor, name):
    return next(r for r in table.rows if r.tensor == tensor and r.faults.startswith(name))


def test_there_is_a_row_for_each_tensor_and_model(exposed):
    assert [(r.tensor, r.layer, r.faults, r.macs, r.elements) for r in exposed.rows] == [
        ("a/w", "a", format_text(FAULTS[0]), 0, 48),
        ("a", "a", format_text(FAULTS[1]), 6, 32),
        ("a/stored", "a", format_text(FAULTS[2]), 0, 32),
        ("b/w", "b", format_text(FAULTS[0]), 0, 24),
    ]


def test_drawn_elements_are_those_of_all_maps(exposed):
    drawn = [row.drawn for row in exposed.rows]
    # A map of one image for all four where a chip has one, else one for each image.
    assert drawn == [48 * MAPS, 32 * MAPS, 8 * MAPS, 24 * MAPS]


def test_asked_rates_are_probabilities(exposed):
    assert row_of(exposed, "a/w", "stuck_at").asked == pytest.approx(0.15, rel=1e-6)
    assert row_of(exposed, "a", "mibb").asked == pytest.approx(1 - 0.98**6, rel=1e-6)
    flips = row_of(exposed, "a/stored", "bit_flip").asked
    assert flips == pytest.approx(1 - 0.99**8, rel=1e-6)
    place = Place("a", 6)
    assert FAULTS[1].probability(place) == row_of(exposed, "a", "mibb").asked


def test_realised_rates_are_as_asked(exposed):
    """Binomial tests with a fixed seed, false alarms at 1e-6 each; intervals by beta quantiles."""
    for row in exposed.rows:
        assert stats.binomtest(row.hits, row.drawn, row.asked).pvalue > 1e-6, row
        assert row.realised == row.hits / row.drawn
        low = stats.beta.ppf(0.025, row.hits, row.drawn - row.hits + 1)
        high = stats.beta.ppf(0.975, row.hits + 1, row.drawn - row.hits)
        np.testing.assert_allclose((row.low, row.high), (low, high), rtol=1e-6)


def test_hits_of_weights_are_those_of_the_chips_held_by_hand(exposed):
    """A stuck weight is seen where its code changes; the others had that code before."""
    hold = quick(lambda key: ft.hold(P, HARDWARE, ft.Draw(key)))
    for name in ("a", "b"):
        codes, value = fixed(P[name]["w"], low=-127)
        step = float(np.max(np.abs(value)) / np.abs(codes).max())
        seen, before, after, hidden = 0, [], [], 0
        for number in range(MAPS):
            key = jax.random.fold_in(jax.random.key(7), number)
            weights = hold(key)[name]["w"]
            faulty = np.asarray(weights, np.float64) / step
            seen += np.sum(faulty != codes)
            hidden += np.sum((codes == 0) | (np.abs(codes) == 127))
            before += [*codes[faulty != codes]]
            after += [*faulty[faulty != codes]]
        row = row_of(exposed, f"{name}/w", "stuck_at")
        assert seen <= row.hits <= seen + hidden
        assert row.before[0] <= min(before) <= max(before) <= row.before[1]
        assert row.after == (min(after), max(after))


def test_the_table_is_printed_with_a_line_for_each_row(exposed):
    lines = str(exposed).splitlines()
    assert len(lines) == len(exposed.rows) + 2
    assert lines[0].split() == [
        *("tensor", "faults", "M_l", "asked", "realised", "interval", "codes", "hit", "become")
    ]
    for line, row in zip(lines[1:], exposed.rows, strict=False):
        assert line.split()[:2] == [row.tensor, row.faults]
        assert f"{row.realised:.3g}" in line.split()
    assert lines[-1] == f"{MAPS} maps; intervals at 95 %, Clopper-Pearson"


def test_the_table_is_read_back_from_csv(exposed, tmp_path):
    file = tmp_path / "exposure.csv"
    exposed.write_csv(file)
    with file.open(newline="") as lines:
        read = list(csv.DictReader(lines))
    assert len(read) == len(exposed.rows)
    for text, row in zip(read, exposed.rows, strict=True):
        known = dataclasses.asdict(row)
        for name in ("tensor", "layer", "faults"):
            assert text[name] == known[name]
        for name in ("macs", "elements", "hits", "drawn"):
            assert int(text[name]) == known[name]
        for name in ("asked", "low", "high"):
            assert float(text[name]) == known[name]
        assert float(text["realised"]) == row.realised
        assert (float(text["before_low"]), float(text["before_high"])) == row.before
        assert (float(text["after_low"]), float(text["after_high"])) == row.after


def test_the_figure_names_every_row(exposed):
    figure = ft.plots.draw_exposure(exposed.rows)
    labels = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert labels == [row.tensor for row in exposed.rows]
    known = [text.get_text() for text in figure.legends[0].get_texts()]
    assert known == [format_text(model) for model in FAULTS]


def test_rows_without_a_hit_have_no_codes(tmp_path):
    hardware = ft.Hardware(faults=StuckAt(0.0, 1e-9))
    table = ft.exposure(ft.on_hardware(perceptron, hardware), P, X, key=jax.random.key(0), maps=1)
    assert [(row.hits, row.before, row.after, row.low) for row in table.rows] == [
        (0, None, None, 0.0)
    ] * 2
    table.write_csv(tmp_path / "exposure.csv")
    assert (tmp_path / "exposure.csv").read_text().splitlines()[1].endswith(",0.0,,,,")
    assert ft.plots.draw_exposure(table.rows).axes


def test_turns_of_a_loop_are_counted_together():
    """Four turns: sliced weights and features of each, shared weights once.

    Binomial tests with a fixed seed, false alarms at 1e-6 each.
    """

    def looped(p, x):
        def turn(h, w):
            return jnp.tanh(h @ w @ (p["shared"] * 2.0) @ p["closed"]), None

        return lax.scan(turn, x, p["stack"])[0]

    p = {"stack": array(4, 6, 6), "shared": array(6, 6, seed=1), "closed": array(6, 6, seed=2)}
    hardware = ft.Hardware(faults=(StuckAt(0.2, 0.1), MiBB(0.02)))
    table = ft.exposure(ft.on_hardware(looped, hardware), p, X, key=jax.random.key(0), maps=3)
    drawn = {(row.tensor, row.faults[:5]): row.drawn for row in table.rows}
    features = 4 * 24 * 3
    assert drawn == {
        ("stack", "stuck"): 4 * 36 * 3,
        ("stack#2", "mibb:"): features,
        ("shared", "stuck"): 36 * 3,
        ("shared#2", "mibb:"): features,
        ("closed", "stuck"): 36 * 3,
        ("closed#2", "mibb:"): features,
    }
    for row in table.rows:
        assert stats.binomtest(row.hits, row.drawn, row.asked).pvalue > 1e-6, row


def test_an_exposure_to_nothing_is_refused():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"^the hardware has no faults; give Hardware\(faults="):
        ft.exposure(ft.on_hardware(perceptron, SOUND), P, X, key=key)
    with pytest.raises(ValueError, match=r"^maps is 0; draw at least one$"):
        ft.exposure(ft.on_hardware(perceptron, HARDWARE), P, X, key=key, maps=0)


@pytest.mark.parametrize("per", ["image", "chip"])
def test_elements_that_images_share_are_drawn_once(per):
    """Several rows an image."""
    x = array(4, 5, 6)

    def model(p, x):
        return jnp.tanh(x @ p["w"]) @ p["v"]

    p = {"w": array(6, 6), "v": array(6, 6, seed=1)}
    chip = ft.on_hardware(model, ft.Hardware(faults=MiBB(0.1, per=per)))
    (row,) = ft.exposure(chip, p, x, key=jax.random.key(0), maps=3).rows
    assert row.drawn == 3 * 5 * 6 * (4 if per == "image" else 1)
    assert row.hits <= row.drawn


def test_given_faults_have_no_interval(tmp_path):
    file = tmp_path / "chip.csv"
    file.write_text("layer,position,stuck_at\nw,0,max\nw,7,0\n", encoding="utf-8")
    chip = ft.on_hardware(lambda p, x: x @ p["w"], ft.Hardware(faults=DefectMap(str(file))))
    (row,) = ft.exposure(chip, {"w": array(6, 6)}, X, key=jax.random.key(0), maps=2).rows
    assert (row.low, row.asked, row.high) == (2 / 36, 2 / 36, 2 / 36)
