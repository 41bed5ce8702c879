"""An index over keys that lets exact attention leave most of them unread.

Keys are ordered so that near ones are neighbours, and every block of consecutive ones gets a ball around it. No key of
a ball of centre c and radius r has a score above q.c + |q| r; a block whose bound does not exceed the threshold found
elsewhere holds no candidate with a weight.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_SAMPLE = 1024
"""Keys that decide how a part is split."""

_ROUNDS = 4
"""Rounds of 2-means for a split: what it decides is a direction, which more rounds hardly turn."""

_SHRINKING = 16
"""Steps of a centre towards the key furthest from it."""


class ClusterIndex(NamedTuple):
    """Balls around equal consecutive blocks of keys; block i holds the keys from i * rows to (i + 1) * rows."""

    centers: jax.Array
    """float32 `[blocks, d]`."""
    radii: jax.Array
    """float32 `[blocks]`: no key of the block is further from its centre; a little more, for rounding."""


def cluster(keys: jax.Array, rows: int = 32, seed: int = 0) -> np.ndarray:
    """An order of keys in which blocks of `rows` consecutive ones are compact.

    A tree of 2-means: a part is split along the line between two centres, fitted to a sample of it, at the multiple of
    `rows` nearest to its middle, down to single blocks. Beside the keys, memory for one number a key is needed.

    Args:
      keys: floating `[candidates, d]`.
      rows: candidates in a block.
      seed: of the samples; the order is a function of keys, rows and seed.

    Returns:
      int32 `[candidates]`, a permutation; to be followed by keys, values, ids and labels alike.

    Raises:
      ValueError: keys of another shape, not floating or not finite, or no rows in a block.
    """
    keys = np.asarray(_checked(keys, rows).astype(jnp.float32))
    if not np.isfinite(keys).all():
        raise ValueError("keys to be clustered must be finite: the encoder or its inputs are damaged")
    random = np.random.default_rng(seed)
    order = np.arange(len(keys), dtype=np.int32)
    parts = [(0, len(keys))]
    while parts:
        start, stop = parts.pop()
        blocks = -(-(stop - start) // rows)
        if blocks < 2:
            continue
        middle = blocks // 2 * rows
        members = order[start:stop]
        sample = members if len(members) <= _SAMPLE else members[random.integers(0, len(members), _SAMPLE)]
        along = keys[members] @ _direction(keys[sample])
        order[start:stop] = members[np.argpartition(along, middle)]
        parts += [(start, start + middle), (start + middle, stop)]
    return order


def _direction(sample: np.ndarray) -> np.ndarray:
    """From one to the other centre of 2-means; it starts with the axis on which the sample is widest."""
    spread = sample.std(axis=0)
    along = sample[:, spread.argmax()]
    right = along > np.median(along)
    direction = np.zeros_like(spread)
    direction[spread.argmax()] = 1
    for _ in range(_ROUNDS):
        if right.all() or not right.any():
            break
        centers = sample[~right].mean(axis=0), sample[right].mean(axis=0)
        direction = centers[1] - centers[0]
        right = (sample - (centers[0] + centers[1]) / 2) @ direction > 0
    return direction


def cluster_index(keys: jax.Array, rows: int = 32) -> ClusterIndex:
    """The ball around every block of `rows` consecutive keys.

    Args:
      keys: floating `[candidates, d]`, best ordered by `cluster`.
      rows: candidates in a block.

    Raises:
      ValueError: keys of another shape or not floating, or they do not divide into blocks.
    """
    keys = _checked(keys, rows)
    if keys.shape[0] % rows:
        raise ValueError(
            f"{keys.shape[0]} keys do not divide into blocks of {rows}: fill up with places of id -1, or choose others"
        )
    return _index(keys, rows)


@functools.partial(jax.jit, static_argnames="rows")
def _index(keys: jax.Array, rows: int) -> ClusterIndex:
    def of_block(block: jax.Array) -> tuple[jax.Array, jax.Array]:
        block = block.astype(jnp.float32)

        def distances(center: jax.Array) -> jax.Array:
            return jnp.linalg.norm(block - center[None, :], axis=1)

        # Badoiu and Clarkson 2003: towards the centre of the smallest ball, which the mean is not.
        def shrink(i: int, best: tuple) -> tuple:
            center, nearest, radius = best
            away = distances(center)
            furthest = away.argmax()
            smaller = away[furthest] < radius
            nearest = jnp.where(smaller, center, nearest)
            return center + (block[furthest] - center) / (i + 2.0), nearest, jnp.minimum(radius, away[furthest])

        mean = block.mean(axis=0)
        _, center, _ = lax.fori_loop(0, _SHRINKING, shrink, (mean, mean, jnp.float32(jnp.inf)))
        # Measured anew.
        return center, reach(distances(center).max(), center)

    blocks = keys.reshape(-1, rows, keys.shape[1])
    return ClusterIndex(*lax.map(of_block, blocks, batch_size=64))


def reach(radii: jax.Array, centers: jax.Array) -> jax.Array:
    """Radii `[...]` of balls around centres `[..., d]`, with what rounding may add to a product with any key of a ball,
    so that no bound is too low. Of NumPy arrays in NumPy."""
    rounding = (2 * centers.shape[-1] + 8) * float(jnp.finfo(jnp.float32).eps)
    return radii + rounding * (radii + (centers * centers).sum(axis=-1) ** 0.5)


def bounds(index: ClusterIndex, scaled: jax.Array) -> jax.Array:
    """Upper bounds `[batch, blocks]` of the products of queries `[batch, d]` with the keys of every block; +inf where a
    key is not finite."""
    near = jnp.einsum("bd,cd->bc", scaled, index.centers, precision=lax.Precision.HIGHEST)
    bounds = near + jnp.linalg.norm(scaled, axis=1)[:, None] * index.radii[None, :]
    return jnp.where(jnp.isnan(bounds), jnp.inf, bounds)


def check(index: ClusterIndex, keys: jax.Array) -> None:
    """Refuses an index that cannot be one of these keys.

    Raises:
      ValueError: naming the shapes.
    """
    centers, radii = index.centers.shape, index.radii.shape
    blocks = radii[0] if len(radii) == 1 else 0
    if not blocks or centers != (blocks, keys.shape[1]) or keys.shape[0] % blocks:
        raise ValueError(
            f"an index of centers {centers} and radii {radii} does not divide keys {keys.shape} into equal blocks: it "
            "belongs to other keys"
        )


def _checked(keys: jax.Array, rows: int) -> jax.Array:
    keys = jnp.asarray(keys)
    if keys.ndim != 2 or not jnp.issubdtype(keys.dtype, jnp.floating):
        raise ValueError(f"keys must be floating [candidates, d], got {keys.dtype} of shape {keys.shape}")
    if rows < 1:
        raise ValueError(f"a block must have at least 1 row, got {rows}")
    return keys
