"""FunnyBirds (Hesse et al. 2023) as its authors lay it out: pictures by class, part maps, pictures without parts.

    classes.json, parts.json                                  which variant of each part a class has
    dataset_SPLIT.json or params_SPLIT.json.gz                how every picture was made
    train/CLASS/INDEX.jpg, test/CLASS/INDEX.jpg               pictures, .png or .jpg
    test_part_map/CLASS/INDEX.png                             one colour a piece (`PIECES`)
    test_interventions/CLASS/INDEX/body_beak_eye.jpg          the same scene with only these parts kept
    test_interventions/CLASS/INDEX/background_interventions/K.jpg    ... without background object K

To know before use: a part can be hidden, and then its mask is empty. Edges of a part map carry mixed colours, which
belong to no piece. In training pictures parts are missing by design (`Scene.removed`), so that some of them fit several
classes. Of the interventions a folder may hold only some; `without` says how it makes up for the others.
"""

import gzip
import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from protojax.data.source import DataError

PARTS = ("beak", "eye", "foot", "tail", "wing")
"""In the order of all arrays."""


class Piece(NamedTuple):
    """What one colour of a part map stands for."""

    name: str
    part: str
    rgb: tuple[int, int, int]


PIECES = (
    Piece("beak", "beak", (255, 255, 0)),
    Piece("eye01", "eye", (255, 255, 253)),
    Piece("eye02", "eye", (255, 255, 254)),
    Piece("foot01", "foot", (255, 0, 1)),
    Piece("foot02", "foot", (255, 0, 2)),
    Piece("tail", "tail", (0, 0, 255)),
    Piece("wing01", "wing", (0, 255, 1)),
    Piece("wing02", "wing", (0, 255, 2)),
)
"""The legend of the authors; 01 is the bird's own right side."""

PART_OF = np.array([PARTS.index(piece.part) for piece in PIECES])
"""The part of every piece, as `metrics.part_importance` takes it."""

_OBJECT = (204, 204, 204)
"""The colour of background object 0; each further one has 1 more of blue."""

_SUFFIXES = (".jpg", ".png")


class Scene(NamedTuple):
    """One picture and what belongs to it."""

    split: str
    index: int
    """Within the split."""
    label: int
    image: Path
    removed: tuple[str, ...]
    """Parts that this very picture lacks."""
    part_map: Path | None
    interventions: dict[frozenset[str], Path]
    """Pictures by the parts that they keep."""
    without_object: dict[int, Path]
    """Pictures by the background object that they lack."""
    objects: int
    """Background objects described, seen or not; 0 where the description says nothing of them."""


class _Described(NamedTuple):
    label: int
    removed: tuple[str, ...]
    objects: int


class FunnyBirds(NamedTuple):
    """The folder, read."""

    root: Path
    classes: np.ndarray
    """int32 `[classes, parts]`: the variant of each part, parts in the order of `PARTS`."""
    scenes: tuple[Scene, ...]
    """Of all splits: test before train, by index."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """`class 00` and so on: the authors gave numbers only."""
        width = len(str(len(self.classes) - 1))
        return tuple(f"class {label:0{width}}" for label in range(len(self.classes)))


def read(root: str | Path) -> FunnyBirds:
    """Reads what a folder holds, without opening a picture.

    Raises:
      DataError: a file that describes the data is missing or malformed, a picture is missing or not described, a
        picture of an intervention has a name that names no parts, or the folder holds no pictures.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the FunnyBirds folder, or its tar file")
    classes = _classes(root)
    scenes: list[Scene] = []
    for split in ("test", "train"):
        if (root / split).is_dir():
            scenes += _scenes(root, split, len(classes))
    if not scenes:
        raise DataError(f"{root}: holds neither test/ nor train/: not a FunnyBirds folder")
    return FunnyBirds(root, classes, tuple(scenes))


def piece_masks(scene: Scene, size: tuple[int, int] | None = None) -> np.ndarray:
    """Where each piece is seen, bool `[pieces, height, width]` in the order of `PIECES`.

    Args:
      scene: one with a part map.
      size: height and width to resize to (nearest); None keeps those of the map.

    Raises:
      DataError: the scene has no part map, or it cannot be read.
    """
    pixels = _part_map(scene, size)
    return np.stack([(pixels == np.array(piece.rgb)).all(axis=-1) for piece in PIECES])


def object_masks(scene: Scene, size: tuple[int, int] | None = None) -> np.ndarray:
    """Where each background object is seen, bool `[objects, height, width]`, up to the last that is seen.

    Raises:
      DataError: as `piece_masks`.
    """
    pixels = _part_map(scene, size).astype(int)
    is_object = (pixels[..., :2] == _OBJECT[0]).all(axis=-1) & (pixels[..., 2] >= _OBJECT[2])
    count = int(pixels[..., 2][is_object].max(initial=_OBJECT[2] - 1)) - _OBJECT[2] + 1
    return is_object[None] & (pixels[None, ..., 2] == _OBJECT[2] + np.arange(count)[:, None, None])


def without(scene: Scene, removed: Collection[str]) -> tuple[np.ndarray, bool]:
    """The picture of a scene without some parts.

    Where it was not rendered, it is composed of those without one part each: every pixel comes from the one that
    changes it most. That is right but where two removed parts overlap: what was behind both is not known.

    Args:
      scene: the scene.
      removed: names of parts; none gives the picture itself.

    Returns:
      uint8 `[height, width, 3]`, and whether it was rendered rather than composed.

    Raises:
      DataError: a name that is no part, a picture that is missing, or cannot be read.
    """
    if unknown := sorted(set(removed).difference(PARTS)):
        raise DataError(f"{unknown[0]!r} is no part: the parts are {', '.join(PARTS)}")
    kept = frozenset(PARTS).difference(removed)
    if not removed:
        return picture(scene.image), True
    if kept in scene.interventions:
        return picture(scene.interventions[kept]), True
    original = picture(scene.image)
    composed, change = original.copy(), np.zeros(original.shape[:2], int)
    for part in sorted(removed):
        single = frozenset(PARTS).difference([part])
        if single not in scene.interventions:
            raise DataError(
                f"{scene.image}: there is no picture without {part}, nor one without {', '.join(sorted(removed))}; "
                f"expected {_name(single)} among its interventions"
            )
        other = picture(scene.interventions[single])
        own = np.abs(other.astype(int) - original).sum(axis=-1)
        more = own > change
        composed[more], change[more] = other[more], own[more]
    return composed, False


def picture(path: Path, size: tuple[int, int] | None = None, nearest: bool = False) -> np.ndarray:
    """A picture or part map, uint8 `[height, width, 3]`.

    Raises:
      DataError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            found = image.convert("RGB")
    # PIL reports a damaged PNG as a SyntaxError.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as an image: {error}; copy it again") from None
    if size is not None:
        found = found.resize(size[::-1], Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR)
    return np.asarray(found)


def _part_map(scene: Scene, size: tuple[int, int] | None) -> np.ndarray:
    if scene.part_map is None:
        raise DataError(f"{scene.image}: has no part map; only test scenes have one")
    return picture(scene.part_map, size, nearest=True)


def _classes(root: Path) -> np.ndarray:
    path = root / "classes.json"
    try:
        entries = _json(path)
        table = [[entry["parts"][part] for part in PARTS] for entry in entries]
        numbers = [entry["class_idx"] for entry in entries]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: a class lacks {error}; expected class_idx, and parts with {', '.join(PARTS)}"
        ) from None
    if numbers != list(range(len(numbers))) or not numbers:
        raise DataError(f"{path}: classes must be numbered 0, 1, 2, ..., got {numbers[:5]}")
    return np.array(table, np.int32)


def _scenes(root: Path, split: str, classes: int) -> list[Scene]:
    described = _described(root, split)
    scenes = []
    for folder in sorted((root / split).iterdir()):
        if not folder.name.isdecimal() or int(folder.name) >= classes:
            raise DataError(f"{folder}: no class of this number; classes.json has {classes}")
        for image in sorted(folder.iterdir()):
            if image.suffix not in _SUFFIXES or not image.stem.isdecimal():
                raise DataError(f"{image}: expected a picture named by its number, such as 000012.jpg or 000012.png")
            index = int(image.stem)
            if index not in described:
                raise DataError(f"{image}: {split} picture {index} is not described beside classes.json")
            own = described[index]
            if own.label != int(folder.name):
                raise DataError(f"{image}: lies with class {folder.name}, but is described as class {own.label}")
            scenes.append(_scene(root, split, index, image, own))
    return sorted(scenes, key=lambda scene: scene.index)


def _scene(root: Path, split: str, index: int, image: Path, described: _Described) -> Scene:
    label, removed, count = described
    part_map = root / f"{split}_part_map" / str(label) / f"{image.stem}.png"
    folder = root / f"{split}_interventions" / str(label) / image.stem
    interventions = {}
    for path in _pictures(folder):
        kept = path.stem.split("_")
        if kept[0] != "body" or set(kept[1:]).difference(PARTS):
            raise DataError(f"{path}: expected body_ and the parts kept, such as {_name(frozenset(PARTS[:2]))}")
        interventions[frozenset(kept[1:]).difference({""})] = path
    objects = {}
    for path in _pictures(folder / "background_interventions"):
        if not path.stem.isdecimal():
            raise DataError(f"{path}: expected the number of a background object, such as 3.png")
        objects[int(path.stem)] = path
    part_map = part_map if part_map.exists() else None
    return Scene(split, index, label, image, removed, part_map, interventions, objects, count)


def _pictures(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES) if folder.is_dir() else ()


def _described(root: Path, split: str) -> dict[int, _Described]:
    """What is said of every picture."""
    for name in (f"dataset_{split}.json", f"params_{split}.json.gz", f"params_{split}.json"):
        if (root / name).exists():
            break
    else:
        raise DataError(f"{root}: has {split}/ but neither dataset_{split}.json nor params_{split}.json.gz")
    described: dict[int, _Described] = {}
    for place, entry in enumerate(_json(root / name)):
        try:
            missing = tuple(part for part in PARTS if entry[f"{part}_model"] == "placeholder")
            objects = sum(map(bool, (entry.get("bg_objects") or "").split(",")))
            described[int(entry.get("index", place))] = _Described(int(entry["class_idx"]), missing, objects)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{root / name}: entry {place} is malformed: {error!r}") from None
    return described


def _json(path: Path) -> Any:
    try:
        raw = path.read_bytes()
        return json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
    except FileNotFoundError:
        raise DataError(f"{path}: missing; a FunnyBirds folder has one") from None
    except (OSError, EOFError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from None


def _name(kept: frozenset[str]) -> str:
    return "_".join(["body", *sorted(kept)]) + ".jpg"
