"""Networks of one architecture of the search space, as they are trained from scratch.

Their BatchNorms have scale and offset and running statistics, none stands behind pools, and there
is no dropout: so the paper's code trains its final networks. Two identical edges of a cell (from,
to, operation) share their parameters, which count once, and are computed twice.
"""

import json
import os
import re
from pathlib import Path

from ftnas_jax.nn.hardware import Hardware
from ftnas_jax.published import W_FTT_NET
from ftnas_jax.space import Space
from ftnas_jax.supernet import Network, NetworkConfig

FOUND_WITH = ("preprocess", "preprocess_stride2")
"""What of a search's network belongs to the architecture beside its genotype."""

_IN_FLOAT = Hardware(weights=None, features=None)


def w_ftt_net(num_classes: int = 10, channels: int = 20) -> Network:
    """W-FTT-Net of the paper's Table 5; 20 channels there, and 40."""
    every = "relu_conv_bn_3x3"
    return genotype_network(
        W_FTT_NET, num_classes, channels, preprocess=every, preprocess_stride2=every
    )


def genotype_network(
    genotype: str,
    num_classes: int = 10,
    channels: int = NetworkConfig.channels,
    cells: int = NetworkConfig.cells,
    reductions: tuple[int, ...] = NetworkConfig.reductions,
    preprocess: str = NetworkConfig.preprocess,
    preprocess_stride2: str = NetworkConfig.preprocess_stride2,
) -> Network:
    """The network of a genotype in either form of `Space.format`.

    It computes in float32; `on_hardware` puts it on hardware. See `NetworkConfig` for the rest.

    Raises:
        ValueError: in one line, where the genotype or another argument is none.
    """
    targets = [int(target) for target in re.findall(r"(\d+)\s*\)", genotype)]
    space = Space(nodes=max(targets, default=2) + 1)
    config = NetworkConfig(
        num_classes=num_classes,
        channels=channels,
        cells=cells,
        reductions=reductions,
        preprocess=preprocess,
        preprocess_stride2=preprocess_stride2,
        batch_norm="running",
        affine=True,
        pool_norm=False,
        dropout=0.0,
    )
    return Network(config, space, _IN_FLOAT, space.parse(genotype))


def read_genotype(file: str) -> tuple[str, dict[str, str]]:
    """The genotype in a file, as text, or the best one in a search's genotype.json.

    Lines of text that begin with # are left out.

    Returns:
        The genotype, and the preprocessing of cells that it was found with: options of
        `genotype_network`, where the file names any.

    Raises:
        ValueError: in one line, where there is none.
    """
    try:
        text = Path(os.path.expanduser(file)).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ValueError(f"genotype: cannot read {file!r}: {reason}") from error
    if not text.lstrip().startswith("{"):
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        return "\n".join(lines), {}
    try:
        found = json.loads(text)
        own = {name: str(found["network"][name]) for name in FOUND_WITH if "network" in found}
        return str(found["best"]["genotype"]), own
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"genotype: {file} is neither genotype text nor a search's genotype.json"
        ) from error
