"""From a training's config to the network and the typed config, every mistake in one line."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn

from configs import train_defaults
from experiments.configuration import check_fields, hardware
from ftnas_jax import models
from ftnas_jax.errors import InputError, as_input_error
from ftnas_jax.models.cells import read_genotype
from ftnas_jax.training_config import RateTrials, TrainingConfig

_FILE = "genotype"
"""The name of networks whose genotype is in a file, as in `genotype:FILE,channels=20`."""


def training_config(config: Mapping[str, Any]) -> TrainingConfig:
    """The training that a config describes, but for its network.

    Args:
        config: nested fields as in `configs/train_defaults.py`.

    Raises:
        InputError: names the field that is wrong.
    """
    check_fields(config, train_defaults.get_config().to_dict())
    if config["data"]["size"] < 0:
        raise InputError(f"data.size is {config['data']['size']}; it counts pixels, 0 for native")
    if not config["checkpoint_minutes"] > 0:
        raise InputError(f"checkpoint_minutes is {config['checkpoint_minutes']}, not above 0")
    platform = hardware(config)
    names = ("seed", "epochs", "batch_size", "curriculum_epochs", "test_every")
    names += ("norm_passes", "fraction_lengths")
    with as_input_error():
        return TrainingConfig(
            hardware=platform,
            rates=_rates(config["rates"]),
            **{name: config[name] for name in names},
            **config["weights"],
            **config["augment"],
        )


def _rates(fields: Mapping[str, Any]) -> RateTrials | None:
    """The rule for the rate of faults, if the field `rates.tried` names any."""
    texts = [text for text in fields["tried"].split(",") if text.strip()]
    if not texts:
        return None
    try:
        tried = tuple(map(float, texts))
    except ValueError:
        raise InputError(
            f"rates.tried is {fields['tried']!r}; give numbers, as in 3e-4,1e-4,3e-5"
        ) from None
    return RateTrials(tried, fields["epochs"], fields["least_accuracy"])


def network(config: Mapping[str, Any], num_classes: int, genotype: Path | None = None) -> nn.Module:
    """The network that a config names.

    Args:
        config: has the field `network`.
        num_classes: of the data.
        genotype: a file to read in place of the one that the field names, if it names any.

    Raises:
        InputError: there is no such network.
    """
    named = config["network"]
    text = named if genotype is None else with_genotype(named, genotype)
    with as_input_error():
        return models.by_name(text, num_classes)


def with_genotype(network: str, file: str | os.PathLike) -> str:
    """The name of a network with its genotype in another file; as it is where it has none."""
    read = _genotype_file(network)
    return network if read is None else ",".join((f"{_FILE}:{file}", *read[1]))


def genotype(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What of the file that the field `network` names makes the network; None where it names none.

    `network` reads it again out of a file.

    Raises:
        InputError: it cannot be read.
    """
    read = _genotype_file(config["network"])
    if read is None:
        return None
    with as_input_error():
        text, found_with = read_genotype(read[0])
    return {"best": {"genotype": text}} | ({"network": found_with} if found_with else {})


def _genotype_file(network: str) -> tuple[str, list[str]] | None:
    """The file and the options of a network whose genotype is in a file; None of another."""
    kind, _, rest = network.partition(":")
    file, *options = rest.split(",")
    return (file.strip(), options) if kind.strip() == _FILE else None
