"""The numbers of the papers: a whole split scored from the database, and what follows from the scores."""

from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from protojax import database, ops, sharding
from protojax.candidates import CandidateDatabase
from protojax.database import Transform
from protojax.methods.method import SHARES, Batch, Method, Prediction, Support, Variables

THRESHOLDS = np.concatenate([np.arange(100) / 100, np.arange(991, 1000) / 1000]).astype(np.float32)
"""Confidence thresholds of the coverage curves (paper figures 6, 10 and 11): 0 to 0.99, then finer up to 0.999."""

BINS = 15
"""Equal bins of the calibration error."""

_ROUNDING = 1e-4
"""What a float32 sum of many weights may be beyond 1."""


class Scored(NamedTuple):
    """Predictions for every example of a split, as NumPy arrays; the fields of `Prediction` beside ids and labels."""

    ids: np.ndarray
    """int32 `[n]`."""
    labels: np.ndarray
    """int32 `[n]`: the true classes."""
    scores: np.ndarray
    """float32 `[n, classes]`: class probabilities from the prototypes."""
    encoder_scores: np.ndarray | None
    """float32 `[n, classes]`: class probabilities of the network alone; None where it decides nothing."""
    support: Support
    """The prototypes of every example, `[n, width]`, heaviest first."""
    confidence: np.ndarray
    """float32 `[n]`."""
    prototypes_for: np.ndarray
    """int32 `[n, len(SHARES)]`."""

    @property
    def predicted(self) -> np.ndarray:
        """int32 `[n]`: the classes decided, from the prototypes where the method has them."""
        return self.scores.argmax(axis=-1).astype(np.int32)

    @property
    def encoder_predicted(self) -> np.ndarray | None:
        """int32 `[n]`: the classes that the network alone decides; None where it decides nothing."""
        if self.encoder_scores is None:
            return None
        return self.encoder_scores.argmax(axis=-1).astype(np.int32)

    @property
    def correct(self) -> np.ndarray:
        """bool `[n]`: whether the class decided is the true one."""
        return self.predicted == self.labels

    @property
    def has_prototypes(self) -> bool:
        """False for a method whose decisions have no support, such as the encoder baseline."""
        return bool((self.support.size > 0).any())


def score(
    method: Method,
    variables: Variables,
    memory: CandidateDatabase,
    source: Any,
    transform: Transform,
    batch_size: int,
    width: int,
    progress: bool = True,
) -> Scored:
    """Scores every example of a split from the database.

    Args:
      method: the system; `predict` is compiled once for one method, transform, width and set of shapes.
      variables: its trained variables.
      memory: the database; split over the devices where it is not yet and decisions lean on it.
      source: the split.
      transform: preparation of the inputs on the device; it may shift them (rotation).
      batch_size: examples scored together.
      width: prototypes kept for each example.
      progress: shows a bar.

    Raises:
      ValueError: the database is smaller than the width, the split is empty, or a score is not finite.
    """
    candidates = len(memory.ids)
    if not 1 <= width <= candidates:
        raise ValueError(
            f"explain.width = {width} prototypes are to be kept of each decision, but the database holds {candidates} "
            f"candidates: choose 1 to {candidates}, or a larger evaluate.candidate_count"
        )
    if len(source) == 0:
        raise ValueError("the split to score has no examples")
    predict = partial(_predict, method, transform, width, sharding.everywhere(variables), _placed(method, memory))
    ids, labels, predicted = database.over(source, np.arange(len(source)), batch_size, predict, "score", progress)
    scored = Scored(ids, labels, *predicted)
    numbers = [x for x in (scored.scores, scored.encoder_scores, scored.confidence[:, None]) if x is not None]
    finite = np.isfinite(np.concatenate(numbers, axis=1))
    broken = ~finite.all(axis=1)
    if broken.any():
        raise ValueError(
            f"{broken.sum()} of {len(broken)} examples have scores that are not finite, first ids "
            f"{scored.ids[broken][:10].tolist()}: the parameters or these inputs are damaged"
        )
    low, high = scored.confidence.min(), scored.confidence.max()
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise ValueError(f"confidence must be in [0, 1], but the method gave {low:g} to {high:g}")
    return scored._replace(confidence=np.clip(scored.confidence, 0, 1))


def mesh_of(method: Method) -> Mesh | None:
    """The devices over which what a method leans on is split: all, where that is a database; None where every one
    holds it, because it is small or there is one device."""
    mesh = sharding.mesh()
    return mesh if mesh.size > 1 and method.leans_on is not None else None


def _placed(method: Method, memory: CandidateDatabase) -> CandidateDatabase:
    if (mesh := mesh_of(method)) is None:
        return sharding.everywhere(memory.replace(mesh=None))
    return memory if memory.mesh == mesh else memory.split(mesh)


@partial(jax.jit, static_argnames=("method", "transform", "width"))
def _predict(
    method: Method, transform: Transform, width: int, variables: Variables, memory: CandidateDatabase, batch: Batch
) -> Prediction:
    batch = {**batch, "inputs": transform(batch["inputs"], batch["id"])}
    return method.predict(variables, memory, batch, width)


def results(scored: Scored, label_names: tuple[str, ...]) -> dict[str, Any]:
    """The numbers of a scored split as plain JSON values; None where one is undefined.

    Args:
      scored: the split.
      label_names: names of the classes; of two, the second is the positive one of the AUC.

    Returns:
      `examples`, `accuracy`, `prototypes_for` (medians), `support` (how many candidates got a weight), `confidence`,
      `ece` (expected calibration error of the maximal class score), `auc` (None unless there are two classes),
      `coverage_curve`, `reliability` and `confusion` (`[true class][class decided]` counts).

    Raises:
      ValueError: the labels or scores do not fit the label names.
    """
    classes = len(label_names)
    _check_classes(scored, classes)
    prototypes = scored.has_prototypes
    encoder = scored.encoder_scores is not None
    binary = classes == 2
    positive = scored.labels == 1
    top = scored.scores.max(axis=-1)
    reliability = {"confidence": _reliability(scored.confidence, scored.correct)}
    if encoder:
        encoder_top, encoder_correct = scored.encoder_scores.max(axis=-1), scored.encoder_predicted == scored.labels
        reliability["encoder"] = _reliability(encoder_top, encoder_correct)
    if prototypes:
        reliability["prototypes"] = _reliability(top, scored.correct)
    return {
        "examples": len(scored.labels),
        "accuracy": {
            "encoder": number(encoder_correct.mean()) if encoder else None,
            "prototypes": number(scored.correct.mean()) if prototypes else None,
        },
        "prototypes_for": {
            f"{share * 100:g}": _median_needed(scored.prototypes_for[:, i]) if prototypes else None
            for i, share in enumerate(SHARES)
        },
        "support": _support(scored.support.size) if prototypes else dict.fromkeys(_SUPPORT),
        "confidence": _confidence(scored.confidence, scored.correct),
        "ece": {
            "encoder": number(ops.expected_calibration_error(encoder_top, encoder_correct, BINS)) if encoder else None,
            "prototypes": number(ops.expected_calibration_error(top, scored.correct, BINS)) if prototypes else None,
        },
        "auc": {
            "positive": label_names[1],
            "encoder": _auroc(scored.encoder_scores[:, 1], positive) if encoder else None,
            "prototypes": _auroc(scored.scores[:, 1], positive) if prototypes else None,
        }
        if binary
        else None,
        "coverage_curve": coverage(
            scored.confidence, scored.correct, scored.scores[:, 1] if binary else None, positive if binary else None
        ),
        "reliability": reliability,
        "confusion": confusion(scored.labels, scored.predicted, classes).tolist(),
    }


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts int `[true class, class decided]` of labels and decisions, each `[n]`."""
    return np.bincount(labels.astype(np.int64) * classes + predicted, minlength=classes**2).reshape(classes, classes)


def coverage(
    confidence: np.ndarray,
    correct: np.ndarray,
    positive_scores: np.ndarray | None = None,
    positive: np.ndarray | None = None,
) -> dict[str, list[float | None]]:
    """Accuracy of the decisions that remain when those below a confidence are withheld (paper section 4.2.2).

    Args:
      confidence: float32 `[n]`.
      correct: bool `[n]`.
      positive_scores: `[n]`, scores of the positive class; together with `positive`, the AUC is given, too.
      positive: bool `[n]`, where the true class is the positive one.

    Returns:
      Lists of equal length: `thresholds`, `accuracy` (None where nothing is kept), `share` kept, and perhaps `auc`.
    """
    accuracy, share = ops.coverage_curve(confidence, correct, THRESHOLDS)
    share = [number(s) for s in np.asarray(share)]
    curve = {
        "thresholds": [number(t) for t in THRESHOLDS],
        "accuracy": [number(a) if s else None for a, s in zip(np.asarray(accuracy), share, strict=True)],
        "share": share,
    }
    if positive_scores is not None and positive is not None:
        kept = (confidence >= threshold for threshold in THRESHOLDS)
        curve["auc"] = [_auroc(positive_scores[keep], positive[keep]) for keep in kept]
    return curve


def shift(in_distribution: Scored, shifted: Scored) -> dict[str, Any]:
    """How far confidence tells shifted inputs from those of the test set (paper figure 8).

    Args:
      in_distribution: the test set.
      shifted: inputs from elsewhere; their labels are not used.

    Returns:
      `levels` and, for both sets, the `share` of examples with at least that confidence and its mean; `auroc` is the
      probability that a test example has the higher confidence (1: told apart always, 0.5: never).
    """
    both = {"test": in_distribution.confidence, "shifted": shifted.confidence}
    confidence = np.concatenate(list(both.values()))
    from_test = np.arange(len(confidence)) < len(in_distribution.confidence)
    return {
        "examples": {name: len(c) for name, c in both.items()},
        "auroc": _auroc(confidence, from_test),
        "mean": {name: number(c.mean()) for name, c in both.items()},
        "levels": [number(t) for t in THRESHOLDS],
        "share": {name: [number((c >= t).mean()) for t in THRESHOLDS] for name, c in both.items()},
    }


def number(value: Any) -> float | None:
    """A JSON number, without the digits that float32 does not carry; None where the value is not finite."""
    value = float(value)
    return round(value, 7) if np.isfinite(value) else None


def _median_needed(counts: np.ndarray) -> float | None:
    # A share that is never reached (-1) needs more than any number of prototypes, not fewer.
    return number(np.median(np.where(counts < 0, np.inf, counts)))


_SUPPORT = ("median", "mean", "max", "distribution")


def _support(size: np.ndarray) -> dict[str, Any]:
    largest = int(size.max())
    # Bins of one size each while they can be told apart, then bins that grow by a constant factor.
    edges = np.arange(largest + 2)
    if largest > 64:
        edges = np.unique(np.concatenate([[0, 1], np.geomspace(1, largest + 1, 41).round()])).astype(int)
    counts, _ = np.histogram(size, edges)
    distribution = {"edges": edges.tolist(), "counts": counts.tolist()}
    return dict(zip(_SUPPORT, (number(np.median(size)), number(size.mean()), largest, distribution), strict=True))


def _confidence(confidence: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    edges = np.linspace(0, 1, 21)
    split = {"right": confidence[correct], "wrong": confidence[~correct]}
    histogram = {name: np.histogram(c, edges)[0].tolist() for name, c in split.items()}
    return {
        "mean": number(confidence.mean()),
        **{name: number(c.mean()) if len(c) else None for name, c in split.items()},
        "ece": number(ops.expected_calibration_error(confidence, correct, BINS)),
        "auroc": _auroc(confidence, correct),
        "histogram": {"edges": [number(e) for e in edges], **histogram},
    }


def _reliability(confidence: np.ndarray, correct: np.ndarray) -> dict[str, list[Any]]:
    """Accuracy and mean confidence of the examples in each of `BINS` equal bins of confidence."""
    # The bins of `ops.expected_calibration_error`: open below, closed above, edges in the precision of the confidence.
    place = np.searchsorted((np.arange(1, BINS) / BINS).astype(confidence.dtype), confidence, side="left")
    counts = np.bincount(place, minlength=BINS)
    sums = [np.bincount(place, weights=x, minlength=BINS) for x in (confidence, correct)]
    means = [[number(s / c) if c else None for s, c in zip(part, counts, strict=True)] for part in sums]
    return {"confidence": means[0], "accuracy": means[1], "counts": counts.tolist()}


def _auroc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    if positive.all() or not positive.any():
        return None
    return number(ops.auroc(scores, positive))


def _check_classes(scored: Scored, classes: int) -> None:
    if scored.scores.shape[1] != classes:
        raise ValueError(f"{scored.scores.shape[1]} classes were scored, but there are {classes} label names")
    outside = (scored.labels < 0) | (scored.labels >= classes)
    if outside.any():
        first = int(np.argmax(outside))
        raise ValueError(
            f"example {scored.ids[first]} has label {scored.labels[first]}, but the classes are 0 to {classes - 1}; "
            "examples of another data set can only be compared by `shift`"
        )
