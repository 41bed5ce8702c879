"""A run with prototypes of its own, looked at: its portraits, and the health of its prototypes."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from protojax import concepts, health, portraits, readable
from protojax.data import images
from protojax.evaluate import Scored
from protojax.opened import Opened
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


def draw(opened: Opened, source: Any, decisions: np.ndarray) -> list[Path]:
    """Writes the portraits of a run into its `figures`.

    Args:
      opened: the run.
      source: the split that is explained.
      decisions: positions in it; a method with concepts shows those of these decisions. Another one shows itself by a
        few test images.

    Returns:
      The files, none for a method without views.
    """
    if opened.method.views is None:
        return []
    info, settings = opened.dataset.info, opened.settings
    has_concepts = settings.method.kind == "protoquant"
    if not has_concepts:
        source = opened.dataset.test
    positions = decisions if has_concepts else _subjects(np.asarray(source.labels))
    if not len(positions):
        return []
    batch = _batch(source, positions)
    subjects = [
        Subject(int(source.ids[place]), int(source.labels[place]), source.show(int(place))) for place in positions
    ]
    views = _views(opened, batch)
    if has_concepts:
        everything = readable.everything(opened.dataset)
        return concepts.write(opened.folder / "figures", views, subjects, info.label_names, everything)
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


def _views(opened: Opened, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    prepared = {**batch, "inputs": opened.transform(batch["inputs"], batch["id"])}
    views = jax.jit(opened.method.views)(opened.state.variables, opened.memory, prepared)
    return {name: np.asarray(view) for name, view in views.items()}
