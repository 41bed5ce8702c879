"""Settings of the networks that turn inputs into features."""

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field, PositiveInt

from protojax.config.frozen import FeaturesSettings, FrozenSettings
from protojax.config.section import Fraction, Section


class ConvSettings(Section):
    """A small convolution network: 3x3 convolutions of stride 1, each with 2x2 max-pooling, then dense layers."""

    kind: Literal["conv"] = "conv"
    filters: tuple[PositiveInt, ...] = (32, 64)
    dense: tuple[PositiveInt, ...] = (128,)
    norm: Literal["batch", "group"] = "batch"
    dropout: Fraction = 0.0


class ResNetSettings(Section):
    """The paper's residual networks (ProtoAttend, appendix A.1)."""

    kind: Literal["resnet"] = "resnet"
    blocks: tuple[PositiveInt, ...] = (5, 5, 5)
    """Residual blocks of each stage; stages after the first halve the resolution."""
    filters: tuple[PositiveInt, ...] = (16, 32, 64)
    stem: Literal["plain", "downsample"] = "plain"
    """`downsample` puts a stride-2 convolution and a stride-2 max-pooling in front (Fruits, ISIC)."""
    dense: tuple[PositiveInt, ...] = (256,)
    """Dense + ReLU + layer normalisation after the average pooling."""
    norm: Literal["batch", "group"] = "batch"
    dropout: Fraction = 0.0
    """Dropout after every dense layer (the dropout baseline of the label-noise table)."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.blocks) != len(self.filters):
            raise ValueError(f"blocks has {len(self.blocks)} stages but filters has {len(self.filters)}")
        return self


class VDCNNSettings(Section):
    """Very deep convolutional network over characters (Conneau et al. 2016; ProtoAttend, appendix A.2)."""

    kind: Literal["vdcnn"] = "vdcnn"
    embedding: PositiveInt = 16
    stem: PositiveInt = 64
    """Filters of the first convolution, of stride 2."""
    filters: tuple[PositiveInt, ...] = (64, 64, 128, 128, 256, 256, 512, 512)
    """Filters of the 8 convolution blocks; max-pooling of stride 2 after every second one but the last."""
    k_max: PositiveInt = 8
    dense: tuple[PositiveInt, ...] = (1024, 1024)
    norm: Literal["batch", "group"] = "batch"
    dropout: Fraction = 0.0


class LSTMSettings(Section):
    """An LSTM that reads one embedding of the row at every step (ProtoAttend, appendix A.3)."""

    kind: Literal["lstm"] = "lstm"
    steps: PositiveInt = 4
    width: PositiveInt = 64
    dropout: Fraction = 0.5


class AutoencoderSettings(Section):
    """A convolutional encoder and its mirrored decoder (Li et al. 2018)."""

    kind: Literal["autoencoder"] = "autoencoder"
    filters: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (32, 32, 32, 10)
    """Filters of the 3x3 convolutions; the last are the features of the latent map."""
    strides: tuple[PositiveInt, ...] = (2, 2, 2, 2)
    """Strides of the convolutions; (2, 2, 2, 1) leaves 16 latent tokens of a 28x28 image instead of 4."""
    initializer: Literal["normal", "he"] = "normal"
    """Of the filters: N(0, 0.01^2) as in the reference, with which training stands still for epochs, or He-normal."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.filters) != len(self.strides):
            raise ValueError(f"filters has {len(self.filters)} layers but strides has {len(self.strides)}")
        return self


class ViTSettings(Section):
    """A vision transformer that starts from random values, and reads images as a frozen one does. A run of
    `fine_tuning` leaves its weights for `encoder.kind = "frozen"` with `encoder.network = "vit"`."""

    kind: Literal["vit"] = "vit"
    patch: PositiveInt = 8
    """Pixels of a side of a patch; it divides those of the image."""
    width: PositiveInt = 128
    """Features of a patch."""
    depth: PositiveInt = 4
    """Blocks of attention and two dense layers."""
    heads: PositiveInt = 4
    """Attention heads; they divide the width."""
    image_size: tuple[PositiveInt, PositiveInt] | None = None
    """Height and width in pixels of what the network sees, a square; absent: those of the images."""
    crop: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the sides of an image that the centre crop keeps, before it is resized."""
    interpolation: Literal["linear", "cubic"] = "cubic"

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide width = {self.width}")
        return self


EncoderSettings = Annotated[
    ConvSettings
    | ResNetSettings
    | VDCNNSettings
    | LSTMSettings
    | AutoencoderSettings
    | ViTSettings
    | FrozenSettings
    | FeaturesSettings,
    Field(discriminator="kind"),
]
