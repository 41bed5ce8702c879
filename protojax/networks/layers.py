"""Layers that the encoders share: convolution with normalisation, dropout, dense layers, pooling.

Two conventions hold for all of them. Parameters, statistics and features are float32 whatever the compute `dtype`.
And a layer gives the same numbers for the global batch under `jit` (`axis_name` None) and for its equal, contiguous
shards under `pmap` (`axis_name` bound), which for statistics and dropout means to look beyond the own shard.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from protojax.networks.convolution import conv_general_dilated

MOMENTUM = 0.9
EPSILON = 1e-5
GROUPS = 8


def check_axes(inputs: jax.Array, axes: tuple[str, ...], encoder: str) -> None:
    """Refuses inputs that do not have exactly the named axes.

    Raises:
      ValueError: the number of axes differs; names the encoder, the axes wanted and the shape got.
    """
    if inputs.ndim != len(axes):
        raise ValueError(f"{encoder} reads [{', '.join(axes)}], got an array of shape {inputs.shape}")


def mean_of_map(x: jax.Array) -> dict[str, jax.Array]:
    """The `map` float32 `[batch, height, width, channels]` that a backbone ends with, and its mean as `features`."""
    maps = x.astype(jnp.float32)
    return {"map": maps, "features": maps.mean((1, 2))}


def answered(backbone: nn.Module, made: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What a backbone returns: the logits of its `features` where it has a classifier, otherwise those; and the rest.

    Args:
      backbone: a network with `classes` and, where there are any, `head`.
      made: what it made on the way, with `features`.
    """
    features = made["features"]
    return backbone.head(features) if backbone.classes else features, made


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last (Ioffe and Szegedy 2015), momentum 0.9.

    flax's own layer averages the means of the shards, which is wrong as soon as a mask leaves them unequal numbers of
    positions; this one sums over shards before it divides. Without a mask both give the same numbers.
    """

    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    epsilon: float = EPSILON

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Normalises x `[batch, ..., channels]` and, in training, updates the running statistics.

        Args:
          x: the activations.
          train: whether to use (and record) the statistics of this batch instead of the running ones.
          mask: bool `[batch, ...]`, the positions that count; all when absent. Masked positions are normalised too.

        Returns:
          An array of the shape of `x` and the compute dtype.
        """
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        x = x.astype(jnp.float32)
        if train:
            mean, var = self._statistics(x, mask)
            if not self.is_initializing():
                running_mean.value = MOMENTUM * running_mean.value + (1 - MOMENTUM) * mean
                running_var.value = MOMENTUM * running_var.value + (1 - MOMENTUM) * var
        else:
            mean, var = running_mean.value, running_var.value
        ones = (1,) * (x.ndim - 1)
        multiplier = (lax.rsqrt(var + self.epsilon) * scale).reshape(*ones, channels)
        y = (x - mean.reshape(*ones, channels)) * multiplier + bias.reshape(*ones, channels)
        return y.astype(self.dtype)

    def _statistics(self, x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        axes = tuple(range(x.ndim - 1))
        if mask is None:
            count = jnp.float32(math.prod(x.shape[:-1]))
        else:
            count = mask.sum(dtype=jnp.float32)
            x = jnp.where(mask[..., None], x, 0.0)
        sums = jnp.stack([x.sum(axes), jnp.square(x).sum(axes)])
        if self.axis_name is not None and not self.is_initializing():
            sums, count = lax.psum((sums, count), self.axis_name)
        mean, square = sums / jnp.maximum(count, 1.0)
        return mean, jnp.maximum(square - jnp.square(mean), 0.0)


class ConvNorm(nn.Module):
    """A convolution without bias (He-normal), then batch or group normalisation.

    The input is padded by half a kernel on both sides, so that output position i is centred on input position
    `stride * i` whatever the size of the input; sizes become ceil(size / stride). Group normalisation has 8 groups,
    or the largest number that divides both 8 and the filters.
    """

    filters: int
    kernel: tuple[int, ...]
    """Odd sizes, one for each spatial axis."""
    stride: int = 1
    norm: str = "batch"
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Convolves x `[batch, ..., channels]`; `mask`, bool over the axes of the *output* but the last, marks the
        positions that the normalisation looks at, and the others become 0."""
        x = nn.Conv(
            self.filters,
            self.kernel,
            strides=self.stride,
            padding=[(size // 2, size // 2) for size in self.kernel],
            use_bias=False,
            kernel_init=nn.initializers.he_normal(),
            dtype=self.dtype,
            conv_general_dilated=conv_general_dilated,
            name="conv",
        )(x)
        if self.norm == "batch":
            x = BatchNorm(dtype=self.dtype, axis_name=self.axis_name, name="norm")(x, train, mask)
        else:
            groups = math.gcd(GROUPS, self.filters)
            counted = None if mask is None else jnp.broadcast_to(_never_empty(mask)[..., None], x.shape)
            x = nn.GroupNorm(groups, epsilon=EPSILON, dtype=self.dtype, name="norm")(x, mask=counted)
        return x if mask is None else keep(x, mask)


def keep(x: jax.Array, mask: jax.Array) -> jax.Array:
    """x `[batch, ..., channels]` with zeros where `mask`, bool over all axes but the last, is False."""
    return jnp.where(mask[..., None], x, jnp.zeros((), x.dtype))


def _never_empty(mask: jax.Array) -> jax.Array:
    # The mean over no position is NaN, and a NaN that a later `where` hides still poisons the gradient.
    return mask | ~mask.any(axis=tuple(range(1, mask.ndim)), keepdims=True)


class Dropout(nn.Module):
    """Sets a share `rate` of the entries to 0 and divides the others by 1 - rate (random stream `dropout`).

    The mask is drawn for the global batch; under a bound `axis_name` every shard takes its own rows of it, so that the
    key must be the same on all shards.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x `[batch, ...]`, unchanged outside training."""
        if not train or self.rate == 0.0:
            return x
        kept = self._kept(self.make_rng("dropout"), x.shape)
        return jnp.where(kept, x / (1.0 - self.rate), jnp.zeros((), x.dtype))

    def _kept(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        if self.axis_name is None or self.is_initializing():
            return jax.random.bernoulli(key, 1.0 - self.rate, shape)
        rows = shape[0]
        mask = jax.random.bernoulli(key, 1.0 - self.rate, (rows * lax.axis_size(self.axis_name), *shape[1:]))
        return lax.dynamic_slice_in_dim(mask, rows * lax.axis_index(self.axis_name), rows)


class DenseStack(nn.Module):
    """Dense + ReLU + layer normalisation + dropout, once for each of `sizes`."""

    sizes: tuple[int, ...]
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps x `[batch, n]` to float32 `[batch, sizes[-1]]`."""
        for i, size in enumerate(self.sizes, start=1):
            x = nn.relu(nn.Dense(size, dtype=self.dtype, name=f"dense_{i}")(x))
            x = nn.LayerNorm(dtype=jnp.float32, name=f"norm_{i}")(x)
            x = Dropout(self.dropout, self.axis_name, name=f"dropout_{i}")(x, train)
        return x.astype(jnp.float32)


def max_pool_pairs(x: jax.Array) -> jax.Array:
    """2x2 max-pooling of stride 2, `[b, h, w, c]` to `[b, ceil(h/2), ceil(w/2), c]`.

    An odd size is padded with -inf at its end: the last row or column stands alone and nothing is dropped. Maxima of
    slices, because the gradient of a windowed reduction is many times slower on CPU; at a tie the gradient is shared.
    """
    for axis in (1, 2):
        if x.shape[axis] % 2:
            x = _pad_lowest(x, axis, (0, 1))
        size = x.shape[axis]
        x = jnp.maximum(
            lax.slice_in_dim(x, 0, size, stride=2, axis=axis), lax.slice_in_dim(x, 1, size, stride=2, axis=axis)
        )
    return x


def max_pool_triples(x: jax.Array) -> jax.Array:
    """Max-pooling of kernel 3 and stride 2 along positions, `[b, n, c]` to `[b, ceil(n/2), c]`.

    Window i is centred on position 2i, whatever n is, and reaches over the borders as if they held -inf.
    """
    padded = _pad_lowest(x, 1, (1, x.shape[1] % 2))
    last = padded.shape[1]
    before, after = padded[:, 0 : last - 2 : 2], padded[:, 2:last:2]
    return jnp.maximum(jnp.maximum(before, padded[:, 1 : last - 1 : 2]), after)


def _pad_lowest(x: jax.Array, axis: int, widths: tuple[int, int]) -> jax.Array:
    return jnp.pad(x, [widths if i == axis else (0, 0) for i in range(x.ndim)], constant_values=-jnp.inf)


def k_max_pool(x: jax.Array, mask: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest values of every channel, in the order of their positions (Conneau et al. 2016, section 3).

    Args:
      x: `[batch, positions, channels]`.
      mask: bool `[batch, positions]`, the positions that may be chosen.
      k: how many, at most the number of positions.

    Returns:
      values `[batch, k, channels]` and their positions, int32 of the same shape. Where fewer than k positions may be
      chosen, all of them come first, followed by the value 0 and the position -1.
    """
    scores = jnp.where(mask[..., None], x, -jnp.inf).swapaxes(1, 2)
    # Equal values go to the first position, and the masked ones are all equal: at the end of a text they stay behind.
    positions = jnp.sort(lax.top_k(lax.stop_gradient(scores), k)[1], axis=-1)
    values = jnp.take_along_axis(scores, positions, axis=-1)
    chosen = values != -jnp.inf
    values = jnp.where(chosen, values, jnp.zeros((), x.dtype))
    return values.swapaxes(1, 2), jnp.where(chosen, positions, -1).swapaxes(1, 2)
