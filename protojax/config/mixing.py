"""Settings of mixing the examples of a training batch."""

from typing import Annotated, Self

import pydantic
from pydantic import Field, NonNegativeFloat

from protojax.config.section import Section


class MixSettings(Section):
    """Every example of a training batch mixed with another one, inputs and labels alike, drawn anew every step.

    What is mixed is what the method reads: images after their augmentation, or behind a frozen backbone the maps of
    its features. The mean of two maps is not the map of a mixed image; CutMix puts cells of both into one map.
    """

    mixup: NonNegativeFloat = 0.0
    """a of MixUp, whose shares are Beta(a, a) (Zhang et al. 2018); 0 leaves it out. ProtoQuant: 0.8."""
    cutmix: NonNegativeFloat = 0.0
    """a of CutMix, a rectangle of the other example (Yun et al. 2019); 0 leaves it out. ProtoQuant: 1."""
    cutmix_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Share of the steps with CutMix, where there are both."""

    @property
    def wanted(self) -> bool:
        """Whether anything is mixed."""
        return bool(self.mixup or self.cutmix)

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.cutmix_share != 0.5 and not (self.mixup and self.cutmix):
            raise ValueError(
                f"cutmix_share = {self.cutmix_share:g} chooses between MixUp and CutMix: give both mixup and cutmix, "
                "or leave it out"
            )
        return self
