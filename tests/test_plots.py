import re
from collections import Counter

import jax
import matplotlib
import numpy as np
import pytest

from ftnas_jax.plots import draw_candidates, draw_cells, draw_search, save_figure
from ftnas_jax.space import PRIMITIVES, Architecture, Space

PARALLEL = (
    "normal=[('none', 0, 2), ('none', 0, 2), ('relu_conv_bn_5x5', 1, 3), ('dil_conv_3x3', 1, 3)], "
    "reduction=[('conv_1x1', 1, 2), ('skip_connect', 0, 2), ('avg_pool_3x3', 2, 3), "
    "('sep_conv_5x5', 2, 3)]"
)


def random_architecture(space: Space, seed: int) -> Architecture:
    return Architecture.from_array(space.random(jax.random.key(seed)))


def search_history(epochs: int) -> list[dict]:
    keys = ("loss", "loss_clean", "loss_faulty", "accuracy_clean", "accuracy_faulty")
    controller = ("reward", "accuracy_clean", "accuracy_faulty", "entropy")
    names = [f"weights/{key}" for key in keys] + [f"controller/{key}" for key in controller]
    return [
        {"epoch": e} | {name: i + 1 / e for i, name in enumerate(names)}
        for e in range(1, epochs + 1)
    ]


def boxes_on_screen(figure, artists) -> np.ndarray:
    """[artist, 4]: left, bottom, right, top in pixels."""
    figure.canvas.draw()
    return np.asarray([artist.get_window_extent().extents for artist in artists])


def overlapping(boxes: np.ndarray) -> list[tuple[int, int]]:
    return [
        (i, j)
        for i, a in enumerate(boxes)
        for j, b in enumerate(boxes[:i])
        if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
    ]


@pytest.mark.parametrize("nodes", [3, 6, 8])
@pytest.mark.parametrize("seed", range(2))
def test_every_connection_has_its_label_and_nothing_overlaps(nodes, seed):
    space = Space(nodes=nodes)
    architecture = random_architecture(space, seed)
    figure = draw_cells(space, architecture, title="a network")
    axes = figure.axes[0]
    labels = Counter(t.get_text() for t in axes.texts if t.get_text() in PRIMITIVES)
    assert labels == Counter(space.primitives[c.op] for cell in architecture for c in cell)
    boxes = boxes_on_screen(figure, [t for t in axes.texts if t.get_text()])
    assert not overlapping(boxes)
    assert boxes.min() > 0
    assert (boxes[:, 2:] < [figure.bbox.width, figure.bbox.height]).all()
    assert not overlapping(boxes_on_screen(figure, axes.patches))


@pytest.mark.parametrize("seed", range(3))
def test_no_line_crosses_a_box(seed):
    space = Space(nodes=6)
    figure = draw_cells(space, random_architecture(space, seed))
    axes = figure.axes[0]
    boxes = [patch.get_path().get_extents(patch.get_patch_transform()) for patch in axes.patches]
    for line in (line for line in axes.lines if len(line.get_xdata()) == 2):
        (x0, x1), (y0, y1) = line.get_data()
        for box in boxes:
            # Level or upright, both ends outside, a part within: the line goes through.
            through = x0 < box.x0 and x1 > box.x1 and box.y0 < y0 < box.y1
            through |= y0 > box.y1 and y1 < box.y0 and box.x0 < x0 < box.x1
            assert not through, (line.get_data(), box)


def test_labels_fit_their_boxes():
    space = Space(nodes=4)
    axes = (figure := draw_cells(space, space.parse(PARALLEL))).axes[0]
    for text in (t for t in axes.texts if t.get_text() in PRIMITIVES):
        (label,) = boxes_on_screen(figure, [text])
        center = label.reshape(2, 2).mean(0)
        box = next(p for p in axes.patches if p.get_window_extent().contains(*center))
        assert box.get_window_extent().x0 < label[0]
        assert label[2] < box.get_window_extent().x1


def test_parallel_connections_are_drawn_apart():
    space = Space(nodes=4)
    axes = draw_cells(space, space.parse(PARALLEL)).axes[0]
    places = [t.get_position() for t in axes.texts if t.get_text() == "none"]
    assert len(set(places)) == 2


def test_the_legend_names_the_kinds_in_use():
    space = Space(nodes=4)
    legend = draw_cells(space, space.parse(PARALLEL)).axes[0].get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == [
        "convolution",
        "ReLU-convolution-BN",
        "separable",
        "dilated",
        "pooling",
        "skip",
        "none",
    ]


def test_a_cell_that_is_not_in_use_says_so():
    space = Space(nodes=4)
    axes = draw_cells(space, space.parse(PARALLEL), unused=["reduction"]).axes[0]
    headings = [t.get_text() for t in axes.texts if " cell" in t.get_text()]
    assert headings == ["normal cell", "reduction cell, not in use"]


def test_an_architecture_of_another_space_is_refused():
    with pytest.raises(ValueError, match="6 nodes need 8"):
        draw_cells(Space(), Space(nodes=4).parse(PARALLEL))


def test_svg_names_the_operations_and_repeats_byte_for_byte(tmp_path):
    space = Space()
    architecture = random_architecture(space, 7)
    svgs = []
    for name in ("a", "v1.2/b"):
        png, svg = save_figure(draw_cells(space, architecture, title="t"), tmp_path / name)
        assert png.name == f"{name.split('/')[-1]}.png"
        assert png.read_bytes().startswith(b"\x89PNG")
        svgs.append(svg.read_bytes())
    assert svgs[0] == svgs[1]
    comments = Counter(re.findall(r"<!-- (\w+) -->", svgs[0].decode()))
    for op, count in Counter(space.primitives[c.op] for c in sum(architecture, ())).items():
        # The kind "none" has its own name once more, in the legend.
        assert comments[op] == count + (op == "none")


def test_settings_of_the_user_change_nothing(tmp_path):
    space = Space(nodes=4)
    _, first = save_figure(draw_cells(space, space.parse(PARALLEL)), tmp_path / "a")
    with matplotlib.rc_context({"font.family": "serif", "svg.fonttype": "none"}):
        _, second = save_figure(draw_cells(space, space.parse(PARALLEL)), tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("epochs", [1, 2, 100])
def test_search_curves(tmp_path, epochs):
    figure = draw_search(search_history(epochs))
    losses, rewards, entropy = figure.axes
    assert [line.get_label() for line in losses.lines] == ["faulty", "weighted", "clean"]
    assert len(rewards.lines) == 3
    np.testing.assert_array_equal(entropy.lines[0].get_xdata(), np.arange(1, epochs + 1))
    assert (losses.lines[0].get_marker() == "o") == (epochs < 100)
    for axes in figure.axes:
        left, right = axes.get_xlim()
        assert left < 1
        assert right > epochs
    save_figure(figure, tmp_path / "search")


def test_search_curves_leave_out_what_is_missing():
    figure = draw_search([{"epoch": 1, "weights/loss": 2.0}, {"weights/loss": 3.0}, {"epoch": 2}])
    assert [len(axes.lines) for axes in figure.axes] == [1, 0, 0]
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), [2.0])
    assert len(draw_search([]).axes) == 3


def test_candidates_state_mean_interval_and_size(tmp_path):
    rewards = {"controller": np.asarray([0.5, 0.6, 0.7]), "random": [0.4]}
    figure = draw_candidates(rewards)
    texts = [t.get_text() for t in figure.axes[0].texts]
    # t(0.975, 2 degrees) = 4.3027, standard error 0.1 / sqrt(3)
    assert texts == ["0.60 ± 0.25  (n = 3)", "0.4  (n = 1)"]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["controller", "random"]
    save_figure(figure, tmp_path / "candidates")


def test_an_empty_sample_is_named():
    with pytest.raises(ValueError, match="'random' is empty"):
        draw_candidates({"random": []})
