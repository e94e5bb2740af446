"""A network of one product, whose chips NumPy and plain JAX can follow one by one."""

import jax
import jax.numpy as jnp
import numpy as np

import ftnas_jax as ft
from ftnas_jax.campaigns.subject import Subject, as_subject

IMAGES, PIXELS, CLASSES = 50, 12, 4


def linear(parameters: dict, images: jax.Array) -> jax.Array:
    """Logits [B, CLASSES] of images [B, PIXELS]."""
    return jnp.dot(images, parameters["w"])


def data(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images of a few clusters, and their labels."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((CLASSES, PIXELS))
    labels = rng.integers(CLASSES, size=IMAGES).astype(np.int32)
    images = centres[labels] + 0.7 * rng.standard_normal((IMAGES, PIXELS))
    return images.astype(np.float32), labels


def parameters(seed: int = 0) -> dict[str, np.ndarray]:
    """The clusters' centres as weights."""
    rng = np.random.default_rng(seed)
    return {"w": rng.standard_normal((CLASSES, PIXELS)).astype(np.float32).T}


def subject(faults: str, name: str = "linear", noise: float = 0.0) -> Subject:
    """The network, with noise in its weights where two networks are wanted."""
    own = parameters()
    own["w"] = own["w"] + np.float32(noise) * np.random.default_rng(1).standard_normal(
        own["w"].shape
    ).astype(np.float32)
    return as_subject(linear, own, ft.Hardware(faults=ft.faults.parse(faults)), name=name)


def classes_of_chip(
    faults: str, key: jax.Array, number: int, batch_size: int = IMAGES
) -> np.ndarray:
    """The classes on one chip, batch by batch, by the model on hardware itself."""
    chip = ft.on_hardware(linear, ft.Hardware(faults=ft.faults.parse(faults)))
    images, _ = data()
    found = []
    for start in range(0, IMAGES, batch_size):
        draw = ft.Draw(jax.random.fold_in(key, number), True, start)
        logits = chip(parameters(), jnp.asarray(images[start : start + batch_size]), draw=draw)
        found.append(np.argmax(np.asarray(logits), -1))
    return np.concatenate(found)
