"""Which commands a table needs: searches, trainings, campaigns, in an order in which they can run.

Every run is a command line of another experiment with a directory of its own, which the user could
type as well; what one table made another finds there.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments import trained
from experiments.paper.tables import TABLES, Recipe, Row, Sweep, Table
from experiments.train_configuration import genotype
from ftnas_jax.errors import InputError
from ftnas_jax.models import MODELS
from ftnas_jax.run import read_json, write_json
from ftnas_jax.space import PRIMITIVES, Architecture, Space

_FOLDER = "{folder}"
"""Stands for the folder of all runs in their arguments, which stay the same where it is moved."""

_DONE = "done.json"
"""In the directory of a run that has ended: its record."""

_PLACES = ("data_dir", "cache_dir")
"""Fields of data that say where they lie."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A command.

    Attributes:
        name: of its directory within the folder of all runs.
        module: as in `python -m MODULE`.
        arguments: without the directory; `{folder}` stands for the folder of all runs.
        places: more arguments, which say where data lie and change no result.
        needs: the run whose results it takes, if any.
        reads: a genotype that it reads and no run finds, as text, if any.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    places: tuple[str, ...] = ()
    needs: "Run | None" = None
    reads: str = ""

    def command(self, folder: Path) -> list[str]:
        """What follows `python`."""
        arguments = [argument.replace(_FOLDER, str(folder)) for argument in self.arguments]
        places = [*self.places, "--workdir", str(folder / self.name)]
        return ["-m", self.module, *arguments, *places]

    @property
    def record(self) -> dict[str, Any]:
        """What its results follow from at this scale, with the runs before it."""
        needs = self.needs and self.needs.record
        return {"arguments": list(self.arguments), "reads": self.reads, "needs": needs}

    def is_done(self, folder: Path) -> bool:
        """Whether it has ended, as it would be run now; in its directory, that it may be moved."""
        return read_json(folder / self.name / _DONE) == self.record

    def mark_done(self, folder: Path) -> None:
        """That it has ended."""
        write_json(folder / self.name / _DONE, self.record)


class Plan:
    """The runs of tables at a scale.

    Args:
        scale: fields as in `configs/paper_full.py`.
        folder: of all runs.
    """

    def __init__(self, scale: Mapping[str, Any], folder: Path):
        self.scale, self.folder = scale, folder
        self.found = found_elsewhere(scale["found"])

    def runs(self, table: Table) -> list[Run]:
        """All runs of a table, row by row, those that others need before them, searches last."""
        found: dict[Run, None] = {}
        for row in sorted(table.rows, key=lambda row: search_of(row.network) is not None):
            search = self._search_before(row)
            if search is not None:
                found[search] = None
            for seed in range(self.scale["seeds"]):
                found[self.training(row, seed)] = None
                found |= dict.fromkeys(self.campaign(row, sweep, seed) for sweep in table.sweeps)
        return list(found)

    def search(self, name: str) -> Run:
        """The search of a config."""
        arguments = ("--config", f"configs/{name}.py", *_overrides(self.search_fields()))
        return Run(f"search-{name}", "experiments.search", arguments, self._places())

    def search_fields(self) -> dict[str, Any]:
        """Fields of a search where its config differs, by dotted names."""
        size = self.scale["search"]
        return {
            "epochs": size["epochs"],
            "batch_size": size["batch_size"],
            "network.channels": size["channels"],
            **self._data(),
        }

    def _search_before(self, row: Row) -> Run | None:
        """The search that a row's network comes from, where it is one of these runs."""
        search = search_of(row.network)
        return None if search is None or search in self.found else self.search(search)

    def training(self, row: Row, seed: int) -> Run:
        """The training of a row's network."""
        fields = {"network": self._network(row.network, _FOLDER), "seed": seed}
        fields |= self.training_fields(row.recipe)
        # That of W-FTT-Net is the paper's training under stuck-at faults of any network.
        config = "train_wftt" if row.recipe == "adsaf" else "train_defaults"
        arguments = ("--config", f"configs/{config}.py", *_overrides(fields))
        return Run(
            f"train-{self._name(row, seed)}",
            "experiments.train",
            arguments,
            self._places(),
            self._search_before(row),
            self._read(row.network),
        )

    def _read(self, network: str) -> str:
        """A random architecture, or what a training takes of the file in the place of a search."""
        if search_of(network) in self.found:
            return json.dumps(genotype({"network": self.network(network)}), sort_keys=True)
        return self._random(network)

    def training_fields(self, recipe: Recipe) -> dict[str, Any]:
        """Fields of a training where its config differs, but for network and seed."""
        as_they_are = ("epochs", "batch_size", "norm_passes", "fraction_lengths")
        fields = {name: self.scale[name] for name in as_they_are}
        own = {"test_every": self.scale["epochs"]} | self._recipe(recipe)
        return fields | own | self._data()

    def campaign(self, row: Row, sweep: Sweep, seed: int) -> Run:
        """The campaign on a row's network under a sweep."""
        training = self.training(row, seed)
        arguments = (
            *("--run", f"{_FOLDER}/{training.name}"),
            *("--faults", sweep.faults),
            *("--rates", ",".join(f"{rate:g}" for rate in sweep.rates)),
            *("--weight_encoding", sweep.encoding),
            *("--chips", str(self.scale["chips"])),
            *("--images", str(self.scale["images"])),
            *("--calibrate", str(self.scale["calibrate"])),
            *("--recalibrate", str(self.scale["recalibrate"])),
        )
        name = f"eval-{self._name(row, seed)}-{sweep.name}"
        places = ("--data_dir", self.scale["data"]["data_dir"])
        return Run(name, "experiments.evaluate", arguments, places, training)

    def network(self, name: str) -> str:
        """The name of a row's network as `ftnas_jax.models.by_name` takes it."""
        return self._network(name, str(self.folder))

    def _network(self, name: str, folder: str) -> str:
        kind, _, rest = name.partition(":")
        channels = self.scale["channels"]
        if kind in ("w_ftt_net_20", "w_ftt_net_40"):
            return f"w_ftt_net:channels={channels * (2 if kind.endswith('40') else 1)}"
        if kind == "found":
            return f"genotype:{self.genotype_of(rest, folder)},channels={channels}"
        if kind == "sample":
            return self._genotype(f"{folder}/{self._file(name)}", rest.partition(":")[0])
        if kind == "sep_conv_5x5":
            return self._genotype(f"{folder}/{self._file(name)}", "mibb")
        if kind == "stack":
            stacks = "ftnas_jax.models.stacks:Stack"
            return f"{stacks},primitive={rest},channels={channels}"
        if kind == "blocks":
            return f"ftnas_jax.models.stacks:RandomBlocks,channels={channels}"
        return f"{name}:width={self.scale['width']:g}" if name in MODELS else name

    def genotype_of(self, search: str, folder: str) -> str:
        """The file of the architectures that a search found, or that stands in its place."""
        own = f"{folder}/{self.search(search).name}/{trained.GENOTYPE}"
        return self.found.get(search, own)

    def genotypes(self, table: Table) -> dict[str, str]:
        """Texts of the random architectures of a table, by their files."""
        texts = {self._file(row.network): self._random(row.network) for row in table.rows}
        return {file: text for file, text in texts.items() if text}

    def _random(self, network: str) -> str:
        """The text of a random architecture; empty of any other."""
        kind, _, rest = network.partition(":")
        if kind not in ("sample", "sep_conv_5x5"):
            return ""
        primitives = PRIMITIVES if kind == "sample" else (kind,)
        return random_genotype(primitives, int(rest.rpartition(":")[2]))

    def _file(self, network: str) -> str:
        """Where a random architecture is written; samples of all searches are the same ones."""
        kind, _, rest = network.partition(":")
        return f"genotypes/{kind}{rest.rpartition(':')[2]}.txt"

    def _genotype(self, file: str, search: str) -> str:
        """The network of a genotype in a file, its inputs preprocessed as in a search."""
        text = f"genotype:{file},channels={self.scale['channels']}"
        if search.startswith("mibb"):
            return text
        every = "relu_conv_bn_3x3"
        return f"{text},preprocess={every},preprocess_stride2={every}"

    def _name(self, row: Row, seed: int) -> str:
        """Of a row's directories: what it is, how it is trained, and of further trainings the seed.

        Where one rate alone is tried, trainings at that rate have the name of those by the rule.
        """
        by_the_rule = self._recipe("mibb")
        fixed = row.recipe == "mibb_3e-4" and self._recipe(row.recipe) == by_the_rule
        recipe = "mibb" if fixed else row.recipe
        return f"{row.network.replace(':', '-')}-{recipe}" + (f"-seed{seed}" if seed else "")

    def _recipe(self, recipe: Recipe) -> dict[str, Any]:
        """Fields of a training that say under which faults, but for those of its config."""
        if recipe == "clean":
            return {"weights.alpha_l": 0.0}
        if recipe == "adsaf":
            return {}
        tried = self.scale["p_m"] if recipe == "mibb" else recipe.removeprefix("mibb_")
        if "," not in tried:
            return {"faults": f"mibb:p_m={tried}"}
        return {"rates.tried": tried, "rates.epochs": self.scale["trial_epochs"]}

    def _data(self) -> dict[str, Any]:
        """Which data, but for where they lie."""
        data = self.scale["data"]
        return {f"data.{name}": data[name] for name in data if name not in _PLACES}

    def _places(self) -> tuple[str, ...]:
        """Where they lie."""
        return tuple(_overrides({f"data.{name}": self.scale["data"][name] for name in _PLACES}))


def _overrides(fields: Mapping[str, Any]) -> list[str]:
    return [f"--config.{name}={value}" for name, value in fields.items()]


def search_of(network: str) -> str | None:
    """The search that a network comes from."""
    kind, _, rest = network.partition(":")
    return rest if kind == "found" else None


def found_elsewhere(text: str) -> dict[str, str]:
    """Files with genotypes in the place of searches, from `mibb=FILE,mibb_ft=FILE`.

    Raises:
        InputError: it reads otherwise, or there is no such search in any table.
    """
    searches = {search_of(row.network) for table in TABLES.values() for row in table.rows}
    known = sorted(search for search in searches if search is not None)
    found = {}
    for part in filter(None, text.split(",")):
        name, _, file = part.partition("=")
        if name not in known or not file:
            raise InputError(
                f"scale.found is {text!r}; it reads NAME=FILE,..., with names of {', '.join(known)}"
            )
        found[name] = file
    return found


def random_genotype(primitives: Sequence[str], number: int) -> str:
    """The text of a random architecture of six nodes, the same at every call."""
    space = Space(primitives=tuple(primitives))
    return space.format(Architecture.from_array(space.random(jax.random.key(number))))
