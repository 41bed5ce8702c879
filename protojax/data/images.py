"""Images on the device: scaling, standardisation, augmentation, rotation; all inside the compiled step."""

import jax
import jax.numpy as jnp
import numpy as np

from protojax.config import AugmentSettings
from protojax.data import elastic


def transform(
    images: jax.Array, settings: AugmentSettings, key: jax.Array | None = None, ids: jax.Array | None = None
) -> jax.Array:
    """Prepares images for the encoder: crop, flip and deformation (in training), scaling to [0, 1], standardisation.

    The randomness of an example depends on the key and its id alone, not on its place in the batch or the device.

    Args:
      images: `[batch, height, width, channels]`, uint8, or floating point in 0..255.
      settings: what is applied; without a key only the standardisation counts.
      key: key of the step; None leaves out everything random.
      ids: int32 `[batch]`, needed with a key.

    Returns:
      float32 `[batch, height, width, channels]`.

    Raises:
      ValueError: the inputs are not images, or ids are missing or do not fit.
    """
    _check(images)
    moves = settings.pad_crop or settings.flip_horizontal or settings.flip_vertical
    if key is not None and (moves or settings.elastic_amplitude):
        if ids is None or ids.shape != images.shape[:1]:
            shape = None if ids is None else ids.shape
            raise ValueError(f"augmentation needs an id for each of the {len(images)} images, got ids of shape {shape}")
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)
        if moves:
            images = _moved(images, settings, keys)
        if settings.elastic_amplitude:
            images = _deformed(images, settings, keys)
    scaled = images.astype(jnp.float32) / 255
    return standardize(scaled) if settings.standardize else scaled


def plain(inputs: jax.Array, kind: str, settings: AugmentSettings) -> jax.Array:
    """Prepares inputs of any kind `[batch, ...]` outside training: images without augmentation, features in float32."""
    if kind == "image":
        return transform(inputs, settings)
    return inputs.astype(jnp.float32) if kind == "features" else inputs


def standardize(images: jax.Array) -> jax.Array:
    """Each image minus its mean, divided by its standard deviation, as `tf.image.per_image_standardization`.

    The standard deviation is at least 1 / sqrt(number of values), so that a uniform image becomes 0.

    Args:
      images: float32 `[batch, height, width, channels]`.
    """
    axes = (1, 2, 3)
    centred = images - images.mean(axes, keepdims=True)
    # From the centred image, because the mean of squares minus the squared mean loses digits.
    deviation = jnp.sqrt((centred**2).mean(axes, keepdims=True))
    return centred / jnp.maximum(deviation, 1 / np.sqrt(np.prod(images.shape[1:])))


def rotate(images: jax.Array, degrees: float) -> jax.Array:
    """Rotates images about their centre, counter-clockwise, by bilinear interpolation; outside them all is 0.

    Args:
      images: `[batch, height, width, channels]`.
      degrees: the angle, a plain number.

    Returns:
      Images of the same shape and type; integers are rounded.

    Raises:
      ValueError: the inputs are not images.
    """
    _check(images)
    batch, height, width, channels = images.shape
    flat = images.reshape(batch, height * width, channels).astype(jnp.float32)
    rotated = jnp.zeros_like(flat)
    for places, weights in _corners(height, width, degrees):
        rotated += flat[:, places] * weights[None, :, None]
    if jnp.issubdtype(images.dtype, jnp.integer):
        rotated = jnp.round(rotated)
    return rotated.astype(images.dtype).reshape(images.shape)


def _deformed(images: jax.Array, settings: AugmentSettings, keys: jax.Array) -> jax.Array:
    height, width = images.shape[1:3]
    # Another stream than that of the crop.
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
    fields = elastic.displacements(keys, height, width, settings.elastic_sigma, settings.elastic_amplitude)
    return elastic.warp(images, fields)


def _moved(images: jax.Array, settings: AugmentSettings, keys: jax.Array) -> jax.Array:
    """A random crop of the zero-padded image, perhaps mirrored."""
    height, width = images.shape[1:3]
    keys = jax.vmap(jax.random.split)(keys)
    rows, rows_inside = _source(keys[:, 0], height, settings.pad_crop, settings.flip_vertical)
    columns, columns_inside = _source(keys[:, 1], width, settings.pad_crop, settings.flip_horizontal)
    # One element-wise gather: XLA fuses it with what follows, on CPU several times faster than slices or matmuls.
    cropped = images[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]
    return jnp.where((rows_inside[:, :, None] & columns_inside[:, None, :])[..., None], cropped, 0)


def _source(keys: jax.Array, size: int, pad: int, flip: bool) -> tuple[jax.Array, jax.Array]:
    """For every output place along an axis, `[batch, size]`: the input place, and whether it lies in the image."""

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        shift_key, flip_key = jax.random.split(key)
        shift = jax.random.randint(shift_key, (), -pad, pad + 1)
        return shift, jax.random.bernoulli(flip_key) if flip else jnp.zeros((), bool)

    shift, mirrored = jax.vmap(draw)(keys)
    places = np.arange(size, dtype=np.int32)
    places = jnp.where(mirrored[:, None], places[None, ::-1], places[None]) + shift[:, None]
    return places.clip(0, size - 1), (places >= 0) & (places < size)


def _corners(height: int, width: int, degrees: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """The four input pixels (flat places `[pixels]`) around the origin of every output pixel, and their weights."""
    angle = np.deg2rad(degrees)
    y, x = np.meshgrid(np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij")
    # Rounded, so that quarter turns hit pixels exactly.
    source_x = (np.cos(angle) * x - np.sin(angle) * y + (width - 1) / 2).round(9).ravel()
    source_y = (np.sin(angle) * x + np.cos(angle) * y + (height - 1) / 2).round(9).ravel()
    corners = []
    for dy in (0, 1):
        for dx in (0, 1):
            cx, cy = np.floor(source_x) + dx, np.floor(source_y) + dy
            weights = (1 - np.abs(source_x - cx)) * (1 - np.abs(source_y - cy))
            inside = (cx >= 0) & (cx < width) & (cy >= 0) & (cy < height)
            places = np.where(inside, cy * width + cx, 0).astype(np.int32)
            corners.append((places, np.where(inside, weights, 0).astype(np.float32)))
    return corners


def _check(images: jax.Array) -> None:
    if images.ndim != 4:
        raise ValueError(f"images must have the shape [batch, height, width, channels], got {list(images.shape)}")
