"""Which points a sweep visits, and what is refused."""

import pytest

from ftnas_jax.campaigns.points import as_models, points


def _points(text: str, **sweep):
    return points(as_models(text), **sweep)


def test_without_a_sweep_there_is_one_point():
    (point,) = _points("mibb:p_m=1e-3")
    assert (point.text, point.rate, point.time) == ("mibb:p_m=0.001", None, None)


def test_rates_keep_the_proportion_of_stuck_cells():
    found = _points("stuck_at:p0=0.06,p1=0.02", rates=[0.04, 0.12])
    assert [(p.rate, p.text) for p in found] == [
        (0.04, "stuck_at:p0=0.03,p1=0.01"),
        (0.12, "stuck_at:p0=0.09,p1=0.03"),
    ]


def test_of_several_models_the_named_one_is_swept():
    found = _points("mibb:p_m=1e-3+bit_flip:rate=0.1", rates=[0.2], sweep="bit_flip")
    assert found[0].text == "mibb:p_m=0.001+bit_flip:rate=0.2"


@pytest.mark.parametrize(
    ("text", "sweep", "name"),
    [
        ("stuck_at:ratio=0.837", {"rates": [0.1]}, "stuck_at:ratio=0.837"),
        ("stuck_at:p0=0.06,p1=0.02,layers=a", {"rates": [0.1]}, "stuck_at:ratio=0.75,layers=a"),
        ("mibb:p_m=1e-3", {"rates": [0.1]}, "mibb"),
        (
            "mibb:p_m=1e-3+bit_flip",
            {"rates": [0.1], "sweep": "bit_flip"},
            "mibb:p_m=0.001+bit_flip",
        ),
        ("stuck_at:p0=0.06,p1=0.02", {"times": [2]}, "stuck_at:p0=0.06,p1=0.02"),
        ("mibb", {}, None),
    ],
)
def test_a_sweep_is_named_by_what_stays(text, sweep, name):
    assert {point.sweep for point in _points(text, **sweep)} == {name}


@pytest.mark.parametrize(
    ("text", "sweep", "parameter"),
    [
        ("stuck_at", {"rates": [0.1]}, "rate"),
        ("mibb", {"rates": [0.1]}, "p_m"),
        ("mibb+log_normal", {"rates": [0.1], "sweep": "log_normal"}, "sigma"),
        ("drift", {"times": [2]}, "time"),
        ("mibb", {}, None),
    ],
)
def test_what_is_swept_has_the_name_that_its_text_has(text, sweep, parameter):
    assert {point.parameter for point in _points(text, **sweep)} == {parameter}


def test_times_age_what_ages():
    found = _points("stuck_at:p0=0.06,p1=0.02+mibb:p_m=1e-3", times=[1, 5])
    assert [p.time for p in found] == [1.0, 5.0]
    assert [p.faults[0].accumulated for p in found] == [1.0, 5.0]
    assert found[0].faults[1] == found[1].faults[1]


@pytest.mark.parametrize(
    ("text", "sound"),
    [("mibb:p_m=0", True), ("stuck_at:p0=0,p1=0", True), ("stuck_at:p0=0,p1=0.1", False)],
)
def test_at_rates_of_zero_nothing_fails(text, sound):
    assert _points(text)[0].sound == sound


@pytest.mark.parametrize(
    ("text", "sweep", "message"),
    [
        ("mibb", {"rates": [0.1], "times": [1]}, "sweep one of them"),
        ("mibb", {"rates": []}, "at least one"),
        ("mibb", {"rates": [0.1, 0.1]}, "each once"),
        ("mibb", {"rates": [1.5]}, r"p_m is 1.5; a rate lies in \[0, 1\]"),
        ("mibb+bit_flip", {"rates": [0.1]}, "say by sweep="),
        ("mibb+bit_flip", {"rates": [0.1], "sweep": "stuck_at"}, "names one of mibb, bit_flip"),
        ("mibb", {"times": [1, 2]}, "time acts on none of mibb"),
        ("stuck_at", {"times": [0.5]}, "at least 1"),
        ("stuck_at:p0=0,p1=0", {"rates": [0.1]}, "no proportion is known"),
        ("", {}, "no fault models"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(text, sweep, message):
    with pytest.raises(ValueError, match=message):
        _points(text, **sweep)
