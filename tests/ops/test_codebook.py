"""The codebook loss, its derivative, usage, perplexity, initialisations and revival."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax import ops

RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(30, 4)).astype(np.float32)
CODES = RNG.normal(size=(7, 4)).astype(np.float32)


def test_the_loss_and_its_derivative():
    # Few enough that some codes are not used.
    vectors = VECTORS[:4]
    index = ops.nearest(vectors, CODES).index
    z, c = vectors.astype(np.float64), CODES.astype(np.float64)
    value, gradient = jax.value_and_grad(ops.codebook_loss, argnums=1)(vectors, CODES, index)
    expected = sum(((z[i] - c[k]) ** 2).sum() for i, k in enumerate(np.asarray(index))) / len(z)
    assert value == pytest.approx(expected, rel=1e-6)
    slopes = np.zeros_like(c)
    for i, k in enumerate(np.asarray(index)):
        slopes[k] += 2 * (c[k] - z[i]) / len(z)
    np.testing.assert_allclose(gradient, slopes, atol=1e-6)
    of_vectors = jax.grad(ops.codebook_loss)(vectors, CODES, index)
    assert (of_vectors == 0).all()
    unused = np.setdiff1d(np.arange(7), index)
    assert len(unused) and (np.asarray(gradient)[unused] == 0).all()


def test_bad_input_of_the_loss():
    with pytest.raises(ValueError, match=r"got \(30, 4\) and \(7, 3\)"):
        ops.codebook_loss(VECTORS, CODES[:, :3], jnp.zeros(30, jnp.int32))
    with pytest.raises(ValueError, match=r"a code of each of the 30 vectors was expected, got int32 of shape \(29,\)"):
        ops.codebook_loss(VECTORS, CODES, jnp.zeros(29, jnp.int32))


def test_usage_and_perplexity():
    index = jnp.array([[0, 2, 2], [5, -1, 6]])
    np.testing.assert_array_equal(ops.usage(index, 6), [1, 0, 2, 0, 0, 1])
    assert ops.perplexity(jnp.array([3, 3, 0, 3])) == pytest.approx(3, rel=1e-6)
    assert ops.perplexity(jnp.array([0, 9, 0])) == 1
    assert ops.perplexity(jnp.zeros(4)) == 0
    shares = np.array([0.5, 0.25, 0.25])
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert ops.perplexity(jnp.array([2, 1, 1])) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_orthogonal_codes(shape):
    codes = np.asarray(ops.orthogonal_codes(jax.random.key(0), *shape), np.float64)
    gram = codes @ codes.T if shape[0] <= shape[1] else codes.T @ codes
    np.testing.assert_allclose(gram, np.eye(min(shape)), atol=1e-6)


def test_sampled_codes_are_different_vectors():
    codes = np.asarray(ops.sampled_codes(jax.random.key(1), VECTORS, 30))
    np.testing.assert_array_equal(np.unique(codes, axis=0), np.unique(VECTORS, axis=0))
    assert (np.asarray(ops.sampled_codes(jax.random.key(2), VECTORS, 30)) != codes).any()
    with pytest.raises(ValueError, match="31 different codes cannot be drawn from 30 vectors"):
        ops.sampled_codes(jax.random.key(0), VECTORS, 31)


def test_kmeans_plus_plus_finds_groups_and_spreads():
    centres = 100 * np.eye(6, dtype=np.float32)
    groups = zip(centres, (50, 1, 2, 3, 40, 1), strict=True)
    vectors = np.concatenate([c + 0.01 * RNG.normal(size=(n, 6)) for c, n in groups])
    draw = jax.jit(ops.kmeans_plus_plus_codes, static_argnames="codes")
    for seed in range(5):
        codes = np.asarray(draw(jax.random.key(seed), vectors, codes=6))
        assert sorted(codes.argmax(axis=1)) == list(range(6))
    # Two points of distance 1 and 3 from a code that is drawn first: the farther one is drawn 9 times as often.
    line = np.array([[0.0], [1.0], [3.0]], np.float32)
    drawn = np.asarray(jax.vmap(lambda k: draw(k, line, codes=2))(jax.random.split(jax.random.key(0), 4000)))[..., 0]
    after_zero = drawn[drawn[:, 0] == 0][:, 1]
    assert (after_zero == 3).mean() == pytest.approx(0.9, abs=0.03)
    assert (drawn[:, 0] == 1).mean() == pytest.approx(1 / 3, abs=0.03)
    same = np.ones((3, 2), np.float32)
    np.testing.assert_array_equal(draw(jax.random.key(0), same, codes=3), same)


def test_dead_codes_are_revived():
    counts = jnp.array([1, 0, 4, 0, 0, 2, 1])
    revived = np.asarray(ops.revived(jax.random.key(0), CODES, counts, VECTORS))
    alive = np.asarray(counts) > 0
    np.testing.assert_array_equal(revived[alive], CODES[alive])
    new = revived[~alive]
    assert all((VECTORS == code).all(axis=1).any() for code in new) and len(np.unique(new, axis=0)) == 3
    from_few = np.asarray(ops.revived(jax.random.key(0), CODES, counts, VECTORS[:2]))
    assert all((VECTORS[:2] == code).all(axis=1).any() for code in from_few[~alive])
