"""A run with prototypes of its own, looked at: its portraits, what its decoder loses, the health of its prototypes."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from protojax import concepts, database, health, portraits, readable, sharding
from protojax.candidates import CandidateDatabase
from protojax.config import FrozenSettings, Settings
from protojax.data import images
from protojax.database import Transform
from protojax.evaluate import Scored, number
from protojax.methods import Batch, Method, Variables
from protojax.opened import Opened
from protojax.ops import crops
from protojax.portraits import Subject

SUBJECTS = 10
"""Test images that are looked at: the first of every class, then further ones."""


def examine(opened: Opened, scored: Scored) -> dict[str, Any] | None:
    """The health of a run's prototypes, by its decisions on the test split; None for a method without prototypes."""
    if opened.method.views is None:
        return None
    views = _views(opened, _batch(opened.dataset.test, np.arange(1)))
    if "prototypes" not in views:
        return None
    return health.examine(views, scored.predicted, len(opened.dataset.info.label_names))


def reconstruction(opened: Opened, quiet: bool = False) -> dict[str, float | None] | None:
    """How far the decoder is from the images of the test split; None for a method that reconstructs nothing.

    Returns:
      `mean_squared_error` and `binary_cross_entropy` (nats) of pixels in [0, 1], means over pixels and images.
    """
    method, source = opened.method, opened.dataset.test
    variables, memory = opened.state.variables, opened.memory
    if method.views is None:
        return None
    one = _prepared(opened, _batch(source, np.arange(1)))
    if "reconstructions" not in jax.eval_shape(method.views, variables, memory, one):
        return None
    errors = partial(_errors, method, opened.transform, *sharding.everywhere((variables, memory)))
    batch_size = opened.settings.evaluate.batch_size
    _, _, found = database.over(source, np.arange(len(source)), batch_size, errors, "decode", progress=not quiet)
    return {name: number(values.mean(dtype=np.float64)) for name, values in found.items()}


def heads(opened: Opened, quiet: bool = False) -> dict[str, float] | None:
    """Accuracies on the test split of the heads beside the one that decides; None for a method without any."""
    method, source = opened.method, opened.dataset.test
    if method.heads is None:
        return None
    decide = partial(_decided, method, opened.transform, sharding.everywhere(opened.state.variables))
    batch_size = opened.settings.evaluate.batch_size
    _, labels, found = database.over(source, np.arange(len(source)), batch_size, decide, "heads", progress=not quiet)
    return {name: number((predicted == labels).mean()) for name, predicted in found.items()}


@partial(jax.jit, static_argnames=("method", "transform"))
def _decided(method: Method, transform: Transform, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
    scores = method.heads(variables, transform(batch["inputs"], batch["id"]))
    return jax.tree.map(lambda x: x.argmax(axis=-1), scores)


@partial(jax.jit, static_argnames=("method", "transform"))
def _errors(
    method: Method, transform: Transform, variables: Variables, memory: CandidateDatabase, batch: Batch
) -> dict[str, jax.Array]:
    pixels = transform(batch["inputs"], batch["id"])
    decoded = method.views(variables, memory, {**batch, "inputs": pixels})["reconstructions"]
    # A float32 next to 0 or 1 has a logarithm; what rounding made 0 or 1 has none.
    likely = decoded.clip(1e-7, 1 - 1e-7)
    entropy = -(pixels * jnp.log(likely) + (1 - pixels) * jnp.log1p(-likely))
    axes = tuple(range(1, pixels.ndim))
    return {
        "mean_squared_error": jnp.square(decoded - pixels).mean(axes),
        "binary_cross_entropy": entropy.mean(axes),
    }


def seen(settings: Settings, example: Any) -> concepts.Box:
    """The region of an example, as `source.show` gives it, that the encoder sees: of an image, a frozen one crops."""
    if not isinstance(settings.encoder, FrozenSettings):
        return concepts.WHOLE
    height, width = example.shape[:2]
    box = crops.centre_boxes(1, height, width, settings.encoder.image_size, settings.encoder.crop)[0].astype(float)
    top, left, sides = box[0] / height, box[1] / width, (box[2] / height, box[3] / width)
    return top, left, top + sides[0], left + sides[1]


def draw(opened: Opened, source: Any, decisions: np.ndarray) -> list[Path]:
    """Writes the portraits of a run into its `figures`.

    Args:
      opened: the run.
      source: the split that is explained.
      decisions: positions in it; a method with codes shows those of these decisions. Another one shows itself by a
        few test images.

    Returns:
      The files, none for a method without views.
    """
    if opened.method.views is None:
        return []
    info, settings = opened.dataset.info, opened.settings
    has_codes = opened.method.has_codes
    if not has_codes:
        source = opened.dataset.test
    positions = decisions if has_codes else _subjects(np.asarray(source.labels))
    if not len(positions):
        return []
    batch = _batch(source, positions)
    subjects = [
        Subject(int(source.ids[place]), int(source.labels[place]), source.show(int(place))) for place in positions
    ]
    views = _views(opened, batch)
    if has_codes:
        everything = readable.everything(opened.dataset)
        region = seen(settings, subjects[0].image)
        return concepts.write(opened.folder / "figures", views, subjects, info.label_names, everything, region)
    nearest = []
    if "nearest_ids" in views:
        everything = readable.everything(opened.dataset)
        places = readable.places(everything.ids, views["nearest_ids"][:, 0], "the data set")
        nearest = [everything.show(int(place)) for place in places]
    deformed = None
    augment = settings.data.augment
    if augment.elastic_amplitude or augment.pad_crop or augment.flip_horizontal or augment.flip_vertical:
        raw = augment.model_copy(update={"standardize": False})
        deformed = np.asarray(images.transform(batch["inputs"], raw, jax.random.key(settings.train.seed), batch["id"]))
    return portraits.write(opened.folder / "figures", views, subjects, info.label_names, nearest, deformed)


def _subjects(labels: np.ndarray) -> np.ndarray:
    _, firsts = np.unique(labels, return_index=True)
    others = np.setdiff1d(np.arange(min(len(labels), 4 * SUBJECTS)), firsts)
    return np.concatenate([firsts, others])[:SUBJECTS]


def _batch(source: Any, positions: np.ndarray) -> dict[str, np.ndarray]:
    examples = [source[int(place)] for place in positions]
    return {key: np.stack([example[key] for example in examples]) for key in ("id", "inputs", "label")}


def _prepared(opened: Opened, batch: Batch) -> Batch:
    return {**batch, "inputs": opened.transform(batch["inputs"], batch["id"])}


def _views(opened: Opened, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    prepared = _prepared(opened, batch)
    views = jax.jit(opened.method.views)(opened.state.variables, opened.memory, prepared)
    return {name: np.asarray(view) for name, view in views.items()}
