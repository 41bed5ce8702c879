"""What stands beside the features of a store: what their numbers depend on, and which shards are whole."""

import json
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import Field

from protojax import resumable
from protojax.data.source import DataError
from protojax.resumable import File

SCHEMA = "protojax.features/1"
STAMP = "stamp.json"
CONTENTS = "shards.json"
DESCRIBED = "dataset_info.json"
"""Of TFDS, written when all shards are whole."""


class Stamp(pydantic.BaseModel):
    """What the numbers of a store depend on."""

    schema_name: str = Field(alias="schema")
    network: str
    weights_sha256: str
    precision: Literal["float32", "bfloat16"]
    image_size: list[int]
    crop: float
    interpolation: str
    mean: list[float]
    std: list[float]
    tuned_stages: int = 0
    """Last stages of the network that are left out."""
    views: int
    """Augmented views of every training example."""
    augment: dict[str, Any] | None
    """Of the views; None where there are none."""
    seed: int | None
    data: str
    data_fingerprint: str
    """Of the images, their labels and their splits."""
    shape: list[int] = []
    """Of a map; empty in what is asked for."""

    def differences(self, wanted: "Stamp") -> list[str]:
        """What another stamp asks for and this one does not have; more views than asked for do not matter."""
        mine, theirs = self.model_dump(), wanted.model_dump()
        keys = [key for key in mine if key not in ("shape", "views", "augment", "seed")]
        if wanted.views:
            keys += ["augment", "seed"]
        found = [f"{key} is {mine[key]!r}, not {theirs[key]!r}" for key in keys if mine[key] != theirs[key]]
        if self.views < wanted.views:
            found.append(f"views is {self.views}, fewer than {wanted.views}")
        return found

    def changes(self, wanted: "Stamp") -> list[str]:
        """All in which another stamp is not this one."""
        mine, theirs = self.model_dump(), wanted.model_dump()
        return [f"{key} is {mine[key]!r}, not {theirs[key]!r}" for key in mine if mine[key] != theirs[key]]


class Shard(pydantic.BaseModel):
    """Consecutive records of a split, in one file."""

    split: str
    first: int
    records: int
    bytes: int
    files: list[File]


class Contents(pydantic.BaseModel):
    """What stands in `shards.json`."""

    counts: dict[str, int]
    """Records by split, of the finished store."""
    rows: int
    """Records of a shard, but for the last of a split."""
    shards: list[Shard] = []
    """Those that are whole, in the order in which they are written."""

    def planned(self) -> list[tuple[str, range]]:
        """The split and the records of every shard of the finished store."""
        return [
            (split, range(first, min(first + self.rows, count)))
            for split, count in self.counts.items()
            for first in range(0, count, self.rows)
        ]


def command(folder: Path) -> str:
    """The command that writes a store, or finishes it."""
    return f"protojax features EXPERIMENT.toml --output {folder}"


def read_stamp(folder: Path) -> Stamp:
    """The stamp of a store.

    Args:
      folder: of the store's version.

    Raises:
      DataError: there is none, it is damaged, or of another version.
    """
    path = folder / STAMP
    try:
        text = path.read_bytes()
        version = json.loads(text).get("schema")
        if version != SCHEMA:
            raise DataError(f"{path}: schema {version!r}, but this version reads {SCHEMA!r}; write the store again")
        return Stamp.model_validate_json(text)
    except FileNotFoundError:
        goal = folder.parent
        begun = resumable.place(goal)
        if (begun / folder.name / CONTENTS).is_file():
            problem = f"{goal}: the store is unfinished, and stands in {begun}; finish it with {command(goal)}"
        else:
            problem = f"{path}: no feature store here; write one with {command(goal)}, or leave encoder.features out"
        raise DataError(problem) from None
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, pydantic.ValidationError) as error:
        raise DataError(f"{path}: damaged: {str(error).splitlines()[0]}; write the store again") from None


def read_contents(folder: Path) -> Contents | None:
    """The shards of a store; None for one of before they were listed.

    Raises:
      DataError: the list is damaged.
    """
    path = folder / CONTENTS
    try:
        return Contents.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        raise DataError(f"{path}: damaged: {problem['msg']}; write the store again") from None


def check_whole(folder: Path, contents: Contents) -> None:
    """Refuses a store that is unfinished, or lacks part of a file; the content of files is not read.

    Raises:
      DataError: as said, naming the folder and the command that finishes it, or the file.
    """
    done, planned = len(contents.shards), len(contents.planned())
    if done < planned or not (folder / DESCRIBED).is_file():
        goal = folder.parent.with_name(folder.parent.name.removesuffix(".partial"))
        raise DataError(
            f"{folder.parent}: the store is unfinished: {done} of {planned} shards; finish it with {command(goal)}"
        )
    for shard in contents.shards:
        path = folder / shard.files[0].file
        if not path.is_file():
            raise DataError(f"{path}: missing; write the store again with {command(folder.parent)} --overwrite")
        if (size := path.stat().st_size) != shard.bytes:
            raise DataError(
                f"{path}: damaged: {size} bytes, not {shard.bytes}; write the store again with "
                f"{command(folder.parent)} --overwrite"
            )
