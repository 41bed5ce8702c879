"""The derivative of attention over a database of any size, by two passes over its tiles.

With p the weights, g_j the cotangent of p_j, and a_j = [p_j > 0] for sparsemax, p_j for softmax,

    d score_j = a_j (g_j - mean of g under a)      d value_j = p_j d output      g_j = d output . value_j + ...

so that a candidate without a weight gets no derivative. One pass takes the mean, the other one the rest.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from protojax.ops import passes, tiles
from protojax.ops.listed import Plan, Solved
from protojax.ops.passes import Cut
from protojax.ops.tiles import Candidates, Queries


class Cotangents(NamedTuple):
    """Of what depends on queries, keys and values."""

    outputs: jax.Array
    """float32 `[batch, v]`."""
    weights: jax.Array
    """float32 `[batch, width]`: of the listed ones."""
    threshold: jax.Array
    """float32 `[batch]`."""
    mass: jax.Array | None
    """float32 `[batch, classes]`."""


def pull(
    candidates: Candidates, queries: Queries, solved: Solved, given: Cotangents, plan: Plan
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cotangents, float32, of the scaled queries and of this device's keys and values."""
    # Without candidates no score is above +inf, whatever the normalizer calls its threshold there.
    threshold = jnp.where(jnp.isinf(solved.threshold), jnp.inf, solved.threshold)
    cut = Cut(solved.top, threshold, jnp.zeros_like(threshold))

    def of_tile(tile: Candidates) -> tuple[jax.Array, jax.Array, jax.Array]:
        """p, a and g, each `[tile, batch]`, without what concerns the listed weights alone."""
        weights = passes.weights_of(tiles.scores_of(tile, queries), cut, plan, axis=0)
        slopes = _product("tv,bv->tb", tile.values.astype(jnp.float32), given.outputs)
        if given.mass is not None:
            labels = jax.nn.one_hot(tile.labels, plan.classes, dtype=jnp.float32)
            slopes += _product("tm,bm->tb", labels, given.mass)
        return weights, _support(weights, plan), slopes

    def sums(carry: tuple, tile: Candidates, start: jax.Array) -> tuple:
        _, support, slopes = of_tile(tile)
        return carry[0] + (support * slopes).sum(axis=0), carry[1] + support.sum(axis=0)

    zeros = jnp.zeros(solved.size.shape)
    total, mass = (plan.total(x) for x in tiles.fold(candidates, plan.rows, sums, (zeros, zeros)))
    of_listed = _support(solved.weights, plan) * given.weights
    mean = (total + of_listed.sum(axis=1) - given.threshold) / jnp.where(mass > 0, mass, 1)

    def rest(carry: tuple, tile: Candidates, start: jax.Array) -> tuple:
        d_queries, d_keys, d_values = carry
        weights, support, slopes = of_tile(tile)
        d_scores = support * (slopes - mean[None, :])
        d_queries += _product("tb,td->bd", d_scores, tile.keys.astype(jnp.float32))
        own_keys = _product("tb,bd->td", d_scores, queries.scaled)
        own_values = _product("tb,bv->tv", weights, given.outputs)
        return (
            d_queries,
            lax.dynamic_update_slice(d_keys, own_keys, (start, 0)),
            lax.dynamic_update_slice(d_values, own_values, (start, 0)),
        )

    start = (jnp.zeros(x.shape) for x in (queries.scaled, candidates.keys, candidates.values))
    d_queries, d_keys, d_values = tiles.fold(candidates, plan.rows, rest, tuple(start))
    listed_queries, d_keys = _from_listed(candidates, queries, solved.places, of_listed, d_keys)
    return plan.total(d_queries + listed_queries), d_keys, d_values


def _support(weights: jax.Array, plan: Plan) -> jax.Array:
    # The sign, not a comparison: a row of NaN keeps derivatives of NaN.
    return jnp.sign(weights) if plan.normalizer == "sparsemax" else weights


def _from_listed(
    candidates: Candidates, queries: Queries, places: jax.Array, d_scores: jax.Array, d_keys: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What the listed weights `[batch, width]` add to the cotangents of queries and keys."""
    places = places - candidates.first
    here = (places >= 0) & (places < candidates.keys.shape[0])
    d_scores = jnp.where(here, d_scores, 0)
    places = jnp.where(here, places, 0)
    d_queries = tiles.mean_of_values(candidates.keys, d_scores, places)

    def add(row: int, d_keys: jax.Array) -> jax.Array:
        return d_keys.at[places[row]].add(d_scores[row][:, None] * queries.scaled[row][None, :])

    return d_queries, lax.fori_loop(0, places.shape[0], add, d_keys)


def _product(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, a, b, precision=lax.Precision.HIGHEST)
