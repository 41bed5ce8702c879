"""Official builders, of which those that store no images work without TensorFlow."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from protojax.config import DataSettings
from protojax.data import prepare
from protojax.data.loading import load
from protojax.data.source import DataError


class TinyOfficial(tfds.core.GeneratorBasedBuilder):
    """As TFDS defines its sets; the examples of every build are those of `seed`."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None
    seed = 0

    def _info(self):
        features = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=["cat", "dog"])}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": self._generate_examples("train", 30), "test": self._generate_examples("test", 10)}

    def _generate_examples(self, split, count):
        for i in range(count):
            yield i, {"text": f"{split} {i} of {self.seed}", "label": i % 2}


class TinyPictures(TinyOfficial):
    """Pictures are encoded by TensorFlow."""

    def _info(self):
        features = {"image": tfds.features.Image(shape=(4, 4, 1)), "label": tfds.features.ClassLabel(num_classes=2)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _generate_examples(self, split, count):
        for i in range(count):
            yield i, {"image": np.full((4, 4, 1), i, np.uint8), "label": i % 2}


class TinyNeedy(TinyOfficial):
    """Its code needs a package of its own."""

    def _split_generators(self, manager):
        import no_such_module

        return no_such_module.splits


class TinyOffline(TinyOfficial):
    """Its files cannot be had."""

    def _split_generators(self, manager):
        raise ConnectionError("no route to its host")


def texts(folder):
    dataset = load(DataSettings(name="tiny_official", data_dir=str(folder), validation_fraction=0.0))
    return dataset.info.label_names, len(dataset.train), len(dataset.test)


def test_what_is_built_is_read(tmp_path):
    found = prepare.official("tiny_official", data_dir=tmp_path)
    assert found.counts == {"train": 30, "test": 10}
    assert found.path == tmp_path / "tiny_official" / "1.0.0"
    assert texts(tmp_path) == (("cat", "dog"), 30, 10)


def test_what_is_there_stays(tmp_path, monkeypatch):
    path = prepare.official("tiny_official", data_dir=tmp_path).path
    monkeypatch.setattr(TinyOfficial, "seed", 1)
    assert prepare.official("tiny_official", data_dir=tmp_path).path == path
    first = next(iter(tfds.builder_from_directory(path).as_data_source("train")))
    assert first["text"].decode().endswith("of 0")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "tiny_pictures",
            r"'tiny_pictures' needs what is not installed \(.*tensorflow.*\): pip install 'protojax\[tensorflow\]'",
        ),
        (
            "tiny_needy",
            r"'tiny_needy' needs what is not installed \(No module named 'no_such_module'\): install it, then the same",
        ),
        ("tiny_offline", "the builder of 'tiny_offline' failed: ConnectionError: no route to its host"),
        ("../no_such_set", "TFDS has no data set '../no_such_set'"),
        ("no_such_set", "TFDS has no data set 'no_such_set'; its names are listed at https://"),
    ],
)
def test_what_cannot_be_built(tmp_path, name, message):
    with pytest.raises(DataError, match=message):
        prepare.official(name, data_dir=tmp_path)
