"""The networks that the paper compares, as Flax linen modules, and any other one by its name."""

from ftnas_jax.models.aw_nas import from_aw_nas
from ftnas_jax.models.cells import genotype_network, read_genotype, w_ftt_net
from ftnas_jax.models.mobilenet import MobileNetV2
from ftnas_jax.models.resnet import ResNet18
from ftnas_jax.models.text import MODELS, by_name
from ftnas_jax.models.vgg import VGG16

__all__ = [
    "MODELS",
    "VGG16",
    "MobileNetV2",
    "ResNet18",
    "by_name",
    "from_aw_nas",
    "genotype_network",
    "read_genotype",
    "w_ftt_net",
]
