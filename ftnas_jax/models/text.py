"""Networks as text, for configs and command lines: `resnet18:width=0.25`."""

import ast
import difflib
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
from flax import nnx

from ftnas_jax.models.cells import genotype_network, read_genotype, w_ftt_net
from ftnas_jax.models.mobilenet import MobileNetV2
from ftnas_jax.models.nnx_network import NnxNetwork
from ftnas_jax.models.resnet import ResNet18
from ftnas_jax.models.vgg import VGG16

MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": ResNet18,
    "vgg16": VGG16,
    "mobilenet_v2": MobileNetV2,
    "w_ftt_net": w_ftt_net,
}
"""The networks that go by a name alone."""

_OTHERS = ("genotype:FILE", "package.module:Name")
_GENOTYPE_TEXT = re.compile(r"\s*\w+\s*=\s*\[")
_OF_MODULES = ("parent", "name", "rngs")
"""Fields of every linen module, and what every nnx module is built with, which are no options."""


def by_name(name: str, num_classes: int, **options: Any) -> nn.Module:
    """A Flax linen module: images [B, H, W, C] → logits [B, num_classes].

    Args:
        name: one of
            `resnet18`, `vgg16`, `mobilenet_v2`, each with the option `width`;
            `w_ftt_net`, with the option `channels`;
            `genotype:FILE`, or a genotype itself, with those of `genotype_network`: FILE holds a
            genotype as text, or is a search's genotype.json, of which the best is taken, with the
            preprocessing that it was found with;
            `package.module:Name`, a linen module, its class, or a function that returns one; or the
            class of an nnx module, or a function of `rngs` that returns one (`NnxNetwork`).
            Options follow as `name:option=value,...`, behind a file or `Name` after a comma.
            Several numbers are joined by `|`, as in `reductions=1|3`.
        num_classes: width of the classifier; a class or function of one's own gets it if it has a
            parameter of that name.
        **options: the same as values; these win over the text.

    Raises:
        ValueError: in one line, for an unknown name or option, or a value that cannot be had.
    """
    if num_classes < 2:
        raise ValueError(f"there are {num_classes} classes; a classifier has at least 2")
    build, label, items = _find(name)
    parameters = _signature(build).parameters
    given: dict[str, Any] = {}
    for item in filter(None, items.split(",")):
        option, equals, text = (part.strip() for part in item.partition("="))
        if not equals:
            raise ValueError(f"{label}: cannot read {item!r}; {_known(parameters)}")
        if option in given:
            raise ValueError(f"{label}: {option} is given twice")
        given[option] = _read(label, option, text, parameters)
    given |= options
    for option in given:
        _check_option(label, option, parameters)
    if "num_classes" in parameters:
        given["num_classes"] = num_classes
    return _built(label, build, given)


def _find(name: str) -> tuple[Callable[..., Any], str, str]:
    """What builds a network, what it is called in messages, and its options as text."""
    if _GENOTYPE_TEXT.match(name):
        return functools.partial(genotype_network, name), "genotype", ""
    kind, colon, rest = (part.strip() for part in name.partition(":"))
    if kind in MODELS:
        return MODELS[kind], kind, rest
    first, _, items = (part.strip() for part in rest.partition(","))
    if kind == "genotype":
        genotype, found_with = read_genotype(first)
        return functools.partial(genotype_network, genotype, **found_with), kind, items
    if colon and first.isidentifier():
        return _imported(kind, first), f"{kind}:{first}", items
    raise ValueError(f"unknown network {kind!r}; {_choices(kind, (*MODELS, *_OTHERS))}")


def _imported(module: str, name: str) -> Callable[..., Any]:
    try:
        there = importlib.import_module(module)
    except Exception as error:  # whatever a file of the user's raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"network {module}:{name}: {reason}") from error
    if not hasattr(there, name):
        raise ValueError(f"network {module}:{name}: {module} has no {name!r}")
    found = getattr(there, name)
    if isinstance(found, nn.Module):
        return lambda: found
    if isinstance(found, nnx.Module) or not callable(found):
        raise ValueError(
            f"network {module}:{name} is no linen module, no class of a module and no function"
        )
    return found


def _built(label: str, build: Callable[..., Any], given: dict[str, Any]) -> nn.Module:
    signature = _signature(build)
    with_rngs = {"rngs": None} if "rngs" in signature.parameters else {}
    try:
        signature.bind(**given, **with_rngs)
    except TypeError as error:
        raise ValueError(f"{label}: {error}") from error
    if with_rngs:
        model = NnxNetwork(build, tuple(given.items()))
        result = model.abstract()
        if isinstance(result, nnx.Module):
            return model
    else:
        result = build(**given)
        if isinstance(result, nn.Module):
            return result
    raise ValueError(f"{label} gives a {type(result).__name__}, which is no Flax module")


def _signature(build: Callable[..., Any]) -> inspect.Signature:
    """That of a class of nnx modules is hidden by its metaclass."""
    if not (isinstance(build, type) and issubclass(build, nnx.Module)):
        return inspect.signature(build)
    own = inspect.signature(build.__init__)
    return own.replace(parameters=list(own.parameters.values())[1:])


def _check_option(label: str, option: str, parameters) -> None:
    every = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if not every and option not in _names(parameters):
        raise ValueError(f"{label}: there is no option {option!r}; {_known(parameters)}")


def _names(parameters) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [name for name, p in parameters.items() if p.kind in kinds]
    return [name for name in names if name not in (*_OF_MODULES, "num_classes")]


def _known(parameters) -> str:
    names = _names(parameters)
    return f"its options are {', '.join(names)}" if names else "it has no options"


def _choices(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, names, 1)
    return f"did you mean {close[0]}?" if close else f"choose from {', '.join(names)}"


def _read(label: str, option: str, text: str, parameters) -> Any:
    """An option's value, of the type that it has by default; without one what the text looks like.

    Raises:
        ValueError: the text is no such value.
    """
    default = parameters[option].default if option in parameters else None
    if isinstance(default, str):
        return text
    try:
        if isinstance(default, tuple):
            return tuple(int(part) for part in text.split("|") if part)
        if isinstance(default, float):
            return float(text)
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(default, (bool, int, float, tuple)) and type(value) is not type(default):
        raise ValueError(f"{label}: {option} is {text!r}; it takes a value like {default!r}")
    return value
