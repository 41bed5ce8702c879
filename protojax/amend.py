"""Edits of a candidate database on disk: only the files of what changes are written.

The new files stand beside the old ones until the manifest is replaced in one step; the old ones are deleted after that.
"""

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from protojax import edits, manifest, sharding, storage
from protojax.candidates import CandidateDatabase
from protojax.edits import EMPTY
from protojax.manifest import NAME, DatabaseError, Edit, Manifest
from protojax.storage import Shards


def remove(folder: str | Path, ids: Sequence[int]) -> None:
    """Empties the places of these examples.

    Raises:
      DatabaseError: the database is missing or damaged, or was changed meanwhile.
      ValueError: an id is not in the database, or repeated; nothing is changed.
    """
    ids, stored = edits.integers(ids, "ids"), storage.editable(folder)
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
    ids, stored = edits.integers(ids, "ids"), storage.editable(folder)
    labels = edits.labels_for(label, ids)
    places = edits.places_of(ids, stored.ids)
    edits.check_changes(ids, stored.whole("labels")[places], labels)
    _rewrite(stored, places, {"labels": labels}, _edit("relabel", ids, np.atleast_1d(label)))


def append(folder: str | Path, more: CandidateDatabase) -> None:
    """Puts examples behind the others; the database grows, and its index, which does not know them, is dropped.

    Args:
      folder: where the database stands.
      more: examples of the same encoder, such as `database.build` returns; its empty places are left out.

    Raises:
      DatabaseError: as `remove`, or another encoder made `more`.
      ValueError: an id is in the database already, or as `CandidateDatabase.append`; nothing is changed.
    """
    stored = storage.editable(folder)
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
    changed = stored.manifest.model_copy(deep=True)
    step = manifest.rows_a_shard(changed)
    if changed.shards[-1].rows < step:
        # Many small edits would otherwise leave as many small shards.
        last = manifest.columns(stored[len(stored) - 1])
        columns = [np.concatenate([old, new]) for old, new in zip(last, columns, strict=True)]
        changed.shards.pop()
    changed.rows += len(ids)
    changed.index = None

    def write() -> None:
        for start in range(0, len(columns[0]), step):
            manifest.add_shard(stored.folder, changed, [x[start : start + step] for x in columns])

    _commit(stored, changed, _edit("append", ids), write)


def replace(folder: str | Path, memory: CandidateDatabase, edit: Literal["index", "compact"]) -> None:
    """Saves what `index` or `compact` made of a database in its place; what it was built for and its edits are kept.

    Raises:
      DatabaseError: as `remove`, or another encoder made `memory`.
    """
    before = storage.shards(folder, memory.encoder_sha256).manifest
    storage.save(folder, memory, before.made_from, [*before.edits, _edit(edit)])


def _rewrite(stored: Shards, places: np.ndarray, columns: dict[str, np.ndarray], edit: Edit) -> None:
    """Puts the values of `columns` `[n]` into the `places` `[n]` of the arrays of these names."""
    changed = stored.manifest.model_copy(deep=True)

    def write() -> None:
        for number, shard in enumerate(changed.shards):
            own = (places >= shard.first) & (places < shard.first + shard.rows)
            for name, values in columns.items() if own.any() else ():
                array = stored.place(name)
                column = np.array(stored.column(number, array))
                column[places[own] - shard.first] = values[own]
                shard.files[array] = manifest.write_array(stored.folder, f"{number:05d}-{array:02d}", column)

    _commit(stored, changed, edit, write)


def _commit(stored: Shards, changed: Manifest, edit: Edit, write: Callable[[], None]) -> None:
    """Writes files, then the manifest that names them; after a failure the new files are gone, after that the old."""
    changed.edits.append(edit)
    try:
        write()
        if manifest.read(stored.folder) != stored.manifest:
            raise DatabaseError(f"{stored.folder / NAME}: was changed by somebody else meanwhile; nothing was edited")
        manifest.write(stored.folder, changed)
    finally:
        manifest.sweep(stored.folder)


def _edit(name: str, ids: Sequence[int] | np.ndarray = (), labels: Sequence[int] | np.ndarray = ()) -> Edit:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Edit(edit=name, at=now, ids=np.asarray(ids, int).tolist(), labels=np.asarray(labels, int).tolist())
