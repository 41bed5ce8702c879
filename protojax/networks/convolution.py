"""Convolution whose gradients XLA runs at full speed on CPU, inside loops too.

XLA for CPU brings a convolution into the form that its fast kernels read only where it stands outside every loop. The
gradients of a convolution are not in that form: a scan over training steps, or over chunks of candidates, runs the
gradient by the input 10 to 30 times and the gradient by the weights 40 to 250 times slower than the same outside.
Outside, the gradient by the weights is still slow for large batches, being a convolution with a window as large as the
image. So on CPU the gradient by the input is written in the fast form here, and the gradient by the weights as products
of matrices. The convolution itself is in the fast form already, and stays as it is everywhere.

A transposed convolution, which spreads its input by zeros (`nn.Conv(input_dilation=...)`), is the same with the roles
exchanged: its gradient by the input is a convolution with a stride, whose input is the cotangent.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from protojax.networks.depthwise import depthwise
from protojax.networks.windows import (
    Padding,
    Window,
    devices,
    flipped,
    shifts,
    spread_cotangent,
    sum_over_chunks,
    window_back,
)


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """`lax.conv_general_dilated`, for `nn.Conv(conv_general_dilated=...)`; other gradients on CPU, equal to rounding.

    They are for one or two spatial axes, channels last (kernels `[..., channels, filters]`), one type, strides or a
    dilation of the input but not both, no dilation of the kernel and no groups; everything else is left to JAX. They
    have no forward mode: `jax.grad` of `jax.grad` is fine, `jax.jvp` is not. One filter a channel (depthwise) in
    float32 is, on CPU, `depthwise`, whose value, too, is equal only to rounding.
    """
    axes = lhs.ndim - 2
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    spatial = tuple(range(1, axes + 1))
    channels_last = (0, axes + 1, *spatial)
    ones = (1,) * axes
    strides, dilation = tuple(window_strides), tuple(lhs_dilation or ones)
    plain = (
        axes in (1, 2)
        and numbers == lax.ConvDimensionNumbers(channels_last, (axes + 1, axes, *range(axes)), channels_last)
        and (dilation == ones or strides == ones and not isinstance(padding, str))
        and tuple(rhs_dilation or ones) == ones
        and batch_group_count == 1
        and lhs.dtype == rhs.dtype == (preferred_element_type or lhs.dtype)
        and lhs.size > 0
        and all(size >= 0 for size in _room(lhs.shape[1:-1], dilation, rhs.shape[:-2], padding))
    )
    one_filter_a_channel = 1 < feature_group_count == lhs.shape[-1] == rhs.shape[-1] and dilation == ones
    if plain and one_filter_a_channel and lhs.dtype == jnp.float32:
        if isinstance(padding, str):
            padding = lax.padtype_to_pads(lhs.shape[1:-1], rhs.shape[:-2], strides, padding)
        window = Window(strides, dilation, tuple((low, high) for low, high in padding))
        standard = partial(_standard, window=window, precision=precision, groups=lhs.shape[-1])
        return lax.platform_dependent(lhs, rhs, cpu=lambda *both: depthwise(*both, window), default=standard)
    if not plain or feature_group_count > 1:
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            batch_group_count,
            precision,
            preferred_element_type,
        )
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:-1], rhs.shape[:-2], strides, padding)
    return _convolve(lhs, rhs, Window(strides, dilation, tuple((low, high) for low, high in padding)), precision)


def _room(
    sizes: Sequence[int], dilation: Sequence[int], kernel: Sequence[int], padding: str | Sequence[tuple[int, int]]
) -> list[int]:
    """How far the kernel can move along each axis of a padded input; below 0 where it does not fit."""
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(sizes, kernel, (1,) * len(sizes), padding)
    axes = zip(sizes, dilation, kernel, padding, strict=True)
    return [(size - 1) * between + 1 + low + high - k for size, between, k, (low, high) in axes]


def _standard(
    inputs: jax.Array, weights: jax.Array, window: Window, precision: lax.PrecisionLike, groups: int = 1
) -> jax.Array:
    axes = "HW"[: inputs.ndim - 2]
    numbers = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    strides, dilation, padding = window
    return lax.conv_general_dilated(
        inputs,
        weights,
        strides,
        padding,
        dilation,
        dimension_numbers=numbers,
        feature_group_count=groups,
        precision=precision,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(inputs: jax.Array, weights: jax.Array, window: Window, precision: lax.PrecisionLike) -> jax.Array:
    return _standard(inputs, weights, window, precision)


def _forward(
    inputs: jax.Array, weights: jax.Array, window: Window, precision: lax.PrecisionLike
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _standard(inputs, weights, window, precision), (inputs, weights)


def _backward(
    window: Window, precision: lax.PrecisionLike, saved: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def standard(argument: int, inputs: jax.Array, weights: jax.Array, cotangent: jax.Array) -> jax.Array:
        _, pull = jax.vjp(lambda *both: _standard(*both, window, precision), inputs, weights)
        return pull(cotangent)[argument]

    # The platform is known when the program is lowered, which may be for another one than that of this process. Two
    # choices and not one, so that a gradient that nobody reads, such as the one by images, disappears.
    by_inputs, by_weights = (
        lax.platform_dependent(
            *saved, cotangent, cpu=partial(own, window, precision), default=partial(standard, argument)
        )
        for argument, own in enumerate((_input_gradient, _weight_gradient))
    )
    return by_inputs, by_weights


_convolve.defvjp(_forward, _backward)


def _mirrored(weights: jax.Array) -> jax.Array:
    return flipped(weights).swapaxes(-1, -2)


def _input_gradient(
    window: Window, precision: lax.PrecisionLike, inputs: jax.Array, weights: jax.Array, cotangent: jax.Array
) -> jax.Array:
    """The convolution of the spread cotangent with the mirrored kernel."""
    spread, window = spread_cotangent(window, inputs, weights, cotangent)
    return _standard(spread, _mirrored(weights), window, precision)


def _weight_gradient(
    window: Window, precision: lax.PrecisionLike, inputs: jax.Array, weights: jax.Array, cotangent: jax.Array
) -> jax.Array:
    if max(window.dilation) == 1:
        return _product_of_shifts(window.strides, window.padding, precision, inputs, weights, cotangent)
    back = window_back(window, inputs, weights, cotangent)
    mirrored = _mirrored(weights)
    return _mirrored(_product_of_shifts(back.strides, back.padding, precision, cotangent, mirrored, inputs))


def _product_of_shifts(
    strides: tuple[int, ...],
    padding: Padding,
    precision: lax.PrecisionLike,
    inputs: jax.Array,
    weights: jax.Array,
    cotangent: jax.Array,
) -> jax.Array:
    """Gradient by the weights: the product of shifted inputs and shifted cotangents, summed over chunks of the batch.

    A matrix product of 3x3 patches `[positions, 9 * channels]` with the cotangent `[positions, filters]` spends more
    time on copies than on arithmetic where filters are few. Half of the shifts belong to the cotangent instead: a
    pixel meets the cotangents of all rows that read it, `[positions, 3 * channels]` and `[positions, 3 * filters]`,
    whose product has an entry for each of the 9 shifts. That takes a first axis of stride 1 and another axis.
    """
    rows = weights.shape[0] if strides[0] == 1 and len(strides) == 2 else 1
    channels, filters = weights.shape[-2:]
    others = weights.shape[1:-2] if rows > 1 else weights.shape[:-2]

    def product(inputs: jax.Array, cotangent: jax.Array) -> jax.Array:
        positions = cotangent.shape[1:-1]
        if rows > 1:
            low, high = padding[0]
            positions = (inputs.shape[1], *positions[1:])
            cotangent = shifts(cotangent, (rows, 1), (1, 1), ((rows - 1 - low, rows - 1 - high), (0, 0)), positions)
            inputs = shifts(inputs, (1, *others), strides, ((0, 0), *padding[1:]), positions)
        else:
            inputs = shifts(inputs, others, strides, padding, positions)
        parts = devices(inputs.shape[0])
        inputs, cotangent = (x.reshape(parts, -1, x.shape[-1]) for x in (inputs, cotangent))
        summed_in = jnp.promote_types(inputs.dtype, jnp.float32)
        return jnp.einsum("pia,pib->pab", inputs, cotangent, precision=precision, preferred_element_type=summed_in)

    copied = (math.prod(others) * channels + rows * filters) * inputs.dtype.itemsize
    total = sum_over_chunks(product, copied * math.prod(cotangent.shape[1:-1]), inputs, cotangent)
    total = total.reshape(*others, channels, rows, filters)
    if rows > 1:
        # Reading cotangents from before to after meets the rows of the kernel from last to first.
        total = jnp.moveaxis(jnp.flip(total, -2), -2, 0)
    return total.reshape(weights.shape).astype(weights.dtype)
