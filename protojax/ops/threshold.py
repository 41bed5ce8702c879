"""The threshold of sparsemax without a sort: Newton's method, on as few of the scores as will do.

With u = z - max z, the threshold is the root t of the convex, decreasing, piecewise linear sum_j max(u_j - t, 0) - 1,
and lies in [-1, 0). Newton's step from the left, with S = {j: u_j > t}, is

    t <- (sum_S u_j - 1) / |S|

a sum of terms of one sign, so t keeps full relative precision, even where a million equal scores have weights of 1e-6.
Every step drops members from S and none comes back; a step that drops none has found t. The residual times the slope
falls at least fourfold a step, so that log2(candidates) + 13 steps exhaust float32; a million take up to 16.

The threshold of some of the scores is at most that of all, and a chunk whose maximum does not exceed it has no member
of the support. Many scores are therefore read once, for the maxima of chunks; Newton runs on the few chunks with the
largest. Rows that this does not settle, those with a large support, go on from there over all their scores.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import custom_batching, lax

from protojax.ops.largest import top_k

_BLOCK = 64
"""Scores summed in one go; sums of blocks are then summed, which keeps the rounding of a million terms near 1e-7."""

_MANY = 8192
"""Scores of a row from which on it pays to look at chunk maxima first."""

_CHUNKS = 512
"""Chunks of a row, at most: fewer make larger ones to go through, more take longer to choose from."""

_LANES = 16
"""Maxima kept side by side while a chunk is read, as many as make vector instructions."""

_BEST = 8
"""Chunks of a row that are looked at."""

_ROWS = 8
"""Rows that are gone through together where the chunks did not settle them."""

_LEFT = 1 + 2**-20
"""Moves a threshold, which is negative, to the left by more than its rounding: Newton has to start there."""


class Root(NamedTuple):
    """Where the weights of a row begin, each `[..., 1]`; `weights` makes them."""

    top: jax.Array
    """The maximum of the row; 0 where that is -inf, NaN where it is +inf."""
    low: jax.Array
    """The threshold of z - top, rounded."""
    rest: jax.Array
    """What rounding took from it: alone that would move the sum of a large support by its size."""
    size: jax.Array
    """int32, the number of positive weights."""


def weights(z: jax.Array, root: Root) -> jax.Array:
    """The weights of scores `[..., n]`, of which exactly `root.size` are positive."""
    over = z - root.top - root.low
    absent = jnp.where(jnp.isnan(root.rest), jnp.nan, jnp.zeros_like(root.rest))
    # A member whose excess is no more than the rest stays one.
    return jnp.where(over > 0, jnp.maximum(over - root.rest, jnp.finfo(z.dtype).tiny), absent)


@custom_batching.custom_vmap
def solve(z: jax.Array) -> Root:
    """The root for each row of scores `[..., n]` along the last axis; a row of -inf has low = -1 and size 0."""
    rows = z.reshape(-1, z.shape[-1])
    root = (_by_rows if rows.shape[-1] < _MANY or rows.shape[0] == 0 else _by_chunks)(rows)
    return Root(*(x.reshape(*z.shape[:-1], 1) for x in root))


@solve.def_vmap
def _solve_mapped(size: int, mapped: list[bool], z: jax.Array) -> tuple[Root, Root]:
    # More rows, not a loop around loops: those would go on until the slowest row of all is done.
    return solve(z), Root(True, True, True, True)


def _by_rows(z: jax.Array) -> Root:
    top = _usable(z.max(axis=-1, keepdims=True))
    return _newton(z, top, jnp.full_like(top, -1))


def _by_chunks(z: jax.Array) -> Root:
    rows, n = z.shape
    chunk = -(-n // (_CHUNKS * _LANES)) * _LANES
    whole = n // chunk * chunk
    # The barrier keeps XLA on CPU from merging the two maxima into one loop that is three times slower.
    lanes = lax.optimization_barrier(_maxima(z[:, :whole].reshape(rows, -1, chunk // _LANES, _LANES)))
    best, places = top_k(lanes.max(axis=2), _BEST + 1)
    # The threshold of the first k of descending scores is largest for their support.
    first = _usable(best[:, :1])
    sums = itertools.accumulate(best[:, i : i + 1] - first for i in range(_BEST))
    low = functools.reduce(jnp.maximum, ((total - 1) / k for k, total in enumerate(sums, 1)))
    few, top = _slices(z, places[:, :_BEST] * chunk, chunk), first
    if whole < n:
        few = jnp.concatenate([few, z[:, whole:]], axis=-1)
        top = _usable(jnp.maximum(best[:, :1], _maxima(z[:, whole:, None])))
        low = jnp.maximum(low + (first - top), -1)
    root = _newton(few, top, low * _LEFT)
    return _go_on(z, root, best[:, _BEST:] - top > root.low)


def _slices(z: jax.Array, starts: jax.Array, size: int) -> jax.Array:
    """The scores `[rows, chunks * size]` that begin at `starts` `[rows, chunks]`."""

    def one(row: jax.Array, start: jax.Array) -> jax.Array:
        return lax.dynamic_slice(row, (start,), (size,))

    return jax.vmap(jax.vmap(one, in_axes=(None, 0)))(z, starts).reshape(z.shape[0], -1)


def _maxima(z: jax.Array) -> jax.Array:
    """The maxima `[..., lanes]` of `[..., n, lanes]`, +inf where there is NaN."""
    # The `max` of XLA on CPU comes from a library: it loses NaN, and copies a slice before it reads it.
    least = jnp.array(-jnp.inf, z.dtype)
    found = lax.reduce(z, least, lambda a, b: jnp.where((a >= b) | (a != a), a, b), (z.ndim - 2,))
    return jnp.where(jnp.isnan(found), jnp.inf, found)


def _go_on(z: jax.Array, root: Root, open_rows: jax.Array) -> Root:
    """Settles the rows of `open_rows` `[rows, 1]` by all their scores, a few at a time."""
    together = min(_ROWS, z.shape[0])

    def body(state: tuple) -> tuple:
        root, still_open = state
        _, places = top_k(still_open[:, 0].astype(jnp.int32), together)
        found = _newton(z[places], root.top[places], root.low[places] * _LEFT)
        root = Root(*(x.at[places].set(y) for x, y in zip(root, found, strict=True)))
        return root, still_open.at[places].set(False)

    return lax.while_loop(lambda state: state[1].any(), body, (root, open_rows))[0]


def _usable(top: jax.Array) -> jax.Array:
    """A maximum that may be subtracted: a row of -inf stays as it is, one with +inf becomes NaN throughout."""
    return jnp.where(jnp.isinf(top), jnp.where(top > 0, jnp.nan, 0), top)


def _newton(z: jax.Array, top: jax.Array, start: jax.Array) -> Root:
    """The root for scores `[rows, n]`, from a `low` `[rows, 1]` on its left."""

    def step(state: tuple) -> tuple:
        low, size, falling = state
        # The barrier keeps z - top inside the loop: outside, XLA would write it to memory first.
        first, edge = lax.optimization_barrier((top, low))
        u = z - first
        above = u > edge
        total, now = _sum_and_count(jnp.where(above, u, 0), above)
        falling = now < size
        return jnp.where(falling, (total - 1) / jnp.maximum(now, 1), low), now, falling

    begin = start, jnp.full_like(start, z.shape[-1] + 1, jnp.int32), jnp.full_like(start, True, bool)
    low = lax.while_loop(lambda state: state[2].any(), step, begin)[0]
    over = z - top - low
    excess, size = _sum_and_count(jnp.maximum(over, 0), over > 0)
    return Root(top, low, (excess - 1) / jnp.maximum(size, 1), size)


def _sum_and_count(terms: jax.Array, members: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sum of `terms` and the number of `members` of each row `[rows, n]`, each `[rows, 1]`, in one read."""
    whole = terms.shape[-1] // _BLOCK * _BLOCK
    blocks = (terms.shape[0], whole // _BLOCK, _BLOCK)
    total, count = _reduce(terms[:, whole:], members[:, whole:])
    if whole:
        totals, counts = _reduce(terms[:, :whole].reshape(blocks), members[:, :whole].reshape(blocks))
        total, count = total + totals.sum(axis=-1), count + counts.sum(axis=-1, dtype=jnp.int32)
    return total[:, None], count[:, None]


def _reduce(terms: jax.Array, members: jax.Array) -> tuple[jax.Array, jax.Array]:
    # XLA on CPU makes two sums over one array two reads and a copy, 60 times slower than this one reduction of pairs.
    return lax.reduce(
        (terms, members.astype(jnp.int32)),
        (jnp.zeros((), terms.dtype), jnp.int32(0)),
        lambda a, b: (a[0] + b[0], a[1] + b[1]),
        (terms.ndim - 1,),
    )
