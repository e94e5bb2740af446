"""The paper's tables at a size that two CPU cores finish overnight: narrow networks, few epochs.

    python -m experiments.paper --table 4 --scale configs/paper_small.py --workdir runs/paper-small

Baselines have an eighth of their channels, cells 4 in place of 20 (searches 8), and trainings 4
epochs. W-FTT-Net-20 costs 38.5 MFLOPs here and ResNet-18 17.7, where the paper has 919 and 1110. A
multiply-accumulate fails at the paper's rates, but a feature has a fifth or an eighth as many of
them, so that MiBB faults are milder here at equal p_m; accuracies are not the paper's, orders may
be.
"""

from ml_collections import ConfigDict

from configs import paper_full


def get_config() -> ConfigDict:
    config = paper_full.get_config()
    config.width = 0.125
    config.channels = 4
    config.epochs = 4
    config.p_m = "3e-4"
    config.search.epochs = 4
    config.search.channels = 8
    config.chips = 8
    config.images = 1000
    return config
