"""The nearest code of every vector, over a codebook of any size.

    cosine      q(z) = argmax_k cos(z, c_k)                      (ProtoQuant, equation 3)
    euclidean   q(z) = argmin_k |z - c_k|^2 = argmax_k z c_k - |c_k|^2 / 2

The norm of z changes nothing for its own codes, so it is left out. Vectors are taken in blocks and codes in tiles: of
the products `[vectors, codes]` only those of one block and one tile exist at a time. Products of bfloat16 come first
(`rounded.py`); vectors whose nearest code they leave in doubt get products of float32. Where the codes are split over a
mesh, every device judges its own, and two numbers a vector cross devices: the best value and its place.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from protojax.ops import rounded, sharded, tiles
from protojax.ops.rounded import Metric
from protojax.ops.tiles import Candidates

_VECTORS, _CODES = 256, 1024
"""Vectors of a block and codes of a tile: their products fit the cache of a CPU core."""

_GROUP = 128
"""Vectors that are settled at once by exact products."""

_ROUNDED_FROM = 128
"""Features from which on products, and not what is made of them, take the time."""

_ASKED, _WORTH_IT = 32, 0.4
"""Vectors that are asked, first, what share of them bfloat16 leaves in doubt, and up to which it saves time. Many are
while codes are still random."""


class Nearest(NamedTuple):
    """The code of every vector."""

    index: jax.Array
    """int32 `[vectors]`: the first among equals."""
    value: jax.Array
    """float32 `[vectors]`: the cosine, or the squared distance, to that code."""


def nearest(vectors: jax.Array, codes: jax.Array, metric: Metric = "cosine", mesh: Mesh | None = None) -> Nearest:
    """The nearest code of every vector.

    Products are rounded to float32: two codes whose products with a vector differ by less than that count as equal. A
    code or vector of zeros has the cosine 0 with everything. Nothing is differentiated.

    Args:
      vectors: floating `[vectors, d]`, on all devices.
      codes: floating `[codes, d]`.
      metric: what near means.
      mesh: codes are split along its first axis. Where None, it is that of concrete codes, if they are split.

    Raises:
      ValueError: an argument of another shape or type, an unknown metric, no codes, or codes that do not divide evenly
        among the devices.
    """
    vectors, codes = jnp.asarray(vectors), jnp.asarray(codes)
    _check(vectors, codes, metric)
    mesh = sharded.mesh_of(codes) if mesh is None else mesh
    if mesh is not None:
        check_split(mesh, codes.shape[0])
    return _nearest(lax.stop_gradient(vectors), lax.stop_gradient(codes), metric=metric, mesh=mesh)


def check_split(mesh: Mesh, codes: int) -> None:
    """Refuses codes that do not divide evenly among the devices of a mesh.

    Raises:
      ValueError: naming the sizes.
    """
    devices = mesh.shape[mesh.axis_names[0]]
    if codes % devices:
        raise ValueError(
            f"{codes} codes do not divide evenly among {devices} devices: choose a multiple, such as "
            f"{-(-codes // devices) * devices}"
        )


@functools.partial(jax.jit, static_argnames=("metric", "mesh"))
def _nearest(vectors: jax.Array, codes: jax.Array, *, metric: Metric, mesh: Mesh | None) -> Nearest:
    vectors = vectors.astype(jnp.float32)
    if mesh is None:
        index = _places(vectors, codes, metric)
        return Nearest(index, _value(vectors, codes[index], metric))
    axis = mesh.axis_names[0]

    def own(vectors: jax.Array, codes: jax.Array) -> Nearest:
        place = _places(vectors, codes, metric)
        score = _score(vectors, codes[place], metric)
        # NaN is equal to nothing, so that no device would have it.
        score = jnp.where(jnp.isnan(score), -jnp.inf, score)
        index = place + lax.axis_index(axis) * codes.shape[0]
        behind = codes.shape[0] * mesh.shape[axis]
        chosen = lax.pmin(jnp.where(score == lax.pmax(score, axis), index, behind), axis)
        value = _value(vectors, codes[place], metric)
        return Nearest(chosen, lax.psum(jnp.where(index == chosen, value, 0), axis))

    everywhere = PartitionSpec()
    # What is reduced over all devices is the same on all, which the check of replication need not see.
    return jax.shard_map(
        own, mesh=mesh, in_specs=(everywhere, PartitionSpec(axis)), out_specs=everywhere, check_vma=False
    )(vectors, codes)


def _places(vectors: jax.Array, codes: jax.Array, metric: Metric) -> jax.Array:
    """int32 `[vectors]`: the nearest code of each, by rounded products where they leave no doubt."""
    # Few numbers; normalised codes would be a second codebook.
    candidates = Candidates(codes, _number(codes, metric)[:, None], None, None, 0)
    exactly = functools.partial(_place_exactly, candidates=candidates, metric=metric)
    by_rounded = functools.partial(rounded.best_of_block, candidates=candidates, metric=metric)
    count, size = vectors.shape
    if size < _ROUNDED_FROM or count < _VECTORS:
        return _by_blocks(exactly, vectors)
    doubt = rounded.doubt(vectors, codes, metric)

    def waiting(found: rounded.Best, doubt: jax.Array) -> jax.Array:
        return ~(found.score - found.second > doubt)

    def most_by_rounded() -> jax.Array:
        found = _by_blocks(by_rounded, vectors)
        return _settle(found.index, waiting(found, doubt), vectors, exactly)

    # Not evenly spaced: vectors of one place in all images may be alike.
    some = np.random.default_rng(0).choice(count, _ASKED, replace=False)
    share = waiting(by_rounded(vectors[some]), doubt[some]).mean()
    return lax.cond(share < _WORTH_IT, most_by_rounded, lambda: _by_blocks(exactly, vectors))


def _by_blocks(function: Callable[[jax.Array], Any], vectors: jax.Array) -> Any:
    """What a function makes of all vectors, block by block."""
    count = vectors.shape[0]
    size = min(_VECTORS, count)
    whole = count // size * size if size else 0
    parts = []
    if whole:
        found = lax.map(function, vectors[:whole].reshape(-1, size, vectors.shape[1]))
        parts.append(jax.tree.map(lambda x: x.reshape(-1), found))
    if count > whole or not count:
        parts.append(function(vectors[whole:]))
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def _place_exactly(block: jax.Array, candidates: Candidates, metric: Metric) -> jax.Array:
    def body(carry: tuple, tile: Candidates, start: jax.Array | int) -> tuple:
        products = jnp.einsum("td,vd->tv", tile.keys.astype(jnp.float32), block, precision=lax.Precision.HIGHEST)
        highest, place = rounded.highest_of(rounded.scores(products, tile.values, metric))
        best, index = carry
        better = highest > best
        return jnp.where(better, highest, best), jnp.where(better, place + start, index)

    nothing = jnp.full(block.shape[:1], -jnp.inf), jnp.zeros(block.shape[:1], jnp.int32)
    return tiles.fold(candidates, 1, body, nothing, _CODES)[1]


def _settle(
    index: jax.Array, waiting: jax.Array, vectors: jax.Array, exactly: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """The index, made exact for the vectors that wait, a group at a time."""
    # Beyond those that wait the first vector stands, for which an exact product is as good.
    most = -(-len(index) // _GROUP) * _GROUP
    rows = jnp.nonzero(waiting, size=most, fill_value=0)[0].astype(jnp.int32)

    def settle(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        start, index = state
        some = lax.dynamic_slice_in_dim(rows, start, _GROUP)
        return start + _GROUP, index.at[some].set(exactly(vectors[some]))

    return lax.while_loop(lambda state: state[0] < waiting.sum(), settle, (jnp.int32(0), index))[1]


def _number(codes: jax.Array, metric: Metric) -> jax.Array:
    """1 / |c|, or |c|^2 / 2, of every code: what its scores take besides products."""
    codes = codes.astype(jnp.float32)
    return _one_over_length(codes) if metric == "cosine" else jnp.square(codes).sum(axis=1) / 2


def _score(vectors: jax.Array, codes: jax.Array, metric: Metric) -> jax.Array:
    """What the nearest code has most of, float32 `[vectors]`, for every vector and its own code."""
    products = (vectors * codes.astype(jnp.float32)).sum(axis=1)
    return rounded.scores(products, _number(codes, metric), metric)


def _value(vectors: jax.Array, codes: jax.Array, metric: Metric) -> jax.Array:
    """The cosine or the squared distance of every vector and its own code, float32 `[vectors]`."""
    if metric == "cosine":
        return _score(vectors, codes, metric) * _one_over_length(vectors)
    # From the difference: |z|^2 - 2 z c + |c|^2 cancels for near vectors.
    return jnp.square(vectors - codes.astype(jnp.float32)).sum(axis=1)


def _one_over_length(x: jax.Array) -> jax.Array:
    """0 for zeros, which have no direction."""
    squares = jnp.square(x).sum(axis=1)
    return lax.rsqrt(jnp.where(squares > 0, squares, jnp.inf))


def _check(vectors: jax.Array, codes: jax.Array, metric: str) -> None:
    for name, x in (("vectors", vectors), ("codes", codes)):
        if x.ndim != 2:
            raise ValueError(f"{name} must have 2 axes, [{name}, size], got shape {x.shape}")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} must be floating, got {x.dtype}; convert them first")
    if vectors.shape[1] != codes.shape[1]:
        raise ValueError(
            f"vectors {vectors.shape} and codes {codes.shape} differ in their last axis; it must be the same"
        )
    if not codes.shape[0]:
        raise ValueError("a codebook needs at least one code")
    if metric not in ("cosine", "euclidean"):
        raise ValueError(f"metric must be 'cosine' or 'euclidean', got {metric!r}")
