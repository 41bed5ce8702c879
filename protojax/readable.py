"""Examples by their ids, as people read them: pictures, texts and rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from protojax.data import DataSet
from protojax.evaluate import number


class Joined:
    """Several splits as one source, because a candidate may come from any of them."""

    def __init__(self, sources: Sequence[Any]):
        self._sources = sources
        self._ends = np.cumsum([len(source) for source in sources])
        self.ids = np.concatenate([source.ids for source in sources])
        self.labels = np.concatenate([source.labels for source in sources])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        source, place = self._find(index)
        return source[place]

    def show(self, index: int) -> Any:
        source, place = self._find(index)
        return source.show(place)

    def _find(self, index: int) -> tuple[Any, int]:
        which = int(np.searchsorted(self._ends, index, side="right"))
        return self._sources[which], index - int(self._ends[which] - len(self._sources[which]))


def everything(dataset: DataSet) -> Joined:
    """All examples of a data set, whose ids are unique over its splits."""
    return Joined([split for split in (dataset.train, dataset.validation, dataset.test) if split is not None])


def places(ids: np.ndarray, wanted: Sequence[int] | np.ndarray, where: str) -> np.ndarray:
    """Positions of ids.

    Args:
      ids: int `[n]`, all different.
      wanted: the ids to find.
      where: what holds the ids, for the message.

    Raises:
      ValueError: one does not occur; the message names it, the nearest and the range.
    """
    wanted = np.asarray(wanted, dtype=np.int64)
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    found = np.clip(np.searchsorted(ordered, wanted), 0, len(ids) - 1)
    unknown = ordered[found] != wanted
    if unknown.any():
        first = int(wanted[np.argmax(unknown)])
        nearest = int(ids[np.argmin(np.abs(ids.astype(np.int64) - first))])
        raise ValueError(
            f"id {first} is not in {where}, which holds {len(ids)} ids from {ordered[0]} to {ordered[-1]}; "
            f"the nearest is {nearest}"
        )
    return order[found]


def shown(source: Any, ids: Sequence[int], where: str) -> list[Any]:
    """What a person sees of the examples with these ids."""
    return [source.show(int(place)) for place in places(source.ids, ids, where)]


def has_images(source: Any) -> bool:
    """Whether a person sees the examples as pictures."""
    return isinstance(source.show(0), np.ndarray)


def add_inputs(examples: Sequence[dict[str, Any]], source: Any, where: str) -> None:
    """Writes texts and rows into the records of their examples, as `input`; images are found by their ids.

    Raises:
      ValueError: an example is not in the source.
    """
    found = places(source.ids, [example["id"] for example in examples], where)
    if has_images(source):
        return
    for example, place in zip(examples, found, strict=True):
        seen = source.show(int(place))
        is_row = isinstance(seen, Mapping)
        example["input"] = {name: _plain(value) for name, value in seen.items()} if is_row else seen


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return number(value) if isinstance(value, float) else value
