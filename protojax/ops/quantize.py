"""The nearest code of every vector, over a codebook of any size.

    cosine      q(z) = argmax_k cos(z, c_k)                      (ProtoQuant, equation 3)
    euclidean   q(z) = argmin_k |z - c_k|^2 = argmax_k z c_k - |c_k|^2 / 2

The norm of z changes nothing for its own codes, so it is left out. Vectors are taken in blocks and codes in tiles: of
the products `[vectors, codes]` only those of one block and one tile exist at a time. Where the codes are split over a
mesh, every device judges its own, and two numbers a vector cross devices: the best value and its place.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from protojax.ops import sharded, tiles
from protojax.ops.tiles import Candidates

Metric = Literal["cosine", "euclidean"]

_VECTORS, _CODES = 256, 1024
"""Vectors of a block and codes of a tile: their products fit the cache of a CPU core."""


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
        best, index = _best(vectors, codes, metric)
        return Nearest(index, _value(vectors, codes, best, index, metric))
    axis = mesh.axis_names[0]

    def own(vectors: jax.Array, codes: jax.Array) -> Nearest:
        best, index = _best(vectors, codes, metric)
        value = _value(vectors, codes, best, index, metric)
        index = index + lax.axis_index(axis) * codes.shape[0]
        highest = lax.pmax(best, axis)
        # NaN is equal to nothing; then the last place stands, as on one device.
        last = codes.shape[0] * mesh.shape[axis] - 1
        chosen = lax.pmin(jnp.where(best == highest, index, last), axis)
        return Nearest(chosen, lax.psum(jnp.where(index == chosen, value, 0), axis))

    everywhere = PartitionSpec()
    # What is reduced over all devices is the same on all, which the check of replication need not see.
    return jax.shard_map(
        own, mesh=mesh, in_specs=(everywhere, PartitionSpec(axis)), out_specs=everywhere, check_vma=False
    )(vectors, codes)


def _best(vectors: jax.Array, codes: jax.Array, metric: Metric) -> tuple[jax.Array, jax.Array]:
    """The highest score of every vector and its place, `[vectors]` each, block by block."""
    # |c|^2 of all codes are few numbers; normalised codes would be a second codebook.
    squares = jnp.square(codes.astype(jnp.float32)).sum(axis=1, keepdims=True)
    number = lax.rsqrt(jnp.where(squares > 0, squares, jnp.inf)) if metric == "cosine" else squares / 2
    candidates = Candidates(codes, number, None, None, 0)
    size, count = min(_VECTORS, vectors.shape[0]), vectors.shape[0]
    whole = count // size * size if size else 0
    parts = []
    if whole:
        blocks = vectors[:whole].reshape(-1, size, vectors.shape[1])
        found = lax.map(lambda block: _best_of_block(block, candidates, metric), blocks)
        parts.append(jax.tree.map(lambda x: x.reshape(-1), found))
    if count > whole or not count:
        parts.append(_best_of_block(vectors[whole:], candidates, metric))
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def _best_of_block(block: jax.Array, candidates: Candidates, metric: Metric) -> tuple[jax.Array, jax.Array]:
    def body(carry: tuple, tile: Candidates, start: jax.Array | int) -> tuple:
        # `[tile, block]`: both reductions go down contiguous columns, which XLA on CPU vectorises; its argmax does not.
        products = jnp.einsum("td,vd->tv", tile.keys.astype(jnp.float32), block, precision=lax.Precision.HIGHEST)
        scores = products * tile.values if metric == "cosine" else products - tile.values
        highest = scores.max(axis=0)
        places = lax.broadcasted_iota(jnp.int32, scores.shape, 0)
        last = scores.shape[0] - 1
        place = jnp.where(scores == highest[None, :], places, last).min(axis=0)
        best, index = carry
        better = highest > best
        return jnp.where(better, highest, best), jnp.where(better, place + start, index)

    nothing = jnp.full(block.shape[:1], -jnp.inf), jnp.zeros(block.shape[:1], jnp.int32)
    return tiles.fold(candidates, 1, body, nothing, _CODES)


def _value(vectors: jax.Array, codes: jax.Array, best: jax.Array, index: jax.Array, metric: Metric) -> jax.Array:
    if metric == "cosine":
        squares = jnp.square(vectors).sum(axis=1)
        return best * lax.rsqrt(jnp.where(squares > 0, squares, jnp.inf))
    # From the difference: |z|^2 - 2 z c + |c|^2 cancels for near vectors.
    return jnp.square(vectors - codes[index].astype(jnp.float32)).sum(axis=1)


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
