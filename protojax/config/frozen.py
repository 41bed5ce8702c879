"""Settings of what is trained on features: those of a frozen backbone, or made elsewhere."""

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from protojax.config.section import Section


class ViewSettings(Section):
    """Transformations of the images of a view; those of one view of an example are always the same."""

    crop_scale: tuple[Annotated[float, Field(gt=0.0, le=1.0)], Annotated[float, Field(gt=0.0, le=1.0)]] | None = None
    """Smallest and largest share of the image that a random crop of it keeps, before it is resized; absent: the crop
    of an image that is not augmented."""
    flip_horizontal: bool = False
    trivial_augment: bool = False
    """One random transformation of colours or shape, of random strength (Mueller and Hutter 2021)."""
    erasing: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of the images of which a random rectangle becomes noise (Zhong et al. 2020)."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.crop_scale is not None and self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(f"crop_scale goes from the smallest share to the largest, got {list(self.crop_scale)}")
        return self


class FrozenSettings(Section):
    """A published network, or one of your own, that is not trained; what is trained reads the map of its features, and
    nothing of it is in a checkpoint but the hash of its weights."""

    kind: Literal["frozen"] = "frozen"
    network: Literal[
        "deit_small",
        "vit_base",
        "vit",
        "dinov2_small",
        "dinov2_base",
        "dinov2_large",
        "dinov2_small_registers",
        "dinov2_base_registers",
        "dinov2_large_registers",
        "resnet50",
        "convnext_tiny",
        "convnext_large",
        "efficientnet_lite0",
    ]
    """`vit` is a transformer of any sizes, which a run of `fine_tuning` with `encoder.kind = "vit"` leaves."""
    weights: str
    """Safetensors file, with the names of timm or of Hugging Face transformers."""
    image_size: tuple[PositiveInt, PositiveInt] = (224, 224)
    """Height and width in pixels of what the network sees."""
    crop: Annotated[float, Field(gt=0.0, le=1.0)] = 0.875
    """Share of the sides of an image that the centre crop keeps, before it is resized."""
    interpolation: Literal["linear", "cubic"] = "cubic"
    mean: tuple[float, float, float] | None = None
    """Of the colours, of pixels in [0, 1]; absent: that of the images that the network was trained on."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the network, and of the numbers in a store."""
    views: NonNegativeInt = 0
    """Augmented views of every training example, of which each step draws one; 0 trains on the images as they are."""
    augment: ViewSettings = ViewSettings()
    seed: NonNegativeInt = 0
    """Of the views."""
    tuned_stages: NonNegativeInt = 0
    """Last stages of the network that `fine_tuning` trains; the features are the map before them."""
    head: str | None = None
    """Safetensors file of the network with a classifier of this data set, such as a run of `fine_tuning` writes. Of
    protoquant, what it says of the map is reported, and codes can learn from it; fine_tuning starts from it. Absent:
    there is none, and fine_tuning starts from zeros."""
    features: str | None = None
    """Folder of a feature store that `protojax features` wrote; absent: features are computed from images."""
    batch_size: PositiveInt = 64
    """Images that the network sees at once; fewer are filled up to as many."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.augment != ViewSettings() and not self.views:
            raise ValueError("augment transforms views, and views = 0 asks for none: set views, or leave augment out")
        if self.views and self.augment == ViewSettings():
            raise ValueError(
                f"views = {self.views} views without augment would all be alike: set views = 0, or augment"
            )
        return self


class FeaturesSettings(Section):
    """No network: the examples are features already, made elsewhere (`protojax prepare features`)."""

    kind: Literal["features"] = "features"
