"""Tiny TFDS data sets, written by TFDS itself."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image


def png(pixels: np.ndarray) -> io.BytesIO:
    """A uint8 image `[height, width]` or `[height, width, 3]` as the bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    file.seek(0)
    return file


class TinySets:
    """Writes data sets into one folder."""

    def __init__(self, folder: Path):
        self.folder = str(folder)

    def write(
        self, name: str, features: Mapping[str, Any], splits: Mapping[str, Sequence[Any]], version: str = "1.0.0"
    ) -> Path:
        """Writes the examples of every split; the folder of the data set comes back."""

        def info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(dict(features)))

        def generators(self, manager):
            return {split: enumerate(examples) for split, examples in splits.items()}

        members = {
            "VERSION": tfds.core.Version(version),
            "name": name,
            "pkg_dir_path": ".",
            "_info": info,
            "_split_generators": generators,
            "_generate_examples": None,
        }
        with tfds.core.registered.skip_registration():
            builder = type("Tiny", (tfds.core.GeneratorBasedBuilder,), members)
        own = builder(data_dir=self.folder, file_format="array_record")
        own.download_and_prepare()
        return Path(own.data_dir)

    def images(self, name: str, pixels: Mapping[str, Sequence[np.ndarray]], **options: Any) -> Path:
        """Images with the labels 0, 1, 0, 1, ... and ids counted over all splits."""
        shape = options.pop("shape", (None, None, 1))
        features = {
            "id": np.int64,
            "image": tfds.features.Image(shape=shape, encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["even", "odd"]),
        }
        count, splits = 0, {}
        for split, images in pixels.items():
            splits[split] = [
                {"id": count + i, "image": image if isinstance(image, io.BytesIO) else png(image), "label": i % 2}
                for i, image in enumerate(images)
            ]
            count += len(images)
        return self.write(name, features, splits, **options)


@pytest.fixture
def tiny(tmp_path: Path) -> TinySets:
    return TinySets(tmp_path / "sets")


@pytest.fixture(scope="session")
def as_png():
    return png
