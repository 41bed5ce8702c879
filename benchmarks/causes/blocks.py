"""How many blocks of an index one query has to open, for blocks of several sizes.

A block has to be opened where the bound of its scores exceeds the threshold of sparsemax: q.c + |q| r, of a ball of
centre c and radius r (`ops.clusters`). Before any key is read, the threshold is only known to be at least the best
score less 1.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import attention
from protojax import ops
from protojax.ops import clusters

BLOCKS = 8, 16, 32, 64
"""Candidates in a block."""

_COUNTED = (
    "support",
    "blocks with support",
    "bounds above best - 1",
    "bounds above threshold",
    "best - threshold",
)

_TOGETHER = 8
"""Queries whose scores are held at once."""


def rows(options: Any) -> list[dict[str, Any]]:
    """One row a block size: medians over queries, of the keys of `benchmarks.attention` ordered for that size."""
    size, queries = (2048, 8) if options.quick else (1_000_000, 128)
    found = []
    for block in BLOCKS[-1:] if options.quick else BLOCKS:
        problem = attention.clustered(options, size, queries, block)
        scaled = problem.queries / np.float32(problem.keys.shape[1] ** 0.5)
        keys = jnp.asarray(problem.keys)
        index = ops.cluster_index(keys, block)
        medians = (float(np.median(x)) for x in _counts(scaled, keys, index, block))
        counts = dict(zip(_COUNTED, medians, strict=True))
        radius, length = float(np.median(index.radii)), float(np.median(np.linalg.norm(scaled, axis=1)))
        noise = attention.NOISE * float(np.linalg.norm(problem.keys.std(axis=0)))
        found.append(
            {
                "keys": problem.source,
                "keys of a block": block,
                "blocks": size // block,
                **counts,
                "bounds and keys to read": size // block + block * counts["bounds above threshold"],
                "length of the query": length,
                "radius": radius,
                "length * radius": length * radius,
                "length of the noise": None if options.run is None else noise,
            }
        )
    return found


@partial(jax.jit, static_argnames="block")
def _counts(scaled: jax.Array, keys: jax.Array, index: ops.ClusterIndex, block: int) -> tuple[jax.Array, ...]:
    """What `_COUNTED` names, `[queries]` each."""

    def of_query(query: jax.Array) -> tuple[jax.Array, ...]:
        scores = jnp.dot(keys, query, precision=lax.Precision.HIGHEST)
        threshold, support = ops.sparsemax_threshold(scores)
        best, bounds = scores.max(), clusters.bounds(index, query[None])[0]
        return (
            support,
            (scores.reshape(-1, block).max(axis=1) > threshold).sum(),
            (bounds > best - 1).sum(),
            (bounds > threshold).sum(),
            best - threshold,
        )

    return lax.map(of_query, scaled, batch_size=_TOGETHER)
