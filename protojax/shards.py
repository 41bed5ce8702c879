"""A candidate database on disk, opened: arrays are memory-mapped, and a file is checked when it is first read."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from protojax import manifest as manifests
from protojax import ops, resumable
from protojax.candidates import CandidateDatabase
from protojax.edits import EMPTY, first_repeated
from protojax.manifest import NAME, Array, DatabaseError, Manifest
from protojax.resumable import File


class Shards(Sequence[CandidateDatabase]):
    """A database on disk as consecutive parts of NumPy arrays."""

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
        if (row := first_repeated(ids)) is not None:
            shard = next(shard for shard in self.manifest.shards if row < shard.first + shard.rows)
            path, advice = self.folder / shard.files[self.place("ids")].file, manifests.advice(self.manifest)
            raise DatabaseError(f"{path}: damaged: id {ids[row]} stands more than once in this database; {advice}")
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
        result = np.full((stop - start, *what.shape), _empty(what), what.dtype)
        for position, shard in enumerate(self.manifest.shards):
            low, high = max(start, shard.first), min(stop, shard.first + shard.rows)
            if low < high:
                part = self.column(position, array)
                result[low - start : high - start] = part[low - shard.first : high - shard.first]
        return result

    def take(self, array: int, rows: np.ndarray) -> np.ndarray:
        """Rows of one array, read, for any shape of positions; -1 stands for an empty one."""
        what = self.manifest.arrays[array]
        result = np.full((*rows.shape, *what.shape), _empty(what), what.dtype)
        first = [shard.first for shard in self.manifest.shards]
        holding = np.where(rows >= 0, np.searchsorted(first, rows, side="right") - 1, EMPTY)
        for position in np.unique(holding[rows >= 0]):
            own = holding == position
            result[own] = self.column(position, array)[rows[own] - first[position]]
        return result

    def clusters(self) -> ops.ClusterIndex | None:
        """The index of the whole database as NumPy arrays."""
        if self.manifest.index is None:
            return None
        return ops.ClusterIndex(*(self._open(file, "float32", None) for file in self.manifest.index))

    def check_whole(self) -> None:
        """Refuses a database of which a file is missing (DatabaseError); what the files hold is not read."""
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


def _empty(what: Array) -> int:
    return EMPTY if what.path in (["ids"], ["labels"]) else 0


def read(folder: str | Path, parameters_sha256: str | None = None) -> Shards:
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
    """Opens a database to be edited: all of its files are there, and ids, labels and index can be read.

    Raises:
      DatabaseError: as `read`, or a file is missing or damaged; so nothing is changed before that is known.
    """
    stored = read(folder, parameters_sha256)
    stored.check_whole()
    _ = stored.ids, stored.whole("labels"), stored.clusters()
    return stored


def encoder_leaf(parameters_sha256: str) -> np.ndarray:
    """The field `encoder` of a `CandidateDatabase`: uint8 `[32]` of 64 hexadecimal digits."""
    return np.frombuffer(bytes.fromhex(parameters_sha256), np.uint8)
