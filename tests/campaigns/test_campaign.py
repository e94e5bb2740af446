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
from ftnas_jax.campaigns.campaign import Campaign, Run
from ftnas_jax.campaigns.points import as_models, points
from ftnas_jax.campaigns.settings import Settings
from ftnas_jax.checkpoints import RunError
from ftnas_jax.plots import draw_curves

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


def test_a_margin_that_is_not_reached_is_said(tmp_path):
    with _campaign(tmp_path, chips=20, margin=0.001, min_chips=8, rates=[0.0, 0.3]) as job:
        report = job.run()
    sound, faulty = report.outcomes
    assert (sound.reached, faulty.reached) == (True, False)
    assert faulty.accuracy.half_width > 0.001
    assert str(faulty).endswith("margin not reached")
    assert str(report).count("margin not reached: linear under stuck_at 0.3") == 1
    report.write_csv(tmp_path)
    with open(tmp_path / "summary.csv", encoding="utf-8") as file:
        assert [row["reached"] for row in csv.DictReader(file)] == ["True", "False"]
    with _campaign(chips=20) as job:
        fixed = job.run().outcomes[0]
    assert fixed.reached is None
    assert "margin" not in str(fixed)


def test_the_interval_shown_while_running_is_that_which_stops(monkeypatch):
    monkeypatch.setattr("ftnas_jax.campaigns.trials._SECONDS_A_CALL", 0.0)  # a block a call
    seen = []
    with _campaign(chips=400, margin=0.04, min_chips=8) as job:
        (end,) = job.run(watch=lambda position: seen.append(position.outcome)).outcomes
    several = [outcome for outcome in seen if len(outcome.chips) > 1]
    assert len(several) > 3
    for outcome in several:
        count = len(outcome.chips)
        assert outcome.critical > stats.t.ppf(0.975, count - 1)
    looks = {8, 10, 12, 15, 19, 24, 30, 38, 48, 60, 75, 94, 118, 148, 185, 231, 289, 361}
    earlier = [o for o in several if len(o.chips) in looks and len(o.chips) < len(end.chips)]
    assert all(outcome.accuracy.half_width > 0.04 for outcome in earlier)
    assert not any(outcome.reached for outcome in earlier)
    assert end.reached


def test_a_level_is_shown_with_all_its_digits():
    with _campaign(chips=4, level=0.999, rates=[0.1, 0.2]) as job:
        report = job.run()
    assert "(99.9 %, 4 chips)" in str(report.outcomes[0])
    assert "over chips at 99.9 %" in str(report)


def _where_positive(parameters: dict, images: jax.Array) -> jax.Array:
    """Logits, NaN where those of an image add up to less than nothing."""
    logits = small.linear(parameters, images)
    return jnp.where(logits.sum(-1, keepdims=True) < 0, jnp.nan, logits)


def test_nan_logits_are_no_class():
    images, _ = small.data()
    chip = ft.on_hardware(_where_positive, ft.Hardware(faults=ft.faults.parse(FAULTS)))

    def logits(draw):
        return np.asarray(chip(small.parameters(), jnp.asarray(images), draw=draw))

    images = images[~np.isnan(logits(ft.Draw(_key(), False))).any(-1)]
    labels = logits(ft.Draw(_key(), False)).argmax(-1)
    data = (images, np.zeros_like(labels))  # the class that argmax makes of NaN
    report = ft.campaign(_where_positive, small.parameters(), data, faults=FAULTS, key=_key())
    (outcome,) = report.outcomes
    for number in range(8):
        own = logits(ft.Draw(jax.random.fold_in(_key(), number), True))
        unknown, classes = np.isnan(own).any(-1), own.argmax(-1)
        assert unknown.any()
        assert outcome.chips[number].correct == (~unknown & (classes == 0)).sum()
        assert outcome.chips[number].changed == (unknown | (classes != labels)).sum()


def test_a_network_with_nan_logits_on_sound_hardware_is_refused(tmp_path):
    def broken(parameters, images):
        return small.linear(parameters, images) * jnp.nan

    options = {"faults": FAULTS, "key": _key(), "workdir": tmp_path}
    with pytest.raises(ValueError, match="network: 50 of 50 images have NaN logits") as caught:
        ft.campaign(broken, small.parameters(), small.data(), **options)
    assert "\n" not in str(caught.value)
    ft.campaign(small.linear, small.parameters(), small.data(), **options, chips=2)


def test_what_fills_a_chunk_up_is_kept_and_changes_no_result():
    watched, reports, settings = [], [], Settings(40, 0.04, 8)
    for chunk in (1, 16):
        run = Run(chunk=chunk, devices=jax.devices()[:1])
        visited = points(as_models(FAULTS))
        job = Campaign([small.subject(FAULTS)], small.data(), visited, _key(), settings, run=run)
        (position,) = job.pilot()
        watched.append(position.chips)
        reports.append(str(job.run()))
    assert watched == [8, 16]
    assert reports[0] == reports[1]


def test_no_more_chips_than_wanted_fill_a_chunk_up(tmp_path):
    report = ft.campaign(
        *(small.linear, small.parameters(), small.data()),
        faults=FAULTS,
        rates=[0.0, 0.1],
        key=_key(),
        chips=6,
        chunk=4,
        workdir=tmp_path,
    )
    assert [len(outcome.chips) for outcome in report.outcomes] == [1, 6]
    assert len((tmp_path / "chips.csv").read_text().splitlines()) == 1 + 1 + 6


def test_two_sweeps_of_a_model_are_told_apart():
    texts = ("stuck_at:ratio=0.75", "stuck_at:ratio=0.25")
    visited = [p for text in texts for p in points(as_models(text), [0.0, 0.04, 0.1])]
    job = Campaign([small.subject(FAULTS)], small.data(), visited, _key(), Settings(4))
    report = job.run()
    labels = [outcome.point.label for outcome in report.outcomes]
    assert labels == [f"{text} {rate}" for text in texts for rate in ("0", "0.04", "0.1")]
    figure = draw_curves(report)
    assert [axes.get_title("left") for axes in figure.axes] == list(texts)
    assert [axes.get_xlabel() for axes in figure.axes] == ["rate", "rate"]
    for axes in figure.axes:
        np.testing.assert_array_equal(axes.lines[0].get_xdata(), [0.0, 0.04, 0.1])


def test_one_sweep_of_a_model_has_a_short_name():
    with _campaign(chips=2, rates=[0.1, 0.2]) as job:
        labels = [outcome.point.label for outcome in job.run().outcomes]
    assert labels == ["stuck_at 0.1", "stuck_at 0.2"]


def test_rates_that_are_whole_numbers_are_rates():
    models = [ft.faults.StuckAt(p0=0, p1=0.1), ft.faults.StuckAt(p0=0.1, p1=0.1)]
    visited = [point for model in models for point in points((model,))]
    job = Campaign([small.subject(FAULTS)], small.data(), visited, _key(), Settings(4))
    both = [outcome.accuracies for outcome in job.run().outcomes]
    with _campaign(chips=4, faults="stuck_at:p0=0.0,p1=0.1") as job:
        np.testing.assert_array_equal(job.run().outcomes[0].accuracies, both[0])


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (0, "key is 0; give a typed key"),
        (jax.random.key(0, impl="rbg"), "rbg; give one key"),
        (jax.random.split(jax.random.key(0), 3), r"key is \[3\] of"),
    ],
)
def test_what_is_no_key_of_chips_is_refused(key, message):
    with pytest.raises(ValueError, match=message) as caught:
        _campaign(key=key)
    assert "\n" not in str(caught.value)


def test_before_any_chip_a_report_is_empty():
    with _campaign() as job:
        report = job.run(stop=lambda: True)
    assert (report.outcomes, report.differences(), str(report)) == ((), (), "no chips yet")


def test_arguments_that_differ_anywhere_are_another_network():
    def model(parameters, images, scale):
        return small.linear(parameters, images) * scale[0]

    scales = [np.ones(5000, np.float32) for _ in range(3)]
    scales[2][2500] = 7
    first, same, other = (
        ft.as_subject(model, small.parameters(), ft.Hardware(), arguments=(scale,)).sha256()
        for scale in scales
    )
    assert first == same != other


def test_a_point_twice_is_refused():
    visited = points(as_models(FAULTS), [0.1]) * 2
    with pytest.raises(ValueError, match="is visited twice"):
        Campaign([small.subject(FAULTS)], small.data(), visited, _key(), Settings(4))


@pytest.mark.parametrize("content", [None, "{}", '{"linear', "[1]", '{"linear": {}}'])
def test_chips_of_a_network_that_is_not_known_are_refused(tmp_path, content):
    with _campaign(tmp_path, chips=2) as job:
        job.run()
    path = tmp_path / "networks.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(RunError, match=r"networks.json .*restore") as caught:
        _campaign(tmp_path, chips=2)
    assert "\n" not in str(caught.value)


def test_a_start_that_was_refused_leaves_nothing_that_counts(tmp_path):
    with pytest.raises(ValueError, match="GiB of a device"):
        ft.campaign(
            *(small.linear, small.parameters(), small.data()),
            faults=FAULTS,
            key=_key(),
            memory=10.0,
            name="linear",
            workdir=tmp_path,
        )
    other = [small.subject(FAULTS, noise=0.1)]
    with _campaign(tmp_path, chips=2, key=jax.random.key(9), subjects=other) as job:
        job.run()


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
    with pytest.raises(ValueError, match="a label is -1"):
        ft.campaign(small.linear, small.parameters(), (images, labels - 1), **options)
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
