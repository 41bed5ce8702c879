"""Sparsemax of 128 rows of normal scores (standard deviation 3): forward, forward and backward, threshold alone."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import floor, measure
from benchmarks.measure import OURS, Case, Implementation
from protojax import ops

ROWS = 128
SIZES = 1024, 4096, 32768, 262144
WIDTH = 64
"""k of the top-k that entmax starts with."""


def cases(options: Any) -> Iterator[Case]:
    """The cases, one after another: scores of the largest take 134 MB."""
    for size in (256, 512) if options.quick else SIZES:
        scores, cotangent = drawn(size)
        expected, thresholds = reference(scores)
        z = jnp.asarray(scores)
        read = floor.read_seconds(z)
        weights = partial(_close, expected)
        ours = [measure.compiled(OURS, ops.sparsemax, z, check=weights)]
        goal = 1.5 if size == 32768 else 3.0
        yield Case(
            "sparsemax",
            f"forward, D = {size}",
            size,
            measure.with_peers(
                ours,
                partial(_entmax, scores, weights, goal),
                partial(_jax_peer, "optax", "projections", z, weights, 40.0),
                partial(_jax_peer, "jaxopt", "projection", z, weights, None),
            ),
            read,
        )
        yield forward_and_backward(scores, cotangent, expected, read)
        settled = partial(_close, thresholds)
        alone = measure.compiled(OURS, ops.sparsemax_threshold, z, check=lambda r, c=settled: c(r[0]))
        goal = 1 / 1.3 if size == max(SIZES) else None
        once = measure.compiled("jax max", lambda z: z.max(axis=-1), z, goal=goal)
        yield Case("sparsemax", f"threshold and support size, D = {size}", size, [alone, once], read)


def drawn(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and a cotangent of their weights, both float32 `[ROWS, size]`."""
    scores, cotangent = np.random.default_rng(size).normal(0, 3, (2, ROWS, size)).astype(np.float32)
    return scores, cotangent / 3


def forward_and_backward(scores: np.ndarray, cotangent: np.ndarray, expected: np.ndarray, read: float | None) -> Case:
    """The case that needs the derivative by the scores.

    Args:
      scores: as drawn.
      cotangent: likewise.
      expected: the weights by `reference`.
      read: seconds of one read of the scores, the floor; None where nobody asks.
    """
    size = scores.shape[1]
    slopes = partial(_close, _slopes(expected, cotangent))
    given = jnp.asarray(scores), jnp.asarray(cotangent)
    ours = [measure.compiled(OURS, _both, *given, check=lambda r: slopes(r[1]))]
    peers = measure.with_peers(ours, partial(_entmax_both, scores, cotangent, slopes))
    return Case("sparsemax", f"forward and backward, D = {size}", size, peers, read)


def reference(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights and thresholds by a sort in float64, a row at a time."""
    weights, thresholds = np.empty(scores.shape), np.empty(len(scores))
    counts = np.arange(1, scores.shape[1] + 1)
    for row, z in enumerate(scores.astype(np.float64)):
        descending = -np.sort(-z)
        candidates = (np.cumsum(descending) - 1) / counts
        thresholds[row] = candidates[(descending > candidates).sum() - 1]
        weights[row] = np.maximum(z - thresholds[row], 0)
    return weights, thresholds


def _slopes(weights: np.ndarray, cotangent: np.ndarray) -> np.ndarray:
    inside = weights > 0
    mean = (inside * cotangent).sum(axis=1, keepdims=True) / inside.sum(axis=1, keepdims=True)
    return np.where(inside, cotangent - mean, 0)


def _close(expected: np.ndarray, found: Any) -> bool:
    return bool(np.abs(np.asarray(found) - expected).max() < 1e-5)


def _both(z: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A loss that is linear in the weights, and its derivative by the scores."""
    return jax.value_and_grad(lambda z: jnp.vdot(ops.sparsemax(z), cotangent))(z)


def _entmax(scores: np.ndarray, check: Any, goal: float) -> list[Implementation]:
    torch, entmax = measure.torch(), measure.peer("entmax")
    z = torch.from_numpy(scores)
    return [
        Implementation(f"entmax, top-k {WIDTH}", lambda: entmax.sparsemax(z, dim=-1, k=WIDTH), check=check, goal=goal),
        Implementation("entmax, sort", lambda: entmax.sparsemax(z, dim=-1), check=check, goal=10.0),
    ]


def _entmax_both(scores: np.ndarray, cotangent: np.ndarray, check: Any) -> list[Implementation]:
    torch, entmax = measure.torch(), measure.peer("entmax")
    z, g = torch.from_numpy(scores).requires_grad_(), torch.from_numpy(cotangent)

    def run() -> Any:
        z.grad = None
        loss = torch.vdot(entmax.sparsemax(z, dim=-1, k=WIDTH).flatten(), g.flatten())
        loss.backward()
        return z.grad

    return [Implementation(f"entmax, top-k {WIDTH}", run, check=check, goal=3.0)]


def _jax_peer(name: str, module: str, z: jax.Array, check: Any, goal: float | None) -> list[Implementation]:
    project = measure.peer(f"{name}.{module}").projection_simplex
    return [
        measure.compiled(f"{name} projection_simplex", jax.vmap(lambda row: project(row)), z, check=check, goal=goal)
    ]
