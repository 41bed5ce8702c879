"""EfficientNet-Lite0: EfficientNet-B0 (Tan and Le 2019) without squeeze-and-excitation, with ReLU6."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from protojax.networks.convolution import conv_general_dilated
from protojax.networks.layers import BatchNorm, answered, check_axes, mean_of_map


class Stage(NamedTuple):
    """Inverted bottlenecks of one shape, of which the first has the stride."""

    depth: int
    kernel: int
    stride: int
    expansion: int
    filters: int


LITE0 = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class Layer(nn.Module):
    """A convolution without bias and batch normalisation; padded as TensorFlow does, more at the end than before."""

    filters: int
    kernel: int
    stride: int = 1
    depthwise: bool = False
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[b, h, w, c]` to `[b, ceil(h/stride), ceil(w/stride), filters]`."""
        x = nn.Conv(
            self.filters,
            (self.kernel, self.kernel),
            self.stride,
            padding="SAME",
            feature_group_count=x.shape[-1] if self.depthwise else 1,
            use_bias=False,
            kernel_init=nn.initializers.he_normal(),
            dtype=self.dtype,
            conv_general_dilated=conv_general_dilated,
            name="conv",
        )(x)
        return BatchNorm(epsilon=1e-3, dtype=self.dtype, axis_name=self.axis_name, name="norm")(x, train)


class Block(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection; added to the input where the shape stays."""

    stage: Stage
    stride: int
    dtype: DTypeLike
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[b, h, w, c]` to `[b, ceil(h/stride), ceil(w/stride), filters]`."""
        common = {"dtype": self.dtype, "axis_name": self.axis_name}
        y, wide = x, x.shape[-1] * self.stage.expansion
        if self.stage.expansion != 1:
            y = nn.relu6(Layer(wide, 1, name="expand", **common)(y, train))
        y = nn.relu6(Layer(wide, self.stage.kernel, self.stride, depthwise=True, name="depthwise", **common)(y, train))
        y = Layer(self.stage.filters, 1, name="project", **common)(y, train)
        return x + y if y.shape == x.shape else y


class EfficientNetLite(nn.Module):
    """A 3x3 convolution of stride 2, stages of inverted bottlenecks, a 1x1 convolution, a classifier."""

    stages: tuple[Stage, ...] = LITE0
    stem: int = 32
    last: int = 1280
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
          `[batch, height/32, width/32, last]` (rounded up), `features` (its mean, float32 `[batch, last]`), the maps
          after the stem (`stem`) and after each stage (`stage_0`, ...).

        Raises:
          ValueError: the inputs are not images.
        """
        check_axes(inputs, ("batch", "height", "width", "channels"), "EfficientNet-Lite")
        common = {"dtype": self.dtype, "axis_name": self.axis_name}
        x, made = inputs, {}
        if self.done is None:
            x = made["stem"] = nn.relu6(Layer(self.stem, 3, 2, name="stem", **common)(inputs, train))
        for i, stage in list(enumerate(self.stages))[self.done or 0 :]:
            for j in range(stage.depth):
                x = Block(stage, 1 if j else stage.stride, name=f"stage_{i}_block_{j}", **common)(x, train)
            made[f"stage_{i}"] = x
        x = nn.relu6(Layer(self.last, 1, name="last", **common)(x, train))
        return answered(self, made | mean_of_map(x))

    def classify(self, features: jax.Array) -> jax.Array:
        """Logits `[batch, classes]` of means `[batch, last]` of the map."""
        return self.head(features)
