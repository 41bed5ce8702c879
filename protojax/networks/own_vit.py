"""A vision transformer of chosen sizes, trained from random values on images of one's own."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from protojax.networks.backbones import BACKBONES
from protojax.networks.layers import check_axes
from protojax.networks.vit import ViT
from protojax.ops import crops

NETWORK = "vit"
"""The backbone that it becomes when it is frozen."""


class OwnViT(nn.Module):
    """Images prepared as for a frozen network, a transformer, and the mean of its map over the patches.

    What it says of an image is what `Tail` says of the map of the network that is frozen later, because both prepare
    images alike and both classify the mean of the map. The fields are those of `protojax.config.ViTSettings`, the
    number of classes, the compute dtype and the name of the pmap axis.
    """

    patch: int = 8
    width: int = 128
    depth: int = 4
    heads: int = 4
    image_size: tuple[int, int] | None = None
    crop: float = 1.0
    interpolation: str = "cubic"
    classes: int = 0
    """Of the classifier; 0 for a network without one."""
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> tuple[jax.Array, dict[str, Any]]:
        """Encodes images.

        Args:
          inputs: float `[batch, height, width, channels]` of pixels in [0, 1], of 1 channel (grey) or 3.
          train: changes nothing: the network neither drops out nor keeps statistics.

        Returns:
          Logits float32 `[batch, classes]`, without a classifier the features float32 `[batch, width]`, which are the
          mean of the map; and what the transformer made on the way, with the `map` float32 `[batch, rows, columns,
          width]`.

        Raises:
          ValueError: the inputs are no such images, or what the transformer would see is no square of whole patches.
        """
        check_axes(inputs, ("batch", "height", "width", "channels"), "ViT")
        if inputs.shape[-1] not in (1, 3):
            raise ValueError(f"a ViT reads images of 1 or 3 channels, got {inputs.shape[-1]}")
        pixels = self._prepared(inputs)
        height, width = pixels.shape[1:3]
        if height != width:
            raise ValueError(
                f"a ViT sees squares, and these images are {height}x{width} pixels: set encoder.image_size to a square"
            )
        network = ViT(
            patch=self.patch,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            grid=height // self.patch,
            classes=self.classes,
            dtype=self.dtype,
            name="backbone",
        )
        _, made = network(pixels, train)
        features = made["map"].mean((1, 2))
        return network.classify(features) if self.classes else features, {**made, "features": features}

    def _prepared(self, inputs: jax.Array) -> jax.Array:
        batch, height, width, _ = inputs.shape
        size = self.image_size or (height, width)
        if (height, width) != size or self.crop != 1.0:
            box = jnp.asarray(crops.centre_boxes(1, height, width, size, self.crop))
            inputs = crops.resample(inputs, jnp.broadcast_to(box, (batch, 4)), size, self.interpolation).clip(0, 1)
        mean, std = (jnp.asarray(x).reshape(1, 1, 1, 3) for x in BACKBONES[NETWORK].normalization)
        return (jnp.broadcast_to(inputs, (*inputs.shape[:-1], 3)) - mean) / std
