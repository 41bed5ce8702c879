"""What all sections of an experiment have in common."""

from typing import Annotated

import pydantic
from pydantic import Field

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(pydantic.BaseModel):
    """Settings that belong together: immutable, without unknown keys, types taken strictly."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
