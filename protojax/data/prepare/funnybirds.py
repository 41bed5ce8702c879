"""FunnyBirds as a prepared data set, its part maps and interventions beside."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from protojax.data import archive, splits
from protojax.data import funnybirds as birds
from protojax.data.funnybirds import FunnyBirds, Scene
from protojax.data.prepare.write import Duplicates, Prepared, Raw, target, write
from protojax.data.source import DataError

FOLDER = "funnybirds"
"""Beside the records: the folder of the authors without the training pictures, and `ids.json`."""


def funnybirds(
    source: str | Path,
    *,
    name: str,
    data_dir: str | Path | None = None,
    validation: float = 0.1,
    duplicates: Duplicates = "refuse",
    overwrite: bool = False,
) -> Prepared:
    """Prepares the FunnyBirds folder, or a tar file of it.

    Ids are places in the list of all pictures, test before train, each by index. Pictures are stored as they are, not
    compressed again.

    Args:
      source: the folder, or a tar file that holds it.
      name: of the data set.
      data_dir: folder of prepared data sets; the TFDS default when absent.
      validation: share of the training pictures, by hash of the id.
      duplicates: a picture that stands in two splits is refused, or dropped from train, then from validation.
      overwrite: replaces a prepared data set of this name.

    Raises:
      DataError: see `protojax.data.funnybirds.read` and `write`; also pictures of different sizes or kinds.
    """
    goal = target(name, data_dir, validation=validation, test=0.0, duplicates=duplicates, overwrite=overwrite)
    with archive.unpacked(source) as root:
        found = birds.read(root)
        shape, hashes = _survey(found.scenes)
        suffix = found.scenes[0].image.suffix
        raw = Raw(
            origin=f"FunnyBirds in {Path(source).name}",
            feature={"image": tfds.features.Image(shape=shape, encoding_format="png" if suffix == ".png" else "jpeg")},
            label_names=found.label_names,
            ids=np.arange(len(found.scenes)),
            labels=np.array([scene.label for scene in found.scenes]),
            hashes=hashes,
            splits=np.array([scene.split for scene in found.scenes]),
            read=lambda place: {"image": io.BytesIO(found.scenes[place].image.read_bytes())},
        )
        prepared = write(goal, raw)
        try:
            _beside(found, prepared.path / FOLDER)
        except OSError as error:
            raise DataError(f"{prepared.path / FOLDER} could not be written: {error}; prepare again") from None
    return prepared


def annotations(folder: str | Path) -> dict[int, Scene]:
    """The test scenes of a prepared data set by id, with part maps and interventions.

    Args:
      folder: what `funnybirds` returned as `path`.

    Raises:
      DataError: there are none beside the records, or they are malformed.
    """
    beside = Path(folder) / FOLDER
    try:
        ids = json.loads((beside / "ids.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder}: has no {FOLDER}/ids.json; protojax prepare funnybirds writes it") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{beside / 'ids.json'}: cannot be read: {error}; prepare the data set again") from None
    scenes = {scene.index: scene for scene in birds.read(beside).scenes}
    return {int(id): scenes[index] for id, index in ids["test"].items()}


def _survey(scenes: tuple[Scene, ...]) -> tuple[tuple[int, int, int], list[bytes]]:
    hashes, shape, first = [], None, scenes[0].image
    for scene in tqdm(scenes, desc="reading funnybirds", unit=" images"):
        if scene.image.suffix != first.suffix:
            raise DataError(f"{first} and {scene.image}: pictures of two formats; convert one kind")
        pixels = birds.picture(scene.image)
        shape = shape or pixels.shape
        if pixels.shape != shape:
            raise DataError(
                f"{first} is {shape[0]}x{shape[1]} but {scene.image} is {pixels.shape[0]}x{pixels.shape[1]} "
                "(height x width): render them in one size"
            )
        hashes.append(splits.content_hash([pixels.tobytes()]))
    return shape, hashes


def _beside(found: FunnyBirds, folder: Path) -> None:
    folder.mkdir()
    for path in found.root.iterdir():
        if path.is_file() and (path.name.startswith(("classes", "parts", "LICENSE")) or "_test." in path.name):
            shutil.copyfile(path, folder / path.name)
    for name in ("test", "test_part_map", "test_interventions"):
        if (found.root / name).is_dir():
            shutil.copytree(found.root / name, folder / name)
    ids = {
        split: {id: scene.index for id, scene in enumerate(found.scenes) if scene.split == split}
        for split in ("test", "train")
    }
    removed = {id: scene.removed for id, scene in enumerate(found.scenes) if scene.removed}
    (folder / "ids.json").write_text(json.dumps({**ids, "removed": removed}) + "\n", encoding="utf-8")
