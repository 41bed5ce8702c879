"""Key-points of bird parts for CUB-200-2011 (Wah et al. 2011), beside its TFDS data set `caltech_birds2011`.

TFDS stores the pictures with their file names but not the parts; those are text files of the authors' archive, folder
`CUB_200_2011`: `images.txt`, `parts/parts.txt` and `parts/part_locs.txt`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from protojax.data.source import DataError


class KeyPoints(NamedTuple):
    """Where the parts of one bird are."""

    points: np.ndarray
    """float32 `[parts, 2]`: row and column in pixels of the stored picture; 0 where it is not visible."""
    visible: np.ndarray
    """bool `[parts]`."""


class Parts(NamedTuple):
    """The part annotation of the data set."""

    names: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    """Places of right and left of the same part, as `metrics.purity` takes them."""
    birds: dict[str, KeyPoints]
    """By the name of the picture's file, without its folder."""


def read(folder: str | Path) -> Parts:
    """Reads the part files.

    Args:
      folder: `CUB_200_2011` of the archive.

    Raises:
      DataError: a file is missing, or a line malformed; the message has file and line.
    """
    folder = Path(folder)
    names = tuple(name for _, (_, name) in _lines(folder / "parts" / "parts.txt", 2))
    images = {number: Path(path).name for _, (number, path) in _lines(folder / "images.txt", 2)}
    places = folder / "parts" / "part_locs.txt"
    birds = {
        name: KeyPoints(np.zeros((len(names), 2), np.float32), np.zeros(len(names), bool)) for name in images.values()
    }
    for line, (image, part, x, y, seen) in _lines(places, 5):
        try:
            bird, place = birds[images[image]], int(part) - 1
            if not 0 <= place < len(names):
                raise ValueError(f"part {part} is none of 1 to {len(names)}")
            bird.visible[place] = bool(int(seen))
            bird.points[place] = (float(y), float(x)) if int(seen) else 0.0
        except KeyError as error:
            raise DataError(f"{places}, line {line}: picture {error} is not in images.txt") from None
        except ValueError as error:
            raise DataError(f"{places}, line {line}: {error}") from None
    pairs = tuple(
        (names.index(name.replace("left", "right")), place)
        for place, name in enumerate(names)
        if "left" in name and name.replace("left", "right") in names
    )
    return Parts(names, pairs, birds)


def keypoints(record: Mapping[str, Any], parts: Parts, size: tuple[int, int]) -> KeyPoints:
    """The key-points of a TFDS example, in pixels of an image that it was resized to.

    Args:
      record: with `image` uint8 `[height, width, channels]` and `image/filename`, as TFDS gives it.
      parts: from `read`.
      size: height and width that the model sees; the whole picture, not a crop.

    Raises:
      DataError: the file name is not annotated.
    """
    name = record["image/filename"]
    name = Path(name.decode() if isinstance(name, bytes) else str(name)).name
    if name not in parts.birds:
        raise DataError(f"{name!r} has no parts: the part files are of another data set than the pictures")
    points, visible = parts.birds[name]
    scale = np.array(size, np.float32) / np.array(record["image"].shape[:2], np.float32)
    return KeyPoints(points * scale, visible)


def _lines(path: Path, fields: int) -> list[tuple[int, list[str]]]:
    """Numbered lines, each divided at spaces into so many fields."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: missing; give the folder CUB_200_2011 of the archive") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    found = []
    for number, line in enumerate(lines, start=1):
        parts = line.split(" ", fields - 1)
        if len(parts) != fields:
            raise DataError(f"{path}, line {number}: {fields} fields were expected, got {line!r}")
        found.append((number, parts))
    return found
