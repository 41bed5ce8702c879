"""Whether learned prototypes do their work: some collapse, some are near no example, some classes are never decided."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

COLLAPSED = 1e-3
"""Share of what is usual under which the squared distance of two prototypes makes them one. Usual is the mean between
prototypes or, where all of these fell together, the median of an example to the prototype nearest to it."""
SAME_PICTURE = 0.01
"""Mean absolute difference of pixels in [0, 1] under which two decoded prototypes are the same picture."""


def examine(views: Mapping[str, np.ndarray], decided: np.ndarray, classes: int) -> dict[str, Any]:
    """Counts what is wrong with prototypes.

    Args:
      views: what `Method.views` returned: `prototypes` `[p, size]`, their `prototype_pictures` `[p, ...]`, and
        `nearest_distances` and `nearest_labels` `[p, k]`, and the `typical_distance` `[p]` of an example from the
        prototype nearest to it.
      decided: int `[n]`, the classes decided on the test split.
      classes: number of classes.

    Returns:
      `prototypes` (how many), `collapsed` and `same_picture` (pairs), `far` (prototypes whose nearest example is
      farther than is typical of examples), `classes_without_prototype` and `dead_classes` (never decided).
    """
    prototypes = np.asarray(views["prototypes"], np.float64)
    pictures = np.asarray(views["prototype_pictures"], np.float64).reshape(len(prototypes), -1)
    first, second = np.triu_indices(len(prototypes), k=1)
    apart = np.square(prototypes[first] - prototypes[second]).sum(axis=1)
    unlike = np.abs(pictures[first] - pictures[second]).mean(axis=1)
    typical = np.asarray(views["typical_distance"], np.float64)
    collapsed = apart <= COLLAPSED * max(apart.mean(), typical[0]) if len(apart) else np.zeros(0, bool)
    same = unlike <= SAME_PICTURE
    far = np.asarray(views["nearest_distances"])[:, 0] > typical
    labels = np.asarray(views["nearest_labels"])[:, 0]
    return {
        "prototypes": len(prototypes),
        "collapsed": _pairs(first, second, collapsed),
        "same_picture": _pairs(first, second, same),
        "far": np.flatnonzero(far).tolist(),
        "classes_without_prototype": np.setdiff1d(np.arange(classes), labels).tolist(),
        "dead_classes": np.setdiff1d(np.arange(classes), decided).tolist(),
    }


def warnings(health: Mapping[str, Any], label_names: Sequence[str]) -> list[str]:
    """One line for each thing that is wrong."""
    lines = []
    if health["collapsed"]:
        lines.append(f"prototypes that fell together: {_named(health['collapsed'])}")
    if health["same_picture"]:
        lines.append(f"prototypes that decode to the same picture: {_named(health['same_picture'])}")
    if health["far"]:
        lines.append(f"prototypes that no training example is near: {', '.join(map(str, health['far']))}")
    for key, what in (
        ("classes_without_prototype", "classes to which no prototype is near"),
        ("dead_classes", "classes that are never decided"),
    ):
        if health[key]:
            lines.append(f"{what}: {', '.join(label_names[label] for label in health[key])}")
    return lines


def _pairs(first: np.ndarray, second: np.ndarray, which: np.ndarray) -> list[list[int]]:
    return [[int(i), int(j)] for i, j in zip(first[which], second[which], strict=True)]


def _named(pairs: Sequence[Sequence[int]]) -> str:
    return ", ".join(f"{i} and {j}" for i, j in pairs)
