"""Rows as feature vectors: numeric formulas and one-hot categories, fitted on the training split."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from protojax.config import NumericColumn, TableSettings
from protojax.data.source import DataError

_FUNCTIONS = {"none": lambda x: x, "log": np.log, "log1p": np.log1p}
_LOWEST = {"none": -np.inf, "log": 0.0, "log1p": -1.0}


class Columns:
    """A table in memory, by column: numbers, or strings as objects, `[rows]`. An index gives a row."""

    def __init__(self, columns: Mapping[str, np.ndarray]):
        self.columns = dict(columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {name: _readable(column[place]) for name, column in self.columns.items()}


class Numeric(NamedTuple):
    """One number: `(f(x) - shift) / scale`."""

    column: str
    formula: NumericColumn

    @property
    def width(self) -> int:
        return 1


class Categorical(NamedTuple):
    """One of several values: 1 in its place, 0 elsewhere."""

    column: str
    values: tuple[str, ...]
    """Sorted values of the training split."""
    bucket: bool
    """Whether one more place, the last, stands for every other value."""

    @property
    def width(self) -> int:
        return len(self.values) + self.bucket


class Transformation(NamedTuple):
    """How a row becomes a vector: the parts of its columns one after another."""

    parts: tuple[Numeric | Categorical, ...]

    @property
    def width(self) -> int:
        return sum(part.width for part in self.parts)

    def apply(self, rows: Columns, ids: np.ndarray) -> tuple[np.ndarray, int]:
        """Encodes a table.

        Args:
          rows: the table.
          ids: `[rows]`, for messages.

        Returns:
          float32 `[rows, features]`, and how many values fell into a bucket.

        Raises:
          DataError: a number that is not finite or lies outside the domain of its logarithm, or an unknown category
            without a bucket, naming id, column and value.
        """
        vectors = np.zeros((len(rows), self.width), np.float32)
        unknown = start = 0
        for part in self.parts:
            column = rows.columns[part.column]
            if isinstance(part, Numeric):
                vectors[:, start] = _numbers(part, column, ids)
            else:
                chosen = _choices(part, column, ids)
                vectors[np.arange(len(rows)), start + chosen] = 1.0
                unknown += int(np.count_nonzero(chosen == len(part.values)))
            start += part.width
        return vectors, unknown


def fit(rows: Columns, ids: np.ndarray, places: np.ndarray, settings: TableSettings) -> Transformation:
    """Fits the transformation on the rows at `places`, the training split.

    Numeric columns with a formula of their own get it, the others are standardised with mean and standard deviation
    of the training split; categories are the sorted values that it holds.

    Raises:
      DataError: the settings name a column that does not exist or is not numeric; a number is not finite; a column
        to be standardised is constant.
    """
    for name in settings.numeric:
        if name not in rows.columns:
            raise DataError(f"data.table.numeric names column {name!r}; {_nearest(name, rows.columns)}")
        if not is_numeric(rows.columns[name]):
            raise DataError(f"data.table.numeric names column {name!r}, which holds categories: remove it there")
    parts: list[Numeric | Categorical] = []
    for name, column in rows.columns.items():
        if is_numeric(column):
            formula = settings.numeric.get(name) or _standard(name, column[places], ids[places])
            parts.append(Numeric(name, formula))
        else:
            parts.append(Categorical(name, tuple(sorted(set(column[places]))), settings.unknown == "bucket"))
    return Transformation(tuple(parts))


def is_numeric(column: np.ndarray) -> bool:
    return column.dtype != object


def _readable(value: Any) -> Any:
    # By way of its shortest notation, float32 0.1 is 0.1 and not 0.10000000149.
    return (
        float(str(value))
        if isinstance(value, np.floating)
        else value.item()
        if isinstance(value, np.integer)
        else value
    )


def _standard(name: str, column: np.ndarray, ids: np.ndarray) -> NumericColumn:
    _check_finite(name, column, ids)
    column = column.astype(np.float64)
    if column.min() == column.max():
        raise DataError(
            f"column {name!r} is {column[0]:g} in the whole training split and cannot be standardised: "
            f'give it a formula (data.table.numeric."{name}" with shift and scale) or prepare the data without it'
        )
    return NumericColumn(shift=float(column.mean()), scale=float(column.std()))


def _numbers(part: Numeric, column: np.ndarray, ids: np.ndarray) -> np.ndarray:
    _check_finite(part.column, column, ids)
    formula = part.formula
    if (outside := np.flatnonzero(column <= _LOWEST[formula.log])).size:
        first = outside[0]
        advice = "use log1p, which takes 0," if formula.log == "log" and column[first] == 0 else 'use log = "none"'
        raise DataError(
            f"id {ids[first]}, column {part.column!r}: {formula.log} of {column[first]:g} does not exist: "
            f"{advice} in data.table.numeric, or correct the data"
        )
    numbers = (_FUNCTIONS[formula.log](column.astype(np.float64)) - formula.shift) / formula.scale
    if (large := np.flatnonzero(np.abs(numbers) > np.finfo(np.float32).max)).size:
        raise DataError(
            f"id {ids[large[0]]}, column {part.column!r}: {column[large[0]]:g} becomes {numbers[large[0]]:g}, too "
            f"large for float32: correct shift {formula.shift:g} and scale {formula.scale:g} in data.table.numeric"
        )
    return numbers


def _check_finite(name: str, column: np.ndarray, ids: np.ndarray) -> None:
    if (bad := np.flatnonzero(~np.isfinite(column))).size:
        raise DataError(f"id {ids[bad[0]]}, column {name!r}: {column[bad[0]]} is not a finite number")


def _choices(part: Categorical, column: np.ndarray, ids: np.ndarray) -> np.ndarray:
    index = {value: place for place, value in enumerate(part.values)}
    chosen = np.array([index.get(value, len(part.values)) for value in column], np.int64)
    if not part.bucket and (new := np.flatnonzero(chosen == len(part.values))).size:
        raise DataError(
            f"id {ids[new[0]]}, column {part.column!r}: the training split has no value {column[new[0]]!r}; "
            'set data.table.unknown = "bucket" to give such values a place of their own'
        )
    return chosen


def _nearest(name: str, columns: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(columns), n=1, cutoff=0.0)
    return f"the data has none of this name; did you mean {near[0]!r}?"
