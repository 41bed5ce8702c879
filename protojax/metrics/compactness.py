"""How few prototypes explain, and whether each stands for one part and stays with it (ProtoS-ViT's measures)."""

from typing import Any, NamedTuple

import numpy as np

IMPORTANT = 0.1
"""Importance from which a prototype counts as used in an image."""

CONSISTENT = 0.8
"""Share of images in which a consistent prototype shows its part."""

NOISE, NOISE_LIMIT = 0.2, 0.25
"""Standard deviation and largest absolute value of the noise that stability is measured under."""


class Sizes(NamedTuple):
    """How many prototypes are used."""

    local: float
    """By an image, mean."""
    overall: int
    """By any image."""


class Consistency(NamedTuple):
    """Whether prototypes show one part each."""

    share: float
    """Of the measured prototypes that are consistent; NaN where none was measured."""
    best: np.ndarray
    """float64 `[prototypes]`: the share of images in which each shows its best part; NaN where it is never used."""


def sizes(importance: Any, threshold: float = IMPORTANT) -> Sizes:
    """Local and global size.

    Args:
      importance: `[images, prototypes]`: what each adds to the decided class, presence times weight.
      threshold: importances up to this do not count.

    Raises:
      ValueError: importance is not `[images, prototypes]` with at least one image.
    """
    importance = np.asarray(importance)
    if importance.ndim != 2 or not len(importance):
        raise ValueError(f"importance must be [images, prototypes], got shape {importance.shape}")
    used = importance > threshold
    return Sizes(float(used.sum(axis=1).mean()), int(used.any(axis=0).sum()))


def consistency(hits: Any, visible: Any, used: Any, level: float = CONSISTENT) -> Consistency:
    """The share of prototypes that show the same part in more than `level` of the images (Huang et al. 2023).

    Args:
      hits: bool `[images, prototypes, parts]`: the part lies in the patch of the prototype; from `inside`.
      visible: bool `[images, parts]`: only these images count for a part.
      used: bool `[images, prototypes]`: only these images count for a prototype. Those that explain the class of the
        image, or whose importance exceeds a threshold; ProtoS-ViT takes 0.2.
      level: of the best part.

    Raises:
      ValueError: shapes that do not fit each other.
    """
    hits, visible, used = _three(hits, visible, used)
    counted = used[:, :, None] & visible[:, None, :]
    seen = counted.sum(axis=0)
    share = np.where(seen > 0, (hits & counted).sum(axis=0) / np.maximum(seen, 1), 0.0)
    best = np.where(seen.any(axis=1), share.max(axis=1), np.nan)
    measured = ~np.isnan(best)
    return Consistency(float((best[measured] > level).mean()) if measured.any() else float("nan"), best)


def stability(before: Any, after: Any, visible: Any, used: Any) -> float:
    """The share of pairs of prototype and part that noise does not change.

    Args:
      before: bool `[images, prototypes, parts]`: hits in the images as they are.
      after: the same in the images with noise, such as `gaussian_noise`.
      visible: bool `[images, parts]`.
      used: bool `[images, prototypes]`.

    Returns:
      In [0, 1]; NaN where nothing is used or visible.

    Raises:
      ValueError: shapes that do not fit each other.
    """
    before, visible, used = _three(before, visible, used)
    after = np.asarray(after)
    if after.shape != before.shape:
        raise ValueError(f"hits before {before.shape} and after {after.shape} the noise must have one shape")
    counted = used[:, :, None] & visible[:, None, :]
    return float((before == after)[counted].mean()) if counted.any() else float("nan")


def gaussian_noise(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """float32 noise N(0, 0.2^2), clipped to [-0.25, 0.25], for standardised images; the same for the same seed."""
    drawn = np.random.default_rng(seed).normal(0.0, NOISE, shape)
    return np.clip(drawn, -NOISE_LIMIT, NOISE_LIMIT).astype(np.float32)


def _three(hits: Any, visible: Any, used: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    hits, visible, used = np.asarray(hits), np.asarray(visible), np.asarray(used)
    fits = hits.ndim == 3 and visible.shape == hits.shape[::2] and used.shape == hits.shape[:2]
    if not fits or any(x.dtype != bool for x in (hits, visible, used)):
        raise ValueError(
            "hits [images, prototypes, parts], visible [images, parts] and used [images, prototypes] must be bool, got "
            + ", ".join(f"{x.dtype} {x.shape}" for x in (hits, visible, used))
        )
    return hits, visible, used
