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
    LogNormal,
    MiBB,
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
    ],
)
def test_text_is_read(text, models):
    assert parse(text) == models


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
    "stuck_bits": cells(StuckBits),
    "log_normal": st.builds(LogNormal, **varied),
    "reciprocal_normal": st.builds(
        ReciprocalNormal, **varied, smallest=st.floats(0, 1, exclude_min=True, exclude_max=True)
    ),
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


NAMES = "mibb, bit_bias, bit_flip, stuck_at, stuck_bits, log_normal, reciprocal_normal, defect_map"


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
        ("stuck_at:0.1", "stuck_at: cannot read '0.1'; its fields are p0, p1, cells, layers"),
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
            with pytest.raises(ValueError, match=rf"^{name}: {field.name} is given twice$"):
                parse(f"{name}:{field.name}=1,{field.name}=1")
