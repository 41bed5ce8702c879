"""Shards of a database on disk, placed on the devices one after the other: while one is used, the next is read."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from protojax import ops, sharding
from protojax.edits import EMPTY
from protojax.shards import Shards


class Part(NamedTuple):
    """A shard on the devices, filled up with empty places to the size of the largest."""

    first: int
    host_ids: np.ndarray
    ids: jax.Array
    labels: jax.Array
    keys: jax.Array
    values: jax.Array
    """Of one column of zeros where only supports are wanted."""
    index: ops.ClusterIndex | None


class Reader:
    """Places shards on the devices."""

    def __init__(self, stored: Shards, mesh: Mesh | None, with_values: bool):
        self.stored, self.mesh, self.with_values = stored, mesh, with_values
        self.keys, self.values = (stored.place("embeddings", name) for name in ("keys", "values"))
        shards, index = stored.manifest.shards, stored.clusters()
        self.block = 1 if index is None else stored.capacity // len(index.radii)
        aligned = all(shard.first % self.block == 0 for shard in shards)
        self.index, self.block = (index, self.block) if aligned else (None, 1)
        step = self.block * (1 if mesh is None else mesh.size)
        self.size = -(-max(shard.rows for shard in shards) // step) * step

    def blocks(self, position: int) -> ops.ClusterIndex | None:
        """The index of one shard."""
        if self.index is None:
            return None
        first, count = self.stored.manifest.shards[position].first // self.block, self.size // self.block
        own = [x[first : first + count] for x in self.index]
        return ops.ClusterIndex(*(np.pad(x, [(0, count - len(x))] + [(0, 0)] * (x.ndim - 1)) for x in own))

    def read(self, position: int) -> Part:
        """One shard."""
        stored, shard = self.stored, self.stored.manifest.shards[position]

        def column(array: int, fill: int = 0) -> np.ndarray:
            part = stored.column(position, array)
            full = np.full((self.size, *part.shape[1:]), fill, part.dtype)
            full[: shard.rows] = part
            return full

        ids = column(stored.place("ids"), EMPTY)
        values = column(self.values) if self.with_values else np.zeros((self.size, 1), np.float32)
        host = ids, column(stored.place("labels"), EMPTY), column(self.keys), values
        if self.mesh is None:
            return Part(shard.first, ids, *map(jnp.asarray, host), self.blocks(position))
        placed = jax.device_put(host, sharding.along_data(self.mesh))
        return Part(shard.first, ids, *placed, self.blocks(position))

    def ahead(self, order: Sequence[int], is_needed: Callable[[int], bool]) -> Iterator[Part]:
        """The shards that are needed; a user who lets go of each before asking for the next holds two at a time."""
        with ThreadPoolExecutor(1) as pool:
            waiting = None
            for position in order:
                if not is_needed(position):
                    continue
                following = pool.submit(self.read, position)
                if waiting is not None:
                    yield waiting.result()
                waiting = following
            if waiting is not None:
                yield waiting.result()
