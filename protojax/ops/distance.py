"""Distances between two sets of vectors."""

import jax
import jax.numpy as jnp


def squared_euclidean(x: jax.Array, y: jax.Array) -> jax.Array:
    """|x_i - y_j|^2, summed from the differences: exact for near vectors, where |x|^2 - 2 x y + |y|^2 cancels.

    Args:
      x: floating `[n, d]`.
      y: floating `[m, d]`; one of the two sets should be small, as `[n, m, d]` may be materialised.

    Returns:
      float32 `[n, m]`.

    Raises:
      ValueError: shapes that do not fit each other.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"distances need vectors [n, d] and [m, d], got shapes {x.shape} and {y.shape}")
    difference = x.astype(jnp.float32)[:, None, :] - y.astype(jnp.float32)[None, :, :]
    return jnp.square(difference).sum(axis=-1)
