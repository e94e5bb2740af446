"""ResNet-18, trained under stuck-at weight faults, 6.7 % SAF0 and 1.3 % SAF1 (§5.3).

    python -m experiments.train --config configs/train_resnet18.py --workdir runs/train-resnet18

The paper reports 92.0 % clean and 60.8 % at 8 % stuck cells (Table 5). What a whole training costs
was not measured. `--config.weights.alpha_l=0` trains without faults: 94.7 % clean there.

Under MiBB (Table 4) the paper tries p_m of 3e-4, 1e-4 and 3e-5 in turn and takes the first with a
clean accuracy above 50 %, 1e-4 for this network: 79.2 % clean, 60.6 % at p_m = 1e-4. That is

    --config.faults=mibb --config.rates.tried=3e-4,1e-4,3e-5
    --config.weights.alpha_l=0.5 --config.quantization.weight_encoding=twos_complement
"""

from ml_collections import ConfigDict

from configs import train_wftt


def get_config() -> ConfigDict:
    config = train_wftt.get_config()
    config.network = "resnet18"
    return config
