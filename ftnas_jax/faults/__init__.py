"""Statistical fault models of accelerators (§3 of the paper, Table 3)."""

from ftnas_jax.faults.bit_bias import BitBias
from ftnas_jax.faults.bit_flip import BitFlip
from ftnas_jax.faults.defect_map import DefectMap
from ftnas_jax.faults.drift import Drift
from ftnas_jax.faults.layers import check_layers
from ftnas_jax.faults.mibb import MiBB
from ftnas_jax.faults.model import FaultModel, Place, Site, apply_maps, faulty_positions
from ftnas_jax.faults.only import Only
from ftnas_jax.faults.stuck_at import HEALTHY, STUCK_AT_0, STUCK_AT_1, StuckAt
from ftnas_jax.faults.stuck_bits import StuckBits
from ftnas_jax.faults.text import MODELS, format_text, parse
from ftnas_jax.faults.variation import LogNormal, ReciprocalNormal

__all__ = [
    "HEALTHY",
    "MODELS",
    "STUCK_AT_0",
    "STUCK_AT_1",
    "BitBias",
    "BitFlip",
    "DefectMap",
    "Drift",
    "FaultModel",
    "LogNormal",
    "MiBB",
    "Only",
    "Place",
    "ReciprocalNormal",
    "Site",
    "StuckAt",
    "StuckBits",
    "apply_maps",
    "check_layers",
    "faulty_positions",
    "format_text",
    "parse",
]
