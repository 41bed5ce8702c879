"""Crops of images, resized on the device: the centre, or a random part."""

import math

import jax
import jax.numpy as jnp
import numpy as np

_TRIES = 10
_RATIO = (3 / 4, 4 / 3)


def resample(images: jax.Array, boxes: jax.Array, size: tuple[int, int], method: str) -> jax.Array:
    """Cuts a box out of each image and resizes it, with antialiasing where it shrinks.

    Near the border of a box, pixels beyond it count with the weight that the interpolation gives them.

    Args:
      images: floating point `[batch, height, width, channels]`.
      boxes: float32 `[batch, 4]`: top, left, height and width in pixels, inside the image.
      size: height and width of the result.
      method: `linear` or `cubic`, of `jax.image.scale_and_translate`.

    Returns:
      float32 `[batch, *size, channels]`.
    """
    wanted = jnp.asarray(size, jnp.float32)

    def one(image: jax.Array, box: jax.Array) -> jax.Array:
        scale = wanted / box[2:]
        shape = (*size, image.shape[-1])
        return jax.image.scale_and_translate(image, shape, (0, 1), scale, -box[:2] * scale, method, antialias=True)

    return jax.vmap(one)(images.astype(jnp.float32), boxes)


def centre_boxes(batch: int, height: int, width: int, size: tuple[int, int], share: float) -> np.ndarray:
    """The same box for all images: the largest of the proportions of `size` in the middle, shrunk to a share.

    Args:
      batch: number of images.
      height: of the images, in pixels.
      width: of the images, in pixels.
      size: height and width whose proportions the box gets.
      share: of the sides of that box.

    Returns:
      float32 `[batch, 4]`, as `resample` takes them.
    """
    scale = share * min(height / size[0], width / size[1])
    sides = scale * size[0], scale * size[1]
    box = [(height - sides[0]) / 2, (width - sides[1]) / 2, *sides]
    return np.tile(np.array(box, np.float32), (batch, 1))


def random_boxes(keys: jax.Array, height: int, width: int, scale: tuple[float, float]) -> jax.Array:
    """Random boxes (Szegedy et al. 2015): their area is a uniform share of the image, their proportions are 3:4 to 4:3.

    Of ten draws the first that fits into the image counts; where none does, a box of the smallest share in the middle,
    or the whole image where that does not fit either.

    Args:
      keys: `[batch]` keys.
      height: of the images, in pixels.
      width: of the images, in pixels.
      scale: smallest and largest share.

    Returns:
      float32 `[batch, 4]`, as `resample` takes them.
    """

    def draw(key: jax.Array) -> jax.Array:
        area_key, ratio_key, top_key, left_key = jax.random.split(key, 4)
        area = jax.random.uniform(area_key, (_TRIES,), minval=scale[0], maxval=scale[1]) * height * width
        low, high = (math.log(r) for r in _RATIO)
        ratio = jnp.exp(jax.random.uniform(ratio_key, (_TRIES,), minval=low, maxval=high))
        tall, wide = jnp.sqrt(area / ratio), jnp.sqrt(area * ratio)
        fits = (tall <= height) & (wide <= width)
        first = jnp.argmax(fits)
        side = math.sqrt(scale[0] * height * width)
        rows = jnp.where(fits.any(), tall[first], min(side, height))
        columns = jnp.where(fits.any(), wide[first], min(side, width))
        top = jnp.where(fits.any(), jax.random.uniform(top_key), 0.5) * (height - rows)
        left = jnp.where(fits.any(), jax.random.uniform(left_key), 0.5) * (width - columns)
        return jnp.stack([top, left, rows, columns])

    return jax.vmap(draw)(keys)
