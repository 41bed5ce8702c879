"""Relational attention: a weighted mean of the values of a few candidates (ProtoAttend, section 3.2)."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from protojax.ops import simplex


def dense_attend(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    normalizer: Literal["sparsemax", "softmax"] = "sparsemax",
    where: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """p V with p = n(Q K^T / sqrt(d)), in float32 throughout, whatever precision the arguments have.

    Args:
      queries: floating `[batch, d]`.
      keys: floating `[candidates, d]`.
      values: floating `[candidates, v]`.
      normalizer: n, which turns scores into weights.
      where: bool `[batch, candidates]`; a candidate gets weight exactly 0 for the queries where it is False. A query
        without any candidate is treated as in `sparsemax`.

    Returns:
      outputs float32 `[batch, v]` and weights float32 `[batch, candidates]`.

    Raises:
      ValueError: unknown normalizer, shapes that do not fit each other, or a query without any candidate.
    """
    queries, keys, values = jnp.asarray(queries), jnp.asarray(keys), jnp.asarray(values)
    _check(queries, keys, values)
    if normalizer not in ("sparsemax", "softmax"):
        raise ValueError(f"normalizer must be 'sparsemax' or 'softmax', got {normalizer!r}")
    queries, keys, values = (x.astype(jnp.float32) for x in (queries, keys, values))
    # Scaled before the product, so that no second pass goes over [batch, candidates].
    scaled = queries / keys.shape[-1] ** 0.5
    scores = jnp.einsum("bd,cd->bc", scaled, keys, precision=lax.Precision.HIGHEST)
    weights = (simplex.sparsemax if normalizer == "sparsemax" else simplex.softmax)(scores, where=where)
    return jnp.einsum("bc,cv->bv", weights, values, precision=lax.Precision.HIGHEST), weights


def _check(queries: jax.Array, keys: jax.Array, values: jax.Array) -> None:
    for name, x in (("queries", queries), ("keys", keys), ("values", values)):
        if x.ndim != 2:
            raise ValueError(f"{name} must have 2 axes, [rows, size], got shape {x.shape}")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} must be floating, got {x.dtype}; convert them first")
    if queries.shape[1] != keys.shape[1]:
        raise ValueError(
            f"queries {queries.shape} and keys {keys.shape} differ in their last axis; it must be the same"
        )
    if keys.shape[0] != values.shape[0]:
        raise ValueError(f"keys {keys.shape} and values {values.shape} describe different numbers of candidates")
