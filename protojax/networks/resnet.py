"""The residual networks of ProtoAttend (Arik and Pfister 2020, appendix A.1), after He et al. 2016 for small images."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from protojax.networks.layers import ConvNorm, DenseStack, check_axes, max_pool_pairs


class Block(nn.Module):
    """conv-norm-ReLU, conv-norm, addition to the input, ReLU.

    Where the shape changes, the input goes through a 1x1 convolution of the same stride first. The paper has one in
    every block; its released code, followed here, only there. It is normalised like every convolution of the paper
    (and of He et al.), which the released code leaves out for this one.
    """

    filters: int
    stride: int
    norm: str
    dtype: DTypeLike
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[b, h, w, c]` to `[b, ceil(h/stride), ceil(w/stride), filters]`."""
        common = {"norm": self.norm, "dtype": self.dtype, "axis_name": self.axis_name}
        y = nn.relu(ConvNorm(self.filters, (3, 3), self.stride, name="conv_1", **common)(x, train))
        y = ConvNorm(self.filters, (3, 3), name="conv_2", **common)(y, train)
        if self.stride != 1 or x.shape[-1] != self.filters:
            x = ConvNorm(self.filters, (1, 1), self.stride, name="shortcut", **common)(x, train)
        return nn.relu(x.astype(y.dtype) + y)


class ResNet(nn.Module):
    """A 3x3 convolution, stages of residual blocks, the average over the remaining map, dense layers.

    (5, 5, 5) blocks are the paper's 32 layers, (8, 8, 8) its 50. Every stage after the first halves the resolution in
    its first block. The stem `downsample` (Fruits, ISIC) quarters the resolution before all that: a 3x3 convolution of
    stride 2 with normalisation and ReLU, then 2x2 max-pooling. The fields are those of
    `protojax.config.ResNetSettings`, the compute dtype and the name of the pmap axis.
    """

    blocks: tuple[int, ...] = (5, 5, 5)
    filters: tuple[int, ...] = (16, 32, 64)
    stem: str = "plain"
    dense: tuple[int, ...] = (256,)
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
          features float32 `[batch, f]`, and the maps after the stem (`stem`) and after each stage (`stage_1`, ...).

        Raises:
          ValueError: the inputs are not images.
        """
        check_axes(inputs, ("batch", "height", "width", "channels"), "ResNet")
        common = {"norm": self.norm, "dtype": self.dtype, "axis_name": self.axis_name}
        x = inputs
        if self.stem == "downsample":
            x = nn.relu(ConvNorm(self.filters[0], (3, 3), 2, name="downsample", **common)(x, train))
            x = max_pool_pairs(x)
        x = nn.relu(ConvNorm(self.filters[0], (3, 3), name="stem", **common)(x, train))
        maps = {"stem": x}
        for i, (count, filters) in enumerate(zip(self.blocks, self.filters, strict=True), start=1):
            for j in range(1, count + 1):
                stride = 2 if i > 1 and j == 1 else 1
                x = Block(filters, stride, name=f"stage_{i}_block_{j}", **common)(x, train)
            maps[f"stage_{i}"] = x
        x = x.mean((1, 2), dtype=jnp.float32)
        features = DenseStack(self.dense, self.dropout, self.dtype, self.axis_name, name="dense")(x, train)
        return features, maps
