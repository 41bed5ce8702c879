"""How a kernel moves over its input, and sums over a batch in parts that fit the cache: what gradients on CPU share."""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_CHUNK_BYTES = 2_500_000
"""Of patches at a time on a device: what stays in the cache between writing and reading them."""

Padding = tuple[tuple[int, int], ...]


class Window(NamedTuple):
    """How a kernel moves over its input."""

    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    """Of the input; all 1 unless the strides are."""
    padding: Padding


def flipped(weights: jax.Array) -> jax.Array:
    """The kernel `[..., channels, filters]` read from its end."""
    return jnp.flip(weights, tuple(range(weights.ndim - 2)))


def positions_of(inputs: jax.Array, weights: jax.Array, window: Window) -> tuple[int, ...]:
    """How many times the kernel fits along each axis."""
    sizes = zip(inputs.shape[1:-1], weights.shape[:-2], window.strides, window.padding, strict=True)
    return tuple((low + size + high - kernel) // stride + 1 for size, kernel, stride, (low, high) in sizes)


def window_back(window: Window, inputs: jax.Array, weights: jax.Array, cotangent: jax.Array) -> Window:
    """How the mirrored kernel moves over the cotangent: what was a stride spreads, what was spread is a stride."""
    padding = []
    for size, kernel, stride, dilation, (low, _), positions in zip(
        inputs.shape[1:-1], weights.shape, *window, cotangent.shape[1:-1], strict=False
    ):
        before = kernel - 1 - low
        spread, covered = (size - 1) * dilation + 1, (positions - 1) * stride + 1
        padding.append((before, spread + kernel - 1 - before - covered))
    return Window(window.dilation, window.strides, tuple(padding))


def spread_cotangent(
    window: Window, inputs: jax.Array, weights: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, Window]:
    """The cotangent with the zeros that `window_back` asks for, and how the mirrored kernel moves over that."""
    strides, dilation, padding = window_back(window, inputs, weights, cotangent)
    spread = [(low, high, between - 1) for (low, high), between in zip(padding, dilation, strict=True)]
    cotangent = lax.pad(cotangent, jnp.zeros((), cotangent.dtype), [(0, 0, 0), *spread, (0, 0, 0)])
    return cotangent, Window(strides, (1,) * len(strides), ((0, 0),) * len(strides))


def sum_over_chunks(
    product: Callable[[jax.Array, jax.Array], jax.Array], example_bytes: int, inputs: jax.Array, cotangent: jax.Array
) -> jax.Array:
    """Sum of `product(inputs, cotangent)` `[devices, ...]` over devices and chunks of the batch that fit the cache."""
    chunk = _chunk(inputs.shape[0], example_bytes)
    # Chunks of examples far apart, which leaves a batch split over devices where it is.
    inputs, cotangent = (x.reshape(chunk, -1, *x.shape[1:]) for x in (inputs, cotangent))

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        return total + product(*(lax.dynamic_index_in_dim(x, i, 1, keepdims=False) for x in (inputs, cotangent)))

    nothing = jax.eval_shape(product, inputs[:, 0], cotangent[:, 0])
    return lax.fori_loop(0, inputs.shape[1], add, lax.full_like(inputs, 0, nothing.dtype, nothing.shape)).sum(0)


def shifts(
    x: jax.Array, kernel: tuple[int, ...], strides: tuple[int, ...], padding: Padding, positions: tuple[int, ...]
) -> jax.Array:
    """x `[batch, ..., channels]`, padded and read from every offset: `[batch, *positions, offsets * channels]`."""
    return jnp.concatenate(list(shifted(x, kernel, strides, padding, positions)), axis=-1)


def shifted(
    x: jax.Array, kernel: tuple[int, ...], strides: tuple[int, ...], padding: Padding, positions: tuple[int, ...]
) -> Iterator[jax.Array]:
    """`[batch, *positions, channels]` for each offset of the kernel."""
    zero = jnp.zeros((), x.dtype)
    x = lax.pad(x, zero, [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)])
    for offset in itertools.product(*(range(size) for size in kernel)):
        spans = zip(offset, positions, strides, strict=True)
        slices = [slice(first, first + (count - 1) * stride + 1, stride) for first, count, stride in spans]
        yield x[:, *slices]


def devices(batch: int) -> int:
    """Over how many devices the batch may be split: sums of each are added once, after all chunks."""
    count = jax.device_count()
    return count if batch % count == 0 else 1


def _chunk(batch: int, example_bytes: int) -> int:
    """How many examples of a batch go into one product: a divisor of the batch, the same number from every device."""
    parts = devices(batch)
    each = batch // parts
    most = min(each, max(1, _CHUNK_BYTES // example_bytes))
    return parts * next(count for count in range(most, 0, -1) if each % count == 0)
