"""Networks that compile within a second, for experiments to train by their import path."""

import flax.linen as nn
from flax import nnx


class Linear(nn.Module):
    """A classifier of pixels."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(self.num_classes, name="classifier")(images.reshape(len(images), -1))


class Normed(nn.Module):
    """A classifier with BatchNorm."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Dense(12, name="hidden")(images.reshape(len(images), -1))
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9, name="norm")(x))
        return nn.Dense(self.num_classes, name="classifier")(x)


class Hidden(nn.Module):
    """A classifier with features that fail."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.relu(nn.Dense(12, name="hidden")(images.reshape(len(images), -1)))
        return nn.Dense(self.num_classes, name="classifier")(x)


class NnxNormed(nnx.Module):
    """A classifier with BatchNorm and dropout."""

    def __init__(self, num_classes: int, width: int = 12, *, rngs: nnx.Rngs):
        self.hidden = nnx.List([nnx.Linear(64, width, rngs=rngs)])
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.classifier = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, images):
        x = self.norm(self.hidden[0](images.reshape(len(images), -1)))
        return self.classifier(self.dropout(nnx.relu(x)))
