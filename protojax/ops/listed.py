"""Queries solved on the candidates listed for them, of one device or of all together."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from protojax.ops import metrics, simplex, tiles
from protojax.ops.largest import top_k
from protojax.ops.tiles import Candidates, Listed


class Plan(NamedTuple):
    """What is asked for and how it is found; hashable, fixed when compiled."""

    normalizer: Literal["sparsemax", "softmax"]
    width: int
    classes: int | None
    shares: tuple[float, ...]
    rows: int
    """Candidates in a block."""
    axis: str | None = None
    """The mapped axis over which candidates are split; None on one device."""
    kernel: Literal["xla", "pallas"] = "xla"
    """What makes the pass over all keys."""

    def everyones(self, x: jax.Array) -> jax.Array:
        """`[batch, k]` of every device, side by side."""
        return x if self.axis is None else lax.all_gather(x, self.axis, axis=1, tiled=True)

    def total(self, x: jax.Array) -> jax.Array:
        """The sum over devices."""
        return x if self.axis is None else lax.psum(x, self.axis)

    def highest(self, x: jax.Array) -> jax.Array:
        """The maximum over devices, NaN where it is NaN on any."""
        if self.axis is None:
            return x
        poisoned = lax.psum(jnp.isnan(x).astype(jnp.int32), self.axis) > 0
        return jnp.where(poisoned, jnp.nan, lax.pmax(x, self.axis))


class Solved(NamedTuple):
    """Answers for a group of queries, the same on all devices."""

    outputs: jax.Array
    """float32 `[batch, v]`."""
    places: jax.Array
    """int32 `[batch, width]`: positions in the whole database of the heaviest, also where the weight is 0."""
    ids: jax.Array
    """int32 `[batch, width]`, -1 where the weight is 0."""
    labels: jax.Array
    """int32 `[batch, width]`, likewise."""
    weights: jax.Array
    """float32 `[batch, width]`, descending."""
    size: jax.Array
    """int32 `[batch]`."""
    top: jax.Array
    """float32 `[batch]`: the highest score, 0 without candidates."""
    threshold: jax.Array
    """float32 `[batch]`: the threshold less `top`, which keeps its precision."""
    settled: jax.Array
    """bool `[batch]`: these are the answers, and not those of a part of the candidates."""
    mass: jax.Array | None
    """float32 `[batch, classes]`."""
    fewest: jax.Array | None
    """int32 `[batch, shares]`."""


class Gathered(NamedTuple):
    """What all devices listed, side by side, each `[batch, k]`."""

    scores: jax.Array
    places: jax.Array
    ids: jax.Array
    labels: jax.Array


def gather(candidates: Candidates, listed: Listed, plan: Plan) -> Gathered:
    """Lists of all devices, with positions in the whole database, ids and labels (-1 where there are none)."""
    places = (candidates.first + listed.places).astype(jnp.int32)
    ids = places if candidates.ids is None else candidates.ids[listed.places]
    labels = jnp.full(places.shape, -1, jnp.int32) if candidates.labels is None else candidates.labels[listed.places]
    return Gathered(*(plan.everyones(x) for x in (listed.scores, places, ids, labels)))


def heaviest(gathered: Gathered, weights: jax.Array, width: int) -> tuple[jax.Array, ...]:
    """Places, ids, labels and weights `[batch, width]` of the largest weights."""
    missing = max(width - weights.shape[1], 0)
    weights, *rest = (jnp.pad(x, [(0, 0), (0, missing)]) for x in (weights, *gathered[1:]))
    best, order = top_k(weights, width)
    places, ids, labels = (jnp.take_along_axis(x, order, axis=1) for x in rest)
    return places, jnp.where(best > 0, ids, -1), jnp.where(best > 0, labels, -1), best


def solve(candidates: Candidates, listed: Listed, plan: Plan) -> Solved:
    """Sparsemax over what is listed; settled where nothing that is not listed can have a weight."""
    gathered = gather(candidates, listed, plan)
    top = gathered.scores.max(axis=1)
    top = jnp.where(top == -jnp.inf, 0, top)
    weights, threshold, size = simplex.sparsemax_parts(gathered.scores - top[:, None])
    beyond = plan.highest(listed.beyond)
    settled = jnp.where(size > 0, beyond - top <= threshold, beyond == -jnp.inf)
    own = weights
    if plan.axis is not None:
        k = listed.scores.shape[1]
        own = lax.dynamic_slice_in_dim(weights, lax.axis_index(plan.axis) * k, k, axis=1)
    outputs = plan.total(tiles.mean_of_values(candidates.values, own, listed.places))
    places, ids, labels, best = heaviest(gathered, weights, plan.width)
    mass = None if plan.classes is None else mass_of(weights, gathered.labels, plan.classes)
    fewest = metrics.fewest_for(weights, plan.shares) if plan.shares else None
    return Solved(outputs, places, ids, labels, best, size, top, threshold, settled, mass, fewest)


def mass_of(weights: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
    """The weight of each class `[batch, classes]`, from weights and labels `[batch, k]`."""
    known = (labels >= 0) & (labels < classes)
    rows = jnp.arange(weights.shape[0])[:, None]
    mass = jnp.zeros((weights.shape[0], classes + 1), jnp.float32)
    return of_classes(mass.at[rows, jnp.where(known, labels, classes)].add(weights))


def of_classes(mass: jax.Array) -> jax.Array:
    """Without the last column, the weight of labels that are no classes; NaN where it is not 0."""
    return jnp.where(mass[:, -1:] > 0, jnp.nan, mass[:, :-1])
