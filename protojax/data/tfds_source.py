"""Prepared TFDS data sets, read without TensorFlow."""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from google.protobuf import json_format

from protojax.data import catalog
from protojax.data.records import MODES, Arrays, Pictures, Records, Texts, decode_text
from protojax.data.source import DataError, Kind, Stored
from protojax.data.table import Columns

_LARGEST_ID = np.iinfo(np.int32).max - 1
"""So that -2 - id, the id of a shifted example, is an int32 too."""


class Column(NamedTuple):
    """A column of a table, as it is stored."""

    feature: str
    """Where it stands in a record."""
    reads: str
    """`integer`, `float`, `text`, or `class`: the number of one of the names."""
    names: tuple[str, ...] = ()


class Prepared(NamedTuple):
    """What the description of a prepared data set says."""

    folder: Path
    name: str
    version: str
    kind: Kind
    label_names: tuple[str, ...] | None
    """None where labels are numbers without names."""
    shape: tuple[int | None, ...]
    """Of images `[height, width, channels]`, with None where it may differ between them; of features their shape; empty
    for other kinds."""
    dtype: str
    """Of features; empty for other kinds."""
    columns: dict[str, Column]
    """Of tables, sorted by name."""
    has_ids: bool
    splits: dict[str, int]
    """Examples by split."""


def find(name: str, data_dir: str | None) -> Prepared:
    """Finds a prepared data set (see `catalog.folder`) and reads its description.

    Raises:
      DataError: there is no such data set, it is not stored as ArrayRecord, or holds something other than labelled
        images, texts or rows of scalars.
    """
    import tensorflow_datasets as tfds

    name, folder = catalog.folder(name, data_dir)
    try:
        info = tfds.builder_from_directory(folder).info
        formats = sorted(str(file_format.value) for file_format in info.available_file_formats())
        features = dict(info.features)
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, json_format.Error) as error:
        raise DataError(f"{folder}: its description cannot be read, prepare the data set again: {error}") from None
    if "array_record" not in formats:
        raise DataError(
            f"{folder}: stored as {' and '.join(formats)}, which cannot be read by position without TensorFlow: build "
            f"it with file_format='array_record'; an official set with `protojax prepare tfds {name} --data-dir DIR`, "
            "where DIR does not hold it yet"
        )
    # A table may have a column of this name, which is a number or a text.
    arrays = isinstance(features.get("features"), tfds.features.Tensor) and features["features"].shape != ()
    kind: Kind = "features" if arrays else next((k for k in ("image", "text") if k in features), "table")
    shape: tuple[int | None, ...] = ()
    if kind == "image":
        shape = _image_shape(folder, features["image"])
    elif kind == "features":
        shape = _features_shape(folder, features["features"])
    return Prepared(
        folder=folder,
        name=name,
        version=str(info.version),
        kind=kind,
        label_names=_label_names(folder, features),
        shape=shape,
        dtype=np.dtype(features["features"].np_dtype).name if kind == "features" else "",
        columns=_columns(folder, features) if kind == "table" else {},
        has_ids="id" in features and _reads(features["id"]) == "integer",
        splits={split: found.num_examples for split, found in info.splits.items()},
    )


def read(prepared: Prepared, first_ids: Mapping[str, int]) -> Stored:
    """Reads ids, labels and, of tables, the columns of some splits.

    Args:
      prepared: the data set.
      first_ids: the splits to read, each with the id of its first example, from which its examples are numbered where
        no ids are stored.

    Raises:
      DataError: a file is damaged, or a label, an id or a class is out of range.
    """
    columns = prepared.columns
    kept = ["label", *(["id"] if prepared.has_ids else []), *(column.feature for column in columns.values())]
    whole = [] if prepared.kind == "table" else [prepared.kind]
    ids, labels, inputs = {}, {}, {}
    digest = hashlib.blake2b(digest_size=16)
    for split, first in first_ids.items():
        values = _scan(Records(prepared.folder, split, prepared.splits[split], [*kept, *whole]), kept, digest)
        ids[split] = _ids(prepared, split, values.get("id", range(first, first + prepared.splits[split])))
        labels[split] = np.array(values["label"], np.int64)
        if prepared.kind == "table":
            inputs[split] = Columns(
                {name: _column(name, column, values[column.feature], ids[split]) for name, column in columns.items()}
            )
        else:
            inputs[split] = _inputs(
                prepared, Records(prepared.folder, split, prepared.splits[split], whole), ids[split]
            )
    names = prepared.label_names
    if names is None:
        names = tuple(str(label) for label in range(1 + max(int(own.max(initial=0)) for own in labels.values())))
    for split, own in labels.items():
        _check_range(f"{prepared.folder}, split {split!r}: label", own, ids[split], names)
    return Stored(
        name=prepared.name,
        version=prepared.version,
        kind=prepared.kind,
        label_names=names,
        shape=prepared.shape,
        ids=ids,
        labels={split: own.astype(np.int32) for split, own in labels.items()},
        inputs=inputs,
        digest=digest.hexdigest(),
    )


def _inputs(prepared: Prepared, records: Records, ids: np.ndarray) -> Pictures | Texts | Arrays:
    if prepared.kind == "image":
        return Pictures(records, ids, prepared.shape)
    return Texts(records, ids) if prepared.kind == "text" else Arrays(records, ids, prepared.shape, prepared.dtype)


def _scan(records: Records, kept: Sequence[str], digest: Any) -> dict[str, list[Any]]:
    """The kept features of all examples; all features go into the digest."""
    values: dict[str, list[Any]] = {feature: [] for feature in kept}
    for example in records:
        # Value by value: TFDS writes the features of a record in an order that differs from process to process.
        for feature in records.features:
            value = example[feature]
            content = value if isinstance(value, bytes) else repr(value).encode()
            # With its length in front, no other division of the same bytes has this digest.
            digest.update(len(content).to_bytes(8, "little"))
            digest.update(content)
        for feature, own in values.items():
            own.append(example[feature])
    return values


def _ids(prepared: Prepared, split: str, stored: Sequence[int]) -> np.ndarray:
    ids = np.array(stored, np.int64)
    if (bad := np.flatnonzero((ids < 0) | (ids > _LARGEST_ID))).size:
        raise DataError(
            f"{prepared.folder}, split {split!r}: id {ids[bad[0]]} is outside 0 to {_LARGEST_ID}: number the examples"
        )
    return ids.astype(np.int32)


def _column(name: str, column: Column, stored: list[Any], ids: np.ndarray) -> np.ndarray:
    if column.reads == "text":
        texts = [sys.intern(decode_text(v, f"column {name!r} of id {i}")) for v, i in zip(stored, ids, strict=True)]
        return np.array(texts, object)
    if column.reads == "class":
        numbers = np.array(stored, np.int64)
        _check_range(f"column {name!r}: class", numbers, ids, column.names)
        return np.array(column.names, object)[numbers]
    return np.array(stored, np.int64 if column.reads == "integer" else np.float32)


def _check_range(what: str, numbers: np.ndarray, ids: np.ndarray, names: Sequence[str]) -> None:
    if (outside := np.flatnonzero((numbers < 0) | (numbers >= len(names)))).size:
        raise DataError(
            f"{what} {numbers[outside[0]]} of id {ids[outside[0]]} is out of range: there are {len(names)} names, "
            f"for 0 to {len(names) - 1}"
        )


def _label_names(folder: Path, features: Mapping[str, Any]) -> tuple[str, ...] | None:
    if "label" not in features:
        raise DataError(f"{folder}: there is no feature 'label' (but {', '.join(features)}): prepare it with one")
    reads = _reads(features["label"])
    if reads not in ("class", "integer"):
        raise DataError(f"{folder}: the label is {features['label']}, not a class: prepare it with class labels")
    # A class label may come without names and even without a number of classes.
    return (_names(features["label"]) or None) if reads == "class" else None


def _image_shape(folder: Path, feature: Any) -> tuple[int | None, ...]:
    import tensorflow_datasets as tfds

    if not isinstance(feature, tfds.features.Image) or feature.np_dtype != np.uint8:
        raise DataError(f"{folder}: the feature 'image' is {feature}, but only 8-bit images can be read")
    if feature.shape[-1] not in MODES:
        raise DataError(f"{folder}: images of {feature.shape[-1]} channels, but only 1, 3 or 4 can be read")
    return tuple(feature.shape)


def _features_shape(folder: Path, feature: Any) -> tuple[int, ...]:
    kind = np.dtype(feature.np_dtype)
    by_bytes = feature.get_serialized_info().shape == ()
    if None in feature.shape or len(feature.shape) not in (1, 3) or kind.kind != "f" or not by_bytes:
        raise DataError(
            f"{folder}: the feature 'features' is {feature}, but only floating point [features] or [height, width, "
            "features] of one shape, stored as bytes, can be read: prepare it with protojax prepare features"
        )
    return tuple(feature.shape)


def _columns(folder: Path, features: Mapping[str, Any]) -> dict[str, Column]:
    if "row" in features:
        stored = {name: (f"row/{name}", feature) for name, feature in features["row"].items()}
    else:
        stored = {name: (name, feature) for name, feature in features.items() if name not in ("id", "label")}
    columns = {}
    # By name: the order in which TFDS returns them differs from process to process.
    for name, (path, feature) in sorted(stored.items()):
        if (reads := _reads(feature)) is None:
            raise DataError(f"{folder}: column {name!r} is {feature}, but columns must be numbers or texts")
        columns[name] = Column(path, reads, _names(feature) if reads == "class" else ())
    if not columns:
        raise DataError(f"{folder}: no feature 'image', 'text' or 'row', and no column (but {', '.join(features)})")
    return columns


def _reads(feature: Any) -> str | None:
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.ClassLabel):
        return "class"
    if isinstance(feature, tfds.features.Text):
        return "text"
    if not isinstance(feature, tfds.features.Tensor) or feature.shape != ():
        return None
    kinds = {"i": "integer", "u": "integer", "b": "integer", "f": "float", "O": "text", "S": "text", "U": "text"}
    return kinds.get(np.dtype(feature.np_dtype).kind)


def _names(feature: Any) -> tuple[str, ...]:
    return tuple(feature.names) if feature.names else tuple(str(label) for label in range(feature.num_classes or 0))
