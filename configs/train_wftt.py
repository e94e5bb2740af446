"""W-FTT-Net-20, trained under stuck-at weight faults, 6.7 % SAF0 and 1.3 % SAF1 (§5.3).

    python -m experiments.train --config configs/train_wftt.py --workdir runs/train-wftt

The paper reports 90.8 % clean and 69.6 % at 8 % stuck cells (Table 5). A step takes 7.1 s on two
cores of an AMD EPYC (results/README.md), so that an epoch takes 46 minutes; a whole training was
not run. Weights lie in two crossbars, one for each sign, hence the sign-magnitude codes; the
classifier stays sound, as in the published code. `--config.network=w_ftt_net:channels=40` is
W-FTT-Net-40, 92.1 % and 79.3 % there.
"""

from ml_collections import ConfigDict

from configs import train_defaults


def get_config() -> ConfigDict:
    config = train_defaults.get_config()
    config.network = "w_ftt_net:channels=20"
    config.faults = "stuck_at:p0=0.067,p1=0.013,layers=!classifier"
    config.quantization.weight_encoding = "sign_magnitude"
    config.weights.alpha_l = 0.7
    return config
