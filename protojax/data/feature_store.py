"""Maps of features on disk: a TFDS data set of a record a view, stamped with all that its numbers depend on."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import pydantic
from pydantic import Field
from tqdm import tqdm

from protojax.data.records import Records
from protojax.data.source import DataError, DataSet, Source

SCHEMA = "protojax.features/1"
_STAMP = "stamp.json"
_VERSION = "1.0.0"
_SHARD_BYTES = 2**26
_STORED = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(np.uint16)}
"""By precision; bfloat16 stands there by its bits, as TFDS does not know it."""
_NUMBERS = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


class Stamp(pydantic.BaseModel):
    """What the numbers of a store depend on."""

    schema_name: str = Field(alias="schema")
    network: str
    weights_sha256: str
    precision: Literal["float32", "bfloat16"]
    image_size: list[int]
    crop: float
    interpolation: str
    mean: list[float]
    std: list[float]
    tuned_stages: int = 0
    """Last stages of the network that are left out."""
    views: int
    """Augmented views of every training example."""
    augment: dict[str, Any] | None
    """Of the views; None where there are none."""
    seed: int | None
    data: str
    data_fingerprint: str
    """Of the images, their labels and their splits."""
    shape: list[int] = []
    """Of a map; empty in what is asked for."""

    def differences(self, wanted: "Stamp") -> list[str]:
        """What another stamp asks for and this one does not have; more views than asked for do not matter."""
        mine, theirs = self.model_dump(), wanted.model_dump()
        keys = [key for key in mine if key not in ("shape", "views", "augment", "seed")]
        if wanted.views:
            keys += ["augment", "seed"]
        found = [f"{key} is {mine[key]!r}, not {theirs[key]!r}" for key in keys if mine[key] != theirs[key]]
        if self.views < wanted.views:
            found.append(f"views is {self.views}, fewer than {wanted.views}")
        return found


def check_free(folder: str | Path, overwrite: bool) -> None:
    """Refuses a folder that a store cannot take, before anything is computed.

    Raises:
      DataError: as `write`.
    """
    from protojax.data.prepare import write as writing

    folder = Path(folder)
    writing.target(
        folder.name, folder.absolute().parent, validation=0, test=0, duplicates="refuse", overwrite=overwrite
    )


def write(folder: str | Path, dataset: DataSet, stamp: Stamp, overwrite: bool = False) -> dict[str, int]:
    """Writes the features of a data set, whole or not at all; returns the records by split.

    Views lie one after another: record v * n + p of the training split is view v of its example p, and the other
    splits have view 0 alone. Of the features, those of one shard are in memory.

    Args:
      folder: of the store; its name is that of the data set.
      dataset: splits whose examples are features.
      stamp: of the features.
      overwrite: replaces a store that stands there.

    Raises:
      DataError: the folder is not free, its name is impossible, the disk is full.
    """
    import tensorflow_datasets as tfds

    from protojax.data.prepare import write as writing

    folder = Path(folder)
    goal = writing.target(
        folder.name, folder.absolute().parent, validation=0, test=0, duplicates="refuse", overwrite=overwrite
    )
    kind = _STORED[stamp.precision]
    shape = tuple(stamp.shape)
    features = tfds.features.FeaturesDict(
        {
            "id": np.int64,
            "label": tfds.features.ClassLabel(names=list(dataset.info.label_names)),
            "view": np.int64,
            "features": tfds.features.Tensor(shape=shape, dtype=kind, encoding=tfds.features.Encoding.BYTES),
        }
    )
    sources = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    counts = {
        name: len(source) * (1 + (stamp.views if name == "train" else 0))
        for name, source in sources.items()
        if source is not None
    }
    rows = max(1, _SHARD_BYTES // (kind.itemsize * int(np.prod(shape))))
    with tqdm(total=sum(counts.values()), desc=f"writing {folder.name}", unit=" views") as bar:
        shards = {
            name: [
                _shard(sources[name], range(start, min(start + rows, count)), kind, bar)
                for start in range(0, count, rows)
            ]
            for name, count in counts.items()
        }
        description = f"Features of {stamp.data} by {stamp.network}, made by protojax; {_STAMP} says how."
        writing.write_shards(
            goal.folder, features, shards, counts, description, {_STAMP: stamp.model_dump_json(by_alias=True, indent=1)}
        )
    return counts


def _shard(source: Any, rows: range, kind: np.dtype, bar: tqdm) -> Callable[[], Iterator[tuple[int, dict[str, Any]]]]:
    def generate() -> Iterator[tuple[int, dict[str, Any]]]:
        for row, example in zip(rows, source.many(rows), strict=True):
            yield (
                row,
                {
                    "id": int(example["id"]),
                    "label": int(example["label"]),
                    "view": row // len(source),
                    "features": np.ascontiguousarray(example["inputs"]).view(kind),
                },
            )
            bar.update()

    return generate


def read(folder: str | Path, dataset: DataSet, wanted: Stamp) -> tuple[list[Any], tuple[int, ...]]:
    """Opens a store as the splits of a data set of images; returns them, and the shape of a map.

    Raises:
      DataError: there is no store, it is damaged, or its stamp is not the one that is wanted.
    """
    folder = Path(folder) / _VERSION
    stamp = read_stamp(folder)
    if found := stamp.differences(wanted):
        raise DataError(
            f"{folder / _STAMP}: the store holds other features than this experiment asks for: {'; '.join(found)}; "
            "write one with protojax features, or change the settings"
        )
    splits = []
    for name, source in zip(("train", "validation", "test"), dataset[1:], strict=True):
        count = 0 if source is None else len(source) * (1 + (stamp.views if name == "train" else 0))
        splits.append(None if source is None else StoredFeatures(folder, name, count, source, stamp))
    return splits, tuple(stamp.shape)


def read_stamp(folder: Path) -> Stamp:
    """The stamp of a store.

    Raises:
      DataError: there is none, it is damaged, or of another version.
    """
    path = folder / _STAMP
    try:
        text = path.read_bytes()
        version = json.loads(text).get("schema")
        if version != SCHEMA:
            raise DataError(f"{path}: schema {version!r}, but this version reads {SCHEMA!r}; write the store again")
        return Stamp.model_validate_json(text)
    except FileNotFoundError:
        raise DataError(
            f"{path}: no feature store here; write one with protojax features EXPERIMENT.toml --output "
            f"{folder.parent}, or leave encoder.features out"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, pydantic.ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: damaged: {reason}; write the store again") from None


class StoredFeatures:
    """The features of a split, read from a store; position p is view p // n of example p % n."""

    def __init__(self, folder: Path, split: str, count: int, source: Source, stamp: Stamp):
        """
        Args:
          folder: of the store's version.
          split: of the store.
          count: its records.
          source: the images, for their ids, their labels, and to be shown.
          stamp: of the store.
        """
        self.ids = source.ids
        self.labels = source.labels
        self._source = source
        self._folder = folder
        self._records = Records(folder, split, count, ("id", "view", "features"))
        self._precision = stamp.precision
        self._shape = tuple(stamp.shape)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._example(index, self._records[index])

    def many(self, indices: Iterable[int]) -> Iterator[dict[str, Any]]:
        """The examples at some positions."""
        return (self[int(index)] for index in indices)

    def show(self, index: int) -> np.ndarray | str | dict[str, Any]:
        return self._source.show(index % len(self))

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
