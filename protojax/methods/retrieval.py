"""Which of many examples matter to a batch of queries, by keys that were made before."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from protojax import ops

_TILE = 1024
"""Keys scored at once."""


class Relevance(NamedTuple):
    """How much each example matters to a batch; an empty place matters least of all and has no weight."""

    margin: jax.Array
    """float32 `[examples]`: max_b (s_bj - tau_b), the most by which a score exceeds its query's threshold; with
    sparsemax positive exactly for the union of the supports, with softmax the logarithm of the largest weight."""
    weight: jax.Array
    """float32 `[examples]`: sum_b p_bj, the weight of the example over all queries."""


class Retrieval(NamedTuple):
    """What `train.candidates = "retrieved"` asks of a method, beside its four functions.

    Two functions of its own, rather than `encode`, because all the training examples stay in memory by their keys
    alone, which are the smaller part of what a database keeps of them.
    """

    keys: Callable[[Any, Any], jax.Array]
    """`keys(variables, inputs)`: float32 `[batch, key_size]`."""
    queries: Callable[[Any, Any], jax.Array]
    """`queries(variables, inputs)`: float32 `[batch, key_size]`."""
    relevance: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], Relevance]
    """`relevance(queries, own, keys, ids)`: of the examples with these keys `[examples, key_size]` and int32 ids
    `[examples]` (-1 marks an empty place) to queries that are examples with the ids `own` `[batch]` themselves."""


def relevance(
    queries: jax.Array,
    exclude: jax.Array | None,
    keys: jax.Array,
    ids: jax.Array,
    normalizer: Literal["sparsemax", "softmax"],
) -> Relevance:
    """Relevance of the examples to queries; nothing of the size of queries times examples exists at any time.

    Args:
      queries: float32 `[batch, d]`.
      exclude: int32 `[batch]`, the id that does not matter to a query; None excludes none.
      keys: float32 `[examples, d]`.
      ids: int32 `[examples]`, -1 where there is none.
      normalizer: what makes weights of scores.
    """
    threshold = ops.attend(queries, keys, keys, normalizer=normalizer, width=1, ids=ids, exclude=exclude).threshold
    scaled = queries / queries.shape[1] ** 0.5

    def of_tile(tile: tuple[jax.Array, jax.Array]) -> Relevance:
        keys, ids = tile
        over = jnp.einsum("cd,bd->cb", keys, scaled, precision=lax.Precision.HIGHEST) - threshold[None, :]
        counts = ids[:, None] >= 0
        if exclude is not None:
            counts &= ids[:, None] != exclude[None, :]
        over = jnp.where(counts, over, -jnp.inf)
        weights = jnp.maximum(over, 0) if normalizer == "sparsemax" else jnp.exp(over)
        return Relevance(over.max(axis=1), weights.sum(axis=1))

    examples = len(ids)
    missing = -examples % _TILE
    tiles = (
        jnp.pad(keys, ((0, missing), (0, 0))).reshape(-1, _TILE, keys.shape[1]),
        jnp.pad(ids, (0, missing), constant_values=-1).reshape(-1, _TILE),
    )
    return jax.tree.map(lambda x: x.reshape(-1)[:examples], lax.map(of_tile, tiles))
