"""A folder of images by class."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageOps
from tqdm import tqdm

from protojax.data import splits
from protojax.data.prepare.write import Duplicates, Prepared, Raw, encode_png, target, write
from protojax.data.source import DataError

_SPLITS = {"train": "train", "test": "test", "validation": "validation", "val": "validation", "valid": "validation"}
_GRAY = ("1", "L", "LA")
_COLOUR = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB", "RGBX")


class _File(NamedTuple):
    path: Path
    split: str | None
    label: str


def image_folder(
    source: str | Path,
    *,
    name: str,
    data_dir: str | Path | None = None,
    image_size: tuple[int, int] | None = None,
    validation: float = 0.1,
    test: float = 0.2,
    duplicates: Duplicates = "refuse",
    overwrite: bool = False,
) -> Prepared:
    """Prepares `source/class/image` or `source/split/class/image`, split being train, test or validation.

    Images are turned as their EXIF data says, palettes become colours; all must be gray or all coloured. Ids are places
    in the sorted list of files. Hidden files are no part of the data set.

    Args:
      source: the folder.
      name: of the data set.
      data_dir: folder of prepared data sets; the TFDS default when absent.
      image_size: height and width that every image is resized to (bilinear, its proportions not kept); when absent,
        all must have one size.
      validation: share of the training examples, by hash of the id, where there is no such folder.
      test: share of all examples, where there is no such folder.
      duplicates: an image that stands in two splits is refused, or dropped from train, then from validation.
      overwrite: replaces a prepared data set of this name.

    Raises:
      DataError: an image cannot be read or differs from the others, a class is empty, the folders are not laid out as
        above, something leads out of the folder; see also `write`.
    """
    goal = target(name, data_dir, validation=validation, test=test, duplicates=duplicates, overwrite=overwrite)
    if image_size is not None and min(image_size) < 1:
        raise DataError(f"image_size is a height and a width in pixels, got {image_size}")
    root = Path(source)
    files = _files(root)
    shape, hashes = _survey(files, root, image_size)
    names = sorted({file.label for file in files})
    raw = Raw(
        origin=f"the images in {root}",
        feature={"image": tfds.features.Image(shape=shape, encoding_format="png")},
        label_names=names,
        ids=np.arange(len(files)),
        labels=np.array([names.index(file.label) for file in files]),
        hashes=hashes,
        splits=None if files[0].split is None else np.array([file.split for file in files]),
        read=lambda place: {"image": encode_png(read_image(files[place].path, image_size))},
    )
    return write(goal, raw)


def read_image(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Reads one image.

    Args:
      path: the file.
      size: height and width to resize to; None keeps those of the file.

    Returns:
      uint8 `[height, width, channels]`, channels 1 or 3.

    Raises:
      DataError: it cannot be read, has more than 8 bits a channel, transparency or several frames.
    """
    try:
        with Image.open(path) as image:
            # The further frames of a camera's MPO file are views of the same picture.
            if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
                raise DataError(f"{path}: has {image.n_frames} frames; give one image a file")
            image.load()
            upright = ImageOps.exif_transpose(image)
    except DataError:
        raise
    # PIL reports a damaged PNG as a SyntaxError.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as an image: {error}; repair or remove it") from None
    if upright.mode not in _GRAY + _COLOUR:
        raise DataError(f"{path}: has pixels of mode {upright.mode}; save it with 8 bits a channel, gray or colour")
    if upright.has_transparency_data and upright.convert("RGBA").getextrema()[3][0] < 255:
        raise DataError(f"{path}: is transparent in places; save it on the background that it should have")
    pixels = upright.convert("L" if upright.mode in _GRAY else "RGB")
    if size is not None:
        pixels = pixels.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    array = np.asarray(pixels)
    return array[..., None] if array.ndim == 2 else array


def _survey(files: list[_File], root: Path, size: tuple[int, int] | None) -> tuple[tuple[int, int, int], list[bytes]]:
    # Reads everything once, so that nothing is written before all of it is known to be sound.
    hashes, shape = [], None
    for file in tqdm(files, desc=f"reading {root.name}", unit=" images"):
        pixels = read_image(file.path, size)
        if shape is None:
            first, shape = file.path, pixels.shape
        if pixels.shape[2] != shape[2]:
            kinds = {1: "gray", 3: "coloured"}
            raise DataError(
                f"{first} is {kinds[shape[2]]} but {file.path} is {kinds[pixels.shape[2]]}: convert one kind"
            )
        if pixels.shape != shape:
            raise DataError(
                f"images of different sizes: {first} is {shape[0]}x{shape[1]} but {file.path} is "
                f"{pixels.shape[0]}x{pixels.shape[1]} (height x width): give --image-size (image_size) to resize all"
            )
        hashes.append(splits.content_hash([pixels.tobytes()]))
    return shape, hashes


def _files(root: Path) -> list[_File]:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    top = _folders(root, root)
    if "train" in (folder.name for folder in top):
        found = []
        for folder in top:
            if folder.name not in _SPLITS:
                raise DataError(
                    f"{folder}: stands beside {root / 'train'} but is no split: expected {', '.join(_SPLITS)}"
                )
            if (split := _SPLITS[folder.name]) in (file.split for file in found):
                raise DataError(f"{folder}: {root} has this split under another name too")
            found += _of_classes(_folders(folder, root), split, root)
    else:
        if any(folder.name in _SPLITS for folder in top):
            raise DataError(f"{root}: has a folder for a split but none named train")
        found = list(_of_classes(top, None, root))
    if not found:
        raise DataError(
            f"{root}: has no class folders; expected {root.name}/class/image or {root.name}/train/class/image"
        )
    return sorted(found, key=lambda file: file.path.relative_to(root).as_posix())


def _of_classes(folders: list[Path], split: str | None, root: Path) -> Iterator[_File]:
    for folder in folders:
        entries = _entries(folder, root)
        if not entries:
            raise DataError(f"{folder}: class {folder.name!r} is empty: remove the folder, or give it images")
        for entry in entries:
            if not entry.is_file():
                raise DataError(f"{entry}: no file; class {folder.name!r} must hold image files only")
            yield _File(entry, split, folder.name)


def _folders(folder: Path, root: Path) -> list[Path]:
    entries = _entries(folder, root)
    for entry in entries:
        if not entry.is_dir():
            raise DataError(f"{entry}: a file outside of the class folders; move it away")
    return entries


def _entries(folder: Path, root: Path) -> list[Path]:
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    for entry in entries:
        if not entry.resolve().is_relative_to(root.resolve()):
            raise DataError(f"{entry}: leads out of {root}, to {entry.resolve()}; copy it into the folder")
        if entry.is_symlink():
            raise DataError(f"{entry}: a link; the folder must hold the files themselves")
    return entries
