"""Sources of examples, and the error they raise."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

Kind = Literal["image", "text", "table", "features"]


class DataError(ValueError):
    """Data is missing, malformed or impossible; the message names it and says what to do."""


class Info(NamedTuple):
    """What a data set is."""

    name: str
    version: str
    kind: Kind
    label_names: tuple[str, ...]
    input_shape: tuple[int, ...]
    """Shape of one encoded input: `[height, width, channels]`, `[length]`, `[features]`, or of features made before
    `[height, width, features]` or `[features]`."""
    fingerprint: str
    """Changes with any stored example, label or class name, and with any change of an example's split."""
    counts: dict[str, int]
    """Examples by split and, for texts, `truncated`, `padded` (texts) and `unknown` (characters); for tables in which
    unknown categories have a bucket, `unknown` (values)."""


class Source(Protocol):
    """The examples of one split, by position; picklable, so that worker processes can read it.

    A source may also have `many(positions)`, an iterator over examples, where it reads several better than one by one.
    """

    ids: np.ndarray
    """int32 `[examples]`, unique over all splits of the data set."""
    labels: np.ndarray
    """int32 `[examples]`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The encoded example: `id` int32, `inputs` (an array), `label` int32."""

    def show(self, index: int) -> np.ndarray | str | dict[str, Any]:
        """What a person reads: a uint8 image `[height, width, channels]`, a text, or a row by column."""


class DataSet(NamedTuple):
    """Three splits that share no example."""

    info: Info
    train: Source
    validation: Source | None
    test: Source


class Examples:
    """The source of all data sets here: some places of a stored split, encoded one by one."""

    def __init__(
        self,
        ids: np.ndarray,
        labels: np.ndarray,
        places: np.ndarray,
        inputs: Sequence[np.ndarray],
        shown: Sequence[np.ndarray | str | dict[str, Any]],
    ):
        """Selects the examples at `places` from columns that cover the stored split.

        Args:
          ids: int32 `[stored]`.
          labels: int32 `[stored]`.
          places: integers `[examples]` into the stored split.
          inputs: encoded inputs by place.
          shown: readable inputs by place.
        """
        self.ids = ids[places]
        self.labels = labels[places]
        self._places = places.tolist()
        self._inputs = inputs
        self._shown = shown

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        inputs = self._inputs[self._places[index]]
        return {"id": self.ids[index], "inputs": inputs, "label": self.labels[index]}

    def show(self, index: int) -> np.ndarray | str | dict[str, Any]:
        return self._shown[self._places[index]]


class Stored(NamedTuple):
    """A data set as it lies there: before its examples are divided and encoded. Dictionaries are by stored split."""

    name: str
    version: str
    kind: Kind
    label_names: tuple[str, ...]
    shape: tuple[int | None, ...]
    """Of images `[height, width, channels]`, with None where it may differ between them; of features their shape; empty
    for other kinds."""
    ids: dict[str, np.ndarray]
    """int32 `[stored]`."""
    labels: dict[str, np.ndarray]
    """int32 `[stored]`."""
    inputs: dict[str, Any]
    """By place: uint8 images `[height, width, channels]`, texts, features, or a `table.Columns`."""
    digest: str
    """Hash of all examples."""
