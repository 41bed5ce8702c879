"""The FunnyBirds protocol on animals whose parts decide in a known way, with explanations that are known to be right
or wrong."""

import numpy as np
import pytest
from scipy import stats

from protojax import metrics
from protojax.data import shapes
from protojax.metrics.funnybirds import _rank_correlation

CLASSES = shapes.CLASSES
LABELS = np.arange(len(CLASSES))
WEIGHT = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
SAME = (CLASSES[:, None] == CLASSES[None]).astype(float)
"""`[birds, classes, parts]`: whether a class has the bird's variant of the part."""
KEPT = (np.arange(32)[:, None] >> np.arange(5)) & 1

RIGHT = SAME * WEIGHT


def birds(importance=RIGHT, labels=LABELS, **changes):
    """A model whose score of a class is the weight of the parts that fit it; one bird of each class."""
    scores = np.einsum("bcp,kp,p->bkc", SAME, KEPT, WEIGHT)
    total = importance.sum(axis=2)
    made = metrics.Birds(CLASSES, LABELS, scores, importance, np.maximum(total, 1e-9))
    return made._replace(**changes)


def test_the_right_explanation_is_complete_and_correct():
    found = metrics.funnybirds(birds())
    assert (found.accuracy, found.csdc, found.pc, found.sd, found.ts) == (1, 1, 1, 1, 1)
    # Without any part every score is 0, and the first class is decided: only its own bird stays.
    assert found.dc == pytest.approx(5 / 6)
    # No part is irrelevant for its own class, so that distraction cannot be judged without background objects.
    assert np.isnan(found.distractibility)


def test_objects_that_do_nothing():
    whole = np.full((6, 1), 15.0)
    # Of two objects the second takes a share that matters; the third is not there.
    lost = np.array([0.0, 6.0, np.nan])
    objects = {"object_scores": whole - lost, "object_importance": np.zeros((6, 3))}
    assert metrics.funnybirds(birds(**objects)).distractibility == 1
    # An object that is irrelevant and important, another that is relevant and important.
    seen = np.tile([9.0, 9.0, 9.0], (6, 1))
    distracted = metrics.funnybirds(birds(**objects | {"object_importance": seen}), thresholds=[0.01])
    assert distracted.distractibility == 0
    assert distracted.completeness == pytest.approx((1 + 1 + 5 / 6) / 3 / 2)
    assert distracted.overall == pytest.approx((distracted.completeness + 1 + 1) / 3)
    # Where removal raises the score, the object is irrelevant, however much it is.
    raised = {"object_scores": whole + [[5.0]], "object_importance": np.full((6, 1), 9.0)}
    assert metrics.funnybirds(birds(**raised), thresholds=[0.01]).distractibility == 0


def test_an_explanation_that_sees_one_part():
    importance = RIGHT * (np.arange(5) == 0)
    only = metrics.Birds(CLASSES[[0]], [0], np.zeros((1, 32, 1)), importance[:1, :1], np.ones((1, 1)))
    assert only.importance.shape == (1, 1, 5)
    made = birds(importance, object_scores=np.full((6, 1), 15.0), object_importance=np.zeros((6, 1)))
    found = metrics.funnybirds(made, thresholds=[0.1])
    # Sets that suffice for class 0 are {4, another}: half is seen with part 0. By class: see the sets below.
    sets = [metrics.minimal_sufficient_sets(CLASSES, label) for label in LABELS]
    expected = np.mean([max((0 in parts) / len(parts) for parts in own) for own in sets])
    assert found.csdc == pytest.approx(expected)
    # Part 0 alone: 0 and 5 share it with 0 and 1, of which the first is decided; 4 is the only one of its kind.
    kept = np.array([0, 0, 2, 3, 4, 0])
    assert found.pc == pytest.approx((kept == LABELS).mean())
    # Without part 0 the rest still fits its own class best, in all.
    assert found.dc == 0


def test_minimal_sufficient_sets():
    assert metrics.minimal_sufficient_sets(CLASSES, 0) == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert (2,) in metrics.minimal_sufficient_sets(CLASSES, 3)
    assert metrics.minimal_sufficient_sets([[0, 0], [0, 0]], 0) == []


def test_wrong_explanations_are_found_out():
    # The least important part for the most important one.
    assert metrics.funnybirds(birds(SAME * WEIGHT[::-1])).sd == pytest.approx(0)
    # The same for every class: it cannot tell what speaks for which.
    same = np.repeat(RIGHT[np.arange(6), np.arange(6)][:, None], 6, axis=1)
    assert metrics.funnybirds(birds(same)).ts == 0
    # A constant explanation has no order, and is not judged.
    assert np.isnan(metrics.funnybirds(birds(np.ones_like(RIGHT))).sd)
    # A model that is wrong about every bird has no sufficient parts to find.
    scores = birds().scores.copy()
    scores[np.arange(6), -1, LABELS] = -1
    found = metrics.funnybirds(birds(scores=scores))
    assert found.accuracy == 0 and np.isnan(found.csdc)


def test_the_threshold_is_that_of_the_best_sum():
    # Noise of 12 % of the whole in an irrelevant object: from a threshold of 0.13 on nothing distracts.
    made = birds(object_scores=np.full((6, 1), 15.0), object_importance=np.full((6, 1), 1.8))
    found = metrics.funnybirds(made)
    assert found.distractibility == 1 and 0.12 <= found.threshold < 0.14


def test_rank_correlation_is_that_of_scipy():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 4, (2, 5)).astype(float)
        if np.ptp(a) and np.ptp(b):
            expected = stats.spearmanr(a, b).statistic
            assert _rank_correlation(a, b) == pytest.approx(expected, abs=1e-12)


def test_importance_is_summed_around_the_masks():
    animals = [shapes.draw(0, seed) for seed in range(3)]
    masks = np.stack([a.masks for a in animals])
    attribution = np.ones((3, 32, 32))
    # Squares of 4 pixels grow to 8; the first two are one part.
    found = metrics.part_importance(attribution, masks, np.array([0, 0, 1, 2, 3]))
    np.testing.assert_array_equal(found, np.tile([128, 64, 64, 64], (3, 1)))
    masks[1, 2] = False
    assert metrics.part_importance(attribution, masks, np.array([0, 0, 1, 2, 3]))[1, 1] == 0
    with pytest.raises(ValueError, match="do not fit each other"):
        metrics.part_importance(attribution[:2], masks, np.array([0, 0, 1, 2, 3]))


def test_background_independence():
    scores = np.array([10.0, -10.0])
    # 5 % is relevant, less is not; a score that rises is not; neither is an object that is not there.
    without = np.array([[9.5, 9.6, 20.0, np.nan], [-10.6, -10.4, -9.0, np.nan]])
    assert metrics.background_independence(scores, without) == pytest.approx(1 - 2 / 6)
    assert np.isnan(metrics.background_independence(scores, np.full((2, 1), np.nan)))


def test_bad_input():
    with pytest.raises(ValueError, match=r"scores of 6 birds must have the shape \(6, 32, 6\), got \(6, 31, 6\)"):
        metrics.funnybirds(birds(scores=birds().scores[:, :31]))
    with pytest.raises(ValueError, match="give both object_scores and object_importance"):
        metrics.funnybirds(birds(object_scores=np.zeros((6, 1))))
