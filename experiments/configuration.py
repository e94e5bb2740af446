"""From a config file's fields to the typed configs of the library, every mistake in one line."""

from collections.abc import Mapping
from typing import Any

from ftnas_jax.controller import ControllerConfig
from ftnas_jax.data import Dataset
from ftnas_jax.faults import parse
from ftnas_jax.fixed_point import FixedPoint
from ftnas_jax.nn.hardware import Hardware
from ftnas_jax.search import SearchConfig
from ftnas_jax.space import Space
from ftnas_jax.supernet import NetworkConfig

_FAULTS_JOINED_BY = "+"


def search_config(config: Mapping[str, Any], dataset: Dataset | None = None) -> SearchConfig:
    """The search that a config describes.

    Args:
        config: nested fields as in `configs/search_defaults.py`.
        dataset: gives the number of classes; without it, only to check the fields, two.

    Raises:
        ValueError: names the field that is wrong.
    """
    controller = {k: v for k, v in config["controller"].items() if k != "alpha_r"}
    classes = 2 if dataset is None else dataset.num_classes
    for name in ("sampled", "batches", "top"):
        if config["candidates"][name] < 1:
            raise ValueError(f"candidates.{name} is {config['candidates'][name]}, not at least 1")
    return SearchConfig(
        space=Space(**config["space"]),
        network=NetworkConfig(num_classes=classes, **config["network"]),
        hardware=hardware(config),
        controller=ControllerConfig(**controller),
        seed=config["seed"],
        epochs=config["epochs"],
        batch_size=config["batch_size"],
        alpha_r=config["controller"]["alpha_r"],
        **config["weights"],
        **config["augment"],
    )


def hardware(config: Mapping[str, Any]) -> Hardware:
    """Number formats and faults of the fields `quantization` and `faults`."""
    quantization = config["quantization"]
    return Hardware(
        weights=_format(quantization, "weight_bits", quantization["weight_encoding"]),
        features=_format(quantization, "feature_bits", "twos_complement"),
        faults=tuple(parse(text) for text in config["faults"].split(_FAULTS_JOINED_BY)),
    )


def _format(quantization: Mapping[str, Any], field: str, encoding) -> FixedPoint:
    try:
        return FixedPoint(quantization[field], encoding)
    except ValueError as error:
        raise ValueError(f"quantization.{field}: {error}") from None
