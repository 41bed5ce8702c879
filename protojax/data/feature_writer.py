"""Writes the features of a data set as a store, shard by shard, such that a kill loses at most one shard.

The store grows in `FOLDER.partial`, which becomes `FOLDER` when it is whole; see `protojax.resumable`.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from protojax import resumable
from protojax.data import feature_stamp
from protojax.data.feature_stamp import CONTENTS, STAMP, Contents, Shard, Stamp
from protojax.data.source import DataError, DataSet, Source
from protojax.resumable import File

SHARD_BYTES = 2**26
"""Of a shard, about."""
STORED = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(np.uint16)}
"""By precision; bfloat16 stands there by its bits, as TFDS does not know it."""


def check_free(folder: str | Path, overwrite: bool) -> None:
    """Refuses a folder that a store cannot take, before anything is computed.

    Raises:
      DataError: as `write`.
    """
    _goal(folder, overwrite)


def write(
    folder: str | Path, dataset: DataSet, stamp: Stamp, batch_size: int, overwrite: bool = False
) -> dict[str, int]:
    """Writes the features of a data set, or goes on where it was interrupted; returns the records by split.

    Views lie one after another: record v * n + p of the training split is view v of its example p, and the other
    splits have view 0 alone. However often it was interrupted, the finished store has the same bytes.

    Args:
      folder: of the store; its name is that of the data set.
      dataset: splits whose examples are features.
      stamp: of the features.
      batch_size: features that are computed at once.
      overwrite: replaces a store that stands there, and deletes an unfinished one of other features.

    Raises:
      DataError: the folder is not free, its name is impossible, the disk is full, or an unfinished store of other
        features stands beside it.
    """
    from protojax.data import tfds_files

    goal = _goal(folder, overwrite)
    fresh = resumable.place(goal)
    version, features = fresh / tfds_files.VERSION, _features(dataset, stamp)
    sources = _sources(dataset)
    counts = {name: len(source) * (1 + stamp.views * (name == "train")) for name, source in sources.items()}
    rows = SHARD_BYTES // (STORED[stamp.precision].itemsize * int(np.prod(stamp.shape)))
    wanted = Contents(counts=counts, rows=resumable.rows_of_whole_batches(rows, batch_size))
    try:
        contents = _go_on(version, wanted, stamp, overwrite)
        _write_missing(version, goal.name, contents, features, sources, stamp)
        lengths = {name: [shard.records for shard in contents.shards if shard.split == name] for name in counts}
        description = f"Features of {stamp.data} by {stamp.network}, made by protojax; {STAMP} says how."
        tfds_files.describe(version, goal.name, features, lengths, description)
        replaced = goal.with_name(f".{goal.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        tfds_files.install(fresh, goal, replaced)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"{goal} could not be finished: {error}; the same command goes on with what stands in {fresh}"
        ) from error
    return counts


def _sources(dataset: DataSet) -> dict[str, Source]:
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    return {name: source for name, source in splits.items() if source is not None}


def _features(dataset: DataSet, stamp: Stamp) -> Any:
    import tensorflow_datasets as tfds

    encoding, shape = tfds.features.Encoding.BYTES, tuple(stamp.shape)
    return tfds.features.FeaturesDict(
        {
            "id": np.int64,
            "label": tfds.features.ClassLabel(names=list(dataset.info.label_names)),
            "view": np.int64,
            "features": tfds.features.Tensor(shape=shape, dtype=STORED[stamp.precision], encoding=encoding),
        }
    )


def _goal(folder: str | Path, overwrite: bool) -> Path:
    from protojax.data import tfds_files
    from protojax.data.prepare import write as writing

    folder = Path(folder)
    target = writing.target(
        folder.name, folder.absolute().parent, validation=0, test=0, duplicates="refuse", overwrite=overwrite
    )
    fresh = resumable.place(target.folder)
    version = fresh / tfds_files.VERSION
    if os.path.lexists(fresh) and not (version / CONTENTS).is_file():
        # A kill may leave an empty folder.
        inside = [*fresh.rglob("*")] if fresh.is_dir() else [fresh]
        if any(entry not in (version, version / f".{CONTENTS}") for entry in inside):
            raise DataError(f"{fresh} holds something else than an unfinished feature store: move it away")
    return target.folder


def _go_on(version: Path, wanted: Contents, stamp: Stamp, overwrite: bool) -> Contents:
    """The contents of an unfinished store of the same features, with its whole shards; otherwise of a new one."""
    found = None
    if (version / STAMP).is_file() and (version / CONTENTS).is_file():
        try:
            different = feature_stamp.read_stamp(version).changes(stamp)
            found = feature_stamp.read_contents(version)
        except DataError as error:
            different = [str(error)]
        if different and not overwrite:
            raise DataError(
                f"{version.parent}: an unfinished store of other features stands there: {'; '.join(different)}; finish "
                "it with its own settings, move the folder away, or delete it with --overwrite"
            )
        if different:
            found = None
        else:
            # Batches of another size change no number; the shards that are whole stay.
            wanted = wanted.model_copy(update={"rows": found.rows})
    return resumable.go_on(version, found, wanted, lambda folder, contents: _begin(folder, contents, stamp))


def _begin(version: Path, contents: Contents, stamp: Stamp) -> None:
    resumable.write(version / CONTENTS, contents)
    resumable.write(version / STAMP, stamp)


def _write_missing(
    version: Path, name: str, contents: Contents, features: Any, sources: dict[str, Source], stamp: Stamp
) -> None:
    """Writes the shards that are not whole yet, and adds each to the contents on disk."""
    from protojax.data import tfds_files

    planned, kind = contents.planned(), STORED[stamp.precision]
    done = sum(shard.records for shard in contents.shards)
    with tqdm(total=sum(contents.counts.values()), initial=done, desc=f"writing {name}", unit=" views") as bar:
        for split, rows in planned[len(contents.shards) :]:
            count = sum(other == split for other, _ in planned)
            file = tfds_files.shard_name(name, split, rows.start // contents.rows, count)
            temporary = version / f"{file}.tmp"
            tfds_files.write_shard(temporary, features, _examples(sources[split], rows, kind, bar))
            entry, size = File(file=file, sha256=resumable.sha256_of(temporary)), temporary.stat().st_size
            os.replace(temporary, version / file)
            contents.shards.append(Shard(split=split, first=rows.start, records=len(rows), bytes=size, files=[entry]))
            resumable.write(version / CONTENTS, contents)


def _examples(source: Source, rows: range, kind: np.dtype, bar: tqdm) -> Iterator[dict[str, Any]]:
    for row, example in zip(rows, source.many(rows), strict=True):
        yield {
            "id": int(example["id"]),
            "label": int(example["label"]),
            "view": row // len(source),
            "features": np.ascontiguousarray(example["inputs"]).view(kind),
        }
        bar.update()
