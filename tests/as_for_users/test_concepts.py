"""Presence of concepts against float64, its derivative, its memory, and bits that do not depend on removed codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax import ops
from protojax.ops import concepts

RNG = np.random.default_rng(0)
TEMPERATURE = 0.1

presence = jax.jit(ops.presence, static_argnums=2)


def operands(batch=5, positions=6, codes=11, size=8):
    z = RNG.normal(size=(batch, positions, size)).astype(np.float32)
    return z, RNG.normal(size=(codes, size)).astype(np.float32), np.arange(codes) % 4 != 2


def shares_of(vectors, codes, active):
    """p of equation 6 in float64."""
    z, c = np.asarray(vectors, np.float64), np.asarray(codes, np.float64)
    cosines = (z @ c.T) / np.linalg.norm(z, axis=-1)[..., None] / np.linalg.norm(c, axis=1)
    weights = np.where(active, np.exp(cosines / TEMPERATURE), 0)
    return weights / weights.sum(axis=-1, keepdims=True)


def test_shares_and_presence():
    z, c, active = operands()
    expected = shares_of(z, c, active)
    found = jax.jit(ops.concept_shares, static_argnums=2)(z, c, TEMPERATURE, active)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    scores, places = presence(z, c, TEMPERATURE, active)
    np.testing.assert_allclose(scores, expected.max(axis=1), atol=1e-6)
    np.testing.assert_array_equal(np.asarray(places)[:, active], expected.argmax(axis=1)[:, active])
    assert (np.asarray(scores)[:, ~active] == 0).all()


def test_examples_are_taken_a_few_at_a_time(monkeypatch):
    z, c, active = operands()
    once = presence(z, c, TEMPERATURE, active)
    monkeypatch.setattr(concepts, "_SHARES_AT_ONCE", 2 * 6 * concepts.PANEL)
    # A lambda, since what was compiled before would be found again.
    few = jax.jit(lambda *arrays: ops.presence(*arrays[:2], TEMPERATURE, arrays[2]))(z, c, active)
    for a, b in zip(few, once, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_most_similar():
    z, c, _ = operands()
    cosines = z.astype(np.float64) @ c.T / np.linalg.norm(z, axis=-1)[..., None] / np.linalg.norm(c, axis=1)
    similarity, places = ops.most_similar(z, c)
    np.testing.assert_allclose(similarity, cosines.max(axis=1), atol=1e-6)
    np.testing.assert_array_equal(places, cosines.argmax(axis=1))


def test_derivatives_are_those_of_finite_differences():
    z, c, active = operands(batch=3)
    weights = RNG.normal(size=(3, 11))

    def exact(codes):
        return (shares_of(z, codes, active).max(axis=1) * weights).sum()

    def loss(codes):
        return (ops.presence(z, codes, TEMPERATURE, active)[0] * weights.astype(np.float32)).sum()

    gradient = jax.jit(jax.grad(loss))(c)
    for _ in range(4):
        direction = RNG.normal(size=c.shape)
        numeric = (exact(c + 1e-6 * direction) - exact(c - 1e-6 * direction)) / 2e-6
        assert (np.asarray(gradient) * direction).sum() == pytest.approx(numeric, rel=1e-3, abs=1e-3)


def test_a_zero_vector_has_a_finite_derivative():
    z, c, active = operands(batch=1)
    z[0, 0] = 0
    gradient = jax.jit(jax.grad(lambda z, c: presence(z, c, TEMPERATURE, active)[0].sum(), argnums=(0, 1)))(z, c)
    assert all(np.isfinite(x).all() for x in gradient)


@pytest.mark.parametrize("codes", [40, 384, 900])
def test_removing_codes_that_are_not_active_changes_no_bit(codes):
    z = RNG.normal(size=(7, 9, 24)).astype(np.float32)
    c = RNG.normal(size=(codes, 24)).astype(np.float32)
    for share in (0.1, 0.5, 0.9):
        active = RNG.random(codes) < share
        active[3] = True
        whole = np.asarray(presence(z, c, TEMPERATURE, active)[0])[:, active]
        small = np.asarray(presence(z, c[active], TEMPERATURE, np.ones(active.sum(), bool))[0])
        np.testing.assert_array_equal(whole.view(np.int32), small.view(np.int32))


def test_memory_is_bounded():
    given = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((64, 49, 32), (128_000, 32))]
    active = jax.ShapeDtypeStruct((128_000,), jnp.bool_)
    compiled = jax.jit(ops.presence, static_argnums=2).lower(*given, TEMPERATURE, active).compile()
    # All shares would be 1.6 GB. Codes, and what is returned, are 16 and 66 MB.
    assert compiled.memory_analysis().temp_size_in_bytes <= 400e6


def test_the_order_free_sum_is_exact_and_free_of_order():
    x = (RNG.random((4, 1000)) ** 8 * 10.0 ** np.array([[-30], [-3], [0], [20]])).astype(np.float32)
    order_free_sum = jax.jit(ops.order_free_sum, static_argnums=1)
    whole = np.asarray(order_free_sum(x))
    np.testing.assert_allclose(whole, x.astype(np.float64).sum(axis=1), rtol=3e-7)
    shuffled = x[:, RNG.permutation(1000)]
    padded = np.insert(shuffled, RNG.integers(0, 1000, 300), 0, axis=1)
    for other in (shuffled, padded):
        np.testing.assert_array_equal(np.asarray(order_free_sum(other)).view(np.int32), whole.view(np.int32))
    np.testing.assert_array_equal(order_free_sum(jnp.zeros((2, 3))), [0, 0])
    over_two = order_free_sum(x.reshape(4, 10, 100), (0, 2))
    np.testing.assert_allclose(over_two, x.astype(np.float64).reshape(4, 10, 100).sum(axis=(0, 2)), rtol=1e-6)
    assert (jax.jit(jax.grad(lambda x: order_free_sum(x).sum()))(x) == 1).all()


def test_bad_input():
    z, c, active = operands()
    with pytest.raises(ValueError, match=r"got \(5, 6, 8\) and \(11, 7\)"):
        ops.presence(z, c[:, :7], TEMPERATURE, active)
    with pytest.raises(ValueError, match=r"active must be bool \[11\], got int64 of shape \(11,\)"):
        ops.presence(z, c, TEMPERATURE, np.arange(11))
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        ops.concept_shares(z, c, 0, active)
    with pytest.raises(ValueError, match=r"vectors must be \[batch, positions, d\], got shape \(6, 8\)"):
        ops.presence(z[0], c, TEMPERATURE, active)
    with pytest.raises(ValueError, match="262145 numbers are too many for an exact sum; at most 262144"):
        ops.order_free_sum(jnp.zeros(262145))
