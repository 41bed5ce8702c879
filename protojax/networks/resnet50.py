"""The residual network of ImageNet with bottlenecks (He et al. 2016), of which ResNet-50 is the one with 50 layers."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from protojax.networks.layers import ConvNorm, answered, check_axes, mean_of_map

_EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each normalised, added to the input, ReLU.

    The stride is that of the 3x3 convolution, as everywhere but in the paper. Where the shape changes, the input goes
    through a normalised 1x1 convolution first.
    """

    filters: int
    """Of the first two convolutions; the last has four times as many."""
    stride: int
    dtype: DTypeLike
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[b, h, w, c]` to `[b, ceil(h/stride), ceil(w/stride), 4 * filters]`."""
        common = {"dtype": self.dtype, "axis_name": self.axis_name}
        wide = _EXPANSION * self.filters
        y = nn.relu(ConvNorm(self.filters, (1, 1), name="conv_1", **common)(x, train))
        y = nn.relu(ConvNorm(self.filters, (3, 3), self.stride, name="conv_2", **common)(y, train))
        y = ConvNorm(wide, (1, 1), name="conv_3", **common)(y, train)
        if self.stride != 1 or x.shape[-1] != wide:
            x = ConvNorm(wide, (1, 1), self.stride, name="shortcut", **common)(x, train)
        return nn.relu(x.astype(y.dtype) + y)


class BottleneckResNet(nn.Module):
    """A 7x7 convolution and max-pooling, which quarter the resolution, four stages of bottlenecks, a classifier."""

    depths: tuple[int, ...] = (3, 4, 6, 3)
    filters: int = 64
    """Of the first convolution and the first stage; every further stage has twice as many."""
    classes: int = 0
    """Of the classifier; 0 for a network without one."""
    done: int | None = None
    """Stages that are done already, which leaves parameters of the later ones alone: inputs are the map after them, or
    after the stem with 0. None for images."""
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    def setup(self) -> None:
        if self.classes:
            self.head = nn.Dense(self.classes)

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> tuple[jax.Array, dict[str, Any]]:
        """Encodes images.

        Args:
          inputs: float `[batch, height, width, 3]`, or what `done` says.
          train: whether statistics are those of the batch.

        Returns:
          Logits float32 `[batch, classes]`, without a classifier the `features`; and `map` float32
          `[batch, height/32, width/32, features]` (rounded up), `features` (its mean, float32 `[batch, f]`), the maps
          after the stem (`stem`) and after each stage (`stage_0`, ...).

        Raises:
          ValueError: the inputs are not images.
        """
        check_axes(inputs, ("batch", "height", "width", "channels"), "ResNet-50")
        common = {"dtype": self.dtype, "axis_name": self.axis_name}
        x, made = inputs, {}
        if self.done is None:
            x = nn.relu(ConvNorm(self.filters, (7, 7), 2, name="stem", **common)(inputs, train))
            x = made["stem"] = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for i, depth in list(enumerate(self.depths))[self.done or 0 :]:
            for j in range(depth):
                stride = 2 if i and not j else 1
                x = Bottleneck(self.filters * 2**i, stride, name=f"stage_{i}_block_{j}", **common)(x, train)
            made[f"stage_{i}"] = x
        return answered(self, made | mean_of_map(x))

    def classify(self, features: jax.Array) -> jax.Array:
        """Logits `[batch, classes]` of means `[batch, f]` of the map."""
        return self.head(features)
