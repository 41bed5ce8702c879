"""The nearest code against float64, ties, and memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax import ops


def reference(vectors, codes, metric):
    """Scores `[vectors, codes]` in float64: the higher, the nearer."""
    z, c = np.asarray(vectors, np.float64), np.asarray(codes, np.float64)
    if metric == "euclidean":
        return -((z[:, None] - c[None]) ** 2).sum(axis=2)
    sizes = np.linalg.norm(z, axis=1)[:, None] * np.linalg.norm(c, axis=1)[None]
    return np.divide(z @ c.T, sizes, out=np.zeros((len(z), len(c))), where=sizes > 0)


# Below, at and above a block of vectors and a tile of codes.
@pytest.mark.parametrize(("vectors", "codes"), [(1, 1), (256, 7), (300, 1024), (530, 2100)])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_nearest_is_that_of_float64(vectors, codes, metric):
    rng = np.random.default_rng(vectors)
    z = rng.normal(size=(vectors, 6)).astype(np.float32)
    c = rng.normal(size=(codes, 6)).astype(np.float32) * rng.uniform(0.5, 2, (codes, 1)).astype(np.float32)
    found = ops.nearest(z, c, metric)
    scores = reference(z, c, metric)
    best, chosen = scores.max(axis=1), scores[np.arange(vectors), found.index]
    np.testing.assert_allclose(chosen, best, atol=2e-5)
    if codes > 1:
        clear = best - np.partition(scores, -2, axis=1)[:, -2] > 2e-5
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(np.asarray(found.index)[clear], scores.argmax(axis=1)[clear])
    np.testing.assert_allclose(found.value, chosen if metric == "cosine" else -chosen, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_of_equal_codes_the_first_is_chosen(metric):
    rng = np.random.default_rng(0)
    few = rng.integers(-2, 3, (40, 4)).astype(np.float32)
    # Copies within a tile and in others; small integers have exact products.
    codes = np.concatenate([few, few[::-1]] * 60)
    found = ops.nearest(few, codes, metric)
    scores = reference(few, codes, metric)
    np.testing.assert_array_equal(found.index, np.isclose(scores, scores.max(axis=1, keepdims=True)).argmax(axis=1))


def test_zeros_have_no_direction():
    codes = np.array([[-1, 0], [0, 0], [0, 1]], np.float32)
    found = ops.nearest(np.array([[0, 0], [1, 0]], np.float32), codes)
    np.testing.assert_array_equal(found.index, [0, 1])
    np.testing.assert_array_equal(found.value, [0, 0])


def test_near_vectors_keep_their_small_distance():
    code = np.full((1, 64), 100, np.float32)
    found = ops.nearest(code + np.float32(1e-3), code, "euclidean")
    exact = ((code.astype(np.float64) + np.float64(np.float32(1e-3)) - code) ** 2).sum()
    assert found.value[0] == pytest.approx(exact, rel=0.02)


def test_memory_is_bounded():
    def given(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    for metric in ("cosine", "euclidean"):
        compiled = jax.jit(ops.nearest, static_argnames="metric").lower(
            given(12544, 64), given(128_000, 64), metric=metric
        )
        # One float for every vector and code would be 6.4 GB; the codes are 33 MB.
        assert compiled.compile().memory_analysis().temp_size_in_bytes <= 16e6


def test_it_has_no_derivative():
    z, c = np.ones((3, 2), np.float32), np.eye(2, dtype=np.float32)
    gradient = jax.grad(lambda z, c: ops.nearest(z, c).value.sum(), argnums=(0, 1))(z, c)
    assert all((x == 0).all() for x in gradient)


def test_bad_input():
    good = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"codes must have 2 axes, \[codes, size\], got shape \(3,\)"):
        ops.nearest(good, good[0])
    with pytest.raises(ValueError, match="vectors must be floating, got int32"):
        ops.nearest(good.astype(np.int32), good)
    with pytest.raises(ValueError, match=r"vectors \(2, 3\) and codes \(2, 2\) differ in their last axis"):
        ops.nearest(good, good[:, :2])
    with pytest.raises(ValueError, match="at least one code"):
        ops.nearest(good, good[:0])
    with pytest.raises(ValueError, match="metric must be 'cosine' or 'euclidean', got 'cos'"):
        ops.nearest(good, good, "cos")
