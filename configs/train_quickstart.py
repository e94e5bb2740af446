"""A training that ends within minutes on two CPU cores: digits, a narrow ResNet-18, stuck cells.

    python -m experiments.train --config configs/train_quickstart.py --workdir runs/train-quickstart

The data set comes with scikit-learn: 8x8 handwritten digits, scaled up. It took 2 min 30 s on two
cores of an AMD EPYC beside other work, compilation included.
"""

from ml_collections import ConfigDict

from configs import train_wftt


def get_config() -> ConfigDict:
    config = train_wftt.get_config()
    config.network = "resnet18:width=0.125"
    config.epochs = 30
    config.batch_size = 64
    config.data.name = "digits"
    config.data.size = 16
    config.augment.crop_padding = 1
    config.augment.flip = False
    return config
