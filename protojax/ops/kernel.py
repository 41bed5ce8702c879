"""The pass over all keys as one kernel (Pallas, for GPUs): scores are reduced to the maxima of blocks on the chip.

Without it XLA writes the scores of a tile to memory and reads them back, which for keys of 16 numbers is most of what
the pass moves. It computes what `streamed` computes by tiles, with +inf for a block that has a key that is not finite
or beyond `tiles.LARGE`. The Triton backend of Pallas compiles it, which jax 0.12 says is going to be removed.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from protojax.ops import tiles

_KEYS, _QUERIES = 128, 64
"""Of one program; their scores are held in registers."""

_LEAST = 16
"""Numbers of a key: tensor cores take no fewer, and only powers of two."""


@functools.partial(jax.jit, static_argnames=("rows", "interpret"))
def block_maxima(keys: jax.Array, scaled: jax.Array, rows: int, interpret: bool) -> jax.Array:
    """The highest score in every block of consecutive keys; the last block may be shorter.

    Args:
      keys: floating `[candidates, d]`; copied where d is not a power of two from 16 on.
      scaled: float32 `[batch, d]`: queries, divided by sqrt(d).
      rows: keys in a block, a power of two.
      interpret: runs the kernel's steps one by one without compiling it, which every device can.

    Returns:
      float32 `[blocks, batch]`.

    Raises:
      ValueError: `rows` is not a power of two.
    """
    # Nothing else is to fail on a version without it.
    from jax.experimental.pallas import triton

    if rows < 1 or rows & (rows - 1):
        raise ValueError(f"rows must be a power of two for kernel = 'pallas', got {rows}")
    count, size = keys.shape
    batch, tile = scaled.shape[0], max(rows, _KEYS)
    wide = max(_LEAST, 1 << (size - 1).bit_length())
    if wide > size:
        keys, scaled = (jnp.pad(x, ((0, 0), (0, wide - size))) for x in (keys, scaled))

    def program(keys_ref, scaled_ref, maxima_ref) -> None:
        places = pl.program_id(0) * tile + jnp.arange(tile)
        there = (places < count)[:, None]
        own = keys_ref[...].astype(jnp.float32)
        scores = lax.dot_general(own, scaled_ref[...], (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)
        broken = jnp.where(there & ~(jnp.abs(own) < tiles.LARGE), 1, 0).max(axis=1)
        # A maximum may pass over NaN.
        bounds = jnp.where(broken[:, None] > 0, jnp.inf, jnp.where(there, scores, -jnp.inf))
        maxima_ref[...] = bounds.reshape(tile // rows, rows, _QUERIES).max(axis=1)

    blocks = -(-count // rows)
    return pl.pallas_call(
        program,
        out_shape=jax.ShapeDtypeStruct((blocks, batch), jnp.float32),
        grid=(-(-count // tile), -(-batch // _QUERIES)),
        in_specs=[pl.BlockSpec((tile, wide), lambda i, j: (i, 0)), pl.BlockSpec((_QUERIES, wide), lambda i, j: (j, 0))],
        out_specs=pl.BlockSpec((tile // rows, _QUERIES), lambda i, j: (i, j)),
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=4),
    )(keys, scaled)
