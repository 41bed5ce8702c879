"""Settings of where examples come from, and of how they are prepared."""

from typing import Literal, Self

import pydantic
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from protojax.config.mixing import MixSettings
from protojax.config.section import Fraction, Section


class AugmentSettings(Section):
    """Transformations of images, drawn anew for every example of every step, on the device."""

    pad_crop: NonNegativeInt = 0
    """Pixels of zero padding on each side before a random crop back to the original size; 0 does not crop."""
    flip_horizontal: bool = False
    flip_vertical: bool = False
    elastic_amplitude: NonNegativeFloat = 0.0
    """Factor of the smoothed random field, in pixels, by which images are deformed; 0 does not (Li et al. 2018: 20)."""
    elastic_sigma: PositiveFloat = 4.0
    """Standard deviation, in pixels, of the Gaussian that smooths the field."""
    standardize: bool = True
    """Per-image standardisation to mean 0, standard deviation 1; also applied outside training."""
    candidates: bool = True
    """Whether the candidates of a training step are moved and deformed, too. The database that decides afterwards never
    is: where an image and its mirror image do not look alike, candidates can be learnt that only augmentation makes."""


class NumericColumn(Section):
    """The fixed transformation of one numeric column: (f(x) - shift) / scale."""

    log: Literal["none", "log", "log1p"] = "none"
    """f: the identity, log(x), or log(1 + x) where zeros occur."""
    shift: float = 0.0
    scale: PositiveFloat = 1.0


class TableSettings(Section):
    """How rows become feature vectors."""

    numeric: dict[str, NumericColumn] = {}
    """Transformation by column name; a numeric column without one is standardised with training statistics."""
    unknown: Literal["error", "bucket"] = "error"
    """A category that the training split lacks: an error, or a bucket of its own."""


class TextSettings(Section):
    """How texts become character sequences."""

    length: PositiveInt = 448
    """Characters kept; longer texts are truncated, shorter ones padded, and both are counted."""


class DataSettings(Section):
    """Where examples come from and how they reach the step."""

    name: str = "digits"
    """`digits` (embedded) or the name of a TFDS data set, `name` or `name:version`."""
    data_dir: str | None = None
    """Folder of prepared data sets; the TFDS default when absent."""
    train_split: str = "train"
    test_split: str = "test"
    validation_split: str | None = None
    """Name of the validation split; when absent, `validation_fraction` of the training split by hash of the id."""
    validation_fraction: Fraction = 0.1
    test_fraction: Fraction = 0.2
    """Share of examples held out by hash of the id where the data set has no split named `test_split`."""
    image_size: tuple[PositiveInt, PositiveInt] | None = None
    """Height and width in pixels to which images are resized (bilinear); absent: as they are, all of one size."""
    feeding: Literal["resident", "streamed"] = "resident"
    """`resident` keeps the training split on the devices; `streamed` reads it with Grain, batch by batch."""
    workers: NonNegativeInt = 0
    """Worker processes of streamed feeding; 0 reads in threads of this process."""
    prefetch: PositiveInt = 2
    """Batches that streamed feeding keeps ready."""
    class_shares: tuple[PositiveFloat, ...] | None = None
    """Share of each class in every batch and candidate set, summing to 1; absent: as in the training split."""
    label_noise: Fraction = 0.0
    """Share of training labels replaced by a uniformly drawn wrong one, in the training loss only."""
    augment: AugmentSettings = AugmentSettings()
    mix: MixSettings = MixSettings()
    table: TableSettings = TableSettings()
    text: TextSettings = TextSettings()

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.class_shares is not None and abs(sum(self.class_shares) - 1.0) > 1e-6:
            raise ValueError(f"class_shares must sum to 1, got {sum(self.class_shares):g}")
        return self
