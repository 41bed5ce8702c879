"""Vision transformers (Dosovitskiy et al. 2021), as DeiT and DINOv2 train them too."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from protojax.networks import positions
from protojax.networks.convolution import conv_general_dilated
from protojax.networks.layers import answered, check_axes

EPSILON = 1e-6


class Block(nn.Module):
    """x + scale_1 * attention(norm_1(x)), then x + scale_2 * mlp(norm_2(x)).

    The scales, one number a feature (Touvron et al. 2021), are DINOv2's; without `layer_scale` they are 1.
    """

    heads: int
    layer_scale: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, tokens, width]` to the same."""
        width = x.shape[-1]
        dense = partial(nn.Dense, dtype=self.dtype)
        norm = partial(nn.LayerNorm, epsilon=EPSILON, dtype=self.dtype, use_fast_variance=False)
        qkv = dense(3 * width, name="qkv")(norm(name="norm_1")(x))
        query, key, value = (
            part.reshape(*x.shape[:2], self.heads, width // self.heads) for part in jnp.split(qkv, 3, axis=-1)
        )
        y = dense(width, name="out")(jax.nn.dot_product_attention(query, key, value).reshape(x.shape))
        x = x + self._scaled(y, "scale_1")
        y = nn.gelu(dense(4 * width, name="mlp_1")(norm(name="norm_2")(x)), approximate=False)
        return x + self._scaled(dense(width, name="mlp_2")(y), "scale_2")

    def _scaled(self, y: jax.Array, name: str) -> jax.Array:
        if not self.layer_scale:
            return y
        scale = self.param(name, nn.initializers.constant(1e-5), (y.shape[-1],), jnp.float32)
        return y * scale.astype(y.dtype).reshape(1, 1, -1)


class ViT(nn.Module):
    """Patches, a class token and register tokens (Darcet et al. 2024) through blocks and a last normalisation.

    Position embeddings belong to the class token and the patches, not to the registers. For images of another size than
    `grid` patches a side they are interpolated, as the network's publisher does.
    """

    patch: int
    """Pixels of a side of a patch."""
    width: int
    depth: int
    heads: int
    grid: int
    """Patches of a side of the images that the position embeddings were trained on."""
    layer_scale: bool = False
    registers: int = 0
    antialias: bool = False
    """How position embeddings are interpolated, see `positions.bicubic`."""
    classes: int = 0
    """Of the classifier; 0 for a network without one."""
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    def setup(self) -> None:
        if self.classes:
            self.head = nn.Dense(self.classes)

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> tuple[jax.Array, dict[str, Any]]:
        """Encodes images.

        Args:
          inputs: float `[batch, height, width, 3]`, sides that are multiples of the patch.
          train: changes nothing: the network neither drops out nor keeps statistics.

        Returns:
          The class token's logits float32 `[batch, classes]`, without a classifier its `features` `[batch, width]`; and
          `map` float32 `[batch, rows, columns, width]` (the patches after the last normalisation), `features`, the
          tokens `[batch, tokens, width]` before (`stem`) and after each block (`block_0`, ...).

        Raises:
          ValueError: the inputs are no such images.
        """
        check_axes(inputs, ("batch", "height", "width", "channels"), "ViT")
        batch, height, width, _ = inputs.shape
        if height % self.patch or width % self.patch:
            raise ValueError(
                f"images of {height}x{width} pixels do not divide into patches of {self.patch}x{self.patch}: choose an "
                f"image_size of multiples of {self.patch}"
            )
        x = self._tokens(inputs)
        made = {"stem": x}
        for i in range(self.depth):
            x = Block(self.heads, self.layer_scale, self.dtype, name=f"block_{i}")(x)
            made[f"block_{i}"] = x
        x = nn.LayerNorm(epsilon=EPSILON, dtype=jnp.float32, use_fast_variance=False, name="norm")(x)
        made["features"], patches = x[:, 0], x[:, 1 + self.registers :]
        made["map"] = patches.reshape(batch, height // self.patch, width // self.patch, self.width)
        return answered(self, made)

    def classify(self, features: jax.Array) -> jax.Array:
        """Logits `[batch, classes]` of means `[batch, width]` of the map (or of class tokens)."""
        return self.head(features)

    def _tokens(self, inputs: jax.Array) -> jax.Array:
        """`[batch, 1 + registers + patches, width]`, positions added."""
        x = nn.Conv(
            self.width,
            (self.patch, self.patch),
            self.patch,
            padding="VALID",
            dtype=self.dtype,
            conv_general_dilated=conv_general_dilated,
            name="patches",
        )(inputs)
        batch, rows, columns, _ = x.shape
        normal, places = nn.initializers.normal(0.02), self.grid**2
        position = self.param("positions", normal, (1, 1 + places, self.width), jnp.float32)
        grid = position[0, 1:].reshape(self.grid, self.grid, self.width)
        grid = positions.resize(grid, rows, columns, self.antialias).astype(x.dtype)
        parts = [(x + grid[None]).reshape(batch, rows * columns, self.width)]
        if self.registers:
            parts.insert(0, self.param("registers", normal, (1, self.registers, self.width), jnp.float32))
        parts.insert(0, self.param("class_token", normal, (1, 1, self.width), jnp.float32) + position[:, :1])
        return jnp.concatenate([jnp.broadcast_to(p, (batch, *p.shape[1:])).astype(x.dtype) for p in parts], axis=1)
