"""The nearest code by products of bfloat16, how far it is ahead of the next, and how far it must be.

Rounding takes at most 2^-8 of a number, so that with z' and c' rounded

    |z c - z' c'| <= (2 * 2^-8 + 2^-16) sum_i |z_i c_i| <= (2 * 2^-8 + 2^-16) |z| |c|

A code that is ahead by more than twice that is ahead in exact products, too. Products of bfloat16 take half the time of
those of float32 on a CPU that has instructions for them.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from protojax.ops import tiles
from protojax.ops.tiles import Candidates

Metric = Literal["cosine", "euclidean"]

_CODES = 2048
"""Codes of a tile: twice as many as of float32, since operands are half as large."""

_ROUNDING = 2 * 2.0**-8 + 2.0**-16
"""What rounding both factors takes from a product, or adds to it, at most."""

_SMALL, _LARGE = 1e-20, 1e20
"""Of squared lengths between these hardly anything vanishes, and no product overflows."""


class Best(NamedTuple):
    """The best code of every vector by rounded products."""

    score: jax.Array
    """float32 `[vectors]`."""
    second: jax.Array
    """float32 `[vectors]`: the best score among the other codes; -inf where there is none."""
    index: jax.Array
    """int32 `[vectors]`."""


def best_of_block(block: jax.Array, candidates: Candidates, metric: Metric) -> Best:
    """The best codes of a block of vectors float32 `[vectors, d]`; the value of a candidate is what `scores` takes."""
    rounded = block.astype(jnp.bfloat16)

    def body(best: Best, tile: Candidates, start: jax.Array | int) -> Best:
        keys = tile.keys.astype(jnp.bfloat16)
        products = jnp.einsum("td,vd->tv", keys, rounded, preferred_element_type=jnp.float32)
        values = scores(products, tile.values, metric)
        highest, place = highest_of(values)
        chosen = lax.broadcasted_iota(jnp.int32, values.shape, 0) == place[None, :]
        others = jnp.where(chosen, -jnp.inf, values).max(axis=0)
        second = jnp.maximum(jnp.maximum(best.second, others), jnp.minimum(best.score, highest))
        better = highest > best.score
        return Best(jnp.where(better, highest, best.score), second, jnp.where(better, place + start, best.index))

    lowest = jnp.full(block.shape[:1], -jnp.inf)
    return tiles.fold(candidates, 1, body, Best(lowest, lowest, jnp.zeros(block.shape[:1], jnp.int32)), _CODES)


def scores(products: jax.Array, numbers: jax.Array, metric: Metric) -> jax.Array:
    """What the nearest code has most of, of products and the numbers of their codes: 1 / |c|, or |c|^2 / 2."""
    return products * numbers if metric == "cosine" else products - numbers


def highest_of(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The highest of scores `[codes, vectors]` and its first place, `[vectors]` each.

    Both reductions go down contiguous columns, which XLA on CPU vectorises; its argmax does not.
    """
    highest = scores.max(axis=0)
    places = lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    return highest, jnp.where(scores == highest[None, :], places, scores.shape[0] - 1).min(axis=0)


def doubt(vectors: jax.Array, codes: jax.Array, metric: Metric) -> jax.Array:
    """float32 `[vectors]`: a code that is ahead by more, in rounded scores, is ahead in those of float32.

    Infinite where the squares of a vector, or of any code, cannot be trusted.
    """
    squares = jnp.square(codes.astype(jnp.float32)).sum(axis=1)
    # The square of a very small code may have vanished; by cosine it counts as one of zeros.
    reach = jnp.where(squares == 0, _SMALL**0.5, _length(squares)).max()
    if metric == "cosine":
        # Scores are those of codes of length 1.
        reach, offset = jnp.where(reach < jnp.inf, 1, jnp.inf), 0
    else:
        offset = jnp.square(reach)
    length = _length(jnp.square(vectors).sum(axis=1))
    # Sums of d products, here and in float32: each adds no more than twice the rounding of float32 for every term.
    sums = 4 * (vectors.shape[1] + 8) * 2.0**-24
    return 2 * (_ROUNDING * length * reach + sums * (length * reach + offset))


def _length(squares: jax.Array) -> jax.Array:
    """The length whose square is given; infinite where that cannot be trusted."""
    return jnp.where((squares > _SMALL) & (squares < _LARGE), jnp.sqrt(squares), jnp.inf)
