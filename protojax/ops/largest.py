"""The largest entries of each row."""

import jax
from jax import lax


def top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """`lax.top_k` that stays one: without a barrier XLA on CPU turns a later slice of the result into a full sort.

    Args:
      x: `[rows, n]`.
      k: how many, at most n.

    Returns:
      The k largest entries of each row, descending, and their int32 places, each `[rows, k]`.
    """
    largest, places = lax.top_k(x, k)
    # A barrier each: one around both aborts the compilation of a program for several devices.
    return lax.optimization_barrier(largest), lax.optimization_barrier(places)
