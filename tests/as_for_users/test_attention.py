"""Attention against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax import ops


def operands(batch: int = 3, candidates: int = 20, d: int = 16, v: int = 5) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    shapes = (batch, d), (candidates, d), (candidates, v)
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def reference(queries, keys, values, normalize):
    q, k, v = (np.asarray(x, np.float64) for x in (queries, keys, values))
    weights = np.asarray(normalize(np.float32(q @ k.T / np.sqrt(k.shape[1]))), np.float64)
    return weights @ v, weights


@pytest.mark.parametrize("name", ["sparsemax", "softmax"])
def test_equals_float64(name):
    arguments = operands()
    outputs, weights = ops.dense_attend(*arguments, normalizer=name)
    expected = reference(*arguments, getattr(ops, name))
    np.testing.assert_allclose(outputs, expected[0], atol=1e-6)
    np.testing.assert_allclose(weights, expected[1], atol=1e-6)


def test_masked_candidates_have_no_say():
    queries, keys, values = operands()
    mask = np.arange(20)[None, :] % 4 != np.arange(3)[:, None]
    outputs, weights = ops.dense_attend(queries, keys, values, where=mask)
    assert (np.asarray(weights)[~mask] == 0).all()
    for i in range(3):
        alone, _ = ops.dense_attend(queries[i : i + 1], keys[mask[i]], values[mask[i]])
        np.testing.assert_allclose(outputs[i], alone[0], atol=1e-6)


def test_bfloat16_arguments_are_computed_in_float32():
    arguments = [jnp.asarray(x, jnp.bfloat16) for x in operands()]
    outputs, weights = ops.dense_attend(*arguments)
    assert outputs.dtype == weights.dtype == jnp.float32
    expected, _ = ops.dense_attend(*(x.astype(jnp.float32) for x in arguments))
    np.testing.assert_array_equal(outputs, expected)


def test_derivatives_against_finite_differences():
    arguments = operands(batch=2, candidates=6, d=4, v=3)
    rng = np.random.default_rng(1)
    directions = [rng.normal(size=x.shape).astype(np.float32) for x in arguments]
    outputs, slope = jax.jvp(lambda *a: ops.dense_attend(*a)[0], arguments, tuple(directions))
    step = 1e-3
    ahead, behind = (
        ops.dense_attend(*(x + s * step * d for x, d in zip(arguments, directions, strict=True)))[0] for s in (1, -1)
    )
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), atol=2e-3)
    cotangent = rng.normal(size=outputs.shape).astype(np.float32)
    pulled = jax.vjp(lambda *a: ops.dense_attend(*a)[0], *arguments)[1](cotangent)
    inner = sum((p * d).sum() for p, d in zip(pulled, directions, strict=True))
    np.testing.assert_allclose(inner, (cotangent * slope).sum(), rtol=1e-4)


def test_bad_input():
    queries, keys, values = operands()
    with pytest.raises(ValueError, match="normalizer must be 'sparsemax' or 'softmax', got 'sparse'"):
        ops.dense_attend(queries, keys, values, normalizer="sparse")
    with pytest.raises(ValueError, match=r"queries \(3, 15\) and keys \(20, 16\) differ in their last axis"):
        ops.dense_attend(queries[:, 1:], keys, values)
    with pytest.raises(ValueError, match=r"keys \(20, 16\) and values \(19, 5\) describe different numbers"):
        ops.dense_attend(queries, keys, values[1:])
    with pytest.raises(ValueError, match=r"queries must have 2 axes, \[rows, size\], got shape \(16,\)"):
        ops.dense_attend(queries[0], keys, values)
    with pytest.raises(ValueError, match="keys must be floating, got int32"):
        ops.dense_attend(queries, keys.astype(np.int32), values)
    with pytest.raises(ValueError, match="row 1 .* has no candidate"):
        ops.dense_attend(queries, keys, values, where=np.arange(3)[:, None] != 1 + np.zeros((1, 20), int))


def test_attend_lists_what_dense_attention_weighs():
    queries, keys, values = operands()
    labels = np.arange(20) % 3
    found = ops.attend(queries, keys, values, width=6, labels=labels, classes=3, shares=(0.5, 0.9))
    outputs, weights = ops.dense_attend(queries, keys, values)
    np.testing.assert_allclose(found.outputs, outputs, atol=1e-6)
    order = np.argsort(-np.asarray(weights), axis=1)[:, :6]
    heaviest = np.take_along_axis(np.asarray(weights), order, axis=1)
    np.testing.assert_allclose(found.weights, heaviest, atol=1e-6)
    np.testing.assert_array_equal(found.ids, np.where(heaviest > 0, order, -1))
    np.testing.assert_array_equal(found.labels, np.where(heaviest > 0, labels[order], -1))
    np.testing.assert_array_equal(found.size, (weights > 0).sum(axis=1))
    np.testing.assert_allclose(found.class_mass, ops.class_mass(weights, labels, 3), atol=1e-6)
    np.testing.assert_array_equal(found.fewest, ops.fewest_for(weights, (0.5, 0.9)))
    assert np.asarray(found.exact).all()
    bare = ops.attend(queries, keys, values, width=20)
    assert bare.class_mass is bare.fewest is None and (bare.labels == -1).all()


@pytest.mark.parametrize("execution", ["dense", "streamed"])
def test_empty_places_and_the_own_id(execution):
    queries, keys, values = operands()
    ids = np.arange(100, 120, dtype=np.int32)
    ids[::3] = -1
    labels = np.where(ids < 0, -1, 0).astype(np.int32)
    exclude = np.int32([101, -5, 118])
    options = {"width": 20, "ids": ids, "classes": 1, "exclude": exclude, "execution": execution}
    found = ops.attend(queries, keys, values, labels=labels, **options)
    where = (ids[None] >= 0) & (ids[None] != exclude[:, None])
    outputs, weights = ops.dense_attend(queries, keys, values, where=where)
    np.testing.assert_allclose(found.outputs, outputs, atol=1e-6)
    np.testing.assert_array_equal(found.size, (weights > 0).sum(axis=1))
    np.testing.assert_allclose(found.class_mass, np.ones((3, 1)), atol=1e-6)
    labels[ids >= 0] = 7
    unknown = ops.attend(queries, keys, values, labels=labels, **options)
    assert np.isnan(unknown.class_mass).all()


BEYOND = np.where(np.arange(20) == 3, 2**31, np.arange(20))


def test_bad_input_of_attend():
    arguments = operands()
    index = ops.cluster_index(arguments[1], rows=5)
    for message, options in (
        ("width must be 1 to 20, the number of candidates, got 21", {"width": 21}),
        (
            r"ids must be integers of shape \(20,\), got int64 of shape \(19,\)|int32 of shape \(19,\)",
            {"ids": np.arange(19)},
        ),
        (r"ids must fit into int32, got 0 to 2147483648; number them anew", {"ids": BEYOND}),
        (r"ids must fit into int32, got 0 to 2147483648; number them anew", {"ids": BEYOND.astype(np.uint32)}),
        (r"labels must be integers of shape \(20,\), got float32", {"labels": np.zeros(20, np.float32)}),
        (r"exclude must be integers of shape \(3,\)", {"exclude": np.arange(20)}),
        ("classes were given without the labels", {"classes": 3}),
        ("shares must be above 0 and at most 1, got 1.5", {"shares": (0.5, 1.5)}),
        ("execution must be 'dense', 'streamed', 'sharded' or None, got 'fast'", {"execution": "fast"}),
        ("normalizer must be 'sparsemax' or 'softmax', got 'sparse'", {"normalizer": "sparse"}),
        (
            "does not divide keys .* it belongs to other keys",
            {"index": ops.ClusterIndex(index.centers[:3], index.radii[:3])},
        ),
    ):
        with pytest.raises(ValueError, match=message):
            ops.attend(*arguments, **{"width": 5, **options})
