"""TrivialAugment (Mueller and Hutter 2021), the wide variant: one transformation an image, of random strength."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

_STRENGTHS = 31
"""Steps of the strength, from none to all."""
_GRAY = (0.299, 0.587, 0.114)
_BINS = 256


def trivial_augment(keys: jax.Array, images: jax.Array) -> jax.Array:
    """Transforms each image in one of fourteen ways.

    Identity, shear and shift along either axis, rotation; brightness, saturation, contrast, sharpness, fewer bits,
    inversion of bright pixels, stretched contrast, equalised histogram. The strength is uniform over 31 steps, its sign
    random where there are two. Pixels from outside an image are black, and the nearest counts.

    Args:
      keys: `[batch]` keys.
      images: floating point `[batch, height, width, 3]`, in 0..255.

    Returns:
      float32, of the same shape and range, whole numbers.
    """
    return jax.vmap(_one)(keys, jnp.round(images.astype(jnp.float32)))


def _one(key: jax.Array, image: jax.Array) -> jax.Array:
    which_key, strength_key, sign_key = jax.random.split(key, 3)
    which = jax.random.randint(which_key, (), 0, 1 + len(_MOVES) + len(_COLOURS))
    strength = jax.random.randint(strength_key, (), 0, _STRENGTHS) / (_STRENGTHS - 1)
    signed = strength * jnp.where(jax.random.bernoulli(sign_key), -1.0, 1.0)
    # Under vmap all branches of a switch are computed; of the moves, one matrix is chosen and applied once.
    matrix = jax.lax.switch(jnp.clip(which, 0, len(_MOVES)), [_stay, *_MOVES], signed)
    image = _moved(image, matrix)
    colour = jnp.clip(which - len(_MOVES), 0, len(_COLOURS))
    image = jax.lax.switch(colour, [lambda x, *_: x, *_COLOURS], image, strength, signed)
    return jnp.clip(jnp.round(image), 0, 255)


def _affine(*rows: tuple) -> jax.Array:
    return jnp.stack([jnp.stack([jnp.asarray(x, jnp.float32) for x in row]) for row in rows])


def _stay(strength: jax.Array) -> jax.Array:
    return _affine((1, 0, 0), (0, 1, 0))


def _turned(strength: jax.Array) -> jax.Array:
    angle = strength * np.deg2rad(135)
    return _affine((jnp.cos(angle), -jnp.sin(angle), 0), (jnp.sin(angle), jnp.cos(angle), 0))


_MOVES: list[Callable[[jax.Array], jax.Array]] = [
    lambda s: _affine((1, 0, 0), (0.99 * s, 1, 0)),
    lambda s: _affine((1, 0.99 * s, 0), (0, 1, 0)),
    lambda s: _affine((1, 0, 0), (0, 1, 32 * s)),
    lambda s: _affine((1, 0, 32 * s), (0, 1, 0)),
    _turned,
]
"""Where each pixel (row, column, from the centre) is taken from: shear and shift along rows and columns, rotation."""


def _moved(image: jax.Array, matrix: jax.Array) -> jax.Array:
    height, width, _ = image.shape
    y, x = np.meshgrid(np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij")
    rows = matrix[0, 0] * y + matrix[0, 1] * x + matrix[0, 2] + (height - 1) / 2
    columns = matrix[1, 0] * y + matrix[1, 1] * x + matrix[1, 2] + (width - 1) / 2
    rows, columns = (jnp.round(part).astype(jnp.int32) for part in (rows, columns))
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    taken = image[rows.clip(0, height - 1), columns.clip(0, width - 1)]
    return jnp.where(inside[..., None], taken, 0.0)


def _gray(image: jax.Array) -> jax.Array:
    return (image * np.array(_GRAY, np.float32).reshape(1, 1, 3)).sum(axis=-1, keepdims=True)


def _away(image: jax.Array, other: jax.Array, signed: jax.Array) -> jax.Array:
    """The image moved away from (or towards) another, by at most 0.99 of their difference."""
    return jnp.clip(other + (image - other) * (1 + 0.99 * signed), 0, 255)


def _brightness(image: jax.Array, strength: jax.Array, signed: jax.Array) -> jax.Array:
    return _away(image, jnp.zeros_like(image), signed)


def _saturation(image: jax.Array, strength: jax.Array, signed: jax.Array) -> jax.Array:
    return _away(image, jnp.broadcast_to(_gray(image), image.shape), signed)


def _contrast(image: jax.Array, strength: jax.Array, signed: jax.Array) -> jax.Array:
    return _away(image, jnp.full_like(image, 1.0) * _gray(image).mean(), signed)


def _sharpness(image: jax.Array, strength: jax.Array, signed: jax.Array) -> jax.Array:
    height, width, _ = image.shape
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    around = sum(padded[r : r + height, c : c + width] for r in range(3) for c in range(3))
    return _away(image, (around + 4 * image) / 13, signed)


def _posterized(image: jax.Array, strength: jax.Array, signed: jax.Array) -> jax.Array:
    step = 2.0 ** jnp.round(6 * strength)
    return jnp.floor(image / step) * step


def _solarized(image: jax.Array, strength: jax.Array, signed: jax.Array) -> jax.Array:
    return jnp.where(image >= 255 * (1 - strength), 255 - image, image)


def _stretched(image: jax.Array, strength: jax.Array, signed: jax.Array) -> jax.Array:
    low, high = image.min((0, 1), keepdims=True), image.max((0, 1), keepdims=True)
    return jnp.where(high > low, (image - low) * 255 / jnp.maximum(high - low, 1), image)


def _equalized(image: jax.Array, strength: jax.Array, signed: jax.Array) -> jax.Array:
    def channel(values: jax.Array) -> jax.Array:
        places = values.astype(jnp.int32)
        counts = jnp.zeros(_BINS, jnp.int32).at[places.reshape(-1)].add(1)
        # Pillow divides all but the pixels of the brightest value that occurs among 255 steps.
        step = (counts.sum() - counts[values.max().astype(jnp.int32)]) // 255
        below = jnp.cumsum(counts) - counts
        table = jnp.clip((below + step // 2) // jnp.maximum(step, 1), 0, 255)
        return jnp.where(step > 0, table[places].astype(jnp.float32), values)

    return jax.vmap(channel, in_axes=-1, out_axes=-1)(image)


_COLOURS = [
    _brightness,
    _saturation,
    _contrast,
    _sharpness,
    _posterized,
    _solarized,
    _stretched,
    _equalized,
]
