"""The candidate database: encoded training examples as one pytree, which decisions lean on."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.sharding import Mesh, NamedSharding

from protojax import edits, ops, sharding
from protojax.edits import EMPTY
from protojax.ops.clusters import reach

_WRITTEN_AT_ONCE = 256
"""Rows that `append` writes with one compiled call, so that their number compiles nothing."""


@struct.dataclass
class CandidateDatabase:
    """Encoded training examples; a place without one has the id -1 and never gets a weight.

    A pytree, so that it goes through `jax.jit` as an argument. Its functions change nothing in place and return a new
    database; they read ids and labels on the host, so they stand outside `jax.jit`. Those that keep the capacity keep
    every shape and placement: nothing that takes the database as an argument compiles again.
    """

    ids: jax.Array
    """int32 `[capacity]`, all different but for the -1 of empty places."""
    labels: jax.Array
    """int32 `[capacity]`, -1 in empty places."""
    embeddings: Any
    """What `Method.encode` made of them, a pytree of arrays `[capacity, ...]`; of ProtoAttend `keys` and `values`.
    What stands in empty places means nothing."""
    clusters: ops.ClusterIndex | None = None
    """Centres and radii of consecutive blocks of `embeddings["keys"]`, or None; see `index`."""
    encoder: jax.Array | None = None
    """uint8 `[32]`, the SHA-256 of the parameters that encoded the examples; None where nobody said. A leaf, so that
    another encoder compiles nothing."""
    mesh: Mesh | None = struct.field(pytree_node=False, default=None)
    """Over whose first axis the places are split; None where every device that is asked holds all of them. Not a leaf:
    inside `jax.jit` nothing else tells where they lie, and attention goes about it by that."""

    @property
    def capacity(self) -> int:
        """Places, empty ones included."""
        return self.ids.shape[0]

    @property
    def count(self) -> jax.Array:
        """int32, how many places hold an example."""
        return (self.ids != EMPTY).sum(dtype=jnp.int32)

    @property
    def rows_a_block(self) -> int:
        """Places of a block of the index; 1 without one."""
        return 1 if self.clusters is None else self.capacity // self.clusters.radii.shape[0]

    @property
    def encoder_sha256(self) -> str | None:
        """The hash of the encoder as hexadecimal digits."""
        return None if self.encoder is None else np.asarray(self.encoder).tobytes().hex()

    def append(self, ids: Sequence[int], labels: Sequence[int], embeddings: Any) -> "CandidateDatabase":
        """Puts examples into the first empty places.

        Args:
          ids: integers `[n]`, from 0, none of them here yet.
          labels: integers `[n]`, from 0.
          embeddings: the structure of those here, finite arrays `[n, ...]`, of the same encoder.

        Raises:
          ValueError: an id is negative, repeated or here already, a label is negative, shapes do not fit, an embedding
            is not finite, or fewer places are empty than needed.
        """
        ids, labels, own = edits.integers(ids, "ids"), edits.integers(labels, "labels"), sharding.to_host(self.ids)
        edits.check_new(ids, labels, own)
        rows = edits.fitting(embeddings, self.embeddings, ids)
        empty = np.flatnonzero(own == EMPTY)
        if len(ids) > len(empty):
            needed = self.capacity + len(ids) - len(empty)
            raise ValueError(
                f"{len(ids)} examples do not fit: {len(empty)} of {self.capacity} places are empty; make room with "
                f"grow({max(needed, 2 * self.capacity)}) first, or remove others"
            )
        places = empty[: len(ids)]
        clusters = self.clusters
        if clusters is not None:
            clusters = _widened(clusters, places // self.rows_a_block, _keys(rows))
        return self.replace(
            ids=_set(self.ids, places, ids),
            labels=_set(self.labels, places, labels),
            embeddings=_written(self.embeddings, places, rows),
            clusters=clusters,
        )

    def remove(self, ids: Sequence[int]) -> "CandidateDatabase":
        """Empties the places of these examples.

        Raises:
          ValueError: an id is not here, or repeated.
        """
        places = edits.places_of(edits.integers(ids, "ids"), sharding.to_host(self.ids))
        return self.replace(ids=_set(self.ids, places, EMPTY), labels=_set(self.labels, places, EMPTY))

    def relabel(self, ids: Sequence[int], label: int | Sequence[int]) -> "CandidateDatabase":
        """Gives these examples another label: one for all, or one each.

        Raises:
          ValueError: an id is not here, or repeated, or a label is negative, or there is not one a place.
        """
        ids = edits.integers(ids, "ids")
        labels = edits.labels_for(label, ids)
        return self.replace(labels=_set(self.labels, edits.places_of(ids, sharding.to_host(self.ids)), labels))

    def grow(self, capacity: int) -> "CandidateDatabase":
        """The same examples in the same places, with empty ones behind them up to `capacity`.

        Raises:
          ValueError: the capacity is below the present one, or not a multiple of the blocks of the index or of the
            devices that share the rows.
        """
        if capacity < self.capacity:
            raise ValueError(f"a database of capacity {self.capacity} cannot grow to {capacity}; compact() makes less")
        self._check_multiple(capacity)
        order = np.full(capacity, EMPTY)
        order[: self.capacity] = np.arange(self.capacity)
        grown = self._arranged(order)
        if self.clusters is None:
            return grown
        more = (capacity - self.capacity) // self.rows_a_block
        # An empty block is a ball of radius 0 around 0, which holds all of its zeros.
        padded = jax.tree.map(lambda x: jnp.pad(x, [(0, more)] + [(0, 0)] * (x.ndim - 1)), self.clusters)
        return grown.replace(clusters=padded)

    def compact(self, capacity: int | None = None) -> "CandidateDatabase":
        """The examples in their order, without empty places between them; an index is measured anew.

        Args:
          capacity: of the result; None for as little as holds them (and at least one place).

        Raises:
          ValueError: the capacity does not hold the examples, or as `grow`.
        """
        occupied = np.flatnonzero(sharding.to_host(self.ids) != EMPTY)
        if capacity is None:
            step = self._step()
            capacity = -(-max(len(occupied), 1) // step) * step
        if capacity < max(len(occupied), 1):
            raise ValueError(f"capacity {capacity} does not hold the {len(occupied)} examples of this database")
        self._check_multiple(capacity)
        order = np.full(capacity, EMPTY)
        order[: len(occupied)] = occupied
        compacted = self._arranged(order)
        return compacted if self.clusters is None else compacted._indexed(self.rows_a_block)

    def index(self, rows: int = 128) -> "CandidateDatabase":
        """Sorts the examples so that near keys are neighbours, and measures each block of `rows` of them.

        Attention skips blocks that cannot get a weight; no result changes but for the order of the places. The capacity
        is rounded up to whole blocks, empty places come last.

        Args:
          rows: places of a block.

        Raises:
          ValueError: there are no `keys` among the embeddings, no examples, or no rows.
        """
        if rows < 1:
            raise ValueError(f"blocks of {rows} rows: give at least 1")
        occupied = np.flatnonzero(sharding.to_host(self.ids) != EMPTY)
        if not len(occupied):
            raise ValueError("an index needs at least one example; this database is empty")
        keys = sharding.to_host(_keys(self.embeddings))
        order = occupied[ops.cluster(keys[occupied], rows)]
        plain = self.replace(clusters=None)
        step = rows * plain._step()
        filled = np.full(-(-self.capacity // step) * step, EMPTY)
        filled[: len(order)] = order
        return plain._arranged(filled)._indexed(rows)

    def split(self, mesh: Mesh) -> "CandidateDatabase":
        """Splits the places evenly over the devices of a mesh; empty ones fill the capacity up."""
        # Another mesh may divide the capacity in other parts.
        own = self if self.mesh in (None, mesh) else self.whole()
        step = mesh.size * own.rows_a_block
        grown = own.grow(-(-own.capacity // step) * step)
        rows = sharding.split(sharding.to_host((grown.ids, grown.labels, grown.embeddings)), mesh)
        few = jax.device_put(sharding.to_host((grown.clusters, grown.encoder)), sharding.replicated(mesh))
        return CandidateDatabase(*rows, *few, mesh=mesh)

    def whole(self) -> "CandidateDatabase":
        """The same places on one device; where several processes share them, all must call it, and each gets all."""
        return jax.tree.map(jnp.asarray, sharding.to_host(self)).replace(mesh=None)

    def _indexed(self, rows: int) -> "CandidateDatabase":
        return self.replace(clusters=ops.cluster_index(_keys(self.embeddings), rows))

    def _step(self) -> int:
        """What a capacity has to be a multiple of: every device holds as many whole blocks."""
        placed = self.ids.sharding
        parts = placed.num_devices if not placed.is_fully_replicated else 1
        return parts * self.rows_a_block

    def _check_multiple(self, capacity: int) -> None:
        if capacity % (step := self._step()):
            raise ValueError(
                f"capacity {capacity} is no multiple of {step} (blocks of {self.rows_a_block} rows, devices); "
                f"choose {-(-capacity // step) * step}"
            )

    def _arranged(self, order: np.ndarray) -> "CandidateDatabase":
        """The places `order` int `[new capacity]` of this database, -1 for an empty one."""
        columns = np.full((2, len(order)), EMPTY, np.int32)
        columns[:, order >= 0] = np.stack(sharding.to_host((self.ids, self.labels)))[:, order[order >= 0]]
        # Beyond the capacity nothing is taken; a negative place would count from the end.
        places = np.where(order < 0, self.capacity, order).astype(np.int32)
        return self.replace(
            ids=_like(self.ids, columns[0]),
            labels=_like(self.labels, columns[1]),
            embeddings=_taken(self.embeddings, places, _split_shardings(self.embeddings)),
            clusters=None,
        )


def _keys(embeddings: Any) -> Any:
    if not isinstance(embeddings, dict) or "keys" not in embeddings:
        raise ValueError("an index needs embeddings['keys'], but the method of this database has none")
    return embeddings["keys"]


def _like(array: jax.Array, host: np.ndarray) -> jax.Array:
    """A host array where `array` is; as free to move as that, because a fixed place is part of a compiled signature."""
    return jax.device_put(host, array.sharding if array.committed else None)


def _set(array: jax.Array, places: np.ndarray, values: Any) -> jax.Array:
    host = sharding.to_host(array).copy()
    host[places] = values
    return _like(array, host)


def _split_shardings(tree: Any) -> tuple[NamedSharding | None, ...]:
    """Of each leaf, the sharding that a compiled function has to be told to keep."""
    return tuple(x.sharding if isinstance(x.sharding, NamedSharding) else None for x in jax.tree.leaves(tree))


def _kept(tree: Any, shardings: tuple[NamedSharding | None, ...]) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    kept = [x if s is None else lax.with_sharding_constraint(x, s) for x, s in zip(leaves, shardings, strict=True)]
    return jax.tree.unflatten(structure, kept)


@partial(jax.jit, static_argnames="shardings")
def _taken(tree: Any, places: Any, shardings: tuple[NamedSharding | None, ...]) -> Any:
    return _kept(jax.tree.map(lambda x: jnp.take(x, places, axis=0, mode="fill", fill_value=0), tree), shardings)


@partial(jax.jit, static_argnames="shardings", donate_argnums=0)
def _put(tree: Any, places: Any, rows: Any, shardings: tuple[NamedSharding | None, ...]) -> Any:
    return _kept(jax.tree.map(lambda x, r: x.at[places].set(r, mode="drop"), tree, rows), shardings)


def _written(tree: Any, places: np.ndarray, rows: Any) -> Any:
    shardings, capacity = _split_shardings(tree), jax.tree.leaves(tree)[0].shape[0]
    # The copy is what the writes may then consume.
    tree = jax.tree.map(jnp.copy, tree)
    for start in range(0, len(places), _WRITTEN_AT_ONCE):
        part = slice(start, start + _WRITTEN_AT_ONCE)
        missing = _WRITTEN_AT_ONCE - len(places[part])
        # Places beyond the capacity are dropped.
        padded = np.pad(places[part], (0, missing), constant_values=capacity).astype(np.int32)
        filled = jax.tree.map(lambda x, p=part, m=missing: np.pad(x[p], [(0, m)] + [(0, 0)] * (x.ndim - 1)), rows)
        tree = _put(tree, padded, filled, shardings)
    return tree


def _widened(clusters: ops.ClusterIndex, blocks: np.ndarray, keys: np.ndarray) -> ops.ClusterIndex:
    """The index with radii that hold `keys` `[n, d]`, which joined the `blocks` `[n]`."""
    centers, radii = sharding.to_host(clusters.centers), sharding.to_host(clusters.radii).copy()
    away = np.linalg.norm(keys.astype(np.float64) - centers[blocks], axis=1)
    np.maximum.at(radii, blocks, reach(away.astype(np.float32), centers[blocks]))
    return clusters._replace(radii=_like(clusters.radii, radii))
