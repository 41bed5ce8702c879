"""Where prepared TFDS data sets lie, and what to do about one that is not there."""

import difflib
import re
from pathlib import Path

from protojax.data.source import DataError

INSTALL = "pip install 'protojax[tensorflow]'"
"""What building an official data set needs."""

_NAME = re.compile(r"(?P<name>\w[\w.-]*(/\w[\w.-]*)?)(:(?P<version>\d+\.\d+\.\d+))?", re.ASCII)
_VERSION = re.compile(r"\d+\.\d+\.\d+", re.ASCII)
_LISTED = 20


def folder(name: str, data_dir: str | None) -> tuple[str, Path]:
    """Finds a prepared data set.

    Args:
      name: `name`, `name/config`, `name:version` or `name/config:version`; the newest version when none is given.
      data_dir: folder of prepared data sets; the TFDS default when None.

    Returns:
      The name without version, and the folder for `tfds.builder_from_directory`.

    Raises:
      DataError: no such data set; with what is there instead, and how to prepare it.
    """
    from tensorflow_datasets.core import constants

    if (match := _NAME.fullmatch(name)) is None:
        raise DataError(f"{name!r} is no name of a data set; names are digits, name, name:1.0.0, name/config:1.0.0")
    root = Path(constants.DATA_DIR if data_dir is None else data_dir).expanduser()
    versions = _versions(root / match["name"])
    wanted = match["version"] or max(versions, key=_order, default="")
    if wanted in versions:
        return match["name"], root / match["name"] / wanted
    if versions:
        there = ", ".join(sorted(versions, key=_order))
        raise DataError(f"{match['name']} is not prepared in version {wanted} in {root}; there is {there}")
    raise DataError(_missing(match["name"], root))


def _missing(name: str, root: Path) -> str:
    import tensorflow_datasets as tfds

    found = _prepared(root)
    shown = ", ".join(found[:_LISTED]) + (f" and {len(found) - _LISTED} more" if len(found) > _LISTED else "")
    message = f"no data set {name!r} is prepared in {root} (prepared there: {shown or 'none'})"
    if near := difflib.get_close_matches(name, found, n=1):
        message += f", the nearest is {near[0]!r}"
    if name.split("/")[0] in tfds.list_builders(with_community_datasets=False):
        return (
            f"{message}. It is an official TFDS data set: build it once with `{INSTALL}` and "
            f"`protojax prepare tfds {name} --data-dir {root}`"
        )
    return (
        f"{message}. Prepare it from raw files with `protojax prepare idx|image-folder|csv|text SOURCE --name {name} "
        f"--data-dir {root}`, or set data.data_dir to the folder that holds it"
    )


def _prepared(root: Path) -> list[str]:
    names = []
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        names += [path.name] * bool(_versions(path))
        names += [
            f"{path.name}/{sub.name}" for sub in sorted(path.iterdir() if path.is_dir() else ()) if _versions(sub)
        ]
    return names


def _versions(path: Path) -> list[str]:
    if not path.is_dir():
        return []
    return [p.name for p in path.iterdir() if _VERSION.fullmatch(p.name) and (p / "dataset_info.json").is_file()]


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
