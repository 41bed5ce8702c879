"""Candidates as they lie on one device, read tile by tile or block by block, so that no read grows with the database.

A *block* is a run of consecutive candidates that is judged by an upper bound of its scores; a *tile* is a run of
blocks that is read at once. Scores of a tile are `[tile, batch]`: the maximum of a block is then taken down contiguous
columns, which XLA on CPU vectorises whatever the size of a block.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from protojax.ops.largest import top_k

_TILE = 4096
"""Candidates read at once; their scores for 128 queries fit the cache of a CPU core."""

_FLOATS_AT_ONCE = 1 << 17
"""Floats of scattered values held at once."""

ROWS_AT_ONCE = 32
"""Queries whose scattered values are held at once, at most."""

_BLOCKS_AT_ONCE = 1 << 14
"""Scattered blocks read at once where many small reads would leave an accelerator idle. A CPU takes them one by one:
each is then a plain slice, several times faster than a gather."""


LARGE = 1e16
"""Products of numbers below it stay finite; beyond it a score may be NaN though its key and its query are finite."""


class Candidates(NamedTuple):
    """The candidates of one device."""

    keys: jax.Array
    """floating `[candidates, d]`."""
    values: jax.Array
    """floating `[candidates, v]`."""
    ids: jax.Array | None
    """int32 `[candidates]`, -1 for an empty place; positions when None."""
    labels: jax.Array | None
    """int32 `[candidates]`."""
    first: jax.Array | int
    """The position of the first of them in the whole database."""


class Queries(NamedTuple):
    """A group of queries."""

    scaled: jax.Array
    """float32 `[batch, d]`, divided by sqrt(d)."""
    exclude: jax.Array | None
    """int32 `[batch]`: the id that gets no weight."""

    def take(self, rows: jax.Array) -> "Queries":
        """Those of some rows; a row beyond the last stands for the last."""
        return jax.tree.map(lambda x: x.at[rows].get(mode="clip"), self)

    def with_spare_rows(self) -> "Queries":
        """With so many more that a batch of unknown size has as many rows as anything asks for.

        They repeat the last query, and are settled where it is; zeros would ask for every candidate.
        """
        spare = ROWS_AT_ONCE - 1
        return jax.tree.map(lambda x: jnp.concatenate([x, jnp.broadcast_to(x[-1:], (spare, *x.shape[1:]))]), self)


class Listed(NamedTuple):
    """The best candidates of each query on one device."""

    scores: jax.Array
    """float32 `[batch, k]`, descending; -inf where there is none."""
    places: jax.Array
    """int32 `[batch, k]`: where they lie on this device."""
    beyond: jax.Array
    """float32 `[batch]`: no score that is not listed is higher."""


def block_count(candidates: Candidates, rows: int) -> int:
    """How many blocks of `rows` candidates there are; the last may be shorter."""
    return -(-candidates.keys.shape[0] // rows)


def fold(
    candidates: Candidates,
    rows: int,
    body: Callable[[Any, Candidates, jax.Array], Any],
    carry: Any,
    most: int = _TILE,
) -> Any:
    """`body(carry, tile, start)` over all candidates, whole tiles in a loop and the rest, if any, once.

    Args:
      candidates: all of them.
      rows: candidates in a block; a tile is a multiple of it.
      body: gets a tile as candidates, and where on this device it starts.
      carry: what the first call of `body` gets.
      most: candidates of a tile at most.
    """
    total = candidates.keys.shape[0]
    size = max(most // rows, 1) * rows
    whole = total // size

    def tile(start: jax.Array | int, length: int) -> Candidates:
        def cut(x: jax.Array | None) -> jax.Array | None:
            return None if x is None else lax.dynamic_slice_in_dim(x, start, length)

        keys, values, ids, labels, first = candidates
        return Candidates(cut(keys), cut(values), cut(ids), cut(labels), first + start)

    if whole:
        carry = lax.fori_loop(0, whole, lambda i, carry: body(carry, tile(i * size, size), i * size), carry)
    if total > whole * size:
        carry = body(carry, tile(whole * size, total - whole * size), whole * size)
    return carry


def scores_of(tile: Candidates, queries: Queries, masked: bool = True) -> jax.Array:
    """float32 `[tile, batch]`; -inf where a candidate may get no weight, unless they are only wanted as bounds."""
    keys = tile.keys.astype(jnp.float32)
    scores = jnp.einsum("td,bd->tb", keys, queries.scaled, precision=lax.Precision.HIGHEST)
    if not masked:
        return scores
    numbers = tile.first + jnp.arange(keys.shape[0], dtype=jnp.int32) if tile.ids is None else tile.ids
    if tile.ids is not None:
        scores = jnp.where(numbers[:, None] >= 0, scores, -jnp.inf)
    if queries.exclude is not None:
        scores = jnp.where(numbers[:, None] != queries.exclude[None, :], scores, -jnp.inf)
    return scores


def block_maxima(scores: jax.Array, rows: int) -> jax.Array:
    """The maxima `[blocks, batch]` of the blocks of a tile."""
    missing = -scores.shape[0] % rows
    if missing:
        scores = jnp.pad(scores, [(0, missing), (0, 0)], constant_values=-jnp.inf)
    return scores.reshape(-1, rows, scores.shape[1]).max(axis=1)


def best_of_blocks(
    candidates: Candidates, queries: Queries, bounds: jax.Array, rows: int, count: int, k: int
) -> Listed:
    """The best candidates of each query among those in the blocks with the highest bounds.

    Args:
      candidates: all of this device.
      queries: a group of them.
      bounds: float32 `[batch, blocks]`: no score in the block is higher; blocks are consecutive.
      rows: candidates in a block.
      count: blocks that are read for each query.
      k: candidates that are listed for each query.
    """
    batch, blocks = bounds.shape
    count = min(count, blocks)
    # One block more than is read bounds all others.
    highest, chosen = top_k(bounds, min(count + 1, blocks))
    beyond = highest[:, count] if count < blocks else jnp.full((batch,), -jnp.inf)
    scores, places = _scores_of_blocks(candidates, queries, chosen[:, :count], rows)
    # A NaN with its sign set, such as inf - inf makes on x86, would come last; poison is to be seen.
    scores = jnp.where(jnp.isnan(scores), jnp.nan, scores)
    more = max(k - scores.shape[1], 0)
    if more:
        scores = jnp.pad(scores, [(0, 0), (0, more)], constant_values=-jnp.inf)
        places = jnp.pad(places, [(0, 0), (0, more)])
    best, order = top_k(scores, k)
    if k < scores.shape[1]:
        beyond = jnp.maximum(beyond, best[:, -1])
    return Listed(best, jnp.take_along_axis(places, order, axis=1), beyond)


def _scores_of_blocks(
    candidates: Candidates, queries: Queries, chosen: jax.Array, rows: int
) -> tuple[jax.Array, jax.Array]:
    """The scores `[batch, count * rows]` of the candidates in chosen blocks `[batch, count]`, and their places."""
    total = candidates.keys.shape[0]
    rows = min(rows, total)

    def of_block(pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        block, row = pair
        # The last block may be short: it is then read from further back, and what is not its own is left out.
        start = jnp.minimum(block * rows, total - rows)
        places = start + jnp.arange(rows, dtype=jnp.int32)
        keys = lax.dynamic_slice_in_dim(candidates.keys, start, rows).astype(jnp.float32)
        scores = jnp.einsum("rd,d->r", keys, queries.scaled[row], precision=lax.Precision.HIGHEST)
        may = places >= block * rows
        if candidates.ids is None:
            numbers = candidates.first + places
        else:
            numbers = lax.dynamic_slice_in_dim(candidates.ids, start, rows)
            may &= numbers >= 0
        if queries.exclude is not None:
            may &= numbers != queries.exclude[row]
        return jnp.where(may, scores, -jnp.inf), places

    batch, count = chosen.shape
    pairs = chosen.reshape(-1), jnp.repeat(jnp.arange(batch), count)
    at_once = None if jax.default_backend() == "cpu" else _BLOCKS_AT_ONCE
    scores, places = lax.map(of_block, pairs, batch_size=at_once)
    return scores.reshape(batch, -1), places.reshape(batch, -1)


def mean_of_values(values: jax.Array, weights: jax.Array, places: jax.Array) -> jax.Array:
    """sum_k weights[:, k] values[places[:, k]] `[batch, v]`."""

    def of_row(row: tuple[jax.Array, jax.Array]) -> jax.Array:
        own = values[row[1]].astype(jnp.float32)
        return jnp.einsum("k,kv->v", row[0], own, precision=lax.Precision.HIGHEST)

    at_once = min(max(_FLOATS_AT_ONCE // (weights.shape[1] * values.shape[1]), 1), ROWS_AT_ONCE)
    return lax.map(of_row, (weights, places), batch_size=at_once)
