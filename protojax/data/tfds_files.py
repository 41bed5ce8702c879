"""The files of a TFDS data set, written without TensorFlow: shards of ArrayRecord, and what describes them."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python import array_record_module

VERSION = "1.0.0"
"""Of every data set that is written here; the folder inside that of the data set."""


def shard_name(name: str, split: str, number: int, count: int) -> str:
    """What TFDS calls shard `number` of the `count` of a split."""
    return f"{name}-{split}.array_record-{number:05d}-of-{count:05d}"


def write_shard(path: Path, features: Any, examples: Iterable[dict[str, Any]]) -> int:
    """Writes examples into one file, as they come; returns how many.

    Args:
      path: of the file.
      features: `tfds.features.FeaturesDict` of the examples.
      examples: what they hold, by feature.

    Raises:
      OSError: the disk is full, or the file cannot be written otherwise.
    """
    serialize = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info()).serialize_example
    count = 0
    with _writing(path):
        writer = array_record_module.ArrayRecordWriter(os.fspath(path), "group_size:1")
    for example in examples:
        record = serialize(features.encode_example(example))
        with _writing(path):
            writer.write(record)
        count += 1
    with _writing(path):
        writer.close()
    return count


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    # That is how ArrayRecord reports a full disk.
    except RuntimeError as error:
        raise OSError(f"{path}: {error}") from error


def describe(folder: Path, name: str, features: Any, lengths: Mapping[str, Sequence[int]], description: str) -> None:
    """Writes what TFDS needs beside the shards of a folder, and checks that it finds all of them.

    Args:
      folder: of the version, with all shards.
      name: of the data set.
      features: its `tfds.features.FeaturesDict`.
      lengths: examples of each shard, by split.
      description: of the data set.

    Raises:
      OSError: a file cannot be written, or examples are missing.
    """
    template = tfds.core.ShardedFileTemplate(dataset_name=name, filetype_suffix="array_record", data_dir=folder)
    infos = []
    for split, own in lengths.items():
        files = [folder / shard_name(name, split, number, len(own)) for number in range(len(own))]
        size = sum(file.stat().st_size for file in files)
        infos.append(tfds.core.SplitInfo(split, list(own), size, filename_template=template.replace(split=split)))
    identity = tfds.core.dataset_info.DatasetIdentity(name, tfds.core.Version(VERSION), os.fspath(folder), __name__)
    about = tfds.core.DatasetInfo(builder=identity, features=features, description=description)
    about.set_file_format(tfds.core.file_adapters.FileFormat.ARRAY_RECORD)
    about.set_splits(tfds.core.splits.SplitDict(infos))
    about.write_to_directory(folder)
    written = tfds.builder_from_directory(folder)
    for split, own in lengths.items():
        if (found := len(written.as_data_source(split))) != sum(own):
            raise OSError(f"{found} of {sum(own)} examples of the {split} split arrived on the disk")


def install(fresh: Path, folder: Path, replaced: Path) -> None:
    """Moves a finished data set to `folder`; one that stands there goes to `replaced`, and comes back on a failure.

    Raises:
      OSError: it cannot be moved.
    """
    if folder.exists():
        folder.rename(replaced)
    try:
        fresh.rename(folder)
    except OSError:
        if replaced.exists():
            replaced.rename(folder)
        raise
