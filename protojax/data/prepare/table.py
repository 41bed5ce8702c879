"""Tables: rows of numbers and categories with a label."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from protojax.data import splits
from protojax.data.prepare import delimited
from protojax.data.prepare.write import Duplicates, Prepared, Raw, target, write
from protojax.data.source import DataError

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def table(
    source: str | Path,
    *,
    name: str,
    label: str,
    data_dir: str | Path | None = None,
    numeric: Sequence[str] = (),
    categorical: Sequence[str] = (),
    validation: float = 0.1,
    test: float = 0.2,
    duplicates: Duplicates = "refuse",
    overwrite: bool = False,
) -> Prepared:
    """Prepares a CSV or TSV file, gzipped or not, with a header.

    A column is numeric when at least half of its non-empty values are numbers; then every value must be one. The others
    are categories, and an empty value is a category of its own. A column `id` identifies rows and is no input, unless
    it is named as one.

    Args:
      source: the file.
      name: of the data set.
      label: the label column.
      data_dir: folder of prepared data sets; the TFDS default when absent.
      numeric: columns that are numeric whatever they hold.
      categorical: columns that are categories whatever they hold.
      validation: share of the training examples, by hash of the id.
      test: share of all examples, by hash of the id.
      duplicates: a row that stands in two splits, whatever its label, is refused, or dropped from train, then from
        validation.
      overwrite: replaces a prepared data set of this name.

    Raises:
      DataError: a column is missing, a value is no number, a label is empty; see also `delimited.read` and `write`.
    """
    goal = target(name, data_dir, validation=validation, test=test, duplicates=duplicates, overwrite=overwrite)
    sheet = delimited.read(source)
    label_names, labels = sheet.labels(label)
    columns = _columns(sheet, label, numeric, categorical)
    ids, id_origin = sheet.ids()
    kinds = {column: np.float32 if isinstance(v, np.ndarray) else tfds.features.Text() for column, v in columns.items()}

    def read(place: int) -> dict[str, Any]:
        return {"row": {column: values[place] for column, values in columns.items()}}

    raw = Raw(
        origin=f"the table {sheet.path} (label {label}, ids: {id_origin})",
        feature={"row": tfds.features.FeaturesDict(kinds)},
        label_names=label_names,
        ids=ids,
        labels=labels,
        hashes=[_hash(read(place)["row"]) for place in range(len(ids))],
        splits=None,
        read=read,
    )
    return write(goal, raw)


def _columns(
    sheet: delimited.Sheet, label: str, numeric: Sequence[str], categorical: Sequence[str]
) -> dict[str, np.ndarray | list[str]]:
    # float32 arrays for numeric columns, lists for categories.
    for column in (*numeric, *categorical):
        sheet.column(column)
        if column == label:
            raise DataError(f"{sheet.path}: {column!r} is the label column and cannot be an input")
        if column in numeric and column in categorical:
            raise DataError(f"{sheet.path}: column {column!r} cannot be both numeric and categorical")
    columns: dict[str, np.ndarray | list[str]] = {}
    for column in sheet.header:
        given = column in numeric or column in categorical
        if column == label or (column == "id" and not given):
            continue
        if "/" in column:
            raise DataError(f"{sheet.path}, line 1: column {column!r}: TFDS keeps '/' for itself; rename the column")
        values = sheet.column(column)
        if column in numeric or (not given and _looks_numeric(values)):
            columns[column] = _numbers(sheet, column, values)
        else:
            columns[column] = values
    if not columns:
        raise DataError(f"{sheet.path}: no column is left for the inputs beside the label {label!r}")
    return columns


def _looks_numeric(values: Sequence[str]) -> bool:
    filled = [value for value in values if value.strip()]
    return bool(filled) and 2 * sum(_number(value) is not None for value in filled) >= len(filled)


def _numbers(sheet: delimited.Sheet, column: str, values: Sequence[str]) -> np.ndarray:
    numbers = np.empty(len(values), np.float32)
    for place, value in enumerate(values):
        if (number := _number(value)) is None:
            raise DataError(
                f"{sheet.path}, line {sheet.lines[place]}, column {column!r}: {value!r} is no finite number; correct "
                "it, or give the column as categorical"
            )
        numbers[place] = number
    return numbers


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    # float() also takes "nan", "inf" and "1_000".
    return number if math.isfinite(number) and abs(number) <= _FLOAT32_MAX and "_" not in value else None


def _hash(row: dict[str, np.float32 | str]) -> bytes:
    # Numbers that are equal as stored are equal content: -0.0 is 0.0.
    return splits.content_hash(
        value.encode() if isinstance(value, str) else (value + np.float32(0)).tobytes() for value in row.values()
    )
