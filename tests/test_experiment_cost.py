"""The command that prints what networks cost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import cost

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--network", "resnet18:width=0.125"]


def test_totals_and_layers(capsys):
    cost.main([*SMALL, "--network", "examples.small_cnn:SmallCNN", "--image", "16x16x1"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].split("  ")[0] == "network"
    assert lines[1].startswith("resnet18:width=0.125  ")
    weights = 9 * (1 * 16 + 16 * 32 + 32 * 32)
    parameters = weights + 16 + 32 + 32 + 8 * 8 * 32 * 10 + 10
    assert f"{parameters / 1e6:.4f}M" in lines[2]
    cost.main([*SMALL, "--layers", "--p_m=1e-3", "--classes=4"])
    text = capsys.readouterr().out
    assert "stage3_block1/conv1" in text
    assert "rate at p_m=0.001" in text
    assert text.splitlines()[-1].startswith("resnet18:width=0.125  0.17")


def test_json(tmp_path, capsys):
    file = tmp_path / "new" / "costs.json"
    cost.main([*SMALL, "--json", str(file)])
    assert "resnet18" in capsys.readouterr().out
    cost.main([*SMALL, "--json", "-"])
    content = json.loads(capsys.readouterr().out)
    assert content == json.loads(file.read_text())
    assert (content["image"], content["classes"]) == ([32, 32, 3], 10)
    (network,) = content["networks"]
    assert network["network"] == "resnet18:width=0.125"
    assert network["flops"] == 2 * sum(layer["macs"] for layer in network["layers"])
    assert network["layers"][0]["name"] == "stem"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --network"),
        (["--network", "resnet"], "unknown network 'resnet'; did you mean resnet18?"),
        ([*SMALL, "--image=32x32"], "--image is '32x32'; it takes height, width, channels"),
        ([*SMALL, "--image=0x32x3"], "--image is '0x32x3'; it takes height, width, channels"),
        ([*SMALL, "--classes=x"], "argument --classes: invalid int value: 'x'"),
        ([*SMALL, "--classes=1"], "there are 1 classes; a classifier has at least 2"),
        ([*SMALL, "--p_m=2"], "mibb: p_m is 2.0; a rate lies in [0, 1]"),
        (["--network=vgg16:width=0.02", "--image=8x8x3"], "images of 8x8 are too small for vgg16"),
        ([*SMALL, "--json=/proc/none/x.json"], "cannot write /proc/none/x.json"),
        ([*SMALL, "--nothing"], "unrecognized arguments: --nothing"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        cost.main(arguments)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


def test_as_a_user_runs_it():
    command = [sys.executable, "-m", "experiments.cost", "--network=resnet18:widht=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: resnet18: there is no option 'widht'; its options are width\n"
