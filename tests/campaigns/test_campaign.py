"""A campaign from end to end: chips, statistics, resumption, comparisons, refusals."""

import csv
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx
from scipy import stats

import ftnas_jax as ft
from ftnas_jax.campaigns.campaign import Campaign
from ftnas_jax.campaigns.points import as_models, points
from ftnas_jax.campaigns.settings import Settings
from ftnas_jax.checkpoints import RunError

FAULTS = "stuck_at:p0=0.2,p1=0.1"


def _key() -> jax.Array:
    return jax.random.key(3)


def _campaign(workdir=None, *, faults=FAULTS, chips=12, subjects=None, key=None, **settings):
    visited = points(as_models(faults), settings.pop("rates", None))
    return Campaign(
        subjects or [small.subject(faults)],
        small.data(),
        visited,
        _key() if key is None else key,
        Settings(chips, **settings),
        workdir=workdir,
    )


def _files(folder):
    return [(folder / name).read_bytes() for name in ("chips.csv", "rights.bin")]


def test_what_is_reported_is_what_numpy_makes_of_the_chips():
    report = ft.campaign(
        small.linear, small.parameters(), small.data(), faults=FAULTS, key=_key(), chips=10
    )
    images, labels = small.data()
    chip = ft.on_hardware(small.linear, ft.Hardware(faults=ft.faults.parse(FAULTS)))
    clean = np.argmax(np.asarray(chip(small.parameters(), jnp.asarray(images))), -1)
    classes = np.stack([small.classes_of_chip(FAULTS, _key(), i) for i in range(10)])
    accuracies = (classes == labels[None]).mean(1)
    (outcome,) = report.outcomes
    np.testing.assert_allclose(outcome.accuracies, accuracies)
    np.testing.assert_allclose(outcome.sdc_rates, (classes != clean[None]).mean(1))
    assert outcome.clean == (clean == labels).mean()
    margin = stats.t.ppf(0.975, 9) * accuracies.std(ddof=1) / np.sqrt(10)
    interval = outcome.accuracy
    np.testing.assert_allclose(
        [interval.low, interval.high], accuracies.mean() + margin * np.array([-1, 1])
    )
    assert outcome.deviation == pytest.approx(accuracies.std(ddof=1))
    assert str(report) == (
        f"clean {clean_percent(outcome.clean)} % | faulty {100 * accuracies.mean():.1f} % ± "
        f"{100 * margin:.1f} (95 %, 10 chips) | worst 5 % chip {100 * accuracies.min():.1f} %"
    )


def clean_percent(share: float) -> str:
    return f"{100 * share:.1f}"


def test_a_killed_campaign_ends_with_the_same_files(tmp_path, monkeypatch):
    with _campaign(tmp_path / "whole") as job:
        whole = str(job.run())
    monkeypatch.setattr("ftnas_jax.campaigns.trials._SECONDS_A_CALL", 0.0)  # a block a call
    calls = iter(range(100))
    with _campaign(tmp_path / "killed") as job:
        job.run(stop=lambda: next(calls) > 1)
    path = tmp_path / "killed" / "chips.csv"
    rows = len(path.read_text().splitlines()) - 1
    assert 0 < rows < 12
    path.write_bytes(path.read_bytes()[:-3])
    with _campaign(tmp_path / "killed") as job:
        assert str(job.run()) == whole
    assert _files(tmp_path / "killed") == _files(tmp_path / "whole")


def test_more_chips_are_added_to_those_that_are_there(tmp_path):
    with _campaign(tmp_path, chips=5) as job:
        job.run()
    first = _files(tmp_path)
    with _campaign(tmp_path, chips=9) as job:
        more = job.run()
    for before, after in zip(first, _files(tmp_path), strict=True):
        assert after.startswith(before)
    with _campaign(chips=9) as job:
        assert str(job.run()) == str(more)


def test_fewer_chips_are_the_first_of_those_that_are_there(tmp_path):
    with _campaign(tmp_path, chips=9) as job:
        job.run()
    before = _files(tmp_path)
    with _campaign(tmp_path, chips=5) as job, _campaign(chips=5) as fresh:
        assert str(job.run()) == str(fresh.run())
    assert _files(tmp_path) == before


def test_a_finished_campaign_compiles_nothing(tmp_path, monkeypatch):
    with _campaign(tmp_path) as job:
        before = str(job.run())
    monkeypatch.setattr("ftnas_jax.campaigns.campaign.Trials", None)
    with _campaign(tmp_path) as job:
        assert str(job.run()) == before


def test_faults_of_a_chip_grow_with_the_rate_and_a_sweep_is_one_program(monkeypatch):
    made = []
    original = Campaign._prepared

    def prepared(self, *args):
        trials, clean = original(self, *args)
        made.append(trials)
        return trials, clean

    monkeypatch.setattr(Campaign, "_prepared", prepared)
    with _campaign(chips=4, rates=[0.0, 0.05, 0.4]) as job:
        report = job.run()
    assert len({id(trials) for trials in made}) == 1
    sound, weak, strong = (outcome.accuracies for outcome in report.outcomes)
    assert len(sound) == 1
    assert report.outcomes[0].accuracy.half_width == 0
    assert report.outcomes[0].clean == sound[0]
    alone = ft.campaign(
        *(small.linear, small.parameters(), small.data()),
        faults=report.outcomes[2].point.faults,
        key=_key(),
        chips=4,
    )
    np.testing.assert_array_equal(alone.outcomes[0].accuracies, strong)
    assert weak.mean() > strong.mean()


def test_a_margin_stops_where_the_rule_says(tmp_path):
    with _campaign(tmp_path, chips=400, margin=0.04, min_chips=8) as job:
        (outcome,) = job.run().outcomes
    count = len(outcome.chips)
    assert 8 < count < 400
    assert outcome.accuracy.half_width <= 0.04
    assert outcome.critical is not None
    # The correction for having looked makes intervals wider than Student's.
    assert outcome.critical > stats.t.ppf(0.975, count - 1)
    with _campaign(chips=400) as job:
        every = job.run().outcomes[0].accuracies
    np.testing.assert_array_equal(outcome.accuracies, every[:count])


def test_a_pilot_draws_the_first_chips_and_tells_what_the_rest_takes():
    with _campaign(chips=400, margin=0.04, min_chips=8) as job:
        (position,) = job.pilot()
        assert position.chips == 8
        whole = len(job.run().outcomes[0].chips)
    assert position.total == position.expected
    assert whole / 3 < position.expected < 3 * whole
    assert position.seconds is not None


def test_networks_are_compared_chip_by_chip():
    subjects = [small.subject(FAULTS, "a"), small.subject(FAULTS, "b", noise=0.5)]
    report = _campaign(subjects=subjects).run()
    a, b = (outcome.accuracies for outcome in report.outcomes)
    (difference,) = report.differences()
    expected = stats.ttest_rel(b, a).confidence_interval()
    assert difference.networks == ("b", "a")
    assert difference.accuracy.estimate == pytest.approx((b - a).mean())
    np.testing.assert_allclose(
        [difference.accuracy.low, difference.accuracy.high], [expected.low, expected.high]
    )
    assert "b - a" in str(report)


def test_the_summary_is_a_table(tmp_path):
    ft.campaign(
        *(small.linear, small.parameters(), small.data()),
        faults=FAULTS,
        rates=[0.1, 0.2],
        key=_key(),
        chips=4,
        workdir=tmp_path,
    )
    with open(tmp_path / "summary.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["rate"] for row in rows] == ["0.1", "0.2"]
    for row in rows:
        assert row["chips"] == "4"
        numbers = {name: float(row[name]) for name in ("accuracy", "accuracy_low", "worst_5")}
        assert 0 <= numbers["accuracy_low"] <= numbers["accuracy"] <= 1


class _Dense(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(small.CLASSES, use_bias=False)(x)


def _dense() -> dict:
    return {"params": {"Dense_0": {"kernel": small.parameters()["w"]}}}


class _DenseNNX(nnx.Module):
    def __init__(self):
        self.layer = nnx.Linear(small.PIXELS, small.CLASSES, use_bias=False, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.layer(x)


def test_linen_and_nnx_modules_and_frozen_lengths():
    w = small.parameters()["w"]
    options = {"faults": FAULTS, "key": _key(), "chips": 6}
    linen = ft.campaign(_Dense(), _dense(), small.data(), **options)
    module = _DenseNNX()
    module.layer.kernel[...] = jnp.asarray(w)
    assert str(ft.campaign(module, None, small.data(), **options)).startswith("clean")
    clean = ft.campaign(small.linear, {"w": w}, small.data(), **options).outcomes[0].clean
    assert linen.outcomes[0].clean == clean
    chip = ft.on_hardware(small.linear, ft.Hardware(faults=ft.faults.parse(FAULTS)))
    frozen = ft.calibrate(chip, [({"w": w}, jnp.asarray(small.data()[0]))])
    held = ft.campaign(frozen, {"w": w}, small.data(), **options)
    assert held.outcomes[0].clean == clean


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": jax.random.key(4)}, "key"),
        ({"subjects": [small.subject(FAULTS, noise=0.1)]}, "other weights"),
    ],
)
def test_another_campaign_in_the_directory_is_refused(tmp_path, change, message):
    with _campaign(tmp_path) as job:
        job.run()
    with pytest.raises(RunError, match=message):
        _campaign(tmp_path, **change)


def test_two_at_once_in_one_directory_are_refused(tmp_path):
    with _campaign(tmp_path), pytest.raises(RunError, match="another process"):
        _campaign(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chips": 0}, "chips is 0"),
        ({"margin": 2.0}, "share of the images"),
        ({"margin": 0.01, "min_chips": 2}, "at least 4"),
        ({"level": 1.0}, "level is 1.0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"faults": "stuck_at:p0=2"}, "p0 is 2.0"),
        ({"faults": "bit_flip:bits=9"}, "a code of 8 bits"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(options, message):
    options = {"faults": FAULTS, "key": _key()} | options
    with pytest.raises(ValueError, match=message) as caught:
        ft.campaign(small.linear, small.parameters(), small.data(), **options)
    assert "\n" not in str(caught.value)


def test_networks_and_test_sets_that_do_not_fit_are_refused():
    images, labels = small.data()
    options = {"faults": FAULTS, "key": _key()}
    with pytest.raises(ValueError, match="50 images and 49 labels"):
        ft.campaign(small.linear, small.parameters(), (images, labels[1:]), **options)
    with pytest.raises(ValueError, match="give whole numbers"):
        ft.campaign(small.linear, small.parameters(), (images, labels / 2), **options)
    with pytest.raises(ValueError, match=r"returns .* logits"):
        ft.campaign(lambda p, x: (x @ p["w"])[0], small.parameters(), (images, labels), **options)
    for model, variables in ((small.linear, small.parameters()), (_Dense(), _dense())):
        with pytest.raises(ValueError, match=r"cannot be called .* images of \[7\]") as caught:
            ft.campaign(model, variables, (images[:, :7], labels), **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="needs its variables"):
        ft.campaign(small.linear, None, (images, labels), **options)
    with pytest.raises(ValueError, match="its own variables"):
        ft.campaign(_DenseNNX(), {"w": images}, (images, labels), **options)
    with pytest.raises(ValueError, match="each its own name"):
        _campaign(subjects=[small.subject(FAULTS)] * 2)


def test_points_of_other_models_have_programs_of_their_own():
    visited = [p for text in (FAULTS, "stuck_bits:p0=0.1,p1=0.1") for p in points(as_models(text))]
    job = Campaign([small.subject(FAULTS)], small.data(), visited, _key(), Settings(chips=3))
    both = [outcome.accuracies for outcome in job.run().outcomes]
    for own, point in zip(both, visited, strict=True):
        alone = dataclasses.replace(point)
        job = Campaign([small.subject(FAULTS)], small.data(), [alone], _key(), Settings(3))
        np.testing.assert_array_equal(job.run().outcomes[0].accuracies, own)
