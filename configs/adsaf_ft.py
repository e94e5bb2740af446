"""FT-NAS under stuck-at weight faults: as `adsaf.py`, the shared weights trained without faults.

    python -m experiments.search --config configs/adsaf_ft.py --workdir runs/adsaf_ft

The paper's W-FT-Net-20: 91.7 % clean, 19.6 % at 8 % stuck cells (Table 5). A weight step is half
the work of one of `adsaf.py`, split among all devices.
"""

from ml_collections import ConfigDict

from configs import adsaf


def get_config() -> ConfigDict:
    config = adsaf.get_config()
    config.weights.alpha_l = 0.0
    return config
