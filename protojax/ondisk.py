"""Exact attention over a database on disk that no device holds whole: shard after shard, and merged.

Sparsemax merges because the threshold of some of the scores is at most that of all of them: whoever has a weight in the
whole has one in its shard. So each shard gives its support, the union of the supports is solved once more, and only
the values of that union are ever read. Softmax merges by the log-sum-exp of the shards, and needs all values.

The next shard is read and placed while one is solved: two are held at a time.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from protojax import ops
from protojax.edits import EMPTY
from protojax.ops import clusters
from protojax.prefetch import Reader
from protojax.shards import Shards

_FLOATS_AT_ONCE = 1 << 26
"""Floats of keys and values of supports that are solved at once."""

_NOBODY = -2
"""A place that no candidate has, and that is not empty either."""


def attend(
    stored: Shards,
    queries: jax.Array,
    *,
    normalizer: Literal["sparsemax", "softmax"] = "sparsemax",
    width: int = 64,
    classes: int | None = None,
    exclude: jax.Array | None = None,
    shares: Sequence[float] = (),
    mesh: Mesh | None = None,
) -> ops.Attended:
    """`ops.attend` over the `keys` and `values` of a database on disk; for one process.

    Args:
      stored: the database; one that was opened once checks its files once.
      queries: finite `[batch, d]`.
      normalizer: what turns scores into weights.
      width: how many of the heaviest candidates are listed.
      classes: number of classes, for `class_mass`.
      exclude: int32 `[batch]`: the candidate whose id a row names gets no weight in it.
      shares: in (0, 1], for `fewest`; with softmax the whole database is read again where they need longer lists.
      mesh: devices that share every shard.

    Returns:
      What `ops.attend` returns for the whole database: where `exact` is False, a score is not finite in some shard. The
      size of softmax counts weights that are not 0 within their shard.

    Raises:
      DatabaseError: a file is missing or damaged, or an id stands there twice.
      ValueError: queries are not finite or do not fit the keys, or another argument does not fit, as in `ops.attend`.
    """
    queries = jnp.asarray(queries, jnp.float32)
    if not (finite := np.isfinite(np.asarray(queries)).reshape(len(queries), -1).all(axis=1)).all():
        raise ValueError(f"queries {np.flatnonzero(~finite)[:10].tolist()} are not finite")
    if not 1 <= width <= stored.capacity:
        raise ValueError(f"width must be 1 to {stored.capacity}, the number of candidates, got {width}")
    named = {tuple(array.path): array.shape for array in stored.manifest.arrays}
    for name in ("keys", "values"):
        if len(named.get(("embeddings", name), ())) != 1:
            raise ValueError(f"attention needs embeddings[{name!r}] `[candidates, size]`; {stored.folder} has none")
    # Read and checked once for one `stored`.
    _ = stored.ids
    exclude = None if exclude is None else np.asarray(exclude)
    merge = {"sparsemax": _sparsemax, "softmax": _softmax}.get(normalizer)
    if merge is None:
        raise ValueError(f"normalizer must be 'sparsemax' or 'softmax', got {normalizer!r}")
    return _marked(merge(stored, queries, exclude, mesh, {"width": width, "classes": classes, "shares": tuple(shares)}))


def _marked(attended: ops.Attended) -> ops.Attended:
    """Rows that are not exact as `ops.attend` has them: without a number, without a candidate."""

    def unless_exact(name: str, otherwise: float) -> jax.Array | None:
        if (x := getattr(attended, name)) is None:
            return None
        return jnp.where(attended.exact.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.asarray(otherwise, x.dtype))

    numbers = ("outputs", "weights", "threshold", "class_mass")
    nothing = {**dict.fromkeys(numbers, jnp.nan), "ids": EMPTY, "labels": EMPTY, "size": 0, "fewest": -1}
    return attended._replace(**{name: unless_exact(name, otherwise) for name, otherwise in nothing.items()})


class _Found(NamedTuple):
    """Candidates that may have a weight, best first."""

    rows: np.ndarray
    """int64 `[batch, k]`: in the whole database."""
    scores: np.ndarray
    """float64 `[batch, k]`, -inf where there is none."""
    threshold: np.ndarray
    """float64 `[batch]`: at most that of the whole database."""


def _sparsemax(
    stored: Shards, queries: jax.Array, exclude: np.ndarray | None, mesh: Mesh | None, options: dict[str, Any]
) -> ops.Attended:
    reader, batch = Reader(stored, mesh, with_values=False), len(queries)
    found = _Found(np.zeros((batch, 0), np.int64), np.zeros((batch, 0)), np.full(batch, -np.inf))
    bounds, exact = _bounds(reader, queries), np.full(batch, True)

    def is_needed(position: int) -> bool:
        return bool((bounds[position] > found.threshold).any())

    # The most promising first, so that the others may not be needed.
    order = sorted(range(len(stored)), key=lambda position: -bounds[position].max())
    listed = options["width"]
    for part in reader.ahead(order, is_needed):
        places = np.where(part.host_ids == EMPTY, EMPTY, np.arange(reader.size, dtype=np.int32))
        own = None if exclude is None else _places_in(part.host_ids, exclude)
        while True:
            listed = min(listed, reader.size)
            attended = ops.attend(
                queries, part.keys, part.values, width=listed, ids=places, exclude=own, index=part.index, mesh=mesh
            )
            largest = int(attended.size.max())
            if largest <= listed:
                break
            listed = _rounded(largest)
        # A row with a number that is not finite lists nobody, as if the shard had none with a weight.
        exact &= np.asarray(attended.exact)
        weights = np.asarray(attended.weights, np.float64)
        scores = np.where(weights > 0, weights + np.asarray(attended.threshold)[:, None], -np.inf)
        found = _union(found, part.first + np.asarray(attended.ids, np.int64), scores)
        del part
    solved = _solve_union(stored, queries, found, options)
    return solved._replace(exact=solved.exact & exact)


def _bounds(reader: Reader, queries: jax.Array) -> list[np.ndarray]:
    """Upper bounds `[batch]` of the scores in each shard."""
    if reader.index is None:
        return [np.full(len(queries), np.inf)] * len(reader.stored)
    scaled = queries / queries.shape[1] ** 0.5
    of_shards = (reader.blocks(position) for position in range(len(reader.stored)))
    return [np.asarray(_highest(index, scaled), np.float64) for index in of_shards]


@jax.jit
def _highest(index: ops.ClusterIndex, scaled: jax.Array) -> jax.Array:
    return clusters.bounds(index, scaled).max(axis=1)


def _places_in(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """int32 places of the wanted ids, `_NOBODY` for one that is not there."""
    order = np.argsort(ids, kind="stable")
    found = order[np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)]
    return np.where((ids[found] == wanted) & (wanted != EMPTY), found, _NOBODY).astype(np.int32)


def _union(found: _Found, rows: np.ndarray, scores: np.ndarray) -> _Found:
    """Both together, less those that cannot have a weight."""
    rows, scores = np.concatenate([found.rows, rows], axis=1), np.concatenate([found.scores, scores], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")
    rows, scores = np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)
    is_one = np.isfinite(scores)
    top = np.where(is_one[:, :1], scores[:, :1], 0)
    below = np.where(is_one, scores - top, 0)
    total, number = np.cumsum(below, axis=1), np.arange(1, scores.shape[1] + 1)
    size = (is_one & (1 + number * below > total)).sum(axis=1)
    last = np.take_along_axis(total, np.maximum(size - 1, 0)[:, None], axis=1)[:, 0]
    # What rounding, here and in the scores, could hide stays.
    slack = 1e-5 * (1 + np.abs(top[:, 0]))
    threshold = np.where(size > 0, top[:, 0] + (last - 1) / np.maximum(size, 1) - slack, -np.inf)
    kept = is_one & (scores > threshold[:, None])
    most = max(int(kept.sum(axis=1).max()), 1)
    return _Found(rows[:, :most], np.where(kept, scores, -np.inf)[:, :most], threshold)


def _solve_union(stored: Shards, queries: jax.Array, found: _Found, options: dict[str, Any]) -> ops.Attended:
    """Attention of each query over its own candidates."""
    size = _rounded(max(options["width"], found.rows.shape[1]))
    missing = [(0, 0), (0, size - found.rows.shape[1])]
    rows = np.pad(np.where(np.isfinite(found.scores), found.rows, EMPTY), missing, constant_values=EMPTY)
    arrays = [stored.place(*path) for path in (("embeddings", "keys"), ("embeddings", "values"), ("ids",), ("labels",))]
    floats = sum(int(np.prod(stored.manifest.arrays[array].shape)) for array in arrays)
    group = max(1, _FLOATS_AT_ONCE // (size * floats))
    parts = []
    for start in range(0, len(rows), group):
        own = rows[start : start + group]
        columns = (stored.take(array, own) for array in arrays)
        parts.append(_attend_own(queries[start : start + group], *columns, **options))
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def _rounded(size: int) -> int:
    """64, 256, 1024, ...: few sizes, so that little compiles."""
    return max(64, 4 ** -(-(size - 1).bit_length() // 2))


@partial(jax.jit, static_argnames=("width", "classes", "shares"))
def _attend_own(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    ids: jax.Array,
    labels: jax.Array,
    *,
    width: int,
    classes: int | None,
    shares: tuple[float, ...],
) -> ops.Attended:
    def one(query: jax.Array, keys: jax.Array, values: jax.Array, ids: jax.Array, labels: jax.Array) -> ops.Attended:
        options = {"width": width, "classes": classes, "shares": shares}
        attended = ops.attend(query[None], keys, values, ids=ids, labels=labels, execution="dense", **options)
        return jax.tree.map(lambda x: x[0], attended)

    return jax.vmap(one)(queries, keys, values, ids, labels)


def _softmax(
    stored: Shards, queries: jax.Array, exclude: np.ndarray | None, mesh: Mesh | None, options: dict[str, Any]
) -> ops.Attended:
    reader = Reader(stored, mesh, with_values=True)
    width, classes, shares = options["width"], options["classes"], options["shares"]
    listed = width
    while True:
        merged = None
        for part in reader.ahead(range(len(stored)), lambda position: True):
            attended = ops.attend(
                queries,
                part.keys,
                part.values,
                normalizer="softmax",
                width=min(listed, reader.size),
                ids=part.ids,
                labels=part.labels,
                classes=classes,
                exclude=exclude,
                mesh=mesh,
            )
            merged = jax.block_until_ready(attended if merged is None else _merged(merged, attended, listed))
            del part
        missing = max(width - merged.ids.shape[1], 0)
        fewest = ops.fewest_for(merged.weights, shares) if shares else None
        if fewest is None or listed >= stored.capacity or not ((fewest < 0).any(axis=1) & (merged.size > 0)).any():
            break
        listed = min(8 * listed, stored.capacity)
    cut = {name: getattr(merged, name)[:, :width] for name in ("ids", "labels", "weights")}
    padding = [(0, 0), (0, missing)]
    cut = {k: jnp.pad(x, padding, constant_values=0 if k == "weights" else EMPTY) for k, x in cut.items()}
    return merged._replace(**cut, fewest=fewest)


@partial(jax.jit, static_argnames="listed")
def _merged(one: ops.Attended, other: ops.Attended, listed: int) -> ops.Attended:
    """Softmax over two parts of the candidates."""
    threshold = jnp.logaddexp(one.threshold, other.threshold)
    safe = jnp.where(threshold == -jnp.inf, 0, threshold)
    shares = [jnp.exp(part.threshold - safe)[:, None] for part in (one, other)]

    def mixed(name: str) -> jax.Array:
        return sum(share * getattr(part, name) for share, part in zip(shares, (one, other), strict=True))

    def both(name: str) -> jax.Array:
        return jnp.concatenate([getattr(one, name), getattr(other, name)], axis=1)

    weights = jnp.concatenate([one.weights * shares[0], other.weights * shares[1]], axis=1)
    best, order = ops.top_k(weights, min(listed, weights.shape[1]))
    ids, labels = (
        jnp.where(best > 0, jnp.take_along_axis(both(name), order, axis=1), EMPTY) for name in ("ids", "labels")
    )
    return ops.Attended(
        outputs=mixed("outputs"),
        ids=ids,
        labels=labels,
        weights=best,
        size=one.size + other.size,
        threshold=threshold,
        exact=one.exact & other.exact,
        class_mass=None if one.class_mass is None else mixed("class_mass"),
        fewest=None,
    )
