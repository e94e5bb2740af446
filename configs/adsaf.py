"""FTT-NAS under stuck-at weight faults, 6.7 % SAF0 and 1.3 % SAF1: behind W-FTT-Net (§5.3).

    python -m experiments.search --config configs/adsaf.py --workdir runs/adsaf

The paper reports for the architecture found, after final training at 20 channels: 90.8 % clean and
69.6 % at 8 % stuck cells (Table 5). Weights lie in two crossbars, one for each sign, hence the
sign-magnitude codes; the classifier stays sound, as in the published code. Inputs of cells are
preprocessed by relu_conv_bn_3x3: the paper's text says SepConv 3x3, but only this reproduces its
numbers of parameters and FLOPs.
"""

from ml_collections import ConfigDict

from configs import search_defaults


def get_config() -> ConfigDict:
    config = search_defaults.get_config()
    config.faults = "stuck_at:p0=0.067,p1=0.013,layers=!classifier"
    config.quantization.weight_encoding = "sign_magnitude"
    config.network.preprocess = "relu_conv_bn_3x3"
    config.network.preprocess_stride2 = "relu_conv_bn_3x3"
    config.weights.alpha_l = 0.7
    config.controller.alpha_r = 0.2
    return config
