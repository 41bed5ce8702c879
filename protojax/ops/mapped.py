"""Solving queries under `jax.vmap`: as more queries of a batch, each as far as it needs.

Mapped in the usual way, a loop goes on and a branch is taken until the slowest row of all is done, for all of them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import custom_batching, export, lax

from protojax.ops.clusters import ClusterIndex
from protojax.ops.listed import Solved
from protojax.ops.tiles import Candidates, Queries

Solve = Callable[[Candidates, Queries, ClusterIndex | None], Solved]


def by_rows(solve: Solve) -> Solve:
    """`solve`, of which a map over queries is one batch; maps over databases take one after the other."""

    @custom_batching.custom_vmap
    def solved(candidates: Candidates, queries: Queries, index: ClusterIndex | None) -> Solved:
        return solve(candidates, queries, index)

    @solved.def_vmap
    def over_all(size: int, mapped: Any, *arguments: Any) -> tuple[Solved, Any]:
        if any(jax.tree.leaves((mapped[0], mapped[2]))):
            found = lax.map(lambda i: solved(*_at(i, arguments, tuple(mapped))), jnp.arange(size))
        else:
            candidates, queries, index = arguments
            together = jax.tree.map(lambda x, own: _joined(x, own, size), queries, mapped[1])
            rows = together.scaled.shape[0]
            if export.is_symbolic_dim(rows):
                together = together.with_spare_rows()
            found = solved(candidates, together, index)
            found = jax.tree.map(lambda x: x[:rows].reshape(size, rows // size, *x.shape[1:]), found)
        return found, jax.tree.map(lambda _: True, found)

    return solved


def _at(i: jax.Array, arguments: Any, mapped: Any) -> Any:
    return jax.tree.map(lambda x, own: x[i] if own else x, arguments, mapped)


def _joined(x: jax.Array, mapped: bool, size: int) -> jax.Array:
    """`[size, batch, ...]` as `[size * batch, ...]`, where not mapped from `[batch, ...]`."""
    x = x if mapped else jnp.broadcast_to(x, (size, *x.shape))
    return x.reshape(-1, *x.shape[2:])
