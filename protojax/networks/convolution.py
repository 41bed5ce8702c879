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

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_CHUNK_BYTES = 2_500_000
"""Of patches at a time on a device: what stays in the cache between writing and reading them."""

Padding = tuple[tuple[int, int], ...]


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
    float32 is, on CPU, a sum over shifts of the input, whose value, too, is equal only to rounding.
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
    )
    depthwise = 1 < feature_group_count == lhs.shape[-1] == rhs.shape[-1] and dilation == ones
    if plain and depthwise and lhs.dtype == jnp.float32:
        if isinstance(padding, str):
            padding = lax.padtype_to_pads(lhs.shape[1:-1], rhs.shape[:-2], strides, padding)
        window = _Window(strides, dilation, tuple((low, high) for low, high in padding))
        both = partial(_depthwise, window), partial(_standard, window=window, precision=precision, groups=lhs.shape[-1])
        return lax.platform_dependent(lhs, rhs, cpu=both[0], default=both[1])
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
    return _convolve(lhs, rhs, _Window(strides, dilation, tuple((low, high) for low, high in padding)), precision)


class _Window(NamedTuple):
    """How a kernel moves over its input."""

    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    """Of the input; all 1 unless the strides are."""
    padding: Padding


def _standard(
    inputs: jax.Array, weights: jax.Array, window: _Window, precision: lax.PrecisionLike, groups: int = 1
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


def _depthwise(window: _Window, inputs: jax.Array, weights: jax.Array) -> jax.Array:
    """One filter a channel, `weights` `[..., 1, channels]`: XLA for CPU is slow at it, but fuses this sum."""
    inputs = lax.pad(inputs, jnp.zeros((), inputs.dtype), [(0, 0, 0), *((*p, 0) for p in window.padding), (0, 0, 0)])
    kernel = weights.shape[:-2]
    positions = [(size - k) // s + 1 for size, k, s in zip(inputs.shape[1:-1], kernel, window.strides, strict=True)]
    total = 0.0
    for shift in itertools.product(*map(range, kernel)):
        ends = [at + (n - 1) * s + 1 for at, n, s in zip(shift, positions, window.strides, strict=True)]
        places = [slice(at, end, s) for at, end, s in zip(shift, ends, window.strides, strict=True)]
        total = total + inputs[:, *places] * weights[*shift, 0][(None,) * (len(shift) + 1)]
    return total


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(inputs: jax.Array, weights: jax.Array, window: _Window, precision: lax.PrecisionLike) -> jax.Array:
    return _standard(inputs, weights, window, precision)


def _forward(
    inputs: jax.Array, weights: jax.Array, window: _Window, precision: lax.PrecisionLike
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _standard(inputs, weights, window, precision), (inputs, weights)


def _backward(
    window: _Window, precision: lax.PrecisionLike, saved: tuple[jax.Array, jax.Array], cotangent: jax.Array
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
    return jnp.flip(weights, tuple(range(weights.ndim - 2))).swapaxes(-1, -2)


def _back(window: _Window, inputs: jax.Array, weights: jax.Array, cotangent: jax.Array) -> _Window:
    """How the mirrored kernel moves over the cotangent: what was a stride spreads, what was spread is a stride."""
    padding = []
    for size, kernel, stride, dilation, (low, _), positions in zip(
        inputs.shape[1:-1], weights.shape, *window, cotangent.shape[1:-1], strict=False
    ):
        before = kernel - 1 - low
        spread, covered = (size - 1) * dilation + 1, (positions - 1) * stride + 1
        padding.append((before, spread + kernel - 1 - before - covered))
    return _Window(window.dilation, window.strides, tuple(padding))


def _input_gradient(
    window: _Window, precision: lax.PrecisionLike, inputs: jax.Array, weights: jax.Array, cotangent: jax.Array
) -> jax.Array:
    """The convolution of the spread cotangent with the mirrored kernel."""
    strides, dilation, padding = _back(window, inputs, weights, cotangent)
    spread = [(low, high, between - 1) for (low, high), between in zip(padding, dilation, strict=True)]
    cotangent = lax.pad(cotangent, jnp.zeros((), cotangent.dtype), [(0, 0, 0), *spread, (0, 0, 0)])
    none = _Window(strides, (1,) * len(strides), ((0, 0),) * len(strides))
    return _standard(cotangent, _mirrored(weights), none, precision)


def _weight_gradient(
    window: _Window, precision: lax.PrecisionLike, inputs: jax.Array, weights: jax.Array, cotangent: jax.Array
) -> jax.Array:
    if max(window.dilation) == 1:
        return _product_of_shifts(window.strides, window.padding, precision, inputs, weights, cotangent)
    back = _back(window, inputs, weights, cotangent)
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
            cotangent = _shifts(cotangent, (rows, 1), (1, 1), ((rows - 1 - low, rows - 1 - high), (0, 0)), positions)
            inputs = _shifts(inputs, (1, *others), strides, ((0, 0), *padding[1:]), positions)
        else:
            inputs = _shifts(inputs, others, strides, padding, positions)
        parts = _devices(inputs.shape[0])
        inputs, cotangent = (x.reshape(parts, -1, x.shape[-1]) for x in (inputs, cotangent))
        summed_in = jnp.promote_types(inputs.dtype, jnp.float32)
        return jnp.einsum("pia,pib->pab", inputs, cotangent, precision=precision, preferred_element_type=summed_in)

    copied = (math.prod(others) * channels + rows * filters) * inputs.dtype.itemsize
    chunk = _chunk(inputs.shape[0], copied * math.prod(cotangent.shape[1:-1]))
    # Chunks of examples far apart, which leaves a batch split over devices where it is.
    inputs, cotangent = (x.reshape(chunk, -1, *x.shape[1:]) for x in (inputs, cotangent))

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        return total + product(*(lax.dynamic_index_in_dim(x, i, 1, keepdims=False) for x in (inputs, cotangent)))

    nothing = jax.eval_shape(product, inputs[:, 0], cotangent[:, 0])
    total = lax.fori_loop(0, inputs.shape[1], add, lax.full_like(inputs, 0, nothing.dtype, nothing.shape)).sum(0)
    total = total.reshape(*others, channels, rows, filters)
    if rows > 1:
        # Reading cotangents from before to after meets the rows of the kernel from last to first.
        total = jnp.moveaxis(jnp.flip(total, -2), -2, 0)
    return total.reshape(weights.shape).astype(weights.dtype)


def _shifts(
    x: jax.Array, kernel: tuple[int, ...], strides: tuple[int, ...], padding: Padding, positions: tuple[int, ...]
) -> jax.Array:
    """x `[batch, ..., channels]`, padded and read from every offset: `[batch, *positions, offsets * channels]`."""
    zero = jnp.zeros((), x.dtype)
    x = lax.pad(x, zero, [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)])
    pieces = []
    for offset in itertools.product(*(range(size) for size in kernel)):
        spans = zip(offset, positions, strides, strict=True)
        slices = [slice(first, first + (count - 1) * stride + 1, stride) for first, count, stride in spans]
        pieces.append(x[:, *slices])
    return jnp.concatenate(pieces, axis=-1)


def _devices(batch: int) -> int:
    """Over how many devices the batch may be split: sums of each are added once, after all chunks."""
    count = jax.device_count()
    return count if batch % count == 0 else 1


def _chunk(batch: int, example_bytes: int) -> int:
    """How many examples of a batch go into one product: a divisor of the batch, the same number from every device."""
    devices = _devices(batch)
    each = batch // devices
    most = min(each, max(1, _CHUNK_BYTES // example_bytes))
    return devices * next(count for count in range(most, 0, -1) if each % count == 0)
