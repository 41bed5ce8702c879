"""Elastic deformation (Simard et al. 2003; Li et al. 2018, section 4.1), drawn and applied on the device.

    d = amplitude * G_sigma * u,  u ~ U[-1, 1] for every pixel and both directions
    deformed(x) = image(x + d(x)), by bilinear interpolation

As SciPy's `gaussian_filter(mode="constant")` and `map_coordinates(order=1)` compute it: the random field is 0 outside
the image, the Gaussian is cut at four sigma, and a pixel that comes from outside the image is 0.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def displacements(keys: jax.Array, height: int, width: int, sigma: float, amplitude: float) -> jax.Array:
    """Random smooth fields, one an image.

    Args:
      keys: `[batch]` keys.
      height, width: size in pixels.
      sigma: standard deviation of the Gaussian filter, pixels.
      amplitude: factor of the filtered field.

    Returns:
      float32 `[batch, 2, height, width]`, pixels down and right.
    """
    draw = jax.vmap(lambda key: jax.random.uniform(key, (2, height, width), minval=-1.0, maxval=1.0))
    return smooth(draw(keys), sigma) * amplitude


def smooth(fields: jax.Array, sigma: float) -> jax.Array:
    """Gaussian filter over the last two axes of `fields` `[..., height, width]`, which are 0 outside."""
    rows, columns = (_gaussian(size, sigma) for size in fields.shape[-2:])
    # The filter as two small matrices: one product each, instead of a convolution.
    return jnp.einsum("...hw,ih,jw->...ij", fields, rows, columns, precision=lax.Precision.HIGHEST)


def warp(images: jax.Array, displacements: jax.Array) -> jax.Array:
    """Moves pixels.

    Args:
      images: floating `[batch, height, width, channels]`.
      displacements: float32 `[batch, 2, height, width]`, where each output pixel is taken from, relative to itself.

    Returns:
      float32 `[batch, height, width, channels]`.
    """
    batch, height, width, channels = images.shape
    y = displacements[:, 0] + np.arange(height, dtype=np.float32)[None, :, None]
    x = displacements[:, 1] + np.arange(width, dtype=np.float32)[None, None, :]
    inside = (y >= 0) & (y <= height - 1) & (x >= 0) & (x <= width - 1)
    flat = images.astype(jnp.float32).reshape(batch, height * width, channels)
    result = jnp.zeros((batch, height, width, channels), jnp.float32)
    for dy in (0, 1):
        for dx in (0, 1):
            row, column = jnp.floor(y) + dy, jnp.floor(x) + dx
            weight = (1 - jnp.abs(y - row)) * (1 - jnp.abs(x - column))
            place = row.clip(0, height - 1) * width + column.clip(0, width - 1)
            corner = flat[np.arange(batch)[:, None, None], place.astype(jnp.int32)]
            result += corner * weight[..., None]
    return jnp.where(inside[..., None], result, 0.0)


def _gaussian(size: int, sigma: float) -> np.ndarray:
    """The filter along one axis as a matrix `[size, size]`."""
    reach = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    distance = np.arange(size)[:, None] - np.arange(size)[None, :]
    return np.where(np.abs(distance) <= reach, kernel[np.clip(distance + reach, 0, 2 * reach)], 0).astype(np.float32)
