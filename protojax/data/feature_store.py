"""Maps of features on disk: a TFDS data set of a record a view, stamped with all that its numbers depend on."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from protojax.data import feature_stamp
from protojax.data.feature_stamp import STAMP, Contents, Stamp
from protojax.data.records import Records
from protojax.data.source import DataError, DataSet, Source

_VERSION = "1.0.0"
_NUMBERS = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def read(folder: str | Path, dataset: DataSet, wanted: Stamp) -> tuple[list[Any], tuple[int, ...]]:
    """Opens a store as the splits of a data set of images; returns them, and the shape of a map.

    Raises:
      DataError: there is no store, it is unfinished or damaged, or its stamp is not the one that is wanted.
    """
    folder = Path(folder).absolute() / _VERSION
    stamp, contents = feature_stamp.read_stamp(folder), feature_stamp.read_contents(folder)
    if contents is not None:
        feature_stamp.check_whole(folder, contents)
    if found := stamp.differences(wanted):
        raise DataError(
            f"{folder / STAMP}: the store holds other features than this experiment asks for: {'; '.join(found)}; "
            "write one with protojax features, or change the settings"
        )
    splits = []
    for name, source in zip(("train", "validation", "test"), dataset[1:], strict=True):
        count = 0 if source is None else len(source) * (1 + (stamp.views if name == "train" else 0))
        splits.append(None if source is None else StoredFeatures(folder, name, count, source, stamp, contents))
    return splits, tuple(stamp.shape)


class StoredFeatures:
    """The features of a split, read from a store; position p is view p // n of example p % n."""

    def __init__(self, folder: Path, split: str, count: int, source: Source, stamp: Stamp, contents: Contents | None):
        """
        Args:
          folder: of the store's version.
          split: of the store.
          count: its records.
          source: the images, for their ids, their labels, and to be shown.
          stamp: of the store.
          contents: its shards, for messages.
        """
        self.ids = source.ids
        self.labels = source.labels
        self._source = source
        self._folder = folder
        self._records = Records(folder, split, count, ("id", "view", "features"))
        self._shards = [] if contents is None else [shard for shard in contents.shards if shard.split == split]
        self._precision = stamp.precision
        self._shape = tuple(stamp.shape)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            record = self._records[index]
        except DataError as error:
            raise self._named(index, error) from None
        return self._example(index, record)

    def many(self, indices: Iterable[int]) -> Iterator[dict[str, Any]]:
        """The examples at some positions."""
        return (self[int(index)] for index in indices)

    def show(self, index: int) -> np.ndarray | str | dict[str, Any]:
        return self._source.show(index % len(self))

    def _named(self, index: int, error: DataError) -> DataError:
        """The error about a record, with the file that it stands in."""
        own = next((s for s in self._shards if s.first <= index < s.first + s.records), None)
        if own is None:
            return error
        return DataError(
            f"{self._folder / own.files[0].file}: damaged: its record {index - own.first} cannot be read; write the "
            f"store again with {feature_stamp.command(self._folder.parent)} --overwrite"
        )

    def _example(self, index: int, record: dict[str, Any]) -> dict[str, Any]:
        view, place = divmod(index, len(self))
        numbers, stored = _NUMBERS[self._precision], record["features"]
        size = int(np.prod(self._shape)) * numbers.itemsize
        if (record["id"], record["view"], len(stored)) != (self.ids[place], view, size):
            raise DataError(
                f"{self._folder}: record {index} is view {record['view']} of id {record['id']} in {len(stored)} bytes, "
                f"not view {view} of id {self.ids[place]} in {size}: write the store again"
            )
        inputs = np.frombuffer(stored, numbers).reshape(self._shape)
        return {"id": self.ids[place], "inputs": inputs, "label": self.labels[place]}
