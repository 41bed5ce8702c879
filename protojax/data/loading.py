"""From settings to the three splits of a data set: divided, checked and encoded."""

import difflib
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from protojax.config import DataSettings
from protojax.data import digits, splits, table, text, tfds_source
from protojax.data.records import MODES, Described
from protojax.data.source import DataError, DataSet, Examples, Info, Source, Stored

_TEST_SPLIT = DataSettings.model_fields["test_split"].default
_VALIDATION_SPLIT = "validation"


class Part(NamedTuple):
    """Some examples of a stored split."""

    stored: str
    places: np.ndarray
    """Integers `[examples]`."""


class Roles(NamedTuple):
    """Stored splits by what they are for; None is taken from the training split by hash of the id."""

    train: str
    validation: str | None
    test: str | None

    def names(self) -> list[str]:
        return [name for name in self if name is not None]


def load(settings: DataSettings) -> DataSet:
    """Opens a data set.

    Validation is `validation_split`, else a stored split named `validation`, else `validation_fraction` of the training
    split by hash of the id; test is `test_split`, else `test_fraction` of the training split by hash of the id, taken
    before validation.

    Raises:
      DataError: the data set is not there or malformed; a split is missing or empty; there are fewer than 2 training
        examples, or none of some class; an input cannot be encoded.
    """
    available, read = _find(settings, settings.name)
    roles = _roles(available, settings)
    names = roles.names()
    starts = np.cumsum([0, *(available[name] for name in names)]).tolist()
    stored = read(dict(zip(names, starts, strict=False)))
    parts = _divide(stored.ids, roles, settings)
    _check(stored, parts)
    inputs, shown, shape, counts = _encode(stored, parts["train"], settings)
    sources = {
        name: Examples(
            stored.ids[part.stored], stored.labels[part.stored], part.places, inputs[part.stored], shown[part.stored]
        )
        for name, part in parts.items()
    }
    info = Info(
        name=stored.name,
        version=stored.version,
        kind=stored.kind,
        label_names=stored.label_names,
        input_shape=shape,
        fingerprint=_fingerprint(stored, sources),
        counts={name: len(source) for name, source in sources.items()} | counts,
    )
    return DataSet(info, sources["train"], sources.get("validation"), sources["test"])


def load_test(settings: DataSettings, name: str, like: Info) -> Source:
    """Opens the test split of another data set as shifted input to a network.

    Images are resized (bilinear) and their channels converted to those of `like`, texts get its length. Labels keep
    the numbers that they have in their own data set. Ids become -2 - id, so that no shifted example shares its id with
    a training example, which would lose its weight as if it were the query itself.

    Args:
      settings: of the data set that the network was trained on. Its `test_split` is taken, else a split named `test`,
        else `test_fraction` of `train_split` by hash of the id.
      name: of the other data set.
      like: what the network was trained on.

    Raises:
      DataError: as `load`, or the data set is of another kind, or a table.
    """
    if like.kind in ("table", "features"):
        what = "rows of another table have other columns" if like.kind == "table" else "its features were made before"
        raise DataError(f"{name!r} cannot stand in for {like.name!r}: {what}")
    available, read = _find(settings, name)
    test = next((split for split in (settings.test_split, _TEST_SPLIT) if split in available), None)
    stored = read({test or _existing("train_split", name, available, settings): 0})
    if stored.kind != like.kind:
        raise DataError(
            f"{name!r} holds {stored.kind}s and cannot stand in for {like.name!r}, which holds {like.kind}s"
        )
    (split, ids), *_ = stored.ids.items()
    places = np.arange(len(ids)) if test else _by_hash(ids, "test", settings.test_fraction)
    if not len(places):
        raise DataError(f"{name!r} has no test split, and none can be taken from {split!r}: raise data.test_fraction")
    shown = stored.inputs[split]
    inputs = text.Encoded(shown, *like.input_shape) if like.kind == "text" else Fitted(shown, like.input_shape)
    return Examples(-2 - ids, stored.labels[split], places, inputs, shown)


class Fitted(Sequence[np.ndarray]):
    """Images, resized and converted to one shape where they have another."""

    def __init__(self, images: Sequence[np.ndarray], shape: tuple[int, int, int]):
        self._images = images
        self._shape = tuple(shape)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, place: int) -> np.ndarray:
        pixels = self._images[place]
        if pixels.shape == self._shape:
            return pixels
        height, width, channels = self._shape
        image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
        image = image.convert(MODES[channels]).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(self._shape)


def _find(settings: DataSettings, name: str) -> tuple[dict[str, int], Callable[[Mapping[str, int]], Stored]]:
    """Number of examples by stored split, and what reads some of them, each with the id of its first example."""
    if name == digits.NAME:
        stored = digits.read()
        return {split: len(ids) for split, ids in stored.ids.items()}, lambda first_ids: stored
    prepared = tfds_source.find(name, settings.data_dir)
    return prepared.splits, partial(tfds_source.read, prepared)


def _existing(key: str, name: str, available: Iterable[str], settings: DataSettings) -> str:
    split = getattr(settings, key)
    if split in available:
        return split
    near = difflib.get_close_matches(split, available, n=1, cutoff=0.0)
    raise DataError(
        f"data.{key} = {split!r}, but {name} has the splits {', '.join(available)}; did you mean {near[0]!r}?"
    )


def _roles(available: Iterable[str], settings: DataSettings) -> Roles:
    name = settings.name
    train = _existing("train_split", name, available, settings)
    # Without a default test split one is carved; a name that someone wrote down must exist.
    has_test = _TEST_SPLIT in available or settings.test_split != _TEST_SPLIT
    test = _existing("test_split", name, available, settings) if has_test else None
    if settings.validation_split is not None:
        validation = _existing("validation_split", name, available, settings)
    else:
        is_free = _VALIDATION_SPLIT in available and _VALIDATION_SPLIT not in (train, test)
        validation = _VALIDATION_SPLIT if is_free else None
    roles = Roles(train, validation, test)
    if len(set(roles.names())) < len(roles.names()):
        raise DataError(
            f"train, validation and test of {name} must be different splits, got {', '.join(roles.names())}: "
            "an example that was trained on cannot test"
        )
    return roles


def _divide(ids: Mapping[str, np.ndarray], roles: Roles, settings: DataSettings) -> dict[str, Part]:
    places = np.arange(len(ids[roles.train]))
    parts = {}
    for name, stored, share in (
        ("test", roles.test, settings.test_fraction),
        ("validation", roles.validation, settings.validation_fraction),
    ):
        if stored is not None:
            parts[name] = Part(stored, np.arange(len(ids[stored])))
        elif name == "test" or share:
            taken = places[_by_hash(ids[roles.train][places], name, share)]
            parts[name] = Part(roles.train, taken)
            places = np.setdiff1d(places, taken)
    parts["train"] = Part(roles.train, places)
    return {name: parts[name] for name in ("train", "validation", "test") if name in parts}


def _by_hash(ids: np.ndarray, name: str, share: float) -> np.ndarray:
    """Places of the examples that a split takes."""
    return np.flatnonzero(splits.assign(ids, {name: share}) == name)


def _check(stored: Stored, parts: Mapping[str, Part]) -> None:
    all_ids, counts = np.unique(np.concatenate(list(stored.ids.values())), return_counts=True)
    if (counts > 1).any():
        twice = all_ids[counts > 1]
        raise DataError(f"{stored.name}: id {twice[0]} stands for {counts.max()} examples; ids must be unique")
    train = parts["train"]
    if len(train.places) < 2:
        raise DataError(f"{stored.name}: {len(train.places)} training example(s); at least 2 are needed")
    for name in ("validation", "test"):
        if name in parts and not len(parts[name].places):
            raise DataError(
                f"{stored.name}: the {name} split is empty: change data.{name}_split or data.{name}_fraction"
            )
    found = np.bincount(stored.labels[train.stored][train.places], minlength=len(stored.label_names))
    if (empty := np.flatnonzero(found == 0)).size:
        label = empty[0]
        raise DataError(
            f"{stored.name}: empty class: {stored.label_names[label]!r} (label {label}) has no example in the training "
            "split: add some, or prepare the data without this class"
        )


def _encode(
    stored: Stored, train: Part, settings: DataSettings
) -> tuple[dict[str, Any], dict[str, Any], tuple[int, ...], dict[str, int]]:
    """Encoded and readable inputs by stored split, the shape of an input, and what encoding counted."""
    shown = stored.inputs
    if stored.kind == "image":
        shape = _image_shape(stored, settings.image_size)
        return {name: Fitted(images, shape) for name, images in shown.items()}, shown, shape, {}
    if stored.kind == "features":
        described = {name: Described(arrays) for name, arrays in shown.items()}
        return shown, described, tuple(stored.shape), {}
    if stored.kind == "text":
        length = settings.text.length
        counts = [text.count(texts, length) for texts in shown.values()]
        total = {key: sum(count[key] for count in counts) for key in counts[0]}
        return {name: text.Encoded(texts, length) for name, texts in shown.items()}, shown, (length,), total
    how = table.fit(shown[train.stored], stored.ids[train.stored], train.places, settings.table)
    encoded = {name: how.apply(rows, stored.ids[name]) for name, rows in shown.items()}
    unknown = sum(count for _, count in encoded.values())
    total = {"unknown": unknown} if settings.table.unknown == "bucket" else {}
    return {name: vectors for name, (vectors, _) in encoded.items()}, shown, (how.width,), total


def _image_shape(stored: Stored, wanted: tuple[int, int] | None) -> tuple[int, int, int]:
    height, width, channels = stored.shape
    if wanted is not None:
        return (*wanted, channels)
    if height is not None and width is not None:
        return height, width, channels
    first = None
    for split, images in stored.inputs.items():
        for own, size in zip(stored.ids[split], images.sizes(), strict=True):
            first = first or (own, size)
            if size != first[1]:
                raise DataError(
                    f"{stored.name}: images of different sizes: id {first[0]} is {first[1][0]}x{first[1][1]}, id {own} "
                    f"is {size[0]}x{size[1]} (height x width); set data.image_size = [height, width] to resize them all"
                )
    return (*first[1], channels)


def _fingerprint(stored: Stored, sources: Mapping[str, Examples]) -> str:
    digest = hashlib.blake2b(stored.digest.encode(), digest_size=16)
    digest.update(repr(stored.label_names).encode())
    for name, source in sorted(sources.items()):
        digest.update(f"{name} {len(source)} ".encode())
        digest.update(source.ids.astype("<i4").tobytes())
    return digest.hexdigest()
