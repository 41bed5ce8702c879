"""Permutations that keys select, evaluated element by element in uint32, alike in NumPy and in compiled functions."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

_ROUNDS = 12
"""Even; fewer leave permutations of less than 10 examples visibly uneven."""

Array = Any
"""A NumPy array, or a JAX array."""


def permute(xp: Any, x: Array, tweak: Array, sizes: np.ndarray, keys: np.ndarray) -> Array:
    """The images of x under the permutations of `range(size)` that (keys, tweak) select.

    A Feistel network over a rectangle of left x right >= size cells that is as square as possible; what falls on one of
    the few spare cells is permuted again, until it does not (Black and Rogaway 2002, "Ciphers with arbitrary finite
    domains").

    Args:
      xp: `numpy`, or `jax.numpy` inside a compiled function.
      x: uint32 `[...]`, each below its size.
      tweak: uint32 that broadcasts with x, such as the number of an epoch.
      sizes: uint32 that broadcasts with x.
      keys: two arrays uint32 that broadcast with x.

    Returns:
      uint32 `[...]`, each below its size.
    """
    # One side is even, as a rectangle of odd sides has even permutations only.
    left_sizes = 2 * np.ceil(np.sqrt(sizes.astype(np.float64)) / 2).astype(np.uint32)
    right_sizes = (sizes + left_sizes - 1) // left_sizes
    base = mix(tweak ^ keys[0]) ^ keys[1]

    def two_rounds(i: Any, sides: tuple[Array, Array]) -> tuple[Array, Array]:
        left, right = sides
        key = base + np.uint32(2) * i
        left = (left + hashed(right, key) % left_sizes) % left_sizes
        right = (right + hashed(left, key + np.uint32(1)) % right_sizes) % right_sizes
        return left, right

    def once(x: Array) -> Array:
        sides = x // right_sizes, x % right_sizes
        if xp is jnp:
            left, right = lax.fori_loop(np.uint32(0), np.uint32(_ROUNDS // 2), two_rounds, sides)
        else:
            for i in range(_ROUNDS // 2):
                sides = two_rounds(np.uint32(i), sides)
            left, right = sides
        return left * right_sizes + right

    def outside(x: Array) -> Array:
        return (x >= sizes).any()

    def again(x: Array) -> Array:
        return xp.where(x >= sizes, once(x), x)

    x = once(x)
    if xp is jnp:
        return lax.while_loop(outside, again, x)
    while outside(x):
        x = again(x)
    return x


def hashed(x: Array, key: Array) -> Array:
    """uint32 that look independent of x and of the key."""
    # Two mixers, as keys here differ in their low bits only.
    return mix(x + mix(key))


def mix(x: Array) -> Array:
    """A bijection of uint32 in which every bit of the input changes every bit of the output about half of the time."""
    # Constants by C. Wellons, "Prospecting for Hash Functions" (2018).
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))
