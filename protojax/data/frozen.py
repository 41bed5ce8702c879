"""A frozen backbone as part of the data: what is trained sees the maps of its features, wherever they come from.

They are computed from images, or read from a store that was computed before; both are sources of the same examples,
and give the same numbers, up to rounding, for the same view. View 0 of an example is its image as it is; views 1, 2,
... are augmented, each by (seed, view, id) alone.
"""

import hashlib
import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from protojax import config, resumable, sharding, weights
from protojax.config import FrozenSettings, Settings
from protojax.data import augment, feature_stamp, feature_store, feature_writer, loading, trivial
from protojax.data.feature_stamp import Stamp
from protojax.data.source import DataError, DataSet, Source
from protojax.networks.backbones import BACKBONES, layer_before
from protojax.ops import crops


def load(settings: Settings) -> DataSet:
    """The data of an experiment as its method sees them: those of `loading.load`, behind the backbone if it is frozen.

    Raises:
      DataError: as `loading.load`; or the backbone cannot read them, or the feature store does not fit.
      WeightsError: the weights are missing or not those of the network.
    """
    dataset, encoder = loading.load(settings.data), settings.encoder
    return behind(dataset, encoder) if isinstance(encoder, FrozenSettings) else dataset


def behind(dataset: DataSet, settings: FrozenSettings) -> DataSet:
    """A data set of images as one of features.

    Raises:
      DataError, WeightsError: as `load`.
    """
    if settings.features is not None:
        stamp = stamp_of(dataset, settings)
        wrapped, shape = feature_store.read(settings.features, dataset, stamp)
    else:
        extractor = Extractor(dataset, settings)
        wrapped = [None if split is None else Computed(split, extractor) for split in dataset[1:]]
        stamp, shape = stamp_of(dataset, settings), extractor.shape
    identity = json.dumps(_identity(stamp, settings), sort_keys=True)
    digest = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
    return DataSet(dataset.info._replace(kind="features", input_shape=shape, fingerprint=digest), *wrapped)


def _identity(stamp: Stamp, settings: FrozenSettings) -> dict[str, Any]:
    """What a run on these features depends on; of what came later, only where it is used, so that older runs open."""
    identity = stamp.model_dump(exclude={"shape", "schema_name"})
    if not stamp.tuned_stages:
        del identity["tuned_stages"]
    return identity if settings.head is None else {**identity, "head": weights.sha256_of(settings.head)}


def stamp_of(dataset: DataSet, settings: FrozenSettings) -> Stamp:
    """What features depend on, but for their shape.

    Raises:
      WeightsError: the file of weights cannot be read.
    """
    mean, std = BACKBONES[settings.network].normalization
    return Stamp(
        schema=feature_stamp.SCHEMA,
        network=settings.network,
        weights_sha256=weights.sha256_of(settings.weights),
        precision=settings.precision,
        image_size=list(settings.image_size),
        crop=settings.crop,
        interpolation=settings.interpolation,
        mean=list(settings.mean or mean),
        std=list(settings.std or std),
        tuned_stages=settings.tuned_stages,
        views=settings.views,
        augment=json.loads(settings.augment.model_dump_json()) if settings.views else None,
        seed=settings.seed if settings.views else None,
        data=f"{dataset.info.name}:{dataset.info.version}",
        data_fingerprint=dataset.info.fingerprint,
    )


class Extractor:
    """Images to maps of features, in batches of one size that are split over the devices of this process."""

    def __init__(self, dataset: DataSet, settings: FrozenSettings):
        """Reads the weights.

        Raises:
          DataError: the examples are no images of 1 or 3 channels, or several processes would compute.
          WeightsError: the weights are missing or not those of the network.
          ValueError: the network does not take images of `image_size`, or has fewer than `tuned_stages` stages.
        """
        info = dataset.info
        if info.kind != "image" or info.input_shape[-1] not in (1, 3):
            what = f"images of {info.input_shape[-1]} channels" if info.kind == "image" else f"{info.kind}s"
            raise DataError(f"{info.name} holds {what}, but a frozen backbone reads images of 1 or 3 channels")
        if jax.process_count() > 1:
            raise DataError(
                "a frozen encoder computes features in one process alone: write a store with protojax features, and "
                "set encoder.features"
            )
        found = weights.load(settings.weights, settings.network, jnp.dtype(settings.precision))
        self._mesh = sharding.mesh()
        self._variables = sharding.everywhere(found.variables)
        self.batch_size = sharding.whole_batch(settings.batch_size)
        # What the numbers do not depend on compiles nothing anew.
        how = settings.model_copy(update={"weights": "", "features": None, "head": None, "views": 0, "batch_size": 1})
        self._compute = partial(features, found.module, how)
        # Streamed feeding reads in threads.
        self._alone = threading.Lock()
        image = jax.ShapeDtypeStruct((1, *info.input_shape), jnp.uint8)
        number = jax.ShapeDtypeStruct((1,), jnp.int32)
        shapes = jax.eval_shape(self._compute, self._variables, image, number, number)
        self.shape: tuple[int, ...] = shapes.shape[1:]

    def __call__(self, images: np.ndarray, ids: np.ndarray, views: np.ndarray, augmented: bool) -> list[np.ndarray]:
        """The maps of images uint8 `[n, height, width, channels]`, with int32 ids and views `[n]`; n may be any number.

        The devices compute one batch while the host takes the one before.
        """
        found: list[np.ndarray] = []
        ahead: tuple[jax.Array, int] | None = None
        with self._alone:
            for start in range(0, len(ids), self.batch_size):
                part = slice(start, start + self.batch_size)
                missing = self.batch_size - len(ids[part])
                # Always batches of one size: it compiles once, and what is computed together changes no number but by
                # rounding, which depends on the place in the batch on some processors.
                padded = [np.pad(x[part], [(0, missing)] + [(0, 0)] * (x.ndim - 1)) for x in (images, ids, views)]
                made = self._compute(self._variables, *sharding.split(padded, self._mesh), augmented=augmented)
                if ahead is not None:
                    found.extend(sharding.to_host(ahead[0])[: ahead[1]])
                ahead = made, self.batch_size - missing
            if ahead is not None:
                found.extend(sharding.to_host(ahead[0])[: ahead[1]])
        return found


@partial(jax.jit, static_argnames=("module", "settings", "augmented"))
def features(
    module: nn.Module,
    settings: FrozenSettings,
    variables: Any,
    images: jax.Array,
    ids: jax.Array,
    views: jax.Array,
    augmented: bool = False,
) -> jax.Array:
    """The maps that a backbone makes of images, float `[batch, height, width, features]` of the precision: the last, or
    those before the stages that are tuned.

    Args:
      module: the network.
      settings: how images are prepared and augmented.
      variables: of the network.
      images: uint8 `[batch, height, width, channels]`, of 1 channel (gray) or 3.
      ids: int32 `[batch]`.
      views: int32 `[batch]`.
      augmented: whether these are augmented views.
    """
    seen = prepared(images, ids, views, settings, augmented)
    _, made = module.apply(variables, seen, train=False)
    return made[layer_before(module, settings.tuned_stages)].astype(settings.precision)


def prepared(
    images: jax.Array, ids: jax.Array, views: jax.Array, settings: FrozenSettings, augmented: bool = False
) -> jax.Array:
    """What the network sees: cropped, resized, perhaps augmented, normalised; float32 `[batch, *image_size, 3]`.

    Args:
      images, ids, views, settings, augmented: as in `features`.
    """
    batch, height, width, channels = images.shape
    how = settings.augment
    keys = None
    if augmented:
        of_view = jax.vmap(lambda v: jax.random.fold_in(jax.random.key(settings.seed), v))(views)
        keys = jax.vmap(lambda k, i: jax.random.split(jax.random.fold_in(k, i), 4))(of_view, ids)
    if keys is not None and how.crop_scale is not None:
        boxes = crops.random_boxes(keys[:, 0], height, width, how.crop_scale)
    else:
        boxes = jnp.asarray(crops.centre_boxes(batch, height, width, settings.image_size, settings.crop))
    pixels = crops.resample(images, boxes, settings.image_size, settings.interpolation)
    pixels = jnp.broadcast_to(jnp.clip(pixels, 0, 255), (*pixels.shape[:-1], 3))
    if keys is not None and how.flip_horizontal:
        pixels = augment.flip(keys[:, 1], pixels)
    if keys is not None and how.trivial_augment:
        pixels = trivial.trivial_augment(keys[:, 2], pixels)
    mean, std = BACKBONES[settings.network].normalization
    mean, std = (np.array(x, np.float32).reshape(1, 1, 1, 3) for x in (settings.mean or mean, settings.std or std))
    pixels = (pixels / 255 - mean) / std
    return augment.erase(keys[:, 3], pixels, how.erasing) if keys is not None and how.erasing else pixels


class Computed:
    """The features of a split, computed when they are asked for; position p is view p // n of example p % n."""

    def __init__(self, source: Source, extractor: Extractor):
        self.ids = source.ids
        self.labels = source.labels
        self._source = source
        self._extractor = extractor

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return next(self.many([index]))

    def many(self, indices: Iterable[int]) -> Iterator[dict[str, Any]]:
        """The examples at some positions, computed together."""
        taken: list[int] = []
        most = resumable.rows_of_whole_batches(_TAKEN, self._extractor.batch_size)
        for index in indices:
            taken.append(int(index))
            if len(taken) == most:
                yield from self._examples(taken)
                taken = []
        if taken:
            yield from self._examples(taken)

    def show(self, index: int) -> np.ndarray | str | dict[str, Any]:
        return self._source.show(index % len(self))

    def _examples(self, indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        views, places = np.divmod(np.array(indices, np.int32), np.int32(len(self)))
        examples = [self._source[int(place)] for place in places]
        images = np.stack([example["inputs"] for example in examples])
        ids = np.array([example["id"] for example in examples], np.int32)
        maps: list[np.ndarray | None] = [None] * len(indices)
        for augmented in (False, True):
            rows = np.flatnonzero((views > 0) == augmented)
            computed = self._extractor(images[rows], ids[rows], views[rows].astype(np.int32), augmented)
            for row, found in zip(rows, computed, strict=True):
                maps[row] = found
        for example, found in zip(examples, maps, strict=True):
            yield {**example, "inputs": found}


_TAKEN = 512
"""Images held at once, about, where many are asked for."""


def write_store(settings: Settings, folder: str, overwrite: bool = False) -> tuple[dict[str, int], tuple[int, ...]]:
    """Runs the frozen backbone of an experiment over its data once, into a store for `encoder.features`.

    It goes on where it was interrupted before.

    Args:
      settings: the experiment.
      folder: of the store.
      overwrite: replaces a store that stands there.

    Returns:
      Records by split, and the shape of a map.

    Raises:
      DataError, WeightsError: as `load`; or the experiment has no frozen encoder, or the folder is not free.
    """
    encoder = settings.encoder
    if not isinstance(encoder, FrozenSettings):
        raise config.SettingsError(f"encoder.kind = {encoder.kind!r}: features are those of a frozen encoder")
    feature_writer.check_free(folder, overwrite)
    dataset = loading.load(settings.data)
    computed = behind(dataset, encoder.model_copy(update={"features": None}))
    stamp = stamp_of(dataset, encoder).model_copy(update={"shape": list(computed.info.input_shape)})
    counts = feature_writer.write(folder, computed, stamp, sharding.whole_batch(encoder.batch_size), overwrite)
    return counts, computed.info.input_shape
