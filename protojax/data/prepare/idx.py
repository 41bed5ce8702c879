"""IDX folders: the files of MNIST and of the data sets that took over its format."""

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import tensorflow_datasets as tfds

from protojax.data import splits
from protojax.data.prepare.write import Duplicates, Prepared, Raw, encode_png, target, write
from protojax.data.source import DataError

_UINT8 = 8
_PREFIXES = {"train": "train", "test": "t10k"}
_CHUNK = 1 << 20


def idx(
    source: str | Path,
    *,
    name: str,
    data_dir: str | Path | None = None,
    label_names: Sequence[str] | None = None,
    validation: float = 0.1,
    test: float = 0.2,
    duplicates: Duplicates = "refuse",
    overwrite: bool = False,
) -> Prepared:
    """Prepares `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and their `t10k-` fellows, gzipped or not.

    Ids count the training examples from 0, then the test examples.

    Args:
      source: the folder.
      name: of the data set.
      data_dir: folder of prepared data sets; the TFDS default when absent.
      label_names: names of the labels 0, 1, ...; their numbers when absent.
      validation: share of the training examples, by hash of the id.
      test: share of all examples, where there are no `t10k-` files.
      duplicates: an image that stands in two splits is refused, or dropped from train, then from validation.
      overwrite: replaces a prepared data set of this name.

    Raises:
      DataError: a file is missing, truncated or not IDX; images and labels do not match; see also `write`.
    """
    goal = target(name, data_dir, validation=validation, test=test, duplicates=duplicates, overwrite=overwrite)
    folder = Path(source)
    parts = {"train": _pair(folder, "train")}
    if any(_find(folder, f"{_PREFIXES['test']}-{kind}") for kind in ("images-idx3", "labels-idx1")):
        parts["test"] = _pair(folder, "test")
    shapes = {split: images.shape[1:] for split, (images, _) in parts.items()}
    if len(set(shapes.values())) > 1:
        raise DataError(f"{folder}: images of different sizes in train {shapes['train']} and test {shapes['test']}")
    images = np.concatenate([images for images, _ in parts.values()])[..., None]
    labels = np.concatenate([labels for _, labels in parts.values()]).astype(np.int64)
    names = _label_names(folder, labels, label_names)
    raw = Raw(
        origin=f"the IDX files in {folder}",
        feature={"image": tfds.features.Image(shape=images.shape[1:], encoding_format="png")},
        label_names=names,
        ids=np.arange(len(labels)),
        labels=labels,
        hashes=[splits.content_hash([image.tobytes()]) for image in images],
        splits=np.repeat(list(parts), [len(own) for _, own in parts.values()]) if "test" in parts else None,
        read=lambda place: {"image": encode_png(images[place])},
    )
    return write(goal, raw)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Reads one IDX file of unsigned bytes.

    Args:
      path: the file; `.gz` is unpacked.
      dimensions: axes that it must have.

    Raises:
      DataError: it cannot be read, is of another kind, too short or too long.
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        header = _bytes(file, path, 4 + 4 * dimensions, "header")
        magic = bytes((0, 0, _UINT8, dimensions))
        if header[:4] != magic:
            raise DataError(
                f"{path}: starts with {header[:4].hex()} where an IDX file of unsigned bytes with {dimensions} "
                f"dimension(s) starts with {magic.hex()}: is it the right file?"
            )
        shape = tuple(np.frombuffer(header[4:], ">u4").tolist())
        values = _bytes(file, path, math.prod(shape), f"data of shape {list(shape)}")
        if _read(file, path, 1):
            raise DataError(f"{path}: goes on after the {math.prod(shape)} bytes of shape {list(shape)}")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _bytes(file: IO[bytes], path: Path, count: int, what: str) -> bytes:
    # In pieces, so that a header that lies about its size costs no memory.
    found = bytearray()
    while len(found) < count:
        piece = _read(file, path, min(_CHUNK, count - len(found)))
        if not piece:
            raise DataError(
                f"{path}: truncated: expected {count} bytes of {what}, found {len(found)}; get the file again"
            )
        found += piece
    return bytes(found)


def _read(file: IO[bytes], path: Path, count: int) -> bytes:
    try:
        return file.read1(count)
    except EOFError:  # gzip without its end: as if the file ended here
        return b""
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file: {error}; get the file again") from None


def _pair(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    image_path, label_path = (
        _required(folder, f"{_PREFIXES[split]}-{kind}") for kind in ("images-idx3", "labels-idx1")
    )
    images, labels = read_idx(image_path, 3), read_idx(label_path, 1)
    if len(images) != len(labels):
        raise DataError(f"{image_path} holds {len(images)} images but {label_path} {len(labels)} labels")
    return images, labels


def _find(folder: Path, stem: str) -> Path | None:
    # Some mirrors write train-images.idx3-ubyte.
    spellings = [f"{s}-ubyte{suffix}" for suffix in ("", ".gz") for s in (stem, stem.replace("-idx", ".idx"))]
    return next((folder / s for s in spellings if (folder / s).is_file()), None)


def _required(folder: Path, stem: str) -> Path:
    if (path := _find(folder, stem)) is None:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder")
        there = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise DataError(f"{folder}: no file {stem}-ubyte or {stem}-ubyte.gz; the folder holds {there}")
    return path


def _label_names(folder: Path, labels: np.ndarray, given: Sequence[str] | None) -> list[str]:
    if not len(labels):
        raise DataError(f"{folder}: the label files hold no example")
    if given is None:
        return [str(label) for label in range(labels.max() + 1)]
    if labels.max() >= len(given):
        place = int(labels.argmax())
        raise DataError(
            f"{folder}: label {labels[place]} of example {place} has no name: {len(given)} label_names were given"
        )
    return list(given)
