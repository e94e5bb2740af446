"""Configs as files hold them: what is accepted, and the one line where something is wrong."""

import copy

import pytest

from configs import adsaf, search_defaults
from experiments.configuration import hardware, search_config
from ftnas_jax.errors import InputError
from ftnas_jax.faults import MiBB, StuckAt


def fields(path: str | None = None, value=None, base=search_defaults) -> dict:
    """The default fields with one of them changed; it may be a new one."""
    config = copy.deepcopy(base.get_config().to_dict())
    if path is not None:
        *sections, name = path.split(".")
        section = config
        for key in sections:
            section = section[key]
        section[name] = value
    return config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("epoch", 3, r"unknown field epoch; did you mean epochs\?"),
        ("network.chanels", 8, r"unknown field network\.chanels; did you mean network\.channels"),
        ("candidates.zzz", 1, r"unknown field candidates\.zzz$"),
        ("epochs", True, "epochs is True; it takes a value like 100"),
        ("seed", 1.5, r"seed is 1\.5"),
        ("augment.flip", 3, r"augment\.flip is 3; it takes a value like True"),
        ("weights.learning_rate", float("inf"), r"weights\.learning_rate is inf"),
        ("network.reductions", None, r"network\.reductions is None"),
        ("network.reductions", (True,), r"network\.reductions is \(True,\)"),
        ("network", 3, "network is 3"),
        ("candidates.random", -1, r"candidates\.random is -1; it is at least 0"),
        ("data.train_fraction", 1.0, r"data\.train_fraction is 1\.0; it lies between"),
        ("data.size", -3, r"data\.size is -3"),
        ("checkpoint_minutes", 0.0, r"checkpoint_minutes is 0\.0, not above 0"),
        ("quantization.weight_bits", 1, r"quantization\.weight_bits: bits is 1"),
        ("quantization.feature_bits", 17, r"quantization\.feature_bits: bits is 17"),
        ("quantization.weight_encoding", "foo", r"quantization\.weight_encoding: encoding is"),
        ("faults", "", "faults is empty; name at least one model"),
        ("faults", "mibb+mobb", "unknown fault model 'mobb'; did you mean mibb"),
        ("faults", "stuck_at", r"set quantization\.weight_encoding to sign_magnitude"),
        ("faults", "bit_flip:bits=8", "a code of 8 bits has 0-7"),
        ("faults", "mibb:layers=!stemm", "mibb: .* called 'stemm'; did you mean stem"),
        ("gradients", "none", "gradients is 'none'; choose straight_through or masked"),
        ("space.primitives", ("none,skip",), "unknown operation 'skip'"),
    ],
)
def test_a_mistake_is_named_in_one_line(path, value, message):
    with pytest.raises(InputError, match=message) as error:
        search_config(fields(path, value))
    assert "\n" not in str(error.value)


def test_a_missing_field_is_named():
    config = fields()
    del config["candidates"]
    with pytest.raises(InputError, match="lacks the field candidates"):
        search_config(config)


def test_names_from_a_command_line():
    config = search_config(fields("space.primitives", ("none, skip_connect",)))
    assert config.space.primitives == ("none", "skip_connect")


def test_models_are_joined_by_a_plus_that_is_not_an_exponent():
    config = fields("faults", "mibb:p_m=1e+0 + stuck_at:p0=0.1,p1=0.2", base=adsaf)
    assert hardware(config).faults == (MiBB(1.0), StuckAt(0.1, 0.2))


def test_a_defect_map_is_not_searched_under(tmp_path):
    file = tmp_path / "chip.csv"
    file.write_text("layer,position,stuck_at\nstem,0,max\n")
    with pytest.raises(InputError, match="a defect_map is that of one chip"):
        search_config(fields("faults", f"defect_map:file={file}", base=adsaf))


def test_numbers_may_be_whole_where_fractions_are_expected():
    assert search_config(fields("weights.alpha_l", 1)).alpha_l == 1
