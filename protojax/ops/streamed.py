"""Exact attention over a database of any size: one pass for bounds, then each query as far as it needs.

The threshold of sparsemax over any subset of the scores is a lower bound of the threshold over all, and a candidate
whose score does not exceed that bound has no weight. So a query is settled by the candidates of its best blocks as soon
as no other block's bound exceeds the threshold found on them. Bounds need not be tight: candidates that may get no
weight are masked where blocks are opened, not in the pass over everything.

    1. one pass over all keys leaves the maximum of every block; for few queries an index bounds it, without any pass
    2. every query opens its best blocks
    3. queries that this does not settle open many more, a few queries at a time
    4. those that are still not settled are solved by passes over all keys (`passes`)

Solving is mergeable: the support of the whole lies in the union of the supports of its parts. Where candidates are
split over devices, the same steps run on each for its own candidates, and what is listed is exchanged and solved
together.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from protojax.ops import clusters, kernel, listed, passes, tiles
from protojax.ops.clusters import ClusterIndex
from protojax.ops.listed import Plan, Solved
from protojax.ops.tiles import Candidates, Queries

_FIRST = 2048, 64
"""Candidates in the blocks that every query opens after the pass, and how many of them are listed."""

_MORE = 16384, 256
"""The same for queries that are not settled by these."""

_BY_INDEX = (64, 64), (256, 64), (1024, 64), (2048, 128)
"""Blocks opened and candidates listed where an index gives the bounds, one after the other."""

_WORTHWHILE = 15
"""One in so many blocks of an index may be opened for a query; a pass costs less than more of them."""

_TOGETHER = 8
"""Queries for which more blocks are opened, or passes made, at once."""

_FEW = 4
"""Queries that ask an index, and are solved one by one where need be; more of them share a pass in less time."""


def solve(candidates: Candidates, queries: Queries, index: ClusterIndex | None, plan: Plan) -> Solved:
    """Attention of all queries over all candidates, of this device or of all that share the axis of the plan."""
    if plan.normalizer == "softmax":
        return passes.solve(candidates, queries, plan)
    if index is None or queries.scaled.shape[0] > _FEW:
        return _by_pass(candidates, queries, plan)
    solved = _by_index(candidates, queries, index, plan)
    return _in_groups(solved, ~solved.settled, lambda rows: _by_pass(candidates, queries.take(rows), plan))


def _by_pass(candidates: Candidates, queries: Queries, plan: Plan) -> Solved:
    """All queries, from the maxima of all blocks."""
    bounds = _maxima(candidates, queries, plan)
    opened = _opener(candidates, queries, bounds, plan.rows, plan)
    solved = opened(jnp.arange(queries.scaled.shape[0]), max(_FIRST[0] // plan.rows, 1), _FIRST[1])
    solved = _once_more(solved, bounds, max(_MORE[0] // plan.rows, 1), _MORE[1], opened, plan)
    return _in_groups(solved, ~solved.settled, lambda rows: passes.solve(candidates, queries.take(rows), plan))


def _by_index(candidates: Candidates, queries: Queries, index: ClusterIndex, plan: Plan) -> Solved:
    """Queries as far as an index settles them, without a pass."""
    bounds = clusters.bounds(index, queries.scaled)
    blocks = bounds.shape[1]
    opened = _opener(candidates, queries, bounds, candidates.keys.shape[0] // blocks, plan)
    solved = opened(jnp.arange(bounds.shape[0]), *_BY_INDEX[0])
    for more, k in _BY_INDEX[1:]:
        if more * _WORTHWHILE <= blocks:
            solved = _once_more(solved, bounds, more, k, opened, plan)
    return solved


def _opener(
    candidates: Candidates, queries: Queries, bounds: jax.Array, rows: int, plan: Plan
) -> Callable[[jax.Array, int, int], Solved]:
    """What solves some queries by opening their best blocks."""

    def opened(chosen: jax.Array, blocks: int, k: int) -> Solved:
        own = bounds.at[chosen].get(mode="clip")
        best = tiles.best_of_blocks(candidates, queries.take(chosen), own, rows, blocks, k)
        return listed.solve(candidates, best, plan)

    return opened


def _threshold(solved: Solved) -> jax.Array:
    """The threshold `[batch]` found so far: at most the one over all candidates."""
    return jnp.where(solved.size > 0, solved.top + solved.threshold, -jnp.inf)


def _once_more(
    solved: Solved, bounds: jax.Array, blocks: int, k: int, opened: Callable[[jax.Array, int, int], Solved], plan: Plan
) -> Solved:
    """Opens more blocks for the queries that are not settled, where those blocks can settle them."""
    needed = plan.highest((bounds > _threshold(solved)[:, None]).sum(axis=1).astype(jnp.float32))
    return _in_groups(solved, ~solved.settled & (needed <= blocks), lambda rows: opened(rows, blocks, k))


def _in_groups(solved: Solved, waiting: jax.Array, solve_rows: Callable[[jax.Array], Solved]) -> Solved:
    """Replaces the answers of the waiting queries `[batch]`, a few at a time, and a single one alone."""
    batch = waiting.shape[0]
    if batch == 1:
        # Not a loop: XLA moves what does not change in a loop before it, and does it whether or not the loop runs.
        return lax.cond(waiting[0], lambda _: solve_rows(jnp.arange(1)), lambda solved: solved, solved)

    def next_of(count: int, state: tuple) -> tuple:
        solved, waiting = state
        rows = jnp.nonzero(waiting, size=count, fill_value=batch)[0]
        solved = jax.tree.map(lambda old, new: old.at[rows].set(new, mode="drop"), solved, solve_rows(rows))
        return solved, waiting.at[rows].set(False, mode="drop")

    def body(state: tuple) -> tuple:
        # Either way is compiled: a small batch has the one for single queries alone.
        alone = partial(next_of, 1)
        if batch <= _FEW:
            return alone(state)
        return lax.cond(state[1].sum() > 1, partial(next_of, min(batch, _TOGETHER)), alone, state)

    return lax.while_loop(lambda state: state[1].any(), body, (solved, waiting))[0]


def _maxima(candidates: Candidates, queries: Queries, plan: Plan) -> jax.Array:
    """Upper bounds `[batch, blocks]` of the scores in every block of candidates; -inf where it is empty."""
    rows = plan.rows
    if plan.kernel == "pallas":
        maxima = kernel.block_maxima(candidates.keys, queries.scaled, rows, jax.default_backend() != "gpu")
    else:
        maxima = _maxima_by_tiles(candidates, queries, rows)
    if candidates.ids is not None:
        ids = jnp.pad(candidates.ids, (0, -candidates.ids.size % rows), constant_values=-1)
        maxima = jnp.where((ids.reshape(-1, rows) >= 0).any(axis=1)[:, None], maxima, -jnp.inf)
    return maxima.T


def _maxima_by_tiles(candidates: Candidates, queries: Queries, rows: int) -> jax.Array:
    blocks = tiles.block_count(candidates, rows)
    # A maximum may pass over NaN; where a key is not finite, or so large that its products may not be, the block is to
    # be opened. A product with what makes such a key overflow shows it, in less time than a look at every number.
    probe = jnp.full(candidates.keys.shape[1:], jnp.finfo(jnp.float32).max / tiles.LARGE)

    def body(maxima: jax.Array, tile: Candidates, start: jax.Array) -> jax.Array:
        part = tiles.block_maxima(tiles.scores_of(tile, queries, masked=False), rows)
        broken = (~jnp.isfinite(tile.keys.astype(jnp.float32) @ probe)).astype(jnp.float32)
        part = jnp.where(tiles.block_maxima(broken[:, None], rows) > 0, jnp.inf, part)
        return lax.dynamic_update_slice(maxima, part, (start // rows, 0))

    maxima = jnp.full((blocks, queries.scaled.shape[0]), -jnp.inf)
    return tiles.fold(candidates, rows, body, maxima)
