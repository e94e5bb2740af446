"""The pages on fault models and campaigns: their code runs, and what they name is there."""

import re
from pathlib import Path

import pytest

from docs import draw_faults
from ftnas_jax.faults import MODELS, parse

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "faults.md"
TEXT = PAGE.read_text(encoding="utf-8")
CAMPAIGNS = (ROOT / "docs" / "campaigns.md").read_text(encoding="utf-8")


def _blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


BLOCKS = _blocks(TEXT)


def test_blocks_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    space = {"__name__": "faults_md"}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"docs/faults.md, block {number}", "exec"), space)
    said = capsys.readouterr().out
    assert "mibb: p_m is 2.0; a rate lies in [0, 1]" in said
    assert "Clopper-Pearson" in said
    assert "ignore='mask'" in said
    written = {file.name for file in tmp_path.iterdir()}
    assert written >= {"chip.csv", "lengths.json", "exposure.csv", "exposure.png"}


def test_blocks_on_campaigns_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    space = {"__name__": "campaigns_md"}
    for number, block in enumerate(_blocks(CAMPAIGNS)):
        exec(compile(block, f"docs/campaigns.md, block {number}", "exec"), space)
    said = capsys.readouterr().out
    assert re.search(r"clean [\d.]+ % \| faulty [\d.]+ % ± [\d.]+ \(95 %, \d+ chips\)", said)
    assert "critical in all:" in said
    assert re.search(r"^(0\.\d+) \1$", said, re.MULTILINE)  # a chip of the campaign, and replayed
    assert "noisy - plain" in said
    written = {file.name for file in tmp_path.iterdir()}
    assert written >= {"sensitivity.png", "lifetime.png"}


def test_numbers_in_comments_are_what_is_printed(tmp_path, monkeypatch, capsys):
    """Of blocks whose prints are annotated with numbers."""
    monkeypatch.chdir(tmp_path)
    space, expected = {}, []
    for block in BLOCKS[: next(i for i, b in enumerate(BLOCKS) if "nn.Module" in b)]:
        noted = re.findall(r"^print\(.*\)  # ([\d. ]+)$", block, re.MULTILINE)
        exec(block, space)
        said = capsys.readouterr().out.split()
        for note in " ".join(noted).split():
            expected.append(float(note))
            assert any(float(word) == pytest.approx(float(note), rel=5e-3) for word in said)
    assert len(expected) == 4


def test_every_model_is_described_and_every_text_is_read():
    for name in MODELS:
        assert re.search(rf"^### .*\b{name}\b", TEXT, re.MULTILINE), name
    rows = TEXT.partition("## Table 3")[2].partition("## ")[0]
    texts = [text for text in re.findall(r"`([a-z_]+:[^`]*)`", rows) if "defect_map" not in text]
    assert len(texts) == 14
    assert {parse(text)[0].name for text in texts} == set(MODELS) - {"defect_map"}


def test_files_that_the_page_names_are_there():
    for name in re.findall(r"`(tests/[\w/.]+)`", TEXT + CAMPAIGNS):
        assert (ROOT / name).is_file(), name
    pictures = set(re.findall(r"\]\(pictures/(\w+)\.png\)", TEXT))
    assert pictures == {file.stem for file in (ROOT / "docs" / "pictures").iterdir()}
    assert pictures == {draw.__name__.removeprefix("draw_") for draw in draw_faults.PICTURES}


def test_a_picture_is_the_one_of_the_page_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(draw_faults, "PICTURES", (draw_faults.draw_per,))
    draw_faults.main(str(tmp_path))
    assert capsys.readouterr().out.split() == [str(tmp_path / "per.png")]
    first = (tmp_path / "per.png").read_bytes()
    draw_faults.main(str(tmp_path))
    assert (tmp_path / "per.png").read_bytes() == first
