"""Models as text: read, written, refused."""

import dataclasses

import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftnas_jax.faults import (
    MODELS,
    BitBias,
    BitFlip,
    Drift,
    LogNormal,
    MiBB,
    Only,
    ReciprocalNormal,
    StuckAt,
    StuckBits,
    format_text,
    parse,
)


@pytest.mark.parametrize(
    ("text", "models"),
    [
        ("", ()),
        ("  ", ()),
        ("mibb", (MiBB(),)),
        ("mibb:", (MiBB(),)),
        ("mibb:p_m=3e-4", (MiBB(3e-4),)),
        ("mibb:p_m=3e-4,", (MiBB(3e-4),)),
        (" mibb:p_m = 0.5 , form = linear ", (MiBB(0.5, "linear"),)),
        ("stuck_at", (StuckAt(0.067, 0.013),)),
        ("stuck_at:p1=0.02", (StuckAt(p1=0.02),)),
        ("stuck_at:p0=1,p1=0,cells=pair", (StuckAt(1.0, 0.0, cells="pair"),)),
        ("bit_flip:bits=7", (BitFlip(bits="7"),)),
        ("bit_flip:rate=1e-3,site=activations", (BitFlip(1e-3, site="activations"),)),
        ("bit_bias:per=chip,accumulated=2", (BitBias(per="chip", accumulated=2.0),)),
        ("stuck_bits:layers=!stem|cell*", (StuckBits(layers="!stem|cell*"),)),
        ("log_normal+mibb", (LogNormal(), MiBB())),
        ("mibb:p_m=1e+0 + bit_flip:rate=1e-3", (MiBB(1.0), BitFlip(1e-3))),
        ("reciprocal_normal:sigma=+0.2,smallest=0.3", (ReciprocalNormal(0.2, smallest=0.3),)),
        ("drift", (Drift(0.049, 0.16, 1e4),)),
        ("drift:nu=0.1,spread=0,time=86400", (Drift(0.1, 0.0, 86400.0),)),
        ("stuck_bits:bits=6,p0=0.1", (StuckBits(0.1, bits="6"),)),
    ],
)
def test_text_is_read(text, models):
    assert parse(text) == models


@pytest.mark.parametrize("model", [StuckAt, StuckBits])
@pytest.mark.parametrize(
    ("text", "p0", "p1"),
    [
        ("rate=0.08,ratio=0.837", 0.06696, 0.01304),
        ("ratio=0.837", 0.06696, 0.01304),
        ("rate=0.04", 0.0335, 0.0065),
        ("rate=0.08", 0.067, 0.013),
        ("ratio=0,rate=0.5", 0.0, 0.5),
        ("ratio=1,rate=0.5", 0.5, 0.0),
        ("rate=0", 0.0, 0.0),
        ("rate=1,ratio=0.25", 0.25, 0.75),
    ],
)
def test_stuck_cells_by_their_sum_and_the_share_of_saf0(model, text, p0, p1):
    (read,) = parse(f"{model.name}:{text},layers=stem,accumulated=2")
    assert (read.p0, read.p1) == (pytest.approx(p0, abs=1e-15), pytest.approx(p1, abs=1e-15))
    assert read == model(read.p0, read.p1, layers="stem", accumulated=2.0)
    assert format_text(read) == (
        f"{model.name}:p0={read.p0},p1={read.p1},layers=stem,accumulated=2.0"
    )


rates = st.floats(0, 1)
layers = st.sampled_from(["*", "!stem", "cell*|!cell0/*", "stem | head"])
times = st.floats(1, 1e30)


def cells(model, **own):
    def build(p0, share, **rest):
        return model(p0, (1 - p0) * share, **rest)

    return st.builds(build, rates, rates, layers=layers, accumulated=times, **own)


def aging(model, *own, **fields):
    """Models of features: per image or batch, and per chip, where faults accumulate."""
    fields["layers"] = layers
    return st.one_of(
        st.builds(model, *own, per=st.sampled_from(["image", "batch", "chip"]), **fields),
        st.builds(model, *own, per=st.just("chip"), accumulated=times, **fields),
    )


varied = {"sigma": st.floats(0, 1e30), "layers": layers, "per": st.sampled_from(["chip", "batch"])}
bits = st.sampled_from(["all", "0", "15", "2-5"])
EVERY_MODEL = {
    "mibb": aging(MiBB, rates, st.sampled_from(["compound", "linear"])),
    "bit_bias": aging(BitBias, rates),
    "bit_flip": st.one_of(
        aging(BitFlip, rates, bits=bits, site=st.just("activations")),
        st.builds(BitFlip, rates, bits=bits, layers=layers, accumulated=times),
        st.builds(BitFlip, rates, per=st.just("batch")),
    ),
    "stuck_at": cells(StuckAt, cells=st.sampled_from(["one", "pair"])),
    "stuck_bits": cells(StuckBits, bits=st.sampled_from(["all", "0", "14", "2-5"])),
    "log_normal": st.builds(LogNormal, **varied),
    "reciprocal_normal": st.builds(
        ReciprocalNormal, **varied, smallest=st.floats(0, 1, exclude_min=True, exclude_max=True)
    ),
    "drift": st.builds(Drift, st.floats(0, 1e30), st.floats(0, 1e30), times, layers=layers),
}


def test_every_model_has_a_name_and_all_but_given_maps_are_drawn_below():
    assert all(model.name == name for name, model in MODELS.items())
    assert {*EVERY_MODEL, "defect_map"} == set(MODELS)


@given(st.lists(st.one_of(*EVERY_MODEL.values()), max_size=3))
@settings(deadline=None, max_examples=300)
def test_text_round_trip(models):
    text = format_text(models)
    assert parse(text) == tuple(models)
    assert format_text(parse(text)) == text
    assert all(parse(format_text(model)) == (model,) for model in models)


def test_text_names_the_papers_symbols():
    assert format_text(StuckAt()) == "stuck_at:p0=0.067,p1=0.013"
    assert format_text(MiBB(1e-4, "linear")) == "mibb:p_m=0.0001,form=linear"
    assert format_text([MiBB(0.5), BitFlip(0.25)]) == "mibb:p_m=0.5+bit_flip:rate=0.25"
    assert format_text(()) == ""


def test_text_leaves_out_what_is_at_its_default():
    assert format_text(BitFlip(0.5, site="activations", per="image")) == (
        "bit_flip:rate=0.5,site=activations"
    )
    assert format_text(BitFlip(0.5, per="chip")) == "bit_flip:rate=0.5"
    assert format_text(MiBB(0.5, per="chip")) == "mibb:p_m=0.5,per=chip"
    assert format_text(LogNormal(0.0, layers="stem")) == "log_normal:sigma=0.0,layers=stem"


def test_text_of_arrays_has_numbers():
    model = StuckAt(jnp.float32(0.25), jnp.float32(0.5), accumulated=jnp.float32(3))
    assert format_text(model) == "stuck_at:p0=0.25,p1=0.5,accumulated=3.0"


@pytest.mark.parametrize("pattern", ["stem,head", "stem+head", " stem", "stem\n"])
def test_patterns_that_no_text_can_hold_are_not_written(pattern):
    with pytest.raises(
        ValueError, match=r"^mibb: layers is '.*'; text has no comma, outer blank or"
    ):
        format_text(MiBB(layers=pattern))


@pytest.mark.parametrize(
    ("model", "field"),
    [
        (BitFlip(only=Only(("stem",), 0)), "only"),
        (BitFlip().at_bit(3), "bit"),
        (StuckBits(bit=jnp.int32(3)), "bit"),
    ],
)
def test_what_a_number_chooses_is_not_written(model, field):
    with pytest.raises(
        ValueError, match=rf"^{model.name}: {field} is set, which text has no field"
    ):
        format_text(model)


NAMES = (
    "mibb, bit_bias, bit_flip, stuck_at, stuck_bits, log_normal, reciprocal_normal, drift, "
    "defect_map"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("noise", f"unknown fault model 'noise'; choose from {NAMES}"),
        ("bitflip", "unknown fault model 'bitflip'; did you mean bit_flip?"),
        ("mibb+", "unknown fault model 'mibb+'; did you mean mibb?"),
        ("+mibb", f"unknown fault model ''; choose from {NAMES}"),
        ("mibb+stuckat", "unknown fault model 'stuckat'; did you mean stuck_at?"),
        ("mibb:p=1", "mibb: cannot read 'p=1'; its fields are p_m, form, layers, per, accumulated"),
        ("mibb:p_m", "mibb: cannot read 'p_m'; its fields are p_m, form"),
        ("mibb:p_m=1,p_m=1", "mibb: p_m is given twice"),
        (
            "stuck_at:0.1",
            "stuck_at: cannot read '0.1'; its fields are p0, p1, cells, layers, per, accumulated, "
            "rate, ratio",
        ),
        ("mibb:only=1", "mibb: cannot read 'only=1'; its fields are p_m, form, layers, per, acc"),
        ("bit_flip:bit=1", "bit_flip: cannot read 'bit=1'; its fields are rate, bits, layers, per"),
        ("mibb:ratio=0.5", "mibb: cannot read 'ratio=0.5'; its fields are p_m, form, layers, per,"),
        (
            "stuck_at:p0=0.1,ratio=0.5",
            "stuck_at: give p0 and p1, or rate and ratio; not of both",
        ),
        (
            "stuck_bits:rate=0.1,p1=0.1",
            "stuck_bits: give p0 and p1, or rate and ratio; not of both",
        ),
        ("stuck_at:rate=1.5", "stuck_at: rate is 1.5; a rate lies in [0, 1]"),
        ("stuck_at:rate=nan", "stuck_at: rate is nan; a rate lies in [0, 1]"),
        ("stuck_at:ratio=-0.1", "stuck_at: ratio is -0.1; p0 / (p0 + p1) lies in [0, 1]"),
        ("stuck_at:ratio=1.1,rate=0", "stuck_at: ratio is 1.1; p0 / (p0 + p1) lies in [0, 1]"),
        ("stuck_at:ratio=nan", "stuck_at: ratio is nan; p0 / (p0 + p1) lies in [0, 1]"),
        ("stuck_bits:ratio=half", "stuck_bits: ratio is 'half', not a number"),
        ("stuck_at:rate=0.1,rate=0.1", "stuck_at: rate is given twice"),
        ("drift:time=0", "drift: time is 0.0; it is at least 1"),
        ("mibb:name=x", "mibb: cannot read 'name=x'; its fields are"),
        ("mibb:p_m=often", "mibb: p_m is 'often', not a number"),
        ("mibb:p_m=", "mibb: p_m is '', not a number"),
        ("mibb:p_m=2", "mibb: p_m is 2.0; a rate lies in [0, 1]"),
        ("mibb:p_m=nan", "mibb: p_m is nan; a rate lies in [0, 1]"),
        ("mibb:form=cubic", "mibb: form is 'cubic'; choose compound or linear"),
        ("stuck_at:p0=0.7,p1=0.7", "stuck_at: p0 + p1 is 1.4; a rate lies in [0, 1]"),
        ("bit_flip:accumulated=0.5", "bit_flip: accumulated is 0.5; M_p is at least 1"),
        ("log_normal:sigma=-1", "log_normal: sigma is -1.0; it is at least 0"),
        (
            "defect_map:file=/no/such/chip.csv",
            "defect_map: cannot read '/no/such/chip.csv': No such",
        ),
    ],
)
def test_text_that_makes_no_sense_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011, the whole text is compared below
        parse(text)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_every_field_of_every_model_is_read():
    for name, model in MODELS.items():
        for field in dataclasses.fields(model):
            if field.name in ("only", "bit"):  # chosen by programs
                continue
            with pytest.raises(ValueError, match=rf"^{name}: {field.name} is given twice$"):
                parse(f"{name}:{field.name}=1,{field.name}=1")
