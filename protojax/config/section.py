"""What all sections of an experiment have in common."""

import pydantic


class Section(pydantic.BaseModel):
    """Settings that belong together: immutable, without unknown keys, types taken strictly."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
