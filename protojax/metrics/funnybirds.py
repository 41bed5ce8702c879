"""The FunnyBirds protocol (Hesse et al. 2023): explanations judged by taking parts of birds away.

Everything follows from the class scores of every bird with every set of parts kept, and from how important each part is
for each class. With t the threshold from which a part counts as important,

    CSDC   share of a set of parts that suffices to tell the class, that is important; best set, birds decided rightly
    PC     the decision stays when only important parts are kept
    DC     the decision changes when the important parts are taken away
    D      1 - share of irrelevant parts and background objects that are important
    SD     rank correlation of importance and of what a part's removal takes from the score, from 0 to 1
    TS     whether, of two classes that share different parts with the bird, each gives its own the more importance

    completeness = ((CSDC + PC + DC) / 3 + D) / 2      at the t with the largest (CSDC + PC + DC) / 3 + D
    overall      = (completeness + SD + TS) / 3
"""

import functools
import itertools
from typing import Any, NamedTuple

import numpy as np

from protojax.metrics.parts import dilated

THRESHOLDS = np.linspace(0.01, 0.5, 80)
"""Shares of the whole attribution from which a part counts as important."""

IRRELEVANT = 0.05
"""A part whose removal takes less than this of the score is irrelevant."""

DIFFERENT = 3
"""Parts in which the two classes of TS differ from that of the bird."""


class Birds(NamedTuple):
    """Birds as a model and its explanations see them."""

    classes: Any
    """int `[classes, parts]`: which variant of each part a class has."""
    labels: Any
    """int `[birds]`."""
    scores: Any
    """float `[birds, 2^parts, classes]`: class scores with the parts kept whose bits are set; part 0 is the lowest bit,
    the last entry is the whole bird."""
    importance: Any
    """float `[birds, classes, parts]`: attribution in each part, for each class; from `part_importance`."""
    total: Any
    """float `[birds, classes]`: the whole attribution."""
    object_scores: Any = None
    """float `[birds, objects]`: score of the label without one background object; NaN where there are fewer."""
    object_importance: Any = None
    """float `[birds, objects]`: attribution of the label in each background object."""


class FunnyBirdsScores(NamedTuple):
    """Everything in [0, 1]; NaN where no bird could be judged."""

    accuracy: float
    csdc: float
    pc: float
    dc: float
    distractibility: float
    completeness: float
    sd: float
    ts: float
    overall: float
    threshold: float
    """The one chosen."""


def part_importance(attribution: Any, masks: Any, part_of: Any) -> np.ndarray:
    """Attribution in every part, summed in its mask and 2 pixels around.

    Args:
      attribution: `[birds, height, width]`.
      masks: bool `[birds, pieces, height, width]`: pieces such as the left and the right eye.
      part_of: int `[pieces]`: which part each piece belongs to; all parts from 0 occur.

    Returns:
      float64 `[birds, parts]`.

    Raises:
      ValueError: shapes that do not fit each other.
    """
    attribution, masks, part_of = np.asarray(attribution, np.float64), np.asarray(masks, bool), np.asarray(part_of)
    if attribution.shape != (len(masks), *masks.shape[2:]) or part_of.shape != masks.shape[1:2]:
        raise ValueError(
            f"attribution {attribution.shape}, masks {masks.shape} and part_of {part_of.shape} do not fit each other"
        )
    pieces = np.einsum("bhw,bphw->bp", attribution, dilated(masks))
    return np.stack([pieces[:, part_of == part].sum(axis=1) for part in range(part_of.max() + 1)], axis=1)


def funnybirds(birds: Birds, thresholds: Any = THRESHOLDS) -> FunnyBirdsScores:
    """All scores of the protocol but `background_independence`.

    Raises:
      ValueError: shapes that do not fit each other.
    """
    birds = _checked(birds)
    rows = np.arange(len(birds.labels))
    predicted = birds.scores[:, -1].argmax(axis=1)
    right = predicted == birds.labels
    thresholds = np.asarray(thresholds, np.float64)
    for_label = _important(birds.importance[rows, birds.labels], birds.total[rows, birds.labels], thresholds)
    for_decision = _important(birds.importance[rows, predicted], birds.total[rows, predicted], thresholds)
    csdc = _sufficient(birds, for_label, right)
    kept = _decided(birds.scores, for_decision)
    rest = _decided(birds.scores, ~for_decision)
    pc, dc = (kept == predicted).mean(axis=1), (rest != predicted).mean(axis=1)
    quiet = _distractibility(birds, for_label, thresholds)
    sums = (csdc + pc + dc) / 3 + quiet
    best = int(np.nanargmax(sums)) if not np.isnan(sums).all() else 0
    completeness = float(sums[best]) / 2
    sd, ts = _single_deletion(birds), _target_sensitivity(birds)
    return FunnyBirdsScores(
        accuracy=float(right.mean()),
        csdc=float(csdc[best]),
        pc=float(pc[best]),
        dc=float(dc[best]),
        distractibility=float(quiet[best]),
        completeness=completeness,
        sd=sd,
        ts=ts,
        overall=(completeness + sd + ts) / 3,
        threshold=float(thresholds[best]),
    )


def background_independence(scores: Any, without: Any) -> float:
    """The share of background objects that the score does not lean on.

    Args:
      scores: `[birds]`: score of the label.
      without: `[birds, objects]`: the same without one background object; NaN where there are fewer.

    Returns:
      In [0, 1]; NaN where there are no objects.
    """
    scores, without = np.asarray(scores, np.float64)[:, None], np.asarray(without, np.float64)
    there = ~np.isnan(without)
    lost = np.where(there, scores - without, 0)
    relevant = there & (lost > 0) & (lost >= np.abs(IRRELEVANT * scores))
    return 1 - float(relevant.sum() / there.sum()) if there.any() else float("nan")


def minimal_sufficient_sets(classes: Any, label: int) -> list[tuple[int, ...]]:
    """Sets of parts that no other class has, of which no part can be left out.

    Args:
      classes: int `[classes, parts]`.
      label: the class.

    Returns:
      Parts of each set, ascending; smaller sets first.
    """
    classes = np.asarray(classes)
    same = np.delete(classes, label, axis=0) == classes[label]
    found: list[tuple[int, ...]] = []
    for size in range(1, classes.shape[1] + 1):
        for parts in itertools.combinations(range(classes.shape[1]), size):
            if not same[:, parts].all(axis=1).any() and not any(set(smaller) < set(parts) for smaller in found):
                found.append(parts)
    return found


def _important(importance: np.ndarray, total: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """bool `[thresholds, birds, parts]`."""
    return importance[None] > thresholds[:, None, None] * total[None, :, None]


def _decided(scores: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The classes `[thresholds, birds]` decided with the parts kept, bool `[thresholds, birds, parts]`."""
    sets = (kept << np.arange(kept.shape[2])).sum(axis=2)
    return scores.argmax(axis=2)[np.arange(len(scores))[None], sets]


def _sufficient(birds: Birds, important: np.ndarray, right: np.ndarray) -> np.ndarray:
    """CSDC `[thresholds]`."""
    if not right.any():
        return np.full(len(important), np.nan)
    sets_of = functools.cache(lambda label: minimal_sufficient_sets(birds.classes, label))
    best = np.zeros(important.shape[:2])
    for bird in np.flatnonzero(right):
        for parts in sets_of(int(birds.labels[bird])):
            best[:, bird] = np.maximum(best[:, bird], important[:, bird, parts].mean(axis=1))
    return best[:, right].mean(axis=1)


def _distractibility(birds: Birds, important: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """D `[thresholds]`."""
    rows = np.arange(len(birds.labels))
    whole = birds.scores[rows, -1, birds.labels]
    without, there = _without_part(birds), np.ones_like(important[0])
    if birds.object_scores is not None:
        objects = _important(birds.object_importance, birds.total[rows, birds.labels], thresholds)
        important = np.concatenate([important, objects], axis=2)
        without = np.concatenate([without, birds.object_scores], axis=1)
        there = np.concatenate([there, ~np.isnan(birds.object_scores)], axis=1)
    lost = np.where(there, whole[:, None] - without, np.inf)
    irrelevant = (np.abs(lost) < np.abs(IRRELEVANT * whole)[:, None]) | (lost < 0)
    judged = irrelevant.any(axis=1)
    if not judged.any():
        return np.full(len(thresholds), np.nan)
    share = (important & irrelevant).sum(axis=2) / np.maximum(irrelevant.sum(axis=1), 1)
    return 1 - share[:, judged].mean(axis=1)


def _single_deletion(birds: Birds) -> float:
    """SD."""
    rows = np.arange(len(birds.labels))
    lost = birds.scores[rows, -1, birds.labels][:, None] - _without_part(birds)
    importance = birds.importance[rows, birds.labels]
    found = [_rank_correlation(a, b) for a, b in zip(lost, importance, strict=True)]
    judged = [value for value in found if not np.isnan(value)]
    return float(np.mean(judged)) * 0.5 + 0.5 if judged else float("nan")


def _target_sensitivity(birds: Birds) -> float:
    """TS."""
    parts = np.arange(birds.classes.shape[1])
    won = []
    for bird, label in enumerate(birds.labels):
        pair = _two_classes(birds.classes, int(label))
        if pair is None:
            continue
        # What each of the two classes shares with the bird, and what of its score goes with the parts of each.
        shared = [parts[birds.classes[c] == birds.classes[label]] for c in pair]
        gone = [
            birds.scores[bird, -1 - (1 << own).sum()][list(pair)] - birds.scores[bird, -1][list(pair)] for own in shared
        ]
        if not (gone[0][0] < gone[1][0] and gone[1][1] < gone[0][1]):
            continue
        for mine, other, own in ((pair[0], pair[1], shared[0]), (pair[1], pair[0], shared[1])):
            won.append(birds.importance[bird, mine, own].sum() > birds.importance[bird, other, own].sum())
    return float(np.mean(won)) if won else float("nan")


def _two_classes(classes: np.ndarray, label: int) -> tuple[int, int] | None:
    """The first two classes that differ from this one in three parts and share different parts with it."""
    same = classes == classes[label]
    near = np.flatnonzero((~same).sum(axis=1) == DIFFERENT)
    pairs = ((int(a), int(b)) for a, b in itertools.combinations(near, 2) if not (same[a] & same[b]).any())
    return next(pairs, None)


def _without_part(birds: Birds) -> np.ndarray:
    """Scores `[birds, parts]` of the label without one part."""
    whole = birds.scores.shape[1] - 1
    sets = whole - (1 << np.arange(birds.classes.shape[1]))
    return birds.scores[np.arange(len(birds.labels))[:, None], sets[None], birds.labels[:, None]]


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, equal values sharing their mean rank; NaN where one of the two is constant."""
    ranks = []
    for values in (a, b):
        below = (values[None, :] < values[:, None]).sum(axis=1)
        equal = (values[None, :] == values[:, None]).sum(axis=1)
        ranks.append(below + (equal - 1) / 2)
    first, second = (rank - rank.mean() for rank in ranks)
    size = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / size) if size else float("nan")


def _checked(birds: Birds) -> Birds:
    classes, labels = np.asarray(birds.classes), np.asarray(birds.labels)
    scores, importance, total = (np.asarray(x, np.float64) for x in (birds.scores, birds.importance, birds.total))
    count, parts = classes.shape
    wanted = {
        "scores": (scores.shape, (len(labels), 2**parts, count)),
        "importance": (importance.shape, (len(labels), count, parts)),
        "total": (total.shape, (len(labels), count)),
    }
    for name, (found, expected) in wanted.items():
        if found != expected:
            raise ValueError(f"{name} of {len(labels)} birds must have the shape {expected}, got {found}")
    if not len(labels):
        raise ValueError("the protocol needs at least one bird")
    if (birds.object_scores is None) != (birds.object_importance is None):
        raise ValueError("give both object_scores and object_importance, or neither")
    objects = (None if x is None else np.asarray(x, np.float64) for x in (birds.object_scores, birds.object_importance))
    return Birds(classes, labels, scores, importance, total, *objects)
