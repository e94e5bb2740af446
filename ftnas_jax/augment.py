"""Images on the device: normalization and the usual CIFAR-10 augmentation, as keyed functions."""

import jax
import jax.numpy as jnp


def normalize(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """uint8 [B, H, W, C] → float32 with zero mean and unit deviation over the data set.

    `mean` and `std` are [C], in units of the full range 0..1; a constant channel becomes zero.
    """
    scaled = images.astype(jnp.float32) * jnp.float32(1 / 255)
    return (scaled - mean[None, None, None]) / jnp.maximum(std, 1e-6)[None, None, None]


def augment(
    key: jax.Array,
    images: jax.Array,
    mean: jax.Array,
    std: jax.Array,
    *,
    crop_padding: int,
    flip: bool,
) -> jax.Array:
    """Normalized images, cropped at random and, where `flip` says so, mirrored. Consumes `key`."""
    crop_key, flip_key = jax.random.split(key)
    x = random_crop(crop_key, normalize(images, mean, std), crop_padding)
    return random_flip(flip_key, x) if flip else x


def random_crop(key: jax.Array, images: jax.Array, padding: int) -> jax.Array:
    """Each image shifted by its own offset in ±padding, zeros moving in. Consumes `key`."""
    if padding == 0:
        return images
    batch, height, width, channels = images.shape
    pad = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = jnp.pad(images, pad)
    offsets = jax.random.randint(key, (2 * batch,), 0, 2 * padding + 1).reshape(batch, 2)

    def crop(image, offset):
        start = (offset[0], offset[1], jnp.int32(0))
        return jax.lax.dynamic_slice(image, start, (height, width, channels))

    return jax.vmap(crop)(padded, offsets)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Each image mirrored left to right with probability 1/2. Consumes `key`."""
    flip = jax.random.bernoulli(key, shape=(images.shape[0],))
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)
