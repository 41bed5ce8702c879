"""Attention by passes over every candidate: softmax, and the sparsemax of queries that a part does not settle.

Sparsemax: with u = score - maximum, Newton's step from a lower bound t of the threshold is
t + (sum max(u - t, 0) - 1) / |{u > t}|; each pass makes one, and a step that leaves the count as it was has found it.
Softmax: one pass keeps a maximum so far and the sum of exponentials relative to it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from protojax.ops import listed, metrics, simplex, tiles
from protojax.ops.listed import Plan, Solved
from protojax.ops.tiles import Candidates, Queries

_BLOCKS_OPENED = 16
"""Blocks whose candidates give the first threshold; more where more candidates are to be listed."""

_LISTED = 64
"""Candidates that give the first threshold; more where more are to be listed."""


class Cut(NamedTuple):
    """What turns a score into a weight, each `[batch]`."""

    top: jax.Array
    """The highest score, 0 without candidates."""
    threshold: jax.Array
    """Relative to it."""
    rest: jax.Array
    """What rounding left out of the threshold; adding it there would round it off again."""


def solve(candidates: Candidates, queries: Queries, plan: Plan) -> Solved:
    """Attention of a group of queries, settled whatever their scores are."""
    maxima, cut = _maxima(candidates, queries, plan)
    # The heaviest candidates lie in as many blocks of highest maxima.
    blocks = min(max(plan.width, _BLOCKS_OPENED), maxima.shape[1])
    best = tiles.best_of_blocks(candidates, queries, maxima, plan.rows, blocks, max(plan.width, _LISTED))
    gathered = listed.gather(candidates, best, plan)
    if plan.normalizer == "sparsemax":
        cut = _newton(candidates, queries, gathered.scores, cut.top, plan)
    outputs, size, mass = _sums(candidates, queries, cut, plan)
    places, ids, labels, weights = listed.heaviest(gathered, weights_of(gathered.scores, cut, plan, axis=1), plan.width)
    fewest = _fewest(candidates, queries, cut, weights, plan) if plan.shares else None
    settled = jnp.ones(size.shape, bool)
    threshold = cut.threshold + cut.rest
    nothing = jnp.inf if plan.normalizer == "sparsemax" else -jnp.inf
    threshold = jnp.where((size > 0) | jnp.isnan(threshold), threshold, nothing)
    return Solved(outputs, places, ids, labels, weights, size, cut.top, threshold, settled, mass, fewest)


def weights_of(scores: jax.Array, cut: Cut, plan: Plan, axis: int) -> jax.Array:
    """Weights of scores, of which `axis` is that of the candidates."""
    top, threshold, rest = (jnp.expand_dims(x, axis) for x in cut)
    if plan.normalizer == "sparsemax":
        return jnp.maximum(((scores - top) - threshold) - rest, 0)
    return jnp.exp((scores - top) - threshold)


def _maxima(candidates: Candidates, queries: Queries, plan: Plan) -> tuple[jax.Array, Cut]:
    """The maxima `[batch, blocks]` of all blocks of this device, and the cut of softmax over all devices."""
    batch, rows = queries.scaled.shape[0], plan.rows
    blocks = tiles.block_count(candidates, rows)

    def body(carry: tuple, tile: Candidates, start: jax.Array) -> tuple:
        maxima, top, total = carry
        scores = tiles.scores_of(tile, queries)
        part = tiles.block_maxima(scores, rows)
        maxima = lax.dynamic_update_slice(maxima, part, (start // rows, 0))
        higher = jnp.maximum(top, part.max(axis=0))
        if plan.normalizer == "softmax":
            base = jnp.where(higher == -jnp.inf, 0, higher)
            total = total * jnp.exp(top - base) + jnp.exp(scores - base[None, :]).sum(axis=0)
        return maxima, higher, total

    start = jnp.full((blocks, batch), -jnp.inf), jnp.full((batch,), -jnp.inf), jnp.zeros((batch,))
    maxima, own, total = tiles.fold(candidates, rows, body, start)
    top = plan.highest(own)
    top = jnp.where(top == -jnp.inf, 0, top)
    total = plan.total(total * jnp.exp(own - top))
    return maxima.T, Cut(top, jnp.log(jnp.where(total == 0, 1, total)), jnp.zeros_like(top))


def _newton(candidates: Candidates, queries: Queries, known: jax.Array, top: jax.Array, plan: Plan) -> Cut:
    """The cut of sparsemax, from scores `[batch, k]` of some of the candidates."""

    def step(state: tuple) -> tuple:
        threshold, rest, size, _ = state
        threshold = threshold + rest

        def body(carry: tuple, tile: Candidates, start: jax.Array) -> tuple:
            over = (tiles.scores_of(tile, queries) - top[None, :]) - threshold[None, :]
            return carry[0] + jnp.maximum(over, 0).sum(axis=0), carry[1] + (over > 0).sum(axis=0, dtype=jnp.int32)

        start = jnp.zeros(top.shape), jnp.zeros(top.shape, jnp.int32)
        total, count = (plan.total(x) for x in tiles.fold(candidates, plan.rows, body, start))
        return threshold, (total - 1) / jnp.maximum(count, 1), count, count < size

    threshold = simplex.sparsemax_parts(known - top[:, None]).threshold
    # Without any candidate the threshold of nothing is +inf.
    threshold = jnp.where(threshold == jnp.inf, -1, threshold)
    many = jnp.full(top.shape, jnp.iinfo(jnp.int32).max)
    state = threshold, jnp.zeros_like(top), many, jnp.ones(top.shape, bool)
    threshold, rest, _, _ = lax.while_loop(lambda state: state[3].any(), step, state)
    return Cut(top, threshold, rest)


def _sums(
    candidates: Candidates, queries: Queries, cut: Cut, plan: Plan
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Outputs, support sizes and class mass over all candidates of all devices."""
    batch = queries.scaled.shape[0]

    def body(carry: tuple, tile: Candidates, start: jax.Array) -> tuple:
        outputs, size, mass = carry
        weights = weights_of(tiles.scores_of(tile, queries), cut, plan, axis=0)
        outputs += _product(weights, tile.values.astype(jnp.float32))
        size += (weights > 0).sum(axis=0, dtype=jnp.int32)
        if mass is not None:
            known = (tile.labels >= 0) & (tile.labels < plan.classes)
            labels = jnp.where(known, tile.labels, plan.classes)
            mass += _product(weights, jax.nn.one_hot(labels, plan.classes + 1, dtype=jnp.float32))
        return outputs, size, mass

    mass = None if plan.classes is None else jnp.zeros((batch, plan.classes + 1))
    start = jnp.zeros((batch, candidates.values.shape[1])), jnp.zeros((batch,), jnp.int32), mass
    outputs, size, mass = jax.tree.map(plan.total, tiles.fold(candidates, plan.rows, body, start))
    return outputs, size, None if mass is None else listed.of_classes(mass)


def _product(weights: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.einsum("tb,tx->bx", weights, x, precision=lax.Precision.HIGHEST)


def _fewest(candidates: Candidates, queries: Queries, cut: Cut, heaviest: jax.Array, plan: Plan) -> jax.Array:
    """As `metrics.fewest_for`: from the heaviest weights where they suffice, otherwise by passes."""
    few = metrics.fewest_for(heaviest, plan.shares)
    goals = jnp.array([share * (1 - metrics.TOLERANCE) for share in plan.shares])

    def above(level: jax.Array, inclusive: bool) -> tuple[jax.Array, jax.Array]:
        """Sums and counts `[shares, batch]` of the weights above levels `[shares, batch]`."""

        def body(carry: tuple, tile: Candidates, start: jax.Array) -> tuple:
            weights = weights_of(tiles.scores_of(tile, queries), cut, plan, axis=0)
            sums, counts = [], []
            for i in range(level.shape[0]):
                over = weights >= level[i][None, :] if inclusive else weights > level[i][None, :]
                sums.append(jnp.where(over, weights, 0).sum(axis=0))
                counts.append(over.sum(axis=0, dtype=jnp.int32))
            return carry[0] + jnp.stack(sums), carry[1] + jnp.stack(counts)

        start = jnp.zeros(level.shape), jnp.zeros(level.shape, jnp.int32)
        return jax.tree.map(plan.total, tiles.fold(candidates, plan.rows, body, start))

    def halve(bounds: tuple) -> tuple:
        low, high = bounds
        middle = low + (high - low) // 2
        enough = above(lax.bitcast_convert_type(middle, jnp.float32), inclusive=True)[0] >= goals[:, None]
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    def by_passes(few: jax.Array) -> jax.Array:
        # The weights from `low` up suffice, those from `high` up do not; what is listed did not.
        shape = goals.size, heaviest.shape[0]
        high = lax.bitcast_convert_type(heaviest[:, -1], jnp.int32) + 1
        bounds = jnp.full(shape, 0x00800000, jnp.int32), jnp.broadcast_to(jnp.maximum(high, 0x00800001)[None], shape)
        done = few.T >= 0
        low, _ = lax.while_loop(lambda b: ((b[1] - b[0] > 1) & ~done).any(), halve, bounds)
        level = lax.bitcast_convert_type(low, jnp.float32)
        sums, larger = above(level, inclusive=False)
        total, reaching = above(level, inclusive=True)
        needed = jnp.ceil((goals[:, None] - sums) / level).astype(jnp.int32)
        count = larger + jnp.clip(needed, 1, reaching - larger)
        return jnp.where(done, few.T, jnp.where(total >= goals[:, None], count, -1)).T

    return lax.cond((few < 0).any(), by_passes, lambda few: few, few)
