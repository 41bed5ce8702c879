"""Encoders: flax modules that turn inputs into features.

Each is called as `encoder(inputs, train) -> (features float32 [batch, f], intermediates dict)`. In training `apply`
needs the random stream `dropout` where the encoder drops out, and `mutable=["batch_stats"]` where it normalises
batches. Convolution filters are the parameters named `kernel` with three or more axes.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from protojax.config import (
    AutoencoderSettings,
    ConvSettings,
    EncoderSettings,
    FeaturesSettings,
    FrozenSettings,
    LSTMSettings,
    ResNetSettings,
    VDCNNSettings,
    ViTSettings,
)
from protojax.networks.autoencoder import Autoencoder
from protojax.networks.backbones import MapEncoder
from protojax.networks.conv import ConvNet
from protojax.networks.lstm import LSTM
from protojax.networks.own_vit import OwnViT
from protojax.networks.resnet import ResNet
from protojax.networks.vdcnn import VDCNN

__all__ = ["LSTM", "VDCNN", "Autoencoder", "ConvNet", "MapEncoder", "OwnViT", "ResNet", "build"]


def build(settings: EncoderSettings, dtype: DTypeLike = jnp.float32, axis_name: str | None = None) -> nn.Module:
    """The encoder that `settings` describe.

    Args:
      settings: one of the encoder sections of an experiment.
      dtype: arithmetic of the layers, such as "float32" or "bfloat16"; parameters and features are float32.
      axis_name: the axis over which the batch is split under `pmap`; None under `jit`.
    """
    match settings:
        case ConvSettings():
            encoder = ConvNet
        case ResNetSettings():
            encoder = ResNet
        case VDCNNSettings():
            encoder = VDCNN
        case LSTMSettings():
            encoder = LSTM
        case AutoencoderSettings():
            encoder = Autoencoder
        case ViTSettings():
            encoder = OwnViT
        case FrozenSettings() | FeaturesSettings():
            # The backbone belongs to the data: what is trained starts from its features.
            return MapEncoder()
        case _:
            raise ValueError(f"no encoder is built from {type(settings).__name__}")
    return encoder(**settings.model_dump(exclude={"kind"}), dtype=jnp.dtype(dtype), axis_name=axis_name)
