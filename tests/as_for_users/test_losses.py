"""Losses against float64 NumPy."""

import jax
import numpy as np
import pytest

from protojax import ops


def test_cross_entropy_equals_float64():
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(6, 4)) * np.float32([[0.1], [1], [10], [100], [1e4], [0]])).astype(np.float32)
    labels = np.int32([0, 1, 2, 3, 0, 1])
    z = logits.astype(np.float64)
    top = z.max(axis=1)
    expected = np.log(np.exp(z - top[:, None]).sum(axis=1)) + top - z[np.arange(6), labels]
    np.testing.assert_allclose(ops.cross_entropy(logits, labels), expected, rtol=1e-6, atol=1e-6)


def test_cross_entropy_derivative():
    logits, labels = np.float32([[1.0, 2.0, 0.5]]), np.int32([1])
    shares = np.exp(logits) / np.exp(logits).sum()
    slopes = jax.grad(lambda x: ops.cross_entropy(x, labels).sum())(logits)
    np.testing.assert_allclose(slopes, shares - np.eye(3)[labels], atol=1e-6)


@pytest.mark.parametrize("label", [-1, 3])
def test_cross_entropy_refuses_unknown_classes(label):
    logits, labels = np.zeros((2, 3), np.float32), np.int32([0, label])
    with pytest.raises(ValueError, match=f"label {label} at position 1 is not one of the 3 classes"):
        ops.cross_entropy(logits, labels)
    np.testing.assert_array_equal(np.isnan(jax.jit(ops.cross_entropy)(logits, labels)), [False, True])


def test_cross_entropy_of_soft_labels_equals_float64():
    rng = np.random.default_rng(1)
    logits, target = rng.normal(size=(5, 4)).astype(np.float32) * 3, rng.dirichlet(np.ones(4), 5)
    z = logits.astype(np.float64)
    log = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    soft = target.astype(np.float32)
    np.testing.assert_allclose(ops.cross_entropy(logits, soft), -(target * log).sum(axis=1), rtol=1e-5)
    labels = np.int32([0, 3, 1, 1, 2])
    hard = np.eye(4, dtype=np.float32)[labels]
    np.testing.assert_allclose(ops.cross_entropy(logits, hard), ops.cross_entropy(logits, labels), rtol=1e-6)
    slopes = jax.grad(lambda x: ops.cross_entropy(x, soft).sum())(logits)
    np.testing.assert_allclose(slopes, np.exp(log) - target, atol=1e-6)
    with pytest.raises(ValueError, match=r"were expected, got \(5, 4\), \(5, 3\)"):
        ops.cross_entropy(logits, soft[:, :3])


def test_cross_entropy_refuses_shapes():
    with pytest.raises(ValueError, match=r"were expected, got \(2, 3\), \(3,\)"):
        ops.cross_entropy(np.zeros((2, 3), np.float32), np.zeros(3, np.int32))
    with pytest.raises(ValueError, match="labels must be integers, got float32"):
        ops.cross_entropy(np.zeros((2, 3), np.float32), np.zeros(2, np.float32))


def test_weight_entropy_equals_the_equation():
    weights = np.float32([[0.5, 0.25, 0.25, 0], [1, 0, 0, 0]])
    w = weights.astype(np.float64)
    np.testing.assert_allclose(ops.weight_entropy(weights, 1e-6), -(w * np.log(w + 1e-6)).sum(axis=1), atol=1e-6)


def test_weight_entropy_derivative_is_finite_at_zero():
    slopes = jax.grad(lambda w: ops.weight_entropy(w, 1e-6).sum())(np.float32([[0.0, 0.5, 0.5]]))
    np.testing.assert_allclose(slopes, -np.log([[1e-6, 0.5, 0.5]]) - [[0, 1, 1]], rtol=1e-5)


def test_weight_entropy_refuses():
    with pytest.raises(ValueError, match="eps must be positive, got 0.0"):
        ops.weight_entropy(np.ones((1, 1), np.float32), 0.0)
    with pytest.raises(ValueError, match=r"must be \[batch, candidates\], got shape \(3,\)"):
        ops.weight_entropy(np.ones(3, np.float32), 1e-6)
