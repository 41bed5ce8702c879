"""The nearest code against float64, ties, and memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax import ops
from protojax.ops import rounded
from protojax.ops.tiles import Candidates


def reference(vectors, codes, metric):
    """Scores `[vectors, codes]` in float64: the higher, the nearer."""
    z, c = np.asarray(vectors, np.float64), np.asarray(codes, np.float64)
    if metric == "euclidean":
        return -((z[:, None] - c[None]) ** 2).sum(axis=2)
    sizes = np.linalg.norm(z, axis=1)[:, None] * np.linalg.norm(c, axis=1)[None]
    return np.divide(z @ c.T, sizes, out=np.zeros((len(z), len(c))), where=sizes > 0)


# Few vectors or features have products of float32 alone; many of both those of bfloat16 first.

# Below, at and above a block of vectors and a tile of codes.
SIZES = [(1, 1, 6), (256, 7, 6), (300, 1024, 6), (530, 2100, 6), (256, 7, 160), (530, 2100, 160)]


@pytest.mark.parametrize(("vectors", "codes", "features"), SIZES)
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_nearest_is_that_of_float64(vectors, codes, features, metric):
    rng = np.random.default_rng(vectors)
    z = rng.normal(size=(vectors, features)).astype(np.float32)
    c = rng.normal(size=(codes, features)).astype(np.float32) * rng.uniform(0.5, 2, (codes, 1)).astype(np.float32)
    found = ops.nearest(z, c, metric)
    scores = reference(z, c, metric)
    best, chosen = scores.max(axis=1), scores[np.arange(vectors), found.index]
    np.testing.assert_allclose(chosen, best, atol=2e-5, rtol=1e-6)
    if codes > 1:
        clear = best - np.partition(scores, -2, axis=1)[:, -2] > 2e-5
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(np.asarray(found.index)[clear], scores.argmax(axis=1)[clear])
    np.testing.assert_allclose(found.value, chosen if metric == "cosine" else -chosen, rtol=1e-5, atol=1e-6)


# Few enough are in doubt for the others to be left as they are; or they are so many that all are settled.
@pytest.mark.parametrize("metric, doubtful", [("cosine", 80), ("cosine", 300), ("euclidean", 80)])
def test_codes_that_bfloat16_cannot_tell_apart(metric, doubtful):
    rng = np.random.default_rng(1)
    z = rng.normal(size=(400, 256)).astype(np.float32)
    hard = np.arange(400) < doubtful
    # Several neighbours of some vectors, at distances that rounding exceeds; of the others one.
    near = z[hard].repeat(3, axis=0)
    c = np.concatenate([near + 0.02 * rng.normal(size=near.shape), z[~hard]]).astype(np.float32)
    scores = reference(z, c, metric)

    numbers = np.linalg.norm(c, axis=1)
    candidates = Candidates(c, (1 / numbers if metric == "cosine" else numbers**2 / 2)[:, None], None, None, 0)
    by_rounded = jax.jit(rounded.best_of_block, static_argnums=2)(z, candidates, metric)
    clear = np.asarray(by_rounded.score - by_rounded.second > rounded.doubt(z, c, metric))
    assert clear[~hard].mean() > 0.9
    assert not clear[hard].any()
    assert (np.asarray(by_rounded.index) != scores.argmax(axis=1)).sum() > 10

    # Up to what float32 tells apart.
    apart = np.partition(scores, -2, axis=1)[:, -2] < scores.max(axis=1) - (1e-6 if metric == "cosine" else 5e-4)
    assert apart.mean() > 0.9
    np.testing.assert_array_equal(np.asarray(ops.nearest(z, c, metric).index)[apart], scores.argmax(axis=1)[apart])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_doubt_is_more_than_rounding_takes(metric):
    rng = np.random.default_rng(2)
    # The worst of roundings: half of the last digit, everywhere in the same direction.
    unlucky = np.full((3, 256), 1 + 2.0**-8 - 2.0**-20, np.float32)
    z = np.concatenate([unlucky, rng.normal(size=(3, 256)).astype(np.float32)])
    c = np.concatenate([unlucky[:1], rng.normal(size=(40, 256)).astype(np.float32)])
    exact, products = z.astype(np.float64) @ c.astype(np.float64).T, z.astype(jnp.bfloat16).astype(np.float64)
    lost = np.abs(products @ c.astype(jnp.bfloat16).astype(np.float64).T - exact)
    if metric == "cosine":
        lost /= np.linalg.norm(c.astype(np.float64), axis=1)
    doubt = np.asarray(rounded.doubt(z, c, metric))
    assert (2 * lost.max(axis=1) <= doubt).all()
    assert doubt[0] <= 1.2 * 2 * lost[0].max()


def test_lengths_that_have_no_square_are_in_doubt():
    for z, c in (([1e-15], [1]), ([1e12], [1]), ([1], [1e-15]), ([1], [1e12]), ([np.nan], [1]), ([1], [np.nan])):
        doubt = rounded.doubt(np.full((1, 1), z, np.float32), np.full((1, 1), c, np.float32), "cosine")
        assert not doubt[0] < np.inf
    # Chosen among all the same, as long as float32 has the products.
    rng = np.random.default_rng(3)
    z, c = (rng.normal(size=(300, 160)).astype(np.float32) for _ in range(2))
    expected = reference(z, c, "cosine").argmax(axis=1)
    for scale in (1e-30, 1e-22, 1e12):
        np.testing.assert_array_equal(ops.nearest(z * np.float32(scale), c).index, expected)
    for scale in (1e-14, 1e12):
        np.testing.assert_array_equal(ops.nearest(z, c * np.float32(scale)).index, expected)
    # Squares of these codes vanish, and their products do not.
    z, c = z * np.float32(1e8), c * np.float32(1e-24)
    np.testing.assert_array_equal(ops.nearest(z, c, "euclidean").index, (z @ c.T).argmax(axis=1))


@pytest.mark.parametrize("copies", [1, 40])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_of_equal_codes_the_first_is_chosen(metric, copies):
    rng = np.random.default_rng(0)
    few = np.tile(rng.integers(-2, 3, (40, 4)), copies).astype(np.float32)
    # Copies within a tile and in others; small integers have exact products.
    codes = np.concatenate([few, few[::-1]] * 60)
    few = np.tile(few, (8, 1))
    found = ops.nearest(few, codes, metric)
    scores = reference(few, codes, metric)
    np.testing.assert_array_equal(found.index, np.isclose(scores, scores.max(axis=1, keepdims=True)).argmax(axis=1))


@pytest.mark.parametrize("vectors, features", [(2, 2), (300, 160)])
def test_zeros_have_no_direction(vectors, features):
    codes = np.zeros((3, features), np.float32)
    codes[0, 0], codes[2, 1] = -1, 1
    asked = np.zeros((vectors, features), np.float32)
    asked[1:, 0] = 1
    found = ops.nearest(asked, codes)
    np.testing.assert_array_equal(found.index, [0] + [1] * (vectors - 1))
    np.testing.assert_array_equal(found.value, 0)


def test_near_vectors_keep_their_small_distance():
    code = np.full((1, 64), 100, np.float32)
    found = ops.nearest(code + np.float32(1e-3), code, "euclidean")
    exact = ((code.astype(np.float64) + np.float64(np.float32(1e-3)) - code) ** 2).sum()
    assert found.value[0] == pytest.approx(exact, rel=0.02)


def test_memory_is_bounded():
    def given(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    for metric, features in (("cosine", 128), ("euclidean", 64)):
        compiled = jax.jit(ops.nearest, static_argnames="metric").lower(
            given(12544, features), given(128_000, features), metric=metric
        )
        # One float for every vector and code would be 6.4 GB; the codes are 66 or 33 MB.
        assert compiled.compile().memory_analysis().temp_size_in_bytes <= 24e6


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
