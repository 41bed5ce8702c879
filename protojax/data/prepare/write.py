"""Writes a data set as TFDS ArrayRecord files, whole or not at all."""

import io
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from protojax.data import splits, tfds_files
from protojax.data.source import DataError

Duplicates = Literal["refuse", "drop"]
Shard = Iterator[dict[str, Any]]
"""Yields the examples of a shard."""

_SHARD_EXAMPLES = 2048
_RESERVED = ("digits",)


class Prepared(NamedTuple):
    """A prepared data set."""

    path: Path
    """The folder for `tfds.builder_from_directory`."""
    counts: dict[str, int]
    """Examples by split."""
    dropped: dict[str, tuple[int, ...]]
    """Ids of the copies that were left out, by the split they stood in; splits without any are absent."""


class Target(NamedTuple):
    """Where a data set goes and how it is divided, checked."""

    folder: Path
    validation: float
    test: float
    duplicates: Duplicates


class Raw(NamedTuple):
    """What a source holds, its inputs still unread."""

    origin: str
    """One line for the description of the data set."""
    feature: dict[str, Any]
    """TFDS feature of the input, by its name."""
    label_names: Sequence[str]
    ids: np.ndarray
    """int64 `[examples]`, unique, in [0, 2**31)."""
    labels: np.ndarray
    """int64 `[examples]`, places in `label_names`."""
    hashes: Sequence[bytes]
    """Content hash of every input `[examples]`."""
    splits: np.ndarray | None
    """The source's own division `[examples]`, `train`, `validation` and `test`; None where it has none."""
    read: Callable[[int], dict[str, Any]]
    """The input at a position, encoded for TFDS."""
    shard_examples: int = _SHARD_EXAMPLES
    """Examples of a shard."""


def target(
    name: str, data_dir: str | Path | None, *, validation: float, test: float, duplicates: str, overwrite: bool
) -> Target:
    """Checks the options that all sources share, before anything is read.

    Raises:
      DataError: an impossible option, or a data set of this name that is there already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise DataError(
            f"{name!r} cannot name a data set: use lower-case letters, digits and underscores, a letter first"
        )
    if name in _RESERVED:
        raise DataError(f"{name!r} is the data set embedded in protojax: choose another name")
    if duplicates not in ("refuse", "drop"):
        raise DataError(f'duplicates must be "refuse" or "drop", got {duplicates!r}')
    for key, share in (("validation", validation), ("test", test)):
        if not 0.0 <= share < 1.0:
            raise DataError(f"{key} is a share of the examples, in [0, 1), got {share:g}")
    folder = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser().resolve() / name
    if os.path.lexists(folder):
        if not overwrite:
            raise DataError(f"{folder} exists: choose another name, or replace it with --overwrite (overwrite=True)")
        if folder.is_symlink() or not folder.is_dir() or any(folder.iterdir()) and not _is_prepared(folder):
            raise DataError(f"{folder} holds something else than one prepared data set: it is not replaced")
    return Target(folder, validation, test, duplicates)


def write(goal: Target, raw: Raw) -> Prepared:
    """Divides the examples, checks the division and writes it.

    Raises:
      DataError: too few examples, a class without any, an example in two splits, a disk that is full.
    """
    chosen, dropped = _without_copies(goal, raw, _divide(goal, raw))
    _check_splits(goal, raw, chosen)
    _check_classes(raw, chosen)
    kept = {name: np.flatnonzero(chosen == name) for name in (splits.TRAIN, "validation", "test")}
    kept = {name: places[splits.shuffled(raw.ids[places])] for name, places in kept.items() if len(places)}
    description = f"Prepared by protojax from {raw.origin}."
    if dropped:
        description += f" Left out as copies of examples in other splits: {sum(map(len, dropped.values()))}."
    features = tfds.features.FeaturesDict(
        {"id": np.int64, "label": tfds.features.ClassLabel(names=list(raw.label_names)), **raw.feature}
    )
    counts = {name: len(places) for name, places in kept.items()}

    def generate(places: np.ndarray, bar: tqdm) -> Iterator[dict[str, Any]]:
        for place in places:
            yield {"id": int(raw.ids[place]), "label": int(raw.labels[place]), **raw.read(int(place))}
            bar.update()

    step = raw.shard_examples
    with tqdm(total=sum(counts.values()), desc=f"writing {goal.folder.name}", unit=" examples") as bar:
        shards = {
            split: [generate(places[start : start + step], bar) for start in range(0, len(places), step)]
            for split, places in kept.items()
        }
        _write_shards(goal.folder, features, shards, description)
    return Prepared(goal.folder / tfds_files.VERSION, counts, dropped)


def _write_shards(folder: Path, features: Any, shards: Mapping[str, Sequence[Shard]], description: str) -> None:
    """Writes a data set shard by shard, in place of an older one.

    The files grow in a hidden folder beside the target, which gets its name in one step at the end.

    Args:
      folder: of the data set, whose name is that of the data set.
      features: its `tfds.features.FeaturesDict`.
      shards: by split, the examples of each shard.
      description: of the data set.

    Raises:
      DataError: the disk is full, or something else kept it from being written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.incomplete-", dir=folder.parent))
        try:
            fresh = temporary / folder.name / tfds_files.VERSION
            fresh.mkdir(parents=True)
            lengths: dict[str, list[int]] = {}
            for split, own in shards.items():
                files = (tfds_files.shard_name(folder.name, split, number, len(own)) for number in range(len(own)))
                lengths[split] = [
                    tfds_files.write_shard(fresh / file, features, examples)
                    for file, examples in zip(files, own, strict=True)
                ]
            tfds_files.describe(fresh, folder.name, features, lengths, description)
            tfds_files.install(temporary / folder.name, folder, temporary / "replaced")
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{folder} could not be written, and nothing of it was kept: {error}") from error


def encode_png(pixels: np.ndarray) -> io.BytesIO:
    """PNG of uint8 pixels `[height, width, channels]`, channels 1 or 3."""
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    file.seek(0)
    return file


def _divide(goal: Target, raw: Raw) -> np.ndarray:
    if len(raw.ids) < 2:
        raise DataError(f"{raw.origin} holds {len(raw.ids)} example(s): training and testing need different ones")
    own = np.full(len(raw.ids), splits.TRAIN) if raw.splits is None else raw.splits
    test = 0.0 if "test" in own else goal.test
    validation = 0.0 if "validation" in own else goal.validation * (1.0 - test)
    carved = splits.assign(raw.ids, {"test": test, "validation": validation})
    return np.where(own == splits.TRAIN, carved, own)


def _without_copies(goal: Target, raw: Raw, chosen: np.ndarray) -> tuple[np.ndarray, dict[str, tuple[int, ...]]]:
    # Dropped examples get the split "".
    hashes = {
        str(name): {int(raw.ids[i]): raw.hashes[i] for i in np.flatnonzero(chosen == name)}
        for name in np.unique(chosen)
    }
    if goal.duplicates == "refuse":
        remedy = '--duplicates drop (duplicates="drop") leaves the copies out, first of train, then of validation'
        splits.check_disjoint(hashes, remedy)
    dropped = {name: tuple(found) for name, found in splits.copies(hashes).items() if found}
    gone = np.isin(raw.ids, [i for found in dropped.values() for i in found])
    return np.where(gone, "", chosen), dropped


def _check_splits(goal: Target, raw: Raw, chosen: np.ndarray) -> None:
    own = [] if raw.splits is None else np.unique(raw.splits).tolist()
    carved = [name for name, share in (("test", goal.test), ("validation", goal.validation)) if share]
    for name in (splits.TRAIN, *carved, *own):
        if not np.any(chosen == name):
            raise DataError(
                f"none of the {len(raw.ids)} examples of {raw.origin} is left for the {name} split: "
                "give more examples, or other shares for test and validation"
            )


def _check_classes(raw: Raw, chosen: np.ndarray) -> None:
    if len(raw.label_names) < 2:
        raise DataError(f"{raw.origin} has the one class {raw.label_names[0]!r}: a decision needs two")
    for name in raw.label_names:
        # TFDS keeps the names in a text file, a name a line.
        if name != name.strip() or len(name.splitlines()) != 1:
            raise DataError(f"{name!r} cannot name a class: it is empty, spans lines, or has space around it")
        if list(raw.label_names).count(name) > 1:
            raise DataError(f"two classes of {raw.origin} are named {name!r}")
    everywhere = np.bincount(raw.labels, minlength=len(raw.label_names))
    training = np.bincount(raw.labels[chosen == splits.TRAIN], minlength=len(raw.label_names))
    for name, total, trained in zip(raw.label_names, everywhere, training, strict=True):
        if total == 0:
            raise DataError(f"class {name!r} of {raw.origin} has no example: take it out, or give it some")
        if trained == 0:
            raise DataError(
                f"class {name!r} of {raw.origin} has no training example ({total} in all): give it more examples, "
                "or take it out"
            )


def _is_prepared(folder: Path) -> bool:
    versions = [entry.name for entry in folder.iterdir()]
    return versions == [tfds_files.VERSION] and (folder / tfds_files.VERSION / "dataset_info.json").is_file()
