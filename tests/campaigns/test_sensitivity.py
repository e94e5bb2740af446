"""One group at a time: the same as a campaign whose faults name that group."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
import small

import ftnas_jax as ft
from ftnas_jax import plots
from ftnas_jax.campaigns.campaign import Campaign
from ftnas_jax.campaigns.points import as_models
from ftnas_jax.campaigns.sensitivity import sensitivity_points
from ftnas_jax.campaigns.settings import Settings
from ftnas_jax.campaigns.subject import as_subject

MIBB = "mibb:p_m=0.02"
FLIPS = "bit_flip:rate=0.05"


class _Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(8, name="second")(nn.relu(nn.Dense(8, name="first")(x)))


class _Two(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(_Block(name="a")(x))
        return nn.Dense(small.CLASSES, name="end")(nn.relu(_Block(name="b")(x)))


@pytest.fixture(scope="module")
def network():
    images, _ = small.data()
    model = _Two()
    return model, jax.jit(model.init)(jax.random.key(0), images[:1])


@pytest.fixture(scope="module")
def alone(network):
    """Accuracies of a campaign of its own, by its faults."""

    @functools.cache
    def run(faults: str) -> np.ndarray:
        report = ft.campaign(*network, small.data(), faults=faults, key=jax.random.key(1), chips=5)
        return report.outcomes[0].accuracies

    return run


def _report(network, faults: str, by, **options) -> ft.Report:
    return ft.sensitivity(
        *network, small.data(), faults=faults, by=by, key=jax.random.key(1), chips=5, **options
    )


@pytest.mark.parametrize("own_programs", [False, True, None])
def test_a_layer_fails_as_where_the_faults_name_it_alone(network, alone, own_programs):
    report = _report(network, MIBB, "layer", own_programs=own_programs)
    groups = [outcome.point.group for outcome in report.outcomes]
    assert groups == ["a/first", "a/second", "b/first", "b/second"]
    for outcome in report.outcomes:
        text = f"{MIBB},layers={outcome.point.group}"
        assert outcome.point.text == text
        np.testing.assert_array_equal(outcome.accuracies, alone(text))


def test_blocks_are_what_stands_before_the_first_slash(network, alone):
    report = _report(network, FLIPS, "block")
    assert [o.point.group for o in report.outcomes] == ["a/*", "b/*", "end"]
    np.testing.assert_array_equal(report.outcomes[1].accuracies, alone(f"{FLIPS},layers=b/*"))


@pytest.mark.parametrize("own_programs", [False, True])
def test_a_bit_fails_as_where_the_faults_name_it_alone(network, alone, own_programs):
    report = _report(network, FLIPS, ("block", "bit"), own_programs=own_programs)
    assert len(report.outcomes) == 3 * 8
    last = report.outcomes[7]
    assert (last.point.group, last.point.bit) == ("a/*", 7)
    assert last.point.text == "bit_flip:rate=0.05,bits=7,layers=a/*"
    np.testing.assert_array_equal(last.accuracies, alone(last.point.text))


def test_layers_that_the_faults_leave_out_stay_sound(network, alone):
    report = _report(network, "mibb:p_m=0.02,layers=!a/first", "block")
    assert [o.point.text for o in report.outcomes] == [
        "mibb:p_m=0.02,layers=a/second",
        "mibb:p_m=0.02,layers=b/*",
    ]
    np.testing.assert_array_equal(
        report.outcomes[0].accuracies, alone("mibb:p_m=0.02,layers=a/second")
    )


@pytest.mark.parametrize("own_programs", [False, True])
def test_models_that_act_together_may_act_in_different_layers(network, alone, own_programs):
    """Features of the last layer do not fail, nor do weights of the first."""
    both = "bit_flip:rate=0.05,layers=!a/first+mibb:p_m=0.02"
    report = _report(network, both, "layer", own_programs=own_programs)
    texts = {outcome.point.group: outcome.point.text for outcome in report.outcomes}
    assert texts == {
        "a/first": "bit_flip:rate=0.05,layers=!*+mibb:p_m=0.02,layers=a/first",
        "a/second": "bit_flip:rate=0.05,layers=a/second+mibb:p_m=0.02,layers=a/second",
        "b/first": "bit_flip:rate=0.05,layers=b/first+mibb:p_m=0.02,layers=b/first",
        "b/second": "bit_flip:rate=0.05,layers=b/second+mibb:p_m=0.02,layers=b/second",
        "end": "bit_flip:rate=0.05,layers=end+mibb:p_m=0.02,layers=!*",
    }
    accuracies = {outcome.point.group: outcome.accuracies for outcome in report.outcomes}
    np.testing.assert_array_equal(accuracies["a/second"], alone(texts["a/second"]))
    # Where one of the models acts alone, the other might as well not be there.
    np.testing.assert_array_equal(accuracies["a/first"], alone(f"{MIBB},layers=a/first"))
    np.testing.assert_array_equal(accuracies["end"], alone(f"{FLIPS},layers=end"))


def test_the_directory_is_free_again_after_an_error(network, tmp_path, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Campaign, "speed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _report(network, MIBB, "block", workdir=tmp_path)
    assert len(_report(network, MIBB, "block", workdir=tmp_path).outcomes) == 2


def test_all_groups_are_one_program(network):
    subject = as_subject(*network, ft.Hardware(), name="two")
    visited = sensitivity_points(subject, small.data()[0], as_models(MIBB), ("layer",))
    job = Campaign([subject], small.data(), visited, jax.random.key(1), Settings(chips=1))
    programs = {id(job._prepared(subject, point)[0]) for point in visited}
    assert len(programs) == 1


def test_edges_of_our_own_cells_are_told_apart():
    space = ft.Space(nodes=4, primitives=("conv_1x1", "skip_connect", "max_pool_3x3"))
    config = ft.NetworkConfig(
        channels=2, cells=2, reductions=(1,), num_classes=4, batch_norm="running", dropout=0.0
    )
    net = ft.Network(config, space, ft.Hardware(), space.first())
    images = np.random.default_rng(0).standard_normal((6, 4, 4, 1)).astype(np.float32)
    variables = jax.jit(net.init)(jax.random.key(0), images)
    subject = as_subject(net, variables, ft.Hardware())
    points = sensitivity_points(subject, images, as_models("stuck_at"), ("edge",))
    groups = [point.group for point in points]
    assert "cell0/edge0-2/*" in groups
    assert len(set(groups)) == len(groups)


def test_a_heat_map_has_a_row_a_group_and_a_column_a_bit(network):
    report = _report(network, FLIPS, ("block", "bit"))
    axes = plots.draw_sensitivity(report).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "end"]
    assert [label.get_text() for label in axes.get_xticklabels()] == [f"bit {i}" for i in range(8)]
    costs = axes.images[0].get_array()
    first = report.outcomes[0]
    assert costs[0, 0] == pytest.approx(100 * (first.clean - first.accuracies.mean()))
    with pytest.raises(ValueError, match="no groups"):
        plots.draw_sensitivity(
            ft.campaign(*network, small.data(), faults=MIBB, key=jax.random.key(1), chips=2)
        )


@pytest.mark.parametrize(
    ("faults", "by", "message"),
    [
        (MIBB, "chip", "take one of layer, edge, block, bit"),
        (MIBB, ("layer", "block"), "bit and one of the others"),
        (MIBB, "bit", "faults are of single bits"),
        ("mibb:p_m=0.1,layers=end", "layer", "called 'end'|act in no layer"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(network, faults, by, message):
    with pytest.raises(ValueError, match=message):
        _report(network, faults, by)
