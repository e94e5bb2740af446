"""From a config file's fields to the typed configs of the library, every mistake in one line."""

import difflib
import math
from collections.abc import Mapping
from typing import Any

from configs import search_defaults
from ftnas_jax.controller import ControllerConfig
from ftnas_jax.data import Dataset
from ftnas_jax.errors import InputError, as_input_error
from ftnas_jax.faults import DefectMap, check_layers, parse
from ftnas_jax.fixed_point import FixedPoint
from ftnas_jax.nn.hardware import Hardware
from ftnas_jax.search_config import SearchConfig
from ftnas_jax.space import Space
from ftnas_jax.supernet import NetworkConfig, layer_paths


def search_config(config: Mapping[str, Any], dataset: Dataset | None = None) -> SearchConfig:
    """The search that a config describes.

    Args:
        config: nested fields as in `configs/search_defaults.py`.
        dataset: gives the number of classes; without it, only to check the fields, two.

    Raises:
        InputError: names the field that is wrong.
    """
    check_fields(config, search_defaults.get_config().to_dict())
    _check_job(config)
    platform = hardware(config)
    if not platform.faults:
        raise InputError("faults is empty; name at least one model, as in mibb:p_m=1e-4")
    if any(isinstance(model, DefectMap) for model in platform.faults):
        raise InputError(
            "faults: a defect_map is that of one chip with one architecture; search under stuck_at"
        )
    controller = {k: v for k, v in config["controller"].items() if k != "alpha_r"}
    classes = 2 if dataset is None else dataset.num_classes
    with as_input_error():
        search = SearchConfig(
            space=Space(config["space"]["nodes"], _names(config["space"]["primitives"])),
            network=NetworkConfig(num_classes=classes, **config["network"]),
            hardware=platform,
            controller=ControllerConfig(**controller),
            seed=config["seed"],
            epochs=config["epochs"],
            batch_size=config["batch_size"],
            alpha_r=config["controller"]["alpha_r"],
            **config["weights"],
            **config["augment"],
        )
        check_layers(platform.faults, layer_paths(search.network, search.space))
    return search


def hardware(config: Mapping[str, Any]) -> Hardware:
    """Number formats and faults of the fields `quantization` and `faults`."""
    quantization = config["quantization"]
    encoding = quantization["weight_encoding"]
    with as_input_error():
        faults = parse(config["faults"])
    if any(model.crossbar for model in faults) and encoding != "sign_magnitude":
        raise InputError(
            f"faults: {config['faults']!r} are of crossbars that hold signs apart; "
            "set quantization.weight_encoding to sign_magnitude"
        )
    weights = _format(quantization, "weight_bits", encoding)
    features = _format(quantization, "feature_bits", "twos_complement")
    with as_input_error():
        return Hardware(weights, features, faults, config["gradients"])


def _format(quantization: Mapping[str, Any], field: str, encoding) -> FixedPoint:
    try:
        return FixedPoint(quantization[field], encoding)
    except ValueError as error:
        field = "weight_encoding" if "encoding" in str(error) else field
        raise InputError(f"quantization.{field}: {error}") from None


def check_fields(config: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = "") -> None:
    """Raise InputError where a field is unknown, missing, of another type or not finite."""
    for name in config:
        if name not in defaults:
            close = difflib.get_close_matches(name, defaults, 1)
            hint = f"; did you mean {prefix}{close[0]}?" if close else ""
            raise InputError(f"the config has an unknown field {prefix}{name}{hint}")
    for name, default in defaults.items():
        if name not in config:
            raise InputError(f"the config lacks the field {prefix}{name}")
        if isinstance(default, Mapping) and isinstance(config[name], Mapping):
            check_fields(config[name], default, f"{prefix}{name}.")
        elif not _is_like(config[name], default):
            raise InputError(
                f"{prefix}{name} is {config[name]!r}; it takes a value like {default!r}"
            )


def _is_like(value: Any, default: Any) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, (int, float)) and math.isfinite(value)
    if isinstance(default, tuple):
        element = type(default[0])
        items = value if isinstance(value, (tuple, list)) else ()
        return isinstance(value, (tuple, list)) and all(type(i) is element for i in items)
    return isinstance(value, type(default))


def _names(items: tuple[str, ...]) -> tuple[str, ...]:
    """On a command line a tuple of names comes as one name with commas in it."""
    return tuple(name.strip() for item in items for name in item.split(","))


def _check_job(config: Mapping[str, Any]) -> None:
    """What no part of the library looks at."""
    least = {"sampled": 1, "random": 0, "batches": 1, "top": 1}
    for name, value in least.items():
        if config["candidates"][name] < value:
            raise InputError(
                f"candidates.{name} is {config['candidates'][name]}; it is at least {value}"
            )
    if not 0 < config["data"]["train_fraction"] < 1:
        raise InputError(
            f"data.train_fraction is {config['data']['train_fraction']}; it lies between 0 and 1"
        )
    if config["data"]["size"] < 0:
        raise InputError(f"data.size is {config['data']['size']}; it counts pixels, 0 for native")
    if not config["checkpoint_minutes"] > 0:
        raise InputError(f"checkpoint_minutes is {config['checkpoint_minutes']}, not above 0")
