"""A small convolution network, for digits of 8x8 pixels and for what two CPU cores can train at 28x28."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from protojax.networks.layers import ConvNorm, DenseStack, check_axes, max_pool_pairs


class ConvNet(nn.Module):
    """3x3 convolutions, each with normalisation, ReLU and 2x2 max-pooling; the last map flattened; dense layers.

    The fields are those of `protojax.config.ConvSettings`, the compute dtype and the name of the pmap axis.
    """

    filters: tuple[int, ...] = (32, 64)
    dense: tuple[int, ...] = (128,)
    norm: str = "batch"
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> tuple[jax.Array, dict[str, Any]]:
        """Encodes images.

        Args:
          inputs: float `[batch, height, width, channels]`, standardised.
          train: whether statistics are those of the batch and dropout is drawn.

        Returns:
          features float32 `[batch, f]`, and the map after each pooling, `map_1`, `map_2`, ....

        Raises:
          ValueError: the inputs are not images.
        """
        check_axes(inputs, ("batch", "height", "width", "channels"), "ConvNet")
        maps = {}
        x = inputs
        for i, filters in enumerate(self.filters, start=1):
            layer = ConvNorm(
                filters, (3, 3), norm=self.norm, dtype=self.dtype, axis_name=self.axis_name, name=f"conv_{i}"
            )
            x = max_pool_pairs(nn.relu(layer(x, train)))
            maps[f"map_{i}"] = x
        x = x.reshape(x.shape[0], -1)
        features = DenseStack(self.dense, self.dropout, self.dtype, self.axis_name, name="dense")(x, train)
        return features, maps
