"""What the papers report, exactly.

`fewest_for` and `class_mass` work on weights, also inside a compiled function; the others take the answers for a whole
test set, as NumPy or JAX arrays, count in float64 and return Python numbers or NumPy arrays.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from protojax.ops.losses import check_labels

TOLERANCE = 1e-6
"""A sum short of a share by this part of it counts as reaching it: float32 weights sum to 1 only up to rounding."""

_CANDIDATES_AT_ONCE = 8192


class Coverage(NamedTuple):
    """Accuracy against coverage, one entry a threshold, float64."""

    accuracy: np.ndarray
    """Among the kept; NaN where nothing is kept."""
    share: np.ndarray
    """Kept examples over all."""


def fewest_for(weights: jax.Array, shares: Sequence[float]) -> jax.Array:
    """The smallest number of largest weights whose sum reaches each share (ProtoAttend, section 4.2).

    Exact, without sorting: the bit patterns of non-negative floats are ordered as the floats are, so that 31 halvings
    find the smallest weight that is needed, and equal weights are then counted out. A share is reached by a sum of
    (1 - `TOLERANCE`) times the share. Sums are rounded to float32, so the count equals that of a float64 sort unless a
    partial sum lies within 3e-7 of that goal; then it is the count of a goal no further away.

    Args:
      weights: floating `[batch, candidates]`, at least 0, each row summing to 1.
      shares: in (0, 1].

    Returns:
      int32 `[batch, len(shares)]`; -1 where all weights together do not reach the share (a row without candidates, or
      of NaN).

    Raises:
      ValueError: a share outside (0, 1], or weights of another shape.
    """
    weights = jnp.asarray(weights)
    if weights.ndim != 2:
        raise ValueError(f"weights must be [batch, candidates], got shape {weights.shape}")
    for share in shares:
        if not 0 < share <= 1:
            raise ValueError(f"shares must be above 0 and at most 1, got {share}")
    weights = weights.astype(jnp.float32)
    return jnp.stack([_fewest(weights, share * (1 - TOLERANCE)) for share in shares], axis=1)


@functools.partial(jax.jit, static_argnames="goal")
def _fewest(weights: jax.Array, goal: float) -> jax.Array:
    """`[batch]`: the fewest weights that sum to the goal, or -1."""

    def sum_above(cut: jax.Array, inclusive: bool) -> jax.Array:
        level = lax.bitcast_convert_type(cut, jnp.float32)[:, None]
        return jnp.where(weights >= level if inclusive else weights > level, weights, 0).sum(axis=1)

    def halve(_: int, bounds: tuple) -> tuple:
        low, high = bounds
        middle = low + (high - low) // 2
        enough = sum_above(middle, inclusive=True) >= goal
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    # From the smallest normal float to infinity: the weights from `low` up suffice, those from `high` up do not.
    bounds = (jnp.full(weights.shape[:1], bits, jnp.int32) for bits in (0x00800000, 0x7F800000))
    low, _ = lax.fori_loop(0, 31, halve, tuple(bounds))
    level = lax.bitcast_convert_type(low, jnp.float32)
    larger = (weights > level[:, None]).sum(axis=1, dtype=jnp.int32)
    equal = (weights == level[:, None]).sum(axis=1, dtype=jnp.int32)
    missing = goal - sum_above(low, inclusive=False)
    needed = jnp.clip(jnp.ceil(missing / level).astype(jnp.int32), 1, equal)
    reached = weights.sum(axis=1) >= goal
    return jnp.where(reached, larger + needed, -1)


def class_mass(weights: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
    """sum_j p_j [y_j = m] for every class m: its largest entry is the confidence of equation 3.

    Args:
      weights: floating `[batch, candidates]`.
      labels: integer `[candidates]`.
      classes: number of classes.

    Returns:
      float32 `[batch, classes]`. Under a transformation such as `jax.jit`, NaN if a label is not a class.

    Raises:
      ValueError: shapes that do not fit each other, labels that are not integers, or, where values are known, a label
        that is not a class.
    """
    weights, labels = jnp.asarray(weights), jnp.asarray(labels)
    if weights.ndim != 2 or labels.shape != weights.shape[1:]:
        raise ValueError(
            f"weights [batch, candidates] and labels [candidates] were expected, got {weights.shape}, {labels.shape}"
        )
    check_labels(labels, classes)
    weights = weights.astype(jnp.float32)
    mass = jnp.zeros((weights.shape[0], classes), jnp.float32)
    # One-hot labels of all candidates at once could outgrow the database itself.
    for start in range(0, weights.shape[1], _CANDIDATES_AT_ONCE):
        part = slice(start, start + _CANDIDATES_AT_ONCE)
        own = jax.nn.one_hot(labels[part], classes, dtype=jnp.float32)
        mass += jnp.einsum("bc,cm->bm", weights[:, part], own, precision=lax.Precision.HIGHEST)
    return jnp.where(((labels >= 0) & (labels < classes)).all(), mass, jnp.nan)


def accuracy(scores: Any, labels: Any) -> float:
    """The share of examples whose highest score, the first among equals, is that of their label.

    Args:
      scores: `[examples, classes]`.
      labels: integer `[examples]`.

    Raises:
      ValueError: no examples, shapes that do not fit each other, a label that is not a class, or NaN scores.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or labels.size == 0:
        raise ValueError(
            f"scores [examples, classes] and as many labels were expected, got {scores.shape}, {labels.shape}"
        )
    check_labels(labels, scores.shape[1])
    _check_no_nan("scores", scores)
    return float((scores.argmax(axis=1) == labels).mean())


def coverage_curve(confidence: Any, correct: Any, thresholds: Sequence[float]) -> Coverage:
    """Accuracy among, and share of, the examples kept at each threshold: those with confidence >= threshold.

    Args:
      confidence: `[examples]`.
      correct: bool `[examples]`.
      thresholds: any number of them, compared in the precision of the confidence.

    Raises:
      ValueError: no examples, arrays of different lengths, `correct` not boolean, or NaN confidence.
    """
    confidence, correct = _paired("confidence", confidence, "correct", correct)
    levels = np.asarray(thresholds, confidence.dtype)
    order = np.argsort(confidence)
    first_kept = np.searchsorted(confidence[order], levels, side="left")
    kept = confidence.size - first_kept
    right = np.concatenate([[0], np.cumsum(correct[order])])
    right_kept = right[-1] - right[first_kept]
    return Coverage(np.where(kept > 0, right_kept / np.maximum(kept, 1), np.nan), kept / confidence.size)


def expected_calibration_error(confidence: Any, correct: Any, bins: int = 15) -> float:
    """sum_b |B_b|/n |accuracy(B_b) - mean confidence(B_b)| over bins of equal width (Guo et al. 2017, equation 3).

    Args:
      confidence: `[examples]` in [0, 1], up to float32 rounding.
      correct: bool `[examples]`.
      bins: intervals ((b-1)/bins, b/bins]; 0 belongs to the first.

    Raises:
      ValueError: as `coverage_curve`, confidence outside [0, 1], or fewer than one bin.
    """
    confidence, correct = _paired("confidence", confidence, "correct", correct)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    if confidence.min() < -TOLERANCE or confidence.max() > 1 + TOLERANCE:
        raise ValueError(f"confidence must be in [0, 1], got {confidence.min():g} to {confidence.max():g}")
    # Edges in the precision of the confidence, so that a confidence of float32(0.2) is on the edge 0.2, not above it.
    inner_edges = (np.arange(1, bins) / bins).astype(confidence.dtype)
    place = np.searchsorted(inner_edges, confidence, side="left")
    gap = np.bincount(place, weights=correct - confidence.astype(np.float64), minlength=bins)
    return float(np.abs(gap).sum() / confidence.size)


def auroc(scores: Any, positive: Any) -> float:
    """The area under the receiver operating characteristic: P(positive scores higher) + P(equal) / 2.

    Exact in integers, ties included.

    Args:
      scores: `[examples]`.
      positive: bool `[examples]`.

    Raises:
      ValueError: arrays of different lengths, `positive` not boolean, NaN scores, or only one of the two kinds.
    """
    scores, positive = _paired("scores", scores, "positive", positive)
    positives = int(positive.sum())
    negatives = positive.size - positives
    if positives == 0 or negatives == 0:
        raise ValueError(f"auroc needs both kinds of examples, got {positives} positive and {negatives} negative")
    _, level = np.unique(scores, return_inverse=True)
    positive_at = np.bincount(level, weights=positive).astype(np.int64)
    negative_at = np.bincount(level, weights=~positive).astype(np.int64)
    negative_below = np.cumsum(negative_at) - negative_at
    doubled = int((positive_at * (2 * negative_below + negative_at)).sum())
    return doubled / (2 * positives * negatives)


def _paired(name: str, values: Any, flag_name: str, flags: Any) -> tuple[np.ndarray, np.ndarray]:
    values, flags = np.asarray(values), np.asarray(flags)
    if values.ndim != 1 or values.shape != flags.shape or values.size == 0:
        raise ValueError(
            f"{name} and {flag_name} must be two arrays [examples] of one length, got {values.shape} and {flags.shape}"
        )
    if flags.dtype != np.bool_:
        raise ValueError(f"{flag_name} must be boolean, got {flags.dtype}")
    if not np.issubdtype(values.dtype, np.floating):
        values = values.astype(np.float64)
    _check_no_nan(name, values)
    return values, flags


def _check_no_nan(name: str, values: np.ndarray) -> None:
    wrong = np.isnan(values)
    if wrong.any():
        raise ValueError(f"{name} {tuple(int(i[0]) for i in np.nonzero(wrong))} is NaN ({int(wrong.sum())} in all)")
