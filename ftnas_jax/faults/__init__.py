"""Statistical fault models of accelerators (§3 of the paper, Table 3)."""

from ftnas_jax.faults.mibb import MiBB
from ftnas_jax.faults.model import FaultModel, Site, apply_maps
from ftnas_jax.faults.stuck_at import HEALTHY, STUCK_AT_0, STUCK_AT_1, StuckAt
from ftnas_jax.faults.text import MODELS, format_text, parse

__all__ = [
    "HEALTHY",
    "MODELS",
    "STUCK_AT_0",
    "STUCK_AT_1",
    "FaultModel",
    "MiBB",
    "Site",
    "StuckAt",
    "apply_maps",
    "format_text",
    "parse",
]
