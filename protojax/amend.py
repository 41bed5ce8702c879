"""Edits of a candidate database on disk: only the files of what changes are written.

The new files stand beside the old ones until the manifest is replaced in one step; the old ones are deleted after that.
"""

import datetime
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from protojax import edits, manifest, sharding, shards, storage
from protojax.candidates import CandidateDatabase
from protojax.edits import EMPTY
from protojax.manifest import NAME, DatabaseError, Edit, Manifest
from protojax.shards import Shards


def remove(folder: str | Path, ids: Sequence[int]) -> None:
    """Empties the places of these examples.

    Raises:
      DatabaseError: the database is missing or damaged, or was changed meanwhile.
      ValueError: an id is not in the database, or repeated; nothing is changed.
    """
    ids, stored = edits.integers(ids, "ids"), shards.editable(folder)
    places = edits.places_of(ids, stored.ids)
    nothing = np.full(len(ids), EMPTY)
    _rewrite(stored, places, {"ids": nothing, "labels": nothing}, _edit("remove", ids))


def relabel(folder: str | Path, ids: Sequence[int], label: int | Sequence[int]) -> None:
    """Gives these examples another label: one for all, or one each.

    Raises:
      DatabaseError: as `remove`.
      ValueError: an id is not in the database, or repeated, or a label is negative or the one that the example has;
        nothing is changed.
    """
    ids, stored = edits.integers(ids, "ids"), shards.editable(folder)
    labels = edits.labels_for(label, ids)
    places = edits.places_of(ids, stored.ids)
    edits.check_changes(ids, stored.whole("labels")[places], labels)
    _rewrite(stored, places, {"labels": labels}, _edit("relabel", ids, np.atleast_1d(label)))


def append(folder: str | Path, more: CandidateDatabase) -> None:
    """Puts examples into the first empty places, and behind the others when these are used up.

    The index, which does not know them, is dropped.

    Args:
      folder: where the database stands.
      more: examples of the same encoder, such as `database.build` returns; its empty places are left out.

    Raises:
      DatabaseError: as `remove`, or another encoder made `more`.
      ValueError: an id is in the database already, or as `CandidateDatabase.append`; nothing is changed.
    """
    stored = shards.editable(folder)
    if more.encoder_sha256 != stored.manifest.parameters_sha256:
        raise DatabaseError(
            f"{stored.folder / NAME}: encoded by parameters {stored.manifest.parameters_sha256[:12]}..., but the "
            f"examples to append by {(more.encoder_sha256 or 'unknown ones')[:12]}...; encode them with the former"
        )
    own_ids, own_labels, embeddings = sharding.to_host((more.ids, more.labels, more.embeddings))
    kept = np.flatnonzero(own_ids != EMPTY)
    ids, labels = edits.integers(own_ids[kept], "ids"), edits.integers(own_labels[kept], "labels")
    edits.check_new(ids, labels, stored.ids)
    embeddings = edits.fitting(jax.tree.map(lambda x: x[kept], embeddings), stored[0].embeddings, ids)
    columns = manifest.columns(CandidateDatabase(ids, labels, embeddings))
    empty = np.flatnonzero(stored.ids == EMPTY)[: len(ids)]
    changed = _copy(stored.manifest, rows=stored.capacity + len(ids) - len(empty), index=None)

    def write() -> None:
        _put(stored, changed, empty, {array: column[: len(empty)] for array, column in enumerate(columns)})
        behind, step = [column[len(empty) :] for column in columns], manifest.rows_a_shard(changed)
        if len(behind[0]) and changed.shards[-1].rows < step:
            # Many small edits would otherwise leave as many small shards.
            last = manifest.columns(Shards(stored.folder, changed)[len(changed.shards) - 1])
            behind = [np.concatenate(both) for both in zip(last, behind, strict=True)]
            changed.shards.pop()
        for start in range(0, len(behind[0]), step):
            manifest.add_shard(stored.folder, changed, [x[start : start + step] for x in behind])

    _commit(stored, changed, _edit("append", ids), write)


def compact(folder: str | Path) -> None:
    """Moves the examples together in their order, shard by shard; the index, which knew other places, is dropped.

    Old and new files stand side by side until the end. A database without a gap stays as it is.

    Raises:
      DatabaseError: as `remove`, or a shard is damaged; nothing is changed.
    """
    stored = shards.editable(folder)
    occupied = np.flatnonzero(stored.ids != EMPTY)
    if len(occupied) == stored.capacity:
        return
    # A database has at least one place.
    kept = occupied if len(occupied) else np.zeros(1, int)
    changed = _copy(stored.manifest, rows=len(kept), shards=[], index=None)
    step = manifest.rows_a_shard(changed)

    def write() -> None:
        for start in range(0, len(kept), step):
            rows = kept[start : start + step]
            columns = [stored.take(array, rows) for array in range(len(changed.arrays))]
            manifest.add_shard(stored.folder, changed, columns)

    _commit(stored, changed, _edit("compact"), write)


def index(folder: str | Path, memory: CandidateDatabase) -> None:
    """Saves what `CandidateDatabase.index` made of a database in its place; its history is kept.

    Raises:
      DatabaseError: as `remove`, or another encoder made `memory`.
    """
    before = shards.read(folder, memory.encoder_sha256).manifest
    storage.save(folder, memory, before.made_from, [*before.edits, _edit("index")])


def _copy(before: Manifest, **changes: Any) -> Manifest:
    return before.model_copy(deep=True).model_copy(update=changes)


def _rewrite(stored: Shards, places: np.ndarray, columns: dict[str, np.ndarray], edit: Edit) -> None:
    """Puts the values of `columns` `[n]` into the `places` `[n]` of the arrays of these names."""
    changed = _copy(stored.manifest)
    by_array = {stored.place(name): values for name, values in columns.items()}
    _commit(stored, changed, edit, lambda: _put(stored, changed, places, by_array))


def _put(stored: Shards, changed: Manifest, places: np.ndarray, columns: Mapping[int, np.ndarray]) -> None:
    """Writes the files of the shards in which `places` `[n]` get the values `[n, ...]` of an array's column."""
    for number, shard in enumerate(changed.shards):
        own = (places >= shard.first) & (places < shard.first + shard.rows)
        for array, values in columns.items() if own.any() else ():
            column = np.array(stored.column(number, array))
            column[places[own] - shard.first] = values[own]
            shard.files[array] = manifest.write_array(stored.folder, f"{number:05d}-{array:02d}", column)


def _commit(stored: Shards, changed: Manifest, edit: Edit, write: Callable[[], None]) -> None:
    """Writes files, then the manifest that names them; after a failure the new files are gone, after that the old."""
    changed.edits.append(edit)
    try:
        write()
        if manifest.read(stored.folder) != stored.manifest:
            raise DatabaseError(f"{stored.folder / NAME}: was changed by somebody else meanwhile; nothing was edited")
        # The sweep of an edit that failed meanwhile may have taken files that no manifest named yet.
        Shards(stored.folder, changed).check_whole()
        manifest.write(stored.folder, changed)
    finally:
        manifest.sweep(stored.folder)


def _edit(name: str, ids: Sequence[int] | np.ndarray = (), labels: Sequence[int] | np.ndarray = ()) -> Edit:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Edit(edit=name, at=now, ids=np.asarray(ids, int).tolist(), labels=np.asarray(labels, int).tolist())
