"""Convolution with one filter a channel for CPU, where XLA is slow at it and at its gradients.

Value and gradient by the input are sums over shifts, which XLA fuses. The gradient by the weights adds up products of
the shifted input and the cotangent: chunks that fit the cache, each by a matrix product with ones.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from protojax.networks.windows import Window, devices, flipped, positions_of, shifted, spread_cotangent, sum_over_chunks


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(inputs: jax.Array, weights: jax.Array, window: Window) -> jax.Array:
    """The convolution of `inputs` `[batch, ..., channels]` with `weights` `[..., 1, channels]`, without dilation."""
    positions = positions_of(inputs, weights, window)
    factors = weights.reshape(-1, *[1] * (inputs.ndim - 1), weights.shape[-1])
    views = shifted(inputs, weights.shape[:-2], window.strides, window.padding, positions)
    return sum(view * factor for view, factor in zip(views, factors, strict=True))


def _forward(inputs: jax.Array, weights: jax.Array, window: Window) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return depthwise(inputs, weights, window), (inputs, weights)


def _backward(window: Window, saved: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    inputs, weights = saved
    positions, channels = cotangent.shape[1:-1], cotangent.shape[-1]

    def product(inputs: jax.Array, cotangent: jax.Array) -> jax.Array:
        parts = devices(inputs.shape[0])
        ones = jnp.ones((parts, cotangent.size // channels // parts), cotangent.dtype)
        views = shifted(inputs, weights.shape[:-2], window.strides, window.padding, positions)
        sums = [jnp.einsum("pi,pic->pc", ones, (view * cotangent).reshape(*ones.shape, channels)) for view in views]
        return jnp.stack(sums, axis=1)

    touched = (math.prod(inputs.shape[1:]) + 2 * math.prod(cotangent.shape[1:])) * inputs.dtype.itemsize
    by_weights = sum_over_chunks(product, touched, inputs, cotangent).reshape(weights.shape)
    spread, window = spread_cotangent(window, inputs, weights, cotangent)
    return depthwise(spread, flipped(weights), window), by_weights


depthwise.defvjp(_forward, _backward)
