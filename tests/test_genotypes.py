"""Files of genotypes: which are read, and how each mistake is told."""

import json
import re

import pytest

from experiments import genotypes
from ftnas_jax.errors import InputError
from ftnas_jax.space import Space

SPACE = Space(nodes=4)
NODE_2, NODE_3 = "('none', 0, 2), ('conv_1x1', 1, 2)", "('skip_connect', 2, 3), ('none', 0, 3)"
CELL = f"[{NODE_2}, {NODE_3}]"
OURS = f"normal={CELL}, reduction={CELL}"
AW_NAS = f"normal_0={CELL}, reduce_1={CELL}, normal_0_concat=[2, 3], reduce_1_concat=[2, 3]"
ARCHITECTURE = SPACE.parse(OURS)


def write(folder, text: str) -> str:
    path = folder / "mine.txt"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (OURS, 1),
        (AW_NAS, 1),
        (f"{OURS}\n{AW_NAS}\n{AW_NAS}\n{OURS}", 4),
        (f"\n# mine\n{OURS}\n\n\n# another\n{AW_NAS}\n", 2),
        (OURS.replace(", ", ",\n  "), 1),
        (2 * (AW_NAS.replace(", ", ",\n") + "\n"), 2),
        (json.dumps({"best": {}, "top": [{"genotype": OURS}, {"genotype": OURS}]}), 2),
    ],
)
def test_genotypes_are_read_in_either_form(tmp_path, text, count):
    assert genotypes.read(write(tmp_path, text), SPACE) == [ARCHITECTURE] * count


LONGER = f"[{NODE_2}, {NODE_3}, ('none', 0, 4), ('none', 1, 4)]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no genotype in it"),
        ("# none yet\n", "has no genotype in it"),
        (f"{OURS}\n{OURS.replace('none', 'conv_9x9')}", "genotype 2: unknown operation 'conv_9x9'"),
        (OURS.replace("2, 3)", "7, 3)"), "genotype 1: normal cell: node 3 takes its input from n"),
        (f"normal={LONGER}, reduction={LONGER}", "genotype 1: normal cell: (none, 0, 4) feeds"),
        (f"normal=[{NODE_2}], reduction=[{NODE_2}]", "normal cell: node 3 has 0 connections"),
        (f"normal={CELL}", "genotype 1: a genotype reads"),
        (f"{OURS}\n\nnormal={CELL}\n", "genotype 2: a genotype reads"),
        (f"{OURS} and more", "genotype 1: cannot read 'and more'"),
        (AW_NAS.replace("[2, 3]", "[2,\n2]"), "normal_0_concat is [2, 2]"),
        ("conv3x3-conv3x3", "genotype 1: a genotype reads"),
        ("{}", "neither genotype text nor a run's genotype.json"),
        ('{"top": [{', "neither genotype text nor a run's genotype.json"),
        ('{"top": [{"genotype": "x"}]}', "genotype 1: a genotype reads"),
    ],
)
def test_a_mistake_names_file_and_genotype_in_one_line(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        genotypes.read(path, SPACE)
    assert path in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*/none.txt: No such file or directory"):
        genotypes.read(str(tmp_path / "none.txt"), SPACE)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"cannot read .*/binary: it is not UTF-8 text"):
        genotypes.read(str(tmp_path / "binary"), SPACE)
