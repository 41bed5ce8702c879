"""Long work that a kill does not undo: it grows in `FOLDER.partial`, where a manifest names the shards that are whole.

Everything that is built so (a database, a feature store) is named in two steps: a file gets its place when it is
whole, and counts when the manifest names it, which is replaced in one step.
"""

import hashlib
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import pydantic
from pydantic import Field

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

Manifest = TypeVar("Manifest", bound=pydantic.BaseModel)
"""A record with `shards`, each of which has `files`."""


class File(pydantic.BaseModel):
    """A file of a folder."""

    file: str
    sha256: Digest


def place(folder: Path) -> Path:
    """Where what is to become `folder` stands until it is whole."""
    return folder.with_name(f"{folder.name}.partial")


def sha256_of(file: Path) -> str:
    """SHA-256 of the content of a file, as hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write(path: Path, manifest: pydantic.BaseModel) -> None:
    """Replaces a manifest in one step."""
    temporary = path.with_name(f".{path.name}")
    try:
        temporary.write_text(manifest.model_dump_json(by_alias=True, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def rows_of_whole_batches(rows: int, batch_size: int) -> int:
    """Rows of a shard of about `rows`, at least one batch, so that none but the last batch of all is filled up."""
    return max(1, rows // batch_size) * batch_size


def go_on(folder: Path, found: Manifest | None, wanted: Manifest, save: Callable[[Path, Manifest], None]) -> Manifest:
    """The manifest that work in a folder goes on from.

    Args:
      folder: of the unfinished work.
      found: the manifest that stands there; None where none can be read.
      wanted: that of the work which is to be done, without a shard.
      save: writes a manifest into a folder.

    Returns:
      `found`, with its shards up to the first that is damaged (a warning names it), where it is of the same work. Of
      other work nothing is kept: the folder is emptied, and has the manifest `wanted`.
    """
    if found is None or found.model_copy(update={"shards": []}) != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        save(folder, wanted)
        return wanted
    for position, shard in enumerate(found.shards):
        if (problem := damage(folder, shard.files)) is not None:
            warnings.warn(f"{problem}; made again, with what comes after it", stacklevel=2)
            del found.shards[position:]
            break
    return found


def damage(folder: Path, files: Sequence[File]) -> str | None:
    """Names the first of some files that is not what its manifest says; None where all are."""
    for entry in files:
        path = folder / entry.file
        if not path.is_file():
            return f"{path}: missing"
        if sha256_of(path) != entry.sha256:
            return f"{path}: damaged: its content is not what its manifest says"
    return None
