"""ConvNeXt (Liu et al. 2022): depthwise 7x7 convolutions with the proportions of a transformer."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from protojax.networks.convolution import conv_general_dilated
from protojax.networks.layers import answered, check_axes, mean_of_map

EPSILON = 1e-6


class Block(nn.Module):
    """x + scale * mlp(norm(depthwise 7x7 convolution of x))."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[b, h, w, c]` to the same."""
        width = x.shape[-1]
        convolved = nn.Conv(
            width, (7, 7), padding=[(3, 3), (3, 3)], feature_group_count=width, dtype=self.dtype, name="depthwise"
        )(x)
        y = nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, use_fast_variance=False, name="norm")(convolved)
        y = nn.gelu(nn.Dense(4 * width, dtype=self.dtype, name="mlp_1")(y), approximate=False)
        y = nn.Dense(width, dtype=self.dtype, name="mlp_2")(y)
        scale = self.param("scale", nn.initializers.constant(1e-6), (width,), jnp.float32)
        return x + y * scale.astype(y.dtype).reshape(1, 1, 1, -1)


class ConvNeXt(nn.Module):
    """4x4 patches, four stages of blocks of which all but the first halve the resolution, a classifier."""

    depths: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    classes: int = 0
    """Of the classifier; 0 for a network without one."""
    done: int | None = None
    """Stages that are done already, which leaves parameters of the later ones alone: inputs are the map after them, or
    after the stem with 0. None for images."""
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    def setup(self) -> None:
        self.norm = nn.LayerNorm(epsilon=EPSILON, use_fast_variance=False)
        if self.classes:
            self.head = nn.Dense(self.classes)

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> tuple[jax.Array, dict[str, Any]]:
        """Encodes images.

        Args:
          inputs: float `[batch, height, width, 3]`, sides that every stage divides evenly (multiples of 32),
            or what `done` says.
          train: changes nothing: the network neither drops out nor keeps statistics.

        Returns:
          Logits float32 `[batch, classes]`, without a classifier the `features`; and `map` float32
          `[batch, height/32, width/32, features]`, `features` (the normalised mean of the map), the maps after the
          stem (`stem`) and after each stage (`stage_0`, ...).

        Raises:
          ValueError: the inputs are no such images.
        """
        check_axes(inputs, ("batch", "height", "width", "channels"), "ConvNeXt")
        height, width = inputs.shape[1:3]
        whole = 4 * 2 ** (len(self.depths) - 1)
        if self.done is None and (height % whole or width % whole):
            raise ValueError(
                f"images of {height}x{width} pixels leave a rest that ConvNeXt would not see: choose an image_size of "
                f"multiples of {whole}"
            )
        conv = partial(nn.Conv, padding="VALID", dtype=self.dtype, conv_general_dilated=conv_general_dilated)
        norm = partial(nn.LayerNorm, epsilon=EPSILON, dtype=self.dtype, use_fast_variance=False)
        x, made = inputs, {}
        if self.done is None:
            x = made["stem"] = norm(name="stem_norm")(conv(self.widths[0], (4, 4), 4, name="stem")(inputs))
        for i, (depth, features) in list(enumerate(zip(self.depths, self.widths, strict=True)))[self.done or 0 :]:
            if i:
                x = norm(name=f"stage_{i}_norm")(x)
                x = conv(features, (2, 2), 2, name=f"stage_{i}_downsample")(x)
            for j in range(depth):
                x = Block(self.dtype, name=f"stage_{i}_block_{j}")(x)
            made[f"stage_{i}"] = x
        made |= mean_of_map(x)
        made["features"] = self.norm(made["features"])
        return answered(self, made)

    def classify(self, features: jax.Array) -> jax.Array:
        """Logits `[batch, classes]` of means `[batch, f]` of the map."""
        return self.head(self.norm(features))
