"""Relational attention: a weighted mean of the values of a few candidates (ProtoAttend, section 3.2).

    outputs = p V      p = n(Q K^T / sqrt(d)), n = sparsemax or softmax, in float32 whatever the arguments have

`dense_attend` gives all weights, for training; `attend` gives the heaviest ones, from a database of any size.
"""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax

from protojax.ops import clusters, gradient, mapped, metrics, sharded, simplex, streamed, tiles
from protojax.ops.clusters import ClusterIndex
from protojax.ops.gradient import Cotangents
from protojax.ops.largest import top_k
from protojax.ops.listed import Plan, Solved
from protojax.ops.tiles import Candidates, Queries

Normalizer = Literal["sparsemax", "softmax"]

_DENSE = 1 << 14
"""Up to so many candidates, all scores are computed at once rather than tile by tile: it takes less time there."""

_DENSE_SCORES = 1 << 22
"""Of all queries together, at most, for the memory they take."""

_OPEN = 256
"""Queries that a batch of unknown size (`jax.export`) is taken for where the execution is chosen."""

_ROWS = (1 << 17, 32), (1 << 18, 64), (float("inf"), 128)
"""Candidates in a block, where no index says otherwise, up to so many of them in all: maxima of a million blocks and
their copy would outgrow the rest."""


class Attended(NamedTuple):
    """What attention found for every query; weights are those of the whole database, listed or not."""

    outputs: jax.Array
    """float32 `[batch, v]`."""
    ids: jax.Array
    """int32 `[batch, width]`: the heaviest candidates, -1 where fewer have a weight."""
    labels: jax.Array
    """int32 `[batch, width]`: theirs, -1 where fewer have a weight or no labels were given."""
    weights: jax.Array
    """float32 `[batch, width]`: theirs, descending, 0 where padded."""
    size: jax.Array
    """int32 `[batch]`: candidates with a positive weight, which may be more than the width."""
    threshold: jax.Array
    """float32 `[batch]`: tau of `simplex`; weights recomputed from it are less precise."""
    exact: jax.Array
    """bool `[batch]`: False only where a number is not finite, or one of the query beyond 1e16; every other row is
    exact to float32 rounding."""
    class_mass: jax.Array | None
    """float32 `[batch, classes]`: the weight of each class; NaN where a label with a weight is not a class."""
    fewest: jax.Array | None
    """int32 `[batch, shares]`: the fewest heaviest candidates that reach each share of the weight, as `fewest_for`."""


def attend(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    normalizer: Normalizer = "sparsemax",
    width: int = 64,
    ids: jax.Array | None = None,
    labels: jax.Array | None = None,
    classes: int | None = None,
    exclude: jax.Array | None = None,
    shares: Sequence[float] = (),
    index: ClusterIndex | None = None,
    execution: Literal["dense", "streamed", "sharded"] | None = None,
    mesh: jax.sharding.Mesh | None = None,
    kernel: Literal["xla", "pallas"] = "xla",
) -> Attended:
    """Attention over all candidates, of which the `width` heaviest are listed.

    A query without any candidate gets outputs of 0, an empty list and a size of 0. Under `jax.vmap` single queries are
    a batch, and several databases are taken one after the other; the gradient of the keys has a copy for each query.

    Args:
      queries: floating `[batch, d]`.
      keys: floating `[candidates, d]`.
      values: floating `[candidates, v]`, finite.
      normalizer: n, which turns scores into weights.
      width: how many of the heaviest candidates are listed.
      ids: int32 `[candidates]`; a place with -1 is empty and never gets a weight. Positions when None.
      labels: int32 `[candidates]`.
      classes: number of classes, for `class_mass`.
      exclude: int32 `[batch]`: the candidate whose id a row names gets no weight in it.
      shares: in (0, 1], for `fewest`.
      index: of these very keys; it saves time and never changes a result.
      execution: dense computes all scores at once; streamed goes over tiles of the candidates, so that nothing of size
        `[batch, candidates]` exists; sharded does so on every device for the candidates that lie there. None chooses.
      mesh: for sharded: candidates are split along its first axis. Where None, it is that of concrete keys; inside
        `jax.jit` keys do not tell where they lie.
      kernel: what makes the pass over all keys of streamed and sharded sparsemax. pallas is meant for GPUs, where it
        has not been measured yet; elsewhere it is interpreted, which is slow.

    Raises:
      ValueError: an argument that is unknown, impossible or does not fit the others.
    """
    queries, keys, values = jnp.asarray(queries), jnp.asarray(keys), jnp.asarray(values)
    _check(queries, keys, values, normalizer)
    candidates, batch = keys.shape[0], queries.shape[0]
    if not 1 <= width <= candidates:
        raise ValueError(f"width must be 1 to {candidates}, the number of candidates, got {width}")
    ids, labels = _integers("ids", ids, candidates), _integers("labels", labels, candidates)
    exclude = _integers("exclude", exclude, batch)
    if classes is not None and labels is None:
        raise ValueError("classes were given without the labels of the candidates; give both for class_mass")
    for share in shares:
        if not 0 < share <= 1:
            raise ValueError(f"shares must be above 0 and at most 1, got {share}")
    if execution not in (None, "dense", "streamed", "sharded"):
        raise ValueError(f"execution must be 'dense', 'streamed', 'sharded' or None, got {execution!r}")
    if kernel not in ("xla", "pallas"):
        raise ValueError(f"kernel must be 'xla' or 'pallas', got {kernel!r}")
    options = {
        "normalizer": normalizer,
        "width": width,
        "classes": classes,
        "shares": tuple(float(share) for share in shares),
    }
    mesh = sharded.mesh_of(keys) if mesh is None else mesh
    is_open = export.is_symbolic_dim(batch)
    if is_open:
        # Of a function that is exported for any batch.
        queries, exclude = Queries(queries, exclude).with_spare_rows()
    elif batch == 0:
        # Of one query, none.
        queries, exclude = jnp.zeros((1, queries.shape[1])), None
    if execution is None:
        split = mesh is not None and mesh.shape[mesh.axis_names[0]] > 1
        scores = (_OPEN if is_open else batch) * candidates
        is_small = candidates <= _DENSE and scores <= _DENSE_SCORES
        execution = "sharded" if split else "dense" if is_small else "streamed"
    if index is not None:
        clusters.check(index, keys)
    rows = next(rows for most, rows in _ROWS if candidates <= most)
    if execution == "dense":
        attended = _dense(queries, keys, values, ids, labels, exclude, **options)
        return attended if attended.size.shape[0] == batch else jax.tree.map(lambda x: x[:batch], attended)
    plan = Plan(**options, rows=rows, kernel=kernel)
    if execution == "streamed":
        mesh = None
    elif mesh is None:
        raise ValueError("sharded execution needs the mesh over which the candidates are split: give mesh")
    else:
        sharded.check(mesh, candidates, index)
        plan = plan._replace(axis=mesh.axis_names[0])
    attended = _tiled(queries, Candidates(keys, values, ids, labels, 0), exclude, index, plan, mesh)
    return attended if attended.size.shape[0] == batch else jax.tree.map(lambda x: x[:batch], attended)


@functools.partial(jax.jit, static_argnames=("plan", "mesh"))
def _tiled(
    queries: jax.Array,
    candidates: Candidates,
    exclude: jax.Array | None,
    index: ClusterIndex | None,
    plan: Plan,
    mesh: jax.sharding.Mesh | None,
) -> Attended:
    scaled = queries.astype(jnp.float32) / queries.shape[1] ** 0.5
    solved = _solve(plan, mesh, candidates._replace(first=jnp.int32(0)), Queries(scaled, exclude), index)
    finite = jnp.isfinite(solved.outputs).all(axis=1) & jnp.isfinite(solved.weights).all(axis=1)
    finite &= (jnp.abs(scaled) < tiles.LARGE).all(axis=1)
    return Attended(
        outputs=solved.outputs,
        ids=solved.ids,
        labels=solved.labels,
        weights=solved.weights,
        size=solved.size,
        threshold=solved.top + solved.threshold,
        exact=finite & solved.settled,
        class_mass=solved.mass,
        fewest=solved.fewest,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _solve(
    plan: Plan, mesh: jax.sharding.Mesh | None, candidates: Candidates, queries: Queries, index: ClusterIndex | None
) -> Solved:
    def solve(candidates: Candidates, queries: Queries, index: ClusterIndex | None) -> Solved:
        if mesh is None:
            return streamed.solve(candidates, queries, index, plan)
        return sharded.solve(candidates, queries, index, plan, mesh)

    return mapped.by_rows(solve)(candidates, queries, index)


def _solve_forward(plan, mesh, candidates, queries, index) -> tuple[Solved, tuple]:
    solved = _solve(plan, mesh, candidates, queries, index)
    return solved, (candidates, queries, solved)


def _solve_backward(plan, mesh, saved: tuple, given: Solved) -> tuple:
    candidates, queries, solved = saved
    # `top` and `threshold` are only used as their sum, so that the cotangent of one is that of the sum.
    cotangents = Cotangents(given.outputs, given.weights, given.threshold, given.mass)
    if mesh is None:
        pulled = gradient.pull(candidates, queries, solved, cotangents, plan)
    else:
        pulled = sharded.pull(candidates, queries, solved, cotangents, plan, mesh)
    d_queries, d_keys, d_values = pulled
    d_keys, d_values = d_keys.astype(candidates.keys.dtype), d_values.astype(candidates.values.dtype)
    return Candidates(d_keys, d_values, None, None, None), Queries(d_queries, None), None


_solve.defvjp(_solve_forward, _solve_backward)


@functools.partial(jax.jit, static_argnames=("normalizer", "width", "classes", "shares"))
def _dense(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    ids: jax.Array | None,
    labels: jax.Array | None,
    exclude: jax.Array | None,
    *,
    normalizer: Normalizer,
    width: int,
    classes: int | None,
    shares: tuple[float, ...],
) -> Attended:
    numbers = jnp.arange(keys.shape[0], dtype=jnp.int32) if ids is None else ids
    where = numbers[None, :] >= 0
    if exclude is not None:
        where &= numbers[None, :] != exclude[:, None]
    parts_of = simplex.sparsemax_parts if normalizer == "sparsemax" else simplex.softmax_parts
    weights, threshold, size = parts_of(_scores(queries, keys), where=where)
    outputs = jnp.einsum("bc,cv->bv", weights, values.astype(jnp.float32), precision=lax.Precision.HIGHEST)
    heaviest, places = top_k(weights, width)
    used = heaviest > 0
    mass = None
    if classes is not None:
        known = (labels >= 0) & (labels < classes)
        mass = metrics.class_mass(weights, jnp.where(known, labels, classes), classes + 1)
        mass = jnp.where(mass[:, classes:] > 0, jnp.nan, mass[:, :classes])
    return Attended(
        outputs=outputs,
        ids=jnp.where(used, numbers[places], -1),
        labels=jnp.full(places.shape, -1, jnp.int32) if labels is None else jnp.where(used, labels[places], -1),
        weights=heaviest,
        size=size,
        threshold=threshold,
        exact=jnp.isfinite(outputs).all(axis=1) & jnp.isfinite(heaviest).all(axis=1),
        class_mass=mass,
        fewest=metrics.fewest_for(weights, shares) if shares else None,
    )


def dense_attend(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    normalizer: Normalizer = "sparsemax",
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
    _check(queries, keys, values, normalizer)
    normalize = simplex.sparsemax if normalizer == "sparsemax" else simplex.softmax
    weights = normalize(_scores(queries, keys), where=where)
    return jnp.einsum("bc,cv->bv", weights, values.astype(jnp.float32), precision=lax.Precision.HIGHEST), weights


def _scores(queries: jax.Array, keys: jax.Array) -> jax.Array:
    # Scaled before the product, so that no second pass goes over [batch, candidates].
    scaled = queries.astype(jnp.float32) / keys.shape[-1] ** 0.5
    return jnp.einsum("bd,cd->bc", scaled, keys.astype(jnp.float32), precision=lax.Precision.HIGHEST)


def _check(queries: jax.Array, keys: jax.Array, values: jax.Array, normalizer: str) -> None:
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
    if normalizer not in ("sparsemax", "softmax"):
        raise ValueError(f"normalizer must be 'sparsemax' or 'softmax', got {normalizer!r}")


def _integers(name: str, x: jax.Array | None, size: int) -> jax.Array | None:
    if x is None:
        return None
    if not isinstance(x, jax.Array):
        # JAX would cut 64 bits to 32 without a word.
        x = np.asarray(x)
    if x.shape != (size,) or not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(f"{name} must be integers of shape ({size},), got {x.dtype} of shape {x.shape}")
    if not np.can_cast(x.dtype, np.int32):
        if isinstance(x, jax.core.Tracer):
            raise ValueError(f"{name} must be int32, got {x.dtype}; convert them before")
        low, high = np.asarray(x).min(initial=0), np.asarray(x).max(initial=0)
        if low < np.iinfo(np.int32).min or high > np.iinfo(np.int32).max:
            raise ValueError(f"{name} must fit into int32, got {low} to {high}; number them anew")
    return jnp.asarray(x, jnp.int32)
