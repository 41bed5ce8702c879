"""Purity of prototypes (Nauta et al. 2023, PIP-Net): whether a prototype always shows the same part."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from protojax.metrics.parts import inside, merged

RELEVANT = 1e-5
"""A prototype whose largest class weight is not above this is left out."""


class Purity(NamedTuple):
    """How pure prototypes are."""

    mean: float
    """Over prototypes; None of them: NaN."""
    spread: float
    """Standard deviation over prototypes."""
    prototypes: np.ndarray
    """int64 `[n]`: those that were measured."""
    values: np.ndarray
    """float64 `[n]`: the purity of each."""
    parts: np.ndarray
    """int64 `[n]`: the part that each shows most purely, numbered after left and right were merged."""


def purity(
    scores: Any,
    boxes: Any,
    points: Any,
    visible: Any,
    weights: Any,
    pairs: Sequence[tuple[int, int]] = (),
    images: int = 10,
) -> Purity:
    """Purity of every relevant prototype.

    Of the images with the highest scores of a prototype, each part is hit where its key-point lies in the patch of the
    prototype; its share of hits counts only the images where it is visible. The purity is that of the best part, and 0
    where no part is visible in any of them.

    Args:
      scores: `[images, prototypes]`: presence of prototypes.
      boxes: `[images, prototypes, 4]`: the patch where each is highest; `patch_boxes` makes those of the protocol.
      points: `[images, parts, 2]`: key-points, row and column in pixels of the images of the boxes.
      visible: bool `[images, parts]`.
      weights: `[classes, prototypes]`: weights of the classifier.
      pairs: places of left and right parts, which count as one.
      images: how many of the highest; where there are fewer, all. Of equal scores the first images.

    Raises:
      ValueError: shapes that do not fit each other, or `images` below 1.
    """
    scores, visible, weights = np.asarray(scores), np.asarray(visible), np.asarray(weights)
    hits = inside(boxes, points)
    if hits.shape != (*scores.shape, visible.shape[-1]) or visible.shape[0] != len(scores) or visible.dtype != bool:
        raise ValueError(
            f"scores {scores.shape}, boxes and points {hits.shape} and visible {visible.shape} ({visible.dtype}) "
            "describe different images, prototypes or parts; visible must be bool"
        )
    if weights.shape[1:] != scores.shape[1:]:
        raise ValueError(f"weights {weights.shape} are not [classes, {scores.shape[1]}], a column a prototype")
    if images < 1:
        raise ValueError(f"images must be at least 1, got {images}")
    hits, visible = merged(hits & visible[:, None], pairs), merged(visible, pairs)
    relevant = np.flatnonzero(weights.max(axis=0) > RELEVANT)
    values, parts = np.zeros(len(relevant)), np.zeros(len(relevant), np.int64)
    for row, prototype in enumerate(relevant):
        highest = np.argsort(-scores[:, prototype], kind="stable")[:images]
        seen = visible[highest].sum(axis=0)
        share = hits[highest, prototype].sum(axis=0) / np.maximum(seen, 1)
        # Of equally pure parts the one that was hit more often.
        parts[row] = np.lexsort((hits[highest, prototype].sum(axis=0), share))[-1]
        values[row] = share[parts[row]]
    mean, spread = (values.mean(), values.std()) if len(values) else (np.nan, np.nan)
    return Purity(float(mean), float(spread), relevant, values, parts)
