"""Features that were made elsewhere: an npy file of arrays and one of labels."""

from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from protojax.data import splits
from protojax.data.prepare.write import Duplicates, Prepared, Raw, target, write
from protojax.data.source import DataError

_SHARD_BYTES = 2**26


def features(
    source: str | Path,
    *,
    name: str,
    labels: str | Path,
    data_dir: str | Path | None = None,
    validation: float = 0.1,
    test: float = 0.2,
    duplicates: Duplicates = "refuse",
    overwrite: bool = False,
) -> Prepared:
    """Prepares `[examples, features]` or `[examples, height, width, features]`; ids are places in the file.

    The file is read as it is written, never whole.

    Args:
      source: npy file of float16, float32 or float64 (which becomes float32).
      name: of the data set.
      labels: npy file `[examples]` of whole numbers from 0, or of texts.
      data_dir: folder of prepared data sets; the TFDS default when absent.
      validation: share of the training examples, by hash of the id.
      test: share of all examples, by hash of the id.
      duplicates: features that stand in two splits are refused, or dropped from train, then from validation.
      overwrite: replaces a prepared data set of this name.

    Raises:
      DataError: a file cannot be read, is of another type or shape, holds a number that is not finite, or the two do
        not belong together; see also `write`.
    """
    goal = target(name, data_dir, validation=validation, test=test, duplicates=duplicates, overwrite=overwrite)
    arrays = _read(Path(source))
    if arrays.dtype.kind != "f" or arrays.ndim not in (2, 4) or arrays.dtype.itemsize > 8:
        raise DataError(
            f"{source}: holds {arrays.dtype} {list(arrays.shape)}, not floating point [examples, features] or "
            "[examples, height, width, features]"
        )
    kind = np.dtype(np.float16 if arrays.dtype == np.float16 else np.float32)
    label_names, numbers = _labels(Path(labels))
    if len(numbers) != len(arrays):
        raise DataError(f"{labels}: {len(numbers)} labels for the {len(arrays)} examples of {source}")

    def stored(place: int) -> np.ndarray:
        return np.ascontiguousarray(arrays[place], kind)

    hashes = []
    for place in range(len(arrays)):
        found = stored(place)
        if not np.isfinite(found).all():
            raise DataError(f"{source}: example {place} has a number that is not finite as {kind}")
        hashes.append(splits.content_hash([found.tobytes()]))
    shape = arrays.shape[1:]
    raw = Raw(
        origin=f"the features of {source} (labels: {labels})",
        feature={
            "features": tfds.features.Tensor(shape=shape, dtype=kind, encoding=tfds.features.Encoding.BYTES),
        },
        label_names=label_names,
        ids=np.arange(len(arrays)),
        labels=numbers,
        hashes=hashes,
        splits=None,
        read=lambda place: {"features": stored(place)},
        shard_examples=max(1, _SHARD_BYTES // max(1, kind.itemsize * int(np.prod(shape)))),
    )
    return write(goal, raw)


def _read(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as an npy file of numbers: {error}") from None


def _labels(path: Path) -> tuple[list[str], np.ndarray]:
    found = _read(path)
    if found.ndim != 1 or found.dtype.kind not in "iuU":
        raise DataError(f"{path}: holds {found.dtype} {list(found.shape)}, not one whole number or text an example")
    if found.dtype.kind == "U":
        names, numbers = np.unique(found, return_inverse=True)
        return names.tolist(), numbers.astype(np.int64)
    if len(found) and found.min() < 0:
        raise DataError(f"{path}: label {found.min()} of example {int(np.argmin(found))} is negative: number from 0")
    return [str(label) for label in range(int(found.max(initial=-1)) + 1)], found.astype(np.int64)
