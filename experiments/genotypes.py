"""Architectures that a user wants scored, out of a file of genotypes."""

import json
import os
import re
from pathlib import Path

from ftnas_jax.errors import InputError
from ftnas_jax.space import Architecture, Space

_CELL = r"(\w+)\s*=\s*\["


def read(path: str, space: Space) -> list[Architecture]:
    """The architectures in a text file of genotypes, or the best ones of a run's genotype.json.

    A genotype has either form of `Space.format` and may span lines. Blank lines and lines that
    begin with # stand between genotypes; a line that begins a third cell begins a new genotype.

    Raises:
        InputError: names the file, and the genotype, counted from 1, that is not of the space.
    """
    try:
        text = Path(os.path.expanduser(path)).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"candidates.genotypes: cannot read {path}: {reason}") from error
    genotypes = _of_a_run(path, text) if text.lstrip().startswith("{") else _split(text)
    if not genotypes:
        raise InputError(f"candidates.genotypes: {path} has no genotype in it")
    architectures = []
    for number, genotype in enumerate(genotypes, 1):
        try:
            architectures.append(space.parse(genotype))
        except ValueError as error:
            message = f"candidates.genotypes: {path}, genotype {number}: {error}"
            raise InputError(message) from error
    return architectures


def _of_a_run(path: str, text: str) -> list[str]:
    try:
        return [str(row["genotype"]) for row in json.loads(text)["top"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"candidates.genotypes: {path} is neither genotype text nor a run's genotype.json"
        ) from error


def _split(text: str) -> list[str]:
    """The genotypes of a text, each as one line."""
    genotypes = [""]
    for line in map(str.strip, text.splitlines()):
        if not line or line.startswith("#"):
            genotypes.append("")
            continue
        if re.match(_CELL, line) and _cells(line) and len(_cells(genotypes[-1])) >= 2:
            genotypes.append("")
        genotypes[-1] = f"{genotypes[-1]} {line}".strip()
    return [genotype for genotype in genotypes if genotype]


def _cells(text: str) -> list[str]:
    """Names of the cells in a text; `normal_0_concat` of aw_nas is none."""
    return [name for name in re.findall(_CELL, text) if not name.endswith("_concat")]
