"""The manifest of a database on disk, and how its files get in place.

Files are named after their content, and `manifest.json`, which names the files that count, is replaced in one step. So
a full disk or a kill leaves the database before or the one after, whole, and at worst files that nobody names.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import pydantic
from pydantic import Field

from protojax import resumable
from protojax.candidates import CandidateDatabase
from protojax.resumable import Digest, File

NAME = "manifest.json"
SCHEMA = "protojax.database/2"
_OLDER = ("protojax.database/1",)
"""Of versions before; such a database is built anew."""

ROWS = 8192
"""Rows of a shard, where they are not too wide for `BYTES`."""
BYTES = 2**28
"""Of the widest array of a shard, at most."""

ADVICE = "delete the folder and build the database again"
_OWN = re.compile(r"(\d{5}-\d{2}|index)(-[0-9a-f]{12}\.npy|\.npy\.tmp)|\.manifest\.json|\d\d\.npy")
"""What the files here, and those of older versions, are called; others in the folder are left alone."""


class DatabaseError(ValueError):
    """A database on disk is missing, damaged or stale, or cannot be written; the message names the file."""


class _Version(pydantic.BaseModel):
    schema_name: str = Field(alias="schema")


class Array(pydantic.BaseModel):
    """One array of the record `CandidateDatabase`."""

    path: Annotated[list[str], Field(min_length=1)]
    """Its place in the record, such as `["embeddings", "keys"]`."""
    dtype: Annotated[str, Field(pattern=r"^(bool|u?int(8|16|32|64)|float(16|32|64))$")]
    shape: list[Annotated[int, Field(ge=0)]]
    """Of a row."""


class Shard(pydantic.BaseModel):
    """Consecutive rows: one file an array, in the order of `Manifest.arrays`."""

    first: int
    rows: Annotated[int, Field(ge=1)]
    files: list[File]


class Edit(pydantic.BaseModel):
    """What was done to the database since it was built, or that it was built of other examples than those asked for."""

    edit: Literal["build", "remove", "relabel", "append", "index", "compact"]
    at: str
    """UTC, ISO 8601."""
    ids: list[int] = []
    labels: list[int] = []
    """The new labels of a relabelling: one for all ids, or one each."""


class Manifest(_Version):
    """What stands in `manifest.json`."""

    parameters_sha256: Digest
    """Of the parameters that encoded every row."""
    made_from: str | None = None
    """What the database was built for, so that an edited one is still recognised; see `database.stamp`."""
    rows: Annotated[int, Field(ge=1)]
    arrays: list[Array]
    shards: list[Shard]
    index: list[File] | None = None
    """Centres and radii of equal blocks of rows."""
    edits: list[Edit] = []


def plan(memory: CandidateDatabase, rows: int, parameters_sha256: str, made_from: str | None) -> Manifest:
    """The manifest of a database of so many rows like those of `memory`, without a shard yet.

    Raises:
      DatabaseError: the embeddings are kept in other containers than dicts, or of a type that npy files do not know.
    """
    arrays = []
    for path, leaf in _leaves(memory):
        if np.dtype(leaf.dtype).kind not in "biuf":
            raise DatabaseError(f"{'.'.join(path)}: npy files do not know {leaf.dtype}; convert it in encode")
        arrays.append(Array(path=path, dtype=np.dtype(leaf.dtype).name, shape=list(leaf.shape[1:])))
    return Manifest(
        schema=SCHEMA, parameters_sha256=parameters_sha256, made_from=made_from, rows=rows, arrays=arrays, shards=[]
    )


def columns(memory: CandidateDatabase) -> list[Any]:
    """The arrays of a database in the order of `Manifest.arrays`."""
    return [leaf for _, leaf in _leaves(memory)]


def rows_a_shard(manifest: Manifest) -> int:
    """How many rows a shard should have."""
    widest = max(np.dtype(array.dtype).itemsize * int(np.prod(array.shape)) for array in manifest.arrays)
    return max(1, min(ROWS, BYTES // max(widest, 1)))


def add_shard(folder: Path, manifest: Manifest, rows: Sequence[np.ndarray]) -> None:
    """Writes the next rows of every array, and adds them to the manifest (which is not written)."""
    number, first = len(manifest.shards), sum(shard.rows for shard in manifest.shards)
    files = [write_array(folder, f"{number:05d}-{array:02d}", x) for array, x in enumerate(rows)]
    manifest.shards.append(Shard(first=first, rows=len(rows[0]), files=files))


def write_array(folder: Path, name: str, array: np.ndarray) -> File:
    """Writes one npy file, named after `name` and its content."""
    temporary = folder / f"{name}.npy.tmp"
    try:
        with temporary.open("wb") as stream:
            np.save(stream, array, allow_pickle=False)
        sha256 = resumable.sha256_of(temporary)
        file = f"{name}-{sha256[:12]}.npy"
        os.replace(temporary, folder / file)
    finally:
        temporary.unlink(missing_ok=True)
    return File(file=file, sha256=sha256)


def write(folder: Path, manifest: Manifest) -> None:
    """Replaces the manifest of a folder in one step."""
    resumable.write(folder / NAME, manifest)


def install(fresh: Path, folder: Path) -> None:
    """Moves a finished database from `fresh` to `folder`, where an older one counts until its manifest is replaced."""
    sweep(fresh)
    if not folder.exists() or not any(folder.iterdir()):
        os.replace(fresh, folder)
        return
    for file in sorted(fresh.iterdir()):
        if file.name != NAME:
            os.replace(file, folder / file.name)
    os.replace(fresh / NAME, folder / NAME)
    fresh.rmdir()
    sweep(folder)


def advice(manifest: Manifest) -> str:
    """What to do about a database that is damaged."""
    if not manifest.edits:
        return ADVICE
    kinds = ", ".join(dict.fromkeys(edit.edit for edit in manifest.edits))
    return f"{ADVICE}; that loses its edits ({kinds}), so keep {NAME}, which lists them"


def sweep(folder: Path) -> None:
    """Deletes files of databases that the manifest does not name."""
    kept = named(read(folder))
    for file in folder.iterdir():
        if file.name not in kept and _OWN.fullmatch(file.name):
            file.unlink()


def named(manifest: Manifest) -> set[str]:
    """The files that count."""
    return {entry.file for entry in [*(f for shard in manifest.shards for f in shard.files), *(manifest.index or [])]}


def check_free(folder: Path) -> None:
    """Refuses a folder that holds anything but a database.

    Raises:
      DatabaseError: as said.
    """
    if not folder.exists() or (folder / NAME).is_file():
        return
    # A kill may leave files of ours without a manifest.
    if any(not _OWN.fullmatch(file.name) for file in folder.iterdir()):
        raise DatabaseError(f"{folder}: holds files but no database (no {NAME}); choose another folder")


def read(folder: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
      DatabaseError: there is none, or it is damaged or of another version.
    """
    path = folder / NAME
    try:
        text = path.read_bytes()
        version = _Version.model_validate_json(text).schema_name
        if version != SCHEMA:
            raise DatabaseError(f"{path}: schema {version!r}, but this version reads {SCHEMA!r}; {ADVICE}")
        manifest = Manifest.model_validate_json(text)
    except FileNotFoundError:
        raise DatabaseError(f"{path}: no database here; build one first") from None
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise DatabaseError(
            f"{path}: damaged manifest ({f'{place}: ' if place else ''}{problem['msg']}); {ADVICE}"
        ) from None
    _check(manifest, path)
    return manifest


def is_older(folder: Path) -> bool:
    """Whether a database of an older version stands in the folder."""
    try:
        return _Version.model_validate_json((folder / NAME).read_bytes()).schema_name in _OLDER
    except pydantic.ValidationError:
        return False


def tree(manifest: Manifest, arrays: Sequence[Any]) -> dict[str, Any]:
    """Arrays in the order of the manifest as the fields of a `CandidateDatabase`."""
    result: dict[str, Any] = {}
    for what, array in zip(manifest.arrays, arrays, strict=True):
        *parents, last = what.path
        place = result
        for key in parents:
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                break
        if not isinstance(place, dict) or last in place:
            raise DatabaseError(f"two arrays at {'.'.join(what.path)}")
        place[last] = array
    if set(result) != {"ids", "labels", "embeddings"}:
        raise DatabaseError(f"holds {sorted(result)}, not ids, labels and embeddings")
    return result


def _check(manifest: Manifest, path: Path) -> None:
    try:
        tree(manifest, range(len(manifest.arrays)))
        for array in manifest.arrays:
            if array.path[0] != "embeddings" and (array.dtype, array.shape) != ("int32", []):
                raise DatabaseError(f"{array.path[0]} of {array.dtype} {array.shape}, not int32 []")
        first = 0
        for number, shard in enumerate(manifest.shards):
            if shard.first != first:
                raise DatabaseError(f"shard {number} begins with row {shard.first}, not {first}")
            if len(shard.files) != len(manifest.arrays):
                raise DatabaseError(f"shard {number} has {len(shard.files)} files for {len(manifest.arrays)} arrays")
            first += shard.rows
        if manifest.index is not None and len(manifest.index) != 2:
            raise DatabaseError(f"an index of {len(manifest.index)} files, not centres and radii")
    except DatabaseError as error:
        raise DatabaseError(f"{path}: damaged manifest: {error}; {ADVICE}") from None


def _leaves(memory: CandidateDatabase) -> list[tuple[list[str], Any]]:
    leaves = [(["ids"], memory.ids), (["labels"], memory.labels)]
    for keys, leaf in jax.tree_util.tree_leaves_with_path(memory.embeddings):
        for key in keys:
            if not isinstance(key, jax.tree_util.DictKey) or not isinstance(key.key, str):
                raise DatabaseError(
                    f"embeddings{jax.tree_util.keystr(keys)}: a database on disk keeps dicts with text keys only; "
                    "return such dicts from encode"
                )
        leaves.append((["embeddings", *(key.key for key in keys)], leaf))
    return leaves
