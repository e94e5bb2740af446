"""What networks cost: parameters, FLOPs, and how far MiBB faults reach; nothing is computed.

    python -m experiments.cost --network resnet18 --network w_ftt_net:channels=40
    python -m experiments.cost --network genotype:runs/mibb/genotype.json --layers
    python -m experiments.cost --network my_nets:Small,depth=4 --json small.json

Networks are named as in `ftnas_jax.models.by_name`.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from experiments import cli
from ftnas_jax.checkpoints import explain_os_errors
from ftnas_jax.costs import Costs, costs_at
from ftnas_jax.errors import InputError, as_input_error
from ftnas_jax.graph.sites import text_table
from ftnas_jax.models import by_name


class _Parser(argparse.ArgumentParser):
    """Mistakes are told in one line, as everywhere."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the costs of the networks that a command line names."""
    with cli.one_line_errors():
        options = _parser().parse_args(arguments)
        image = _image(options.image)
        found: dict[str, Costs] = {}
        for name in options.network:
            with as_input_error():
                network = by_name(name, options.classes)
                found[name] = costs_at(network, image, p_m=options.p_m)
        if options.json != "-":
            print(_text(found, options.layers))
        if options.json:
            _write(options.json, _content(found, image, options.classes))


def _parser() -> argparse.ArgumentParser:
    lines = (__doc__ or "").split("\n")
    parser = _Parser(prog="python -m experiments.cost", description=lines[0])
    add = parser.add_argument
    add("--network", action="append", required=True, help="name, as resnet18; may be repeated")
    add("--image", default="32x32x3", help="height, width and channels of one image")
    add("--classes", type=int, default=10, help="width of the classifier")
    add("--p_m", type=float, default=1e-4, help="error rate of one multiply-accumulate under MiBB")
    add("--layers", action="store_true", help="a line for each layer too")
    add("--json", default="", help="file for all numbers, or - to print them in place of tables")
    return parser


def _image(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){2}", text):
        raise InputError(f"--image is {text!r}; it takes height, width, channels, as in 32x32x3")
    return tuple(map(int, text.split("x")))


def _text(found: dict[str, Costs], with_layers: bool) -> str:
    tables = [f"{name}\n{costs}\n" for name, costs in found.items() if with_layers]
    return "\n".join([*tables, text_table(_rows(found))])


def _rows(found: dict[str, Costs]) -> list[tuple[str, ...]]:
    p_m = next(iter(found.values())).p_m
    head = ("network", "parameters", "MACs", "FLOPs", "features", f"faulty at p_m={p_m:g}")
    return [head] + [
        (
            name,
            f"{costs.parameters / 1e6:.4f}M",
            f"{costs.macs / 1e6:.2f}M",
            f"{costs.flops / 1e6:.2f}M",
            f"{costs.features:,}",
            f"{costs.faulty_features / costs.features:.2%}",
        )
        for name, costs in found.items()
    ]


def _content(found: dict[str, Costs], image: tuple[int, ...], classes: int) -> str:
    networks = [{"network": name, **costs.to_json()} for name, costs in found.items()]
    return json.dumps({"image": image, "classes": classes, "networks": networks}, indent=1) + "\n"


def _write(file: str, content: str) -> None:
    if file == "-":
        sys.stdout.write(content)
        return
    with explain_os_errors(f"write {file}"):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
