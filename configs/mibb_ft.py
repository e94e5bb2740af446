"""FT-NAS under MiBB feature faults: as `mibb.py`, the shared weights trained without faults (§5.2).

    python -m experiments.search --config configs/mibb_ft.py --workdir runs/mibb_ft

The paper's F-FT-Net: 91.0 % clean, 10.0 % at p_m = 1e-4 (Table 4). A weight step is half the work
of one of `mibb.py`, split among all devices.
"""

from ml_collections import ConfigDict

from configs import mibb


def get_config() -> ConfigDict:
    config = mibb.get_config()
    config.weights.alpha_l = 0.0
    return config
