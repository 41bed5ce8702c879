"""What this machine can do at best, measured in the same run: reading memory, and multiplying matrices."""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Floor(NamedTuple):
    """Measured peaks."""

    bytes_per_second: float
    """Reading one large array."""
    flops_per_second: float
    """Multiplying two square float32 matrices."""

    def seconds(self, flops: float = 0.0, read: float = 0.0) -> float:
        """The least time for so much arithmetic and so many bytes read."""
        return max(flops / self.flops_per_second, read / self.bytes_per_second)


def measure(quick: bool = False) -> Floor:
    """Measures the peaks of the first device."""
    array = jnp.ones((4 if quick else 128, 262144), jnp.float32)
    matrix = jnp.ones((256 if quick else 2048,) * 2, jnp.float32)
    product = jax.jit(lambda a: jnp.dot(a, a, precision=jax.lax.Precision.HIGHEST))
    repeats = 3 if quick else 10
    return Floor(
        array.nbytes / _best(_read, array, repeats), 2.0 * matrix.shape[0] ** 3 / _best(product, matrix, repeats)
    )


def read_seconds(scores: jax.Array, repeats: int = 15) -> float:
    """One maximum over the last axis of the scores: the least that any normalizer of them can take."""
    return _best(_read, scores, repeats)


@jax.jit
def _read(array: jax.Array) -> jax.Array:
    return jnp.max(array, axis=-1)


def _best(function: Any, array: jax.Array, repeats: int) -> float:
    jax.block_until_ready(function(array))
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(array))
        taken.append(time.perf_counter() - start)
    return sorted(taken)[len(taken) // 2]
