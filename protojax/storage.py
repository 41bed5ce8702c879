"""A candidate database on disk: written, read whole, or shard by shard where it is larger than memory."""

import functools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from protojax import manifest as manifests
from protojax import ops, resumable, sharding
from protojax.candidates import CandidateDatabase
from protojax.edits import EMPTY
from protojax.manifest import NAME, DatabaseError, Edit, Manifest
from protojax.resumable import File


class Shards(Sequence[CandidateDatabase]):
    """A database on disk as consecutive parts, whose arrays are memory-mapped; a file is checked when first opened."""

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder = folder
        self.manifest = manifest
        self._checked: set[str] = set()

    def __len__(self) -> int:
        return len(self.manifest.shards)

    def __getitem__(self, position: int) -> CandidateDatabase:
        """A shard of NumPy arrays.

        Raises:
          DatabaseError: one of its files is missing, damaged or outside the folder.
        """
        columns = [self.column(position, array) for array in range(len(self.manifest.arrays))]
        encoder = encoder_leaf(self.manifest.parameters_sha256)
        return CandidateDatabase(**manifests.tree(self.manifest, columns), encoder=encoder)

    @property
    def capacity(self) -> int:
        return self.manifest.rows

    @functools.cached_property
    def ids(self) -> np.ndarray:
        """int32 `[capacity]`: those of all shards, -1 in empty places; read once.

        Raises:
          DatabaseError: an id stands there more than once.
        """
        ids = self.whole("ids")
        order = np.argsort(ids, kind="stable")
        ordered = ids[order]
        # Of each pair the place of the second, so that the first of these is where reading meets an id again.
        again = order[1:][(ordered[1:] == ordered[:-1]) & (ordered[1:] != EMPTY)]
        if len(again):
            row = int(again.min())
            shard = next(shard for shard in self.manifest.shards if row < shard.first + shard.rows)
            path = self.folder / shard.files[self.place("ids")].file
            raise DatabaseError(
                f"{path}: damaged: id {ids[row]} stands more than once in this database; "
                f"{manifests.advice(self.manifest)}"
            )
        return ids

    def whole(self, *path: str) -> np.ndarray:
        """One array of all shards, read: `whole("ids")`."""
        return self.rows(self.place(*path), 0, self.capacity)

    def place(self, *path: str) -> int:
        """Which of the arrays stands there in the record."""
        return [array.path for array in self.manifest.arrays].index(list(path))

    def column(self, position: int, array: int) -> np.ndarray:
        """One array of one shard, memory-mapped."""
        shard, what = self.manifest.shards[position], self.manifest.arrays[array]
        return self._open(shard.files[array], what.dtype, [shard.rows, *what.shape])

    def rows(self, array: int, start: int, stop: int) -> np.ndarray:
        """Rows of one array, read; those beyond the capacity are empty."""
        what = self.manifest.arrays[array]
        empty = EMPTY if what.path in (["ids"], ["labels"]) else 0
        result = np.full((stop - start, *what.shape), empty, what.dtype)
        for position, shard in enumerate(self.manifest.shards):
            low, high = max(start, shard.first), min(stop, shard.first + shard.rows)
            if low < high:
                part = self.column(position, array)
                result[low - start : high - start] = part[low - shard.first : high - shard.first]
        return result

    def clusters(self) -> ops.ClusterIndex | None:
        """The index of the whole database as NumPy arrays."""
        if self.manifest.index is None:
            return None
        return ops.ClusterIndex(*(self._open(file, "float32", None) for file in self.manifest.index))

    def check_whole(self) -> None:
        """Refuses a database of which a file is missing, or is none of its folder; what the files hold is not read.

        Raises:
          DatabaseError: names the first such file.
        """
        for name in sorted(manifests.named(self.manifest)):
            if not self._path(name).is_file():
                raise DatabaseError(f"{self.folder / name}: missing; {manifests.advice(self.manifest)}")

    def _path(self, file: str) -> Path:
        path = self.folder / file
        # Resolving sees through "..", absolute paths and links.
        if path.resolve().parent != self.folder.resolve():
            raise DatabaseError(
                f"{self.folder / NAME}: names a file outside its folder: {file!r}; {manifests.advice(self.manifest)}"
            )
        return path

    def _open(self, entry: File, dtype: str, shape: list[int] | None) -> np.ndarray:
        path, advice = self._path(entry.file), manifests.advice(self.manifest)
        if entry.file not in self._checked or not path.is_file():
            if problem := resumable.damage(self.folder, [entry]):
                raise DatabaseError(f"{problem}; {advice}")
            self._checked.add(entry.file)
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise DatabaseError(f"{path}: not an array of numbers ({error}); {advice}") from None
        if array.dtype.name != dtype or (shape is not None and list(array.shape) != shape):
            raise DatabaseError(
                f"{path}: holds {array.dtype.name} {list(array.shape)}, "
                f"but manifest.json says {dtype} {shape or 'of any shape'}; {advice}"
            )
        return array


def shards(folder: str | Path, parameters_sha256: str | None = None) -> Shards:
    """Opens a database to be read shard by shard; nothing but the manifest is read yet.

    Args:
      folder: where it stands.
      parameters_sha256: hash of the parameters that are to use it; None where nothing is encoded for it.

    Raises:
      DatabaseError: there is none, its manifest is damaged, or other parameters made it.
    """
    folder = Path(folder)
    manifest = manifests.read(folder)
    if parameters_sha256 not in (None, manifest.parameters_sha256):
        raise DatabaseError(
            f"{folder / NAME}: stale: encoded by parameters {manifest.parameters_sha256[:12]}..., "
            f"but these are {parameters_sha256[:12]}...; {manifests.advice(manifest)}"
        )
    rows = sum(shard.rows for shard in manifest.shards)
    if rows != manifest.rows:
        raise DatabaseError(
            f"{folder / NAME}: unfinished: {rows} of {manifest.rows} rows; build the database to its end"
        )
    return Shards(folder, manifest)


def editable(folder: str | Path, parameters_sha256: str | None = None) -> Shards:
    """Opens a database to be edited: all of its files are there, and what `info` says of it can be read.

    Raises:
      DatabaseError: as `load`; so nothing is changed before that is known.
    """
    stored = shards(folder, parameters_sha256)
    stored.check_whole()
    _ = stored.ids, stored.whole("labels"), stored.clusters()
    return stored


def encoder_leaf(parameters_sha256: str) -> np.ndarray:
    """The field `encoder` of a `CandidateDatabase`: uint8 `[32]` of 64 hexadecimal digits."""
    return np.frombuffer(bytes.fromhex(parameters_sha256), np.uint8)


def load(folder: str | Path, parameters_sha256: str | None, mesh: Mesh | None = None) -> CandidateDatabase:
    """Reads a whole database, after checking every byte of it.

    Args:
      folder: where it stands.
      parameters_sha256: hash of the parameters that are to use it; None where nothing is encoded for it.
      mesh: where given, rows are split over it (every process reads its own), and empty places fill up the capacity.

    Raises:
      DatabaseError: the database is missing, damaged, made by other parameters, holds an id twice, or names a file
        outside its folder; the message names the file.
    """
    stored = shards(folder, parameters_sha256)
    _ = stored.ids
    clusters = stored.clusters()
    blocks = 0 if clusters is None else len(clusters.radii)
    rows_a_block = stored.capacity // blocks if blocks else 1
    step = 1 if mesh is None else mesh.size * rows_a_block
    capacity = -(-stored.capacity // step) * step

    def place(array: int) -> jax.Array:
        if mesh is None:
            return jnp.asarray(stored.rows(array, 0, capacity))
        shape = (capacity, *stored.manifest.arrays[array].shape)
        return jax.make_array_from_callback(
            shape, sharding.along_data(mesh), lambda index: stored.rows(array, *index[0].indices(capacity)[:2])
        )

    tree = manifests.tree(stored.manifest, [place(array) for array in range(len(stored.manifest.arrays))])
    few: Any = (clusters, encoder_leaf(stored.manifest.parameters_sha256))
    if clusters is not None:
        more = capacity // rows_a_block - blocks
        few = (jax.tree.map(lambda x: np.pad(x, [(0, more)] + [(0, 0)] * (x.ndim - 1)), clusters), few[1])

    def place_whole(x: np.ndarray) -> jax.Array:
        if mesh is None:
            return jnp.asarray(x)
        # Unlike jax.device_put, this asks nothing of other processes, one of which may have failed.
        return jax.make_array_from_callback(x.shape, sharding.replicated(mesh), lambda index: x[index])

    few = jax.tree.map(place_whole, few)
    return CandidateDatabase(**tree, clusters=few[0], encoder=few[1], mesh=mesh)


def save(
    folder: str | Path, memory: CandidateDatabase, made_from: str | None = None, edits: Sequence[Edit] = ()
) -> None:
    """Writes a database, in place of an older one.

    Args:
      folder: where it is to stand.
      memory: the database, with the hash of its encoder; its embeddings are one array or (nested) dicts of arrays.
      made_from: what it was built for, see `database.stamp`.
      edits: what was done to it since.

    Raises:
      DatabaseError: the database has no encoder, its embeddings are in other containers than dicts or of a type that
        npy files do not know, or `folder` holds something else.
    """
    folder = Path(folder)
    manifests.check_free(folder)
    if memory.encoder is None:
        raise DatabaseError("a database without the hash of its encoder cannot be saved; set its field `encoder`")
    manifest = manifests.plan(memory, memory.capacity, memory.encoder_sha256, made_from)
    manifest.edits = list(edits)
    columns = [np.asarray(x) for x in manifests.columns(memory)]
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        # Whole blocks, so that the index holds for every shard alone.
        step = resumable.rows_of_whole_batches(manifests.rows_a_shard(manifest), memory.rows_a_block)
        for start in range(0, manifest.rows, step):
            manifests.add_shard(fresh, manifest, [x[start : start + step] for x in columns])
        if memory.clusters is not None:
            manifest.index = [manifests.write_array(fresh, "index", np.asarray(x)) for x in memory.clusters]
        manifests.write(fresh, manifest)
        manifests.install(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def is_of(folder: str | Path, made_from: str) -> bool:
    """Whether the database in `folder` was made from this (`database.stamp`), whatever was edited since.

    Raises:
      DatabaseError: one stands there, but its manifest is damaged.
    """
    folder = Path(folder)
    if not (folder / NAME).exists() or manifests.is_older(folder):
        return False
    return manifests.read(folder).made_from == made_from


def check_unedited(folder: str | Path) -> None:
    """Refuses to have an edited database built anew: what was removed from it would be back without a word.

    Raises:
      DatabaseError: a database stands there, and it was edited, or is damaged.
    """
    folder = Path(folder)
    if not (folder / NAME).exists() or manifests.is_older(folder):
        return
    if made := manifests.read(folder).edits:
        names = ", ".join(edit.edit for edit in made[:10])
        raise DatabaseError(
            f"{folder / NAME}: of other parameters or examples, and edited ({names}): building it anew would undo "
            "that; move the folder away, then repeat the edits on the new database"
        )


def info(folder: str | Path) -> dict[str, Any]:
    """What a database holds, as JSON values; reads ids and labels, and no embeddings.

    Returns:
      `schema`, `parameters_sha256`, `made_from`, `rows` (places), `examples`, `labels` (examples by label), `arrays`
      (type and row shape by path), `shards`, `bytes`, `blocks` (of the index, or None) and `edits`.

    Raises:
      DatabaseError: as `load`.
    """
    stored = editable(folder)
    manifest = stored.manifest
    labels = stored.whole("labels")
    occupied = stored.ids != EMPTY
    found, counts = np.unique(labels[occupied], return_counts=True)
    clusters = stored.clusters()
    return {
        "schema": manifest.schema_name,
        "parameters_sha256": manifest.parameters_sha256,
        "made_from": manifest.made_from,
        "rows": manifest.rows,
        "examples": int(occupied.sum()),
        "labels": dict(zip(map(str, found.tolist()), counts.tolist(), strict=True)),
        "arrays": {"/".join(array.path): {"dtype": array.dtype, "shape": array.shape} for array in manifest.arrays},
        "shards": len(manifest.shards),
        "bytes": sum((stored.folder / name).stat().st_size for name in sorted(manifests.named(manifest))),
        "blocks": None if clusters is None else len(clusters.radii),
        "edits": [edit.model_dump() for edit in manifest.edits],
    }
