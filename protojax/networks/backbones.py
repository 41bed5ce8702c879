"""The published backbones by name: their architectures, and the images that they were trained on."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from protojax.networks.convnext import ConvNeXt
from protojax.networks.efficientnet_lite import EfficientNetLite
from protojax.networks.resnet50 import BottleneckResNet
from protojax.networks.vit import ViT

Colour = tuple[float, float, float]

IMAGENET: tuple[Colour, Colour] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF: tuple[Colour, Colour] = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


class Backbone(NamedTuple):
    """One architecture."""

    module: Callable[..., nn.Module]
    """Its flax module, but for the `classes`, the `dtype` and, of transformers, the `grid`."""
    normalization: tuple[Colour, Colour]
    """Mean and standard deviation of the colours, of pixels in [0, 1], by which its images are normalised."""


def _dino(width: int, depth: int, heads: int, **more: Any) -> Backbone:
    module = partial(ViT, patch=14, width=width, depth=depth, heads=heads, layer_scale=True, **more)
    return Backbone(module, IMAGENET)


BACKBONES = {
    "deit_small": Backbone(partial(ViT, patch=16, width=384, depth=12, heads=6), IMAGENET),
    "vit_base": Backbone(partial(ViT, patch=16, width=768, depth=12, heads=12), HALF),
    "vit": Backbone(ViT, HALF),
    "dinov2_small": _dino(384, 12, 6),
    "dinov2_base": _dino(768, 12, 12),
    "dinov2_large": _dino(1024, 24, 16),
    "dinov2_small_registers": _dino(384, 12, 6, registers=4),
    "dinov2_base_registers": _dino(768, 12, 12, registers=4),
    "dinov2_large_registers": _dino(1024, 24, 16, registers=4),
    "resnet50": Backbone(BottleneckResNet, IMAGENET),
    "convnext_tiny": Backbone(ConvNeXt, IMAGENET),
    "convnext_large": Backbone(partial(ConvNeXt, depths=(3, 3, 27, 3), widths=(192, 384, 768, 1536)), IMAGENET),
    "efficientnet_lite0": Backbone(EfficientNetLite, HALF),
}
"""By the names that `protojax.config.FrozenSettings` lists; the sizes of a `vit` are those of its file."""


def stages_of(module: nn.Module) -> int:
    """Stages of a backbone that can be left for training; 0 of a transformer, which is trained as a whole or not."""
    if isinstance(module, EfficientNetLite):
        return len(module.stages)
    return len(module.depths) if isinstance(module, BottleneckResNet | ConvNeXt) else 0


def layer_before(module: nn.Module, tuned: int) -> str:
    """The name among the intermediates of a backbone of the map before its last `tuned` stages.

    Raises:
      ValueError: it has fewer stages.
    """
    count = stages_of(module)
    if tuned > count:
        has = f"has {count} stages" if count else "has no stages of convolutions"
        raise ValueError(f"encoder.tuned_stages = {tuned}, but {type(module).__name__} {has}: choose 0 to {count}")
    if not tuned:
        return "map"
    return f"stage_{count - tuned - 1}" if tuned < count else "stem"


class Tail(nn.Module):
    """The end of a backbone: its last stages, perhaps none of them, and its classifier on the mean of the map."""

    backbone: nn.Module
    """With a classifier, and with `done` where stages are tuned."""
    tuned: int = 0
    """How many stages."""

    def __call__(self, inputs: jax.Array, train: bool) -> tuple[jax.Array, dict[str, Any]]:
        """Classifies maps.

        Args:
          inputs: float `[batch, height, width, features]`, the map before the tuned stages.
          train: changes nothing: statistics of batch normalisation stay those of the weights.

        Returns:
          Logits float32 `[batch, classes]`, and the `map` float32 `[batch, height, width, features]`.
        """
        maps = self.backbone(inputs, train=False)[1]["map"] if self.tuned else inputs
        maps = maps.astype(jnp.float32)
        return self.head(maps), {"map": maps}

    def head(self, maps: jax.Array) -> jax.Array:
        """h: logits float32 `[batch, classes]` of maps `[batch, height, width, features]`."""
        return self.backbone.classify(maps.mean((1, 2)))


class MapEncoder(nn.Module):
    """The encoder of examples that are features already: the mean over the positions of their map."""

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> tuple[jax.Array, dict[str, Any]]:
        """Pools features.

        Args:
          inputs: `[batch, height, width, features]`, or `[batch, features]`, which stay as they are.
          train: changes nothing.

        Returns:
          features float32 `[batch, features]`, and the `map` `[batch, height, width, features]`.

        Raises:
          ValueError: the inputs have other axes.
        """
        if inputs.ndim not in (2, 4):
            raise ValueError(
                "features are [batch, height, width, features] or [batch, features], got an array of shape "
                f"{inputs.shape}"
            )
        maps = inputs if inputs.ndim == 4 else inputs[:, None, None]
        maps = maps.astype(jnp.float32)
        return maps.mean((1, 2)), {"map": maps}
