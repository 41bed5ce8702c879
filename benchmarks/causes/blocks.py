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
        counts = {name: float(np.median(x)) for name, x in _counts(scaled, keys, index, block).items()}
        radius, length = float(np.median(index.radii)), float(np.median(np.linalg.norm(scaled, axis=1)))
        noise = attention.NOISE * float(np.linalg.norm(problem.keys.std(axis=0)))
        found.append(
            {
                "keys": problem.source,
                "keys of a block": block,
                "blocks": size // block,
                **counts,
                "length of the query": length,
                "radius": radius,
                "length * radius": length * radius,
                "length of the noise": None if options.run is None else noise,
            }
        )
    return found


@partial(jax.jit, static_argnames="block")
def _counts(scaled: jax.Array, keys: jax.Array, index: ops.ClusterIndex, block: int) -> dict[str, jax.Array]:
    """What is counted, `[queries]` each."""

    def of_query(query: jax.Array) -> dict[str, jax.Array]:
        scores = jnp.dot(keys, query, precision=lax.Precision.HIGHEST)
        threshold, support = ops.sparsemax_threshold(scores)
        best, bounds = scores.max(), clusters.bounds(index, query[None])[0]
        return {
            "support": support,
            "blocks with support": (scores.reshape(-1, block).max(axis=1) > threshold).sum(),
            "bounds above best - 1": (bounds > best - 1).sum(),
            "bounds above threshold": (bounds > threshold).sum(),
            "best - threshold": best - threshold,
        }

    return lax.map(of_query, scaled, batch_size=_TOGETHER)
