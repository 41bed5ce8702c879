"""Metrics against float64 NumPy, written the slow and obvious way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax import ops
from protojax.ops.metrics import TOLERANCE

SHARES = (0.5, 0.9, 0.95, 1.0)


def fewest_reference(weights: np.ndarray, moved: float = 0.0) -> np.ndarray:
    sums = np.cumsum(-np.sort(-weights.astype(np.float64), axis=1), axis=1)
    return np.stack([(sums < share * (1 - TOLERANCE) + moved).sum(axis=1) + 1 for share in SHARES], axis=1)


@pytest.mark.parametrize("candidates", [1, 7, 500, 20000])
@pytest.mark.parametrize("name", ["sparsemax", "softmax"])
@pytest.mark.parametrize("scale", [0.01, 5.0])
def test_fewest_for_equals_the_sort(candidates, name, scale):
    z = np.random.default_rng(candidates).normal(size=(8, candidates)).astype(np.float32) * np.float32(scale)
    weights = np.asarray(getattr(ops, name)(z))
    found = np.asarray(ops.fewest_for(weights, SHARES))
    assert found.dtype == np.int32
    least, most = fewest_reference(weights, moved=-3e-7), fewest_reference(weights, moved=3e-7)
    assert ((least <= found) & (found <= most)).all()
    # Only the tail of a softmax is finer than the rounding of sums.
    assert (least == most)[:, :3].mean() > (0.9 if candidates < 1000 or name == "sparsemax" else 0)
    if candidates < 10:
        np.testing.assert_array_equal(found, fewest_reference(weights))


def test_fewest_for_counts_ties():
    weights = np.zeros((4, 12), np.float32)
    weights[0, :10] = 0.1
    weights[1, ::6] = 0.5
    weights[2, 5] = 1
    weights[3, :8] = 0.125
    np.testing.assert_array_equal(
        ops.fewest_for(weights, SHARES), [[5, 9, 10, 10], [1, 2, 2, 2], [1, 1, 1, 1], [4, 8, 8, 8]]
    )
    np.testing.assert_array_equal(jax.jit(ops.fewest_for, static_argnums=1)(weights, (0.25, 1e-9))[3], [2, 1])


def test_fewest_for_a_million_equal_weights():
    weights = np.full((1, 1 << 20), 2.0**-20, np.float32)
    np.testing.assert_array_equal(ops.fewest_for(weights, SHARES), fewest_reference(weights))


def test_fewest_for_says_what_is_not_reached():
    weights = np.float32([[0, 0], [0.5, 0.25], [np.nan, 0.5], [0.5, 0.5]])
    np.testing.assert_array_equal(ops.fewest_for(weights, (0.5, 0.9)), [[-1, -1], [1, -1], [-1, -1], [1, 2]])


def test_fewest_for_refuses():
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"shares must be above 0 and at most 1, got {share}"):
            ops.fewest_for(np.ones((1, 1), np.float32), (0.5, share))
    with pytest.raises(ValueError, match=r"must be \[batch, candidates\], got shape \(1,\)"):
        ops.fewest_for(np.ones(1, np.float32), (0.5,))


@pytest.mark.parametrize("candidates", [5, 20000])
def test_class_mass_equals_float64(candidates):
    rng = np.random.default_rng(0)
    weights = np.asarray(ops.softmax(rng.normal(size=(3, candidates)).astype(np.float32)))
    labels = rng.integers(0, 4, candidates).astype(np.int32)
    expected = np.stack([weights[:, labels == m].astype(np.float64).sum(axis=1) for m in range(6)], axis=1)
    np.testing.assert_allclose(ops.class_mass(weights, labels, 6), expected, atol=5e-7)
    np.testing.assert_allclose(
        jax.jit(ops.class_mass, static_argnums=2)(weights, labels, 6), ops.class_mass(weights, labels, 6), atol=1e-7
    )


def test_class_mass_refuses_unknown_classes():
    weights, labels = np.float32([[0.5, 0.5]]), np.int32([0, 7])
    with pytest.raises(ValueError, match="label 7 at position 1 is not one of the 3 classes"):
        ops.class_mass(weights, labels, 3)
    assert np.isnan(jax.jit(ops.class_mass, static_argnums=2)(weights, labels, 3)).all()
    with pytest.raises(ValueError, match=r"were expected, got \(1, 2\), \(3,\)"):
        ops.class_mass(weights, np.zeros(3, np.int32), 3)


def test_accuracy():
    scores = np.float32([[0.2, 0.8], [0.6, 0.4], [0.5, 0.5], [0.1, 0.9]])
    assert ops.accuracy(scores, np.int32([1, 1, 0, 1])) == 0.75
    assert ops.accuracy(jnp.asarray(scores), jnp.asarray([1, 0, 1, 1])) == 0.75
    with pytest.raises(ValueError, match=r"scores \(1, 0\) is NaN"):
        ops.accuracy(np.float32([[0, 1], [np.nan, 1]]), np.int32([0, 1]))
    with pytest.raises(ValueError, match="label 2 at position 0 is not one of the 2 classes"):
        ops.accuracy(scores, np.int32([2, 0, 0, 0]))
    with pytest.raises(ValueError, match=r"were expected, got \(0, 2\), \(0,\)"):
        ops.accuracy(scores[:0], np.zeros(0, np.int32))


def test_coverage_curve():
    rng = np.random.default_rng(0)
    confidence = np.round(rng.random(200), 1).astype(np.float32)
    correct = rng.random(200) < confidence
    thresholds = [0.0, 0.1, 0.5, 0.9, 1.0, 1.01]
    accuracy, share = ops.coverage_curve(confidence, correct, thresholds)
    for i, threshold in enumerate(thresholds):
        kept = confidence >= np.float32(threshold)
        assert share[i] == kept.mean()
        if kept.any():
            assert accuracy[i] == pytest.approx(correct[kept].mean(), abs=1e-12)
    assert np.isnan(accuracy[-1]) and share[-1] == 0 and share[0] == 1


def test_expected_calibration_error():
    rng = np.random.default_rng(1)
    confidence = np.concatenate([rng.random(300), np.arange(16) / 15]).astype(np.float32)
    correct = rng.random(316) < 0.6
    for bins in (1, 10, 15):
        expected = 0.0
        for b in range(bins):
            low, high = np.float32(b / bins), np.float32((b + 1) / bins)
            inside = ((confidence > low) | (b == 0)) & (confidence <= high)
            if inside.any():
                gap = correct[inside].mean() - confidence[inside].astype(np.float64).mean()
                expected += inside.mean() * abs(gap)
        assert ops.expected_calibration_error(confidence, correct, bins) == pytest.approx(expected, abs=1e-12)
    certain = np.float32([1, 1 + 1e-7])
    assert ops.expected_calibration_error(certain, np.array([True, True])) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match=r"confidence must be in \[0, 1\], got 0.5 to 1.5"):
        ops.expected_calibration_error(np.float32([0.5, 1.5]), np.array([True, True]))
    with pytest.raises(ValueError, match="bins must be at least 1, got 0"):
        ops.expected_calibration_error(certain, np.array([True, True]), bins=0)


def test_auroc_counts_pairs():
    rng = np.random.default_rng(2)
    scores = rng.integers(0, 20, 150).astype(np.float32)
    positive = rng.random(150) < 0.3
    pairs = scores[positive][:, None] - scores[~positive][None, :]
    assert ops.auroc(scores, positive) == ((pairs > 0).sum() + 0.5 * (pairs == 0).sum()) / pairs.size
    assert ops.auroc(np.zeros(4), np.array([True, False, False, True])) == 0.5
    assert ops.auroc([1, 2, 3, 4], np.array([False, False, True, True])) == 1


def test_auroc_refuses():
    with pytest.raises(ValueError, match="needs both kinds of examples, got 2 positive and 0 negative"):
        ops.auroc(np.zeros(2), np.array([True, True]))
    with pytest.raises(ValueError, match="positive must be boolean, got int"):
        ops.auroc(np.zeros(2), np.array([1, 0]))
    with pytest.raises(ValueError, match=r"of one length, got \(2,\) and \(3,\)"):
        ops.auroc(np.zeros(2), np.array([True, False, True]))
    with pytest.raises(ValueError, match=r"scores \(1,\) is NaN"):
        ops.auroc(np.float32([0, np.nan]), np.array([True, False]))
