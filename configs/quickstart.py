"""A search that ends within minutes on two CPU cores: digits, a small network, MiBB faults.

    python -m experiments.search --config configs/quickstart.py --workdir runs/quickstart

The data set comes with scikit-learn: 8x8 handwritten digits, scaled up. The controller learns
faster than in the paper, because it makes hundreds of steps here, not thousands; p_m is higher,
because the network has fewer multiply-accumulates to fail.
"""

from ml_collections import ConfigDict

from configs import search_defaults


def get_config() -> ConfigDict:
    config = search_defaults.get_config()
    config.epochs = 40
    config.batch_size = 32
    config.faults = "mibb:p_m=1e-3"
    config.data.name = "digits"
    config.data.size = 16
    config.data.train_fraction = 0.6
    config.augment.crop_padding = 1
    config.augment.flip = False
    config.space.nodes = 4
    config.network.channels = 8
    config.network.cells = 3
    config.network.reductions = (1,)
    config.controller.learning_rate = 5e-3
    config.controller.baseline_decay = 0.9
    config.candidates.sampled = 40
    config.candidates.random = 40
    config.candidates.batches = 8
    return config
