"""Prepared data sets from raw files, which load in plain TFDS and need no TensorFlow; and official TFDS sets."""

from protojax.data.prepare.features import features
from protojax.data.prepare.funnybirds import annotations, funnybirds
from protojax.data.prepare.idx import idx
from protojax.data.prepare.image_folder import image_folder
from protojax.data.prepare.official import official
from protojax.data.prepare.table import table
from protojax.data.prepare.text import text
from protojax.data.prepare.write import Prepared

__all__ = ["Prepared", "annotations", "features", "funnybirds", "idx", "image_folder", "official", "table", "text"]
