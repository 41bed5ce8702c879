"""Sparsemax and softmax against float64 sorts, and their derivatives against closed forms and finite differences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax.ops import simplex

SCALES = [1e-5, 1e-3, 0.1, 1.0, 10.0, 1e4]


def reference(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights and thresholds by the sort of Martins and Astudillo (2016), algorithm 1, in float64."""
    z = np.asarray(z, np.float64)
    descending = -np.sort(-z, axis=-1)
    top = descending[..., :1]
    excess = np.cumsum(descending - top, axis=-1) - 1
    counts = np.arange(1, z.shape[-1] + 1)
    size = (counts * (descending - top) > excess).sum(axis=-1, keepdims=True)
    threshold = np.take_along_axis(excess, size - 1, axis=-1) / size
    return np.maximum(z - top - threshold, 0), (threshold + top)[..., 0]


def softmax_reference(z: np.ndarray) -> np.ndarray:
    terms = np.exp(np.asarray(z, np.float64) - np.max(z, axis=-1, keepdims=True))
    return terms / terms.sum(axis=-1, keepdims=True)


def draw(kind: str, rows: int, size: int, scale: float) -> np.ndarray:
    rng = np.random.default_rng([rows, size, int(scale * 1e5)])
    normal = rng.normal(size=(rows, size))
    z = {
        "normal": lambda: normal * scale,
        "ties": lambda: np.round(normal * 4) / 4 * scale,
        "equal": lambda: np.full((rows, size), scale),
        "near-constant": lambda: scale * (1 + 1e-6 * normal),
        "geometric": lambda: np.broadcast_to(-scale * 2.0 ** -np.minimum(np.arange(size), 100), (rows, size)),
        "heavy-tailed": lambda: -scale * rng.exponential(size=(rows, size)) ** 3,
    }[kind]()
    return z.astype(np.float32)


KINDS = ["normal", "ties", "equal", "near-constant", "geometric", "heavy-tailed"]


@pytest.mark.parametrize("size", [1, 2, 3, 10, 1024, 1025, 32768])
def test_sparsemax_equals_the_sort_at_every_scale(size):
    rows = 4
    z = np.concatenate([draw(kind, rows, size, scale) for kind, scale in itertools.product(KINDS, SCALES)])
    weights = np.asarray(simplex.sparsemax(z), np.float64)
    expected, _ = reference(z)
    np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-7)
    # Flat rows have weights far below 1e-6: their errors have to stay small beside their weights.
    np.testing.assert_array_less(np.abs(weights - expected).max(axis=-1), 5e-7 * expected.max(axis=-1) + 1e-30)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_sparsemax_equals_the_sort_for_a_million_candidates(kind):
    z = np.concatenate([draw(kind, 1, 1_000_000, scale) for scale in (1e-5, 1.0, 1e4)])
    weights = np.asarray(simplex.sparsemax(z), np.float64)
    expected, _ = reference(z)
    np.testing.assert_array_less(np.abs(weights - expected).max(axis=-1), 1e-6 * expected.max(axis=-1))
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)


def test_one_strong_and_many_weak_candidates_sum_to_one():
    rng = np.random.default_rng(0)
    z = np.concatenate([[[0.0]], -0.4 + 1e-5 * rng.random((1, 60_000))], axis=1).astype(np.float32)
    weights = np.asarray(simplex.sparsemax(z), np.float64)
    # The rounding of the threshold alone, 1.5e-8, would add up to 1e-3 here.
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(weights, reference(z)[0], atol=1e-7)


@pytest.mark.parametrize("scale", SCALES)
def test_softmax_equals_float64(scale):
    z = np.concatenate([draw(kind, 2, 5000, scale) for kind in KINDS])
    weights = np.asarray(simplex.softmax(z), np.float64)
    np.testing.assert_allclose(weights, softmax_reference(z), rtol=0, atol=2e-7)


def test_parts_of_sparsemax():
    z = draw("normal", 5, 3000, 3.0)
    parts = simplex.sparsemax_parts(z)
    expected, threshold = reference(z)
    np.testing.assert_allclose(parts.threshold, threshold, rtol=3e-7)
    np.testing.assert_array_equal(parts.size, (expected > 0).sum(axis=-1))
    assert parts.size.dtype == jnp.int32
    assert parts.weights.dtype == parts.threshold.dtype == jnp.float32


def test_parts_of_softmax():
    z = draw("normal", 5, 3000, 3.0)
    parts = simplex.softmax_parts(z)
    np.testing.assert_allclose(parts.threshold, np.log(np.exp(z.astype(np.float64)).sum(axis=-1)), rtol=3e-7)
    np.testing.assert_array_equal(parts.size, 3000)


@pytest.mark.parametrize("size", [3000, 8192, 30_000, 30_011])
@pytest.mark.parametrize("kind", KINDS)
def test_the_threshold_alone_is_that_of_the_parts(kind, size):
    z = draw(kind, 3, size, 2.0)
    parts = simplex.sparsemax_parts(z)
    threshold, support = simplex.sparsemax_threshold(z)
    np.testing.assert_array_equal(threshold, parts.threshold)
    np.testing.assert_array_equal(support, parts.size)
    np.testing.assert_array_equal(support, (np.asarray(parts.weights) > 0).sum(axis=-1))
    np.testing.assert_allclose(threshold, reference(z)[1], rtol=3e-7, atol=1e-6)
    turned = simplex.sparsemax_threshold(z.T, axis=0, where=np.ones((size, 1), bool))
    np.testing.assert_array_equal(turned[0], threshold)


def test_the_threshold_alone_has_the_derivative_of_the_parts_and_the_same_errors():
    z = draw("normal", 3, 40, 1.0)
    expected = jax.grad(lambda z: (simplex.sparsemax_parts(z).threshold ** 2).sum())
    slopes = jax.grad(lambda z: (simplex.sparsemax_threshold(z)[0] ** 2).sum())
    np.testing.assert_allclose(slopes(z), expected(z), atol=1e-7)
    with pytest.raises(ValueError, match=r"row 2 of scores of shape \(3, 40\) has no candidate"):
        simplex.sparsemax_threshold(z, where=np.arange(3)[:, None] < 2)
    threshold, size = jax.jit(simplex.sparsemax_threshold)(z, where=np.arange(3)[:, None] < 2)
    assert np.isposinf(threshold[2]) and size[2] == 0 and np.isfinite(threshold[:2]).all()


@pytest.mark.parametrize("members", [7, 8, 9, 300, 8192])
def test_supports_in_one_chunk_in_few_and_in_many(members):
    size = 8192
    rng = np.random.default_rng(members)
    z = rng.normal(-5, 1, size=(20, size)).astype(np.float32)
    for row, places in enumerate(([*range(members)], np.linspace(0, size - 1, members).astype(int))):
        z[row, places] = 5 + 0.1 / members * rng.random(members)
    parts = simplex.sparsemax_parts(z)
    expected, _ = reference(z)
    np.testing.assert_array_equal(parts.size, (expected > 0).sum(axis=-1))
    assert (parts.size[:2] == members).all()
    np.testing.assert_allclose(parts.weights, expected, atol=1e-7)


def test_many_scores_under_vmap_and_with_more_axes():
    z = np.concatenate([draw(kind, 2, 8192, 1.0) for kind in KINDS])
    weights = simplex.sparsemax(z)
    np.testing.assert_array_equal(jax.vmap(simplex.sparsemax)(z), weights)
    twice = jax.vmap(jax.vmap(simplex.sparsemax))(z.reshape(3, 4, -1))
    np.testing.assert_array_equal(twice.reshape(z.shape), weights)
    np.testing.assert_array_equal(simplex.sparsemax(z.reshape(3, 4, -1)).reshape(z.shape), weights)
    cotangent = draw("normal", 12, 8192, 1.0)

    def pull(z, cotangent):
        return jax.vjp(simplex.sparsemax, z)[1](cotangent)[0]

    np.testing.assert_allclose(jax.jit(jax.vmap(pull))(z, cotangent), jax.jit(pull)(z, cotangent), atol=1e-6)


def test_the_threshold_of_many_scores_takes_no_memory_of_their_size():
    scores = jax.ShapeDtypeStruct((128, 65536), jnp.float32)
    compiled = jax.jit(simplex.sparsemax_threshold).lower(scores).compile()
    memory = compiled.memory_analysis()
    # Eight rows of 128 are copied where the largest chunks do not settle them.
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 128 * 65536 * 4 / 5
    # The chunks are chosen by their maxima, the scores themselves are never sorted.
    assert not [line for line in compiled.as_text().splitlines() if "sort(" in line and "65536" in line]


def test_scores_on_the_threshold_stay_outside():
    parts = simplex.sparsemax_parts(np.float32([[2.0, 1.0, 1.0, 0.5]]))
    np.testing.assert_array_equal(parts.weights, [[1, 0, 0, 0]])
    np.testing.assert_array_equal(parts.size, [1])


@pytest.mark.parametrize("normalize", [simplex.sparsemax, simplex.softmax])
class TestBoth:
    def test_any_axis(self, normalize):
        z = draw("normal", 6, 35, 2.0).reshape(6, 5, 7)
        for axis in (0, 1, 2, -1, -3):
            expected = np.moveaxis(np.asarray(normalize(np.moveaxis(z, axis, -1))), -1, axis)
            np.testing.assert_allclose(normalize(z, axis=axis), expected, atol=1e-7)

    @pytest.mark.parametrize("size", [2000, 16384])
    def test_a_row_does_not_depend_on_its_neighbours(self, normalize, size):
        z = np.concatenate([draw(kind, 2, size, 1.0) for kind in KINDS])
        together = np.asarray(normalize(z))
        for i in range(len(z)):
            alone = normalize(np.repeat(z[i : i + 1], len(z), axis=0))
            np.testing.assert_array_equal(alone[i], together[i])

    def test_mask_and_minus_infinity_are_absence(self, normalize):
        z = draw("normal", 4, 50, 1.0)
        mask = np.random.default_rng(0).random((4, 50)) < 0.4
        expected = np.zeros((4, 50))
        for i in range(4):
            expected[i, mask[i]] = normalize(z[i, mask[i]])
        masked = np.asarray(normalize(z, where=mask))
        np.testing.assert_allclose(masked, expected, atol=2e-7)
        assert (masked[~mask] == 0).all()
        np.testing.assert_array_equal(normalize(np.where(mask, z, -np.inf)), masked)
        np.testing.assert_allclose(normalize(z, where=mask[:1]).sum(axis=-1), 1, atol=1e-6)

    def test_a_row_without_candidates(self, normalize):
        z = np.zeros((3, 4), np.float32)
        mask = np.ones((3, 4), bool)
        mask[1] = False
        with pytest.raises(ValueError, match=r"row 1 of scores of shape \(3, 4\) has no candidate"):
            normalize(z, where=mask)
        with pytest.raises(ValueError, match=r"row 0 .* has no candidate"):
            normalize(np.full(4, -np.inf, np.float32))
        with pytest.raises(ValueError, match=r"row \(0, 1\) .* has no candidate"):
            normalize(z[None], where=mask[None])
        inside = jax.jit(normalize)(z, where=mask)
        np.testing.assert_array_equal(inside, [[0.25] * 4, [0] * 4, [0.25] * 4])
        slopes = jax.jit(jax.grad(lambda z: (normalize(z, where=mask) ** 2 * jnp.arange(4.0)[None]).sum()))(z)
        assert np.isfinite(slopes).all() and (slopes[1] == 0).all() and (slopes[0] != 0).any()

    @pytest.mark.parametrize("size", [40, 8192])
    @pytest.mark.parametrize("poison", [np.nan, np.inf])
    def test_poison_stays_in_its_row(self, normalize, poison, size):
        z = draw("normal", 3, size, 1.0)
        z[1, 7] = poison
        mask = np.ones((3, size), bool)
        mask[1, 3] = False
        weights = np.asarray(normalize(z, where=mask))
        assert np.isnan(weights[1, mask[1]]).all() and weights[1, 3] == 0
        assert np.isfinite(weights[[0, 2]]).all()
        slopes = jax.jit(jax.grad(lambda x: normalize(x, where=mask[1])[0]))(z[1])
        assert np.isnan(slopes).any()
        mask[1, 7] = False
        assert np.isfinite(normalize(z, where=mask)).all()

    def test_bfloat16_is_computed_in_float32(self, normalize):
        z = jnp.asarray(draw("normal", 3, 500, 1.0), jnp.bfloat16)
        weights = normalize(z)
        assert weights.dtype == jnp.float32
        np.testing.assert_array_equal(weights, normalize(z.astype(jnp.float32)))
        assert jax.grad(lambda z: normalize(z)[0, 0])(z).dtype == jnp.bfloat16

    def test_inside_a_compiled_function_on_a_constant(self, normalize):
        z = jnp.asarray([[1.0, 2.0]])
        np.testing.assert_allclose(jax.jit(lambda: normalize(z))(), normalize(z), atol=1e-7)

    def test_finite_differences(self, normalize):
        rng = np.random.default_rng(3)
        z, direction = rng.normal(size=(2, 4, 30))
        exact = {simplex.sparsemax: lambda x: reference(x)[0], simplex.softmax: softmax_reference}[normalize]
        step = 1e-6
        expected = (exact(z + step * direction) - exact(z - step * direction)) / (2 * step)
        arguments = np.float32(z), np.float32(direction)
        forward = jax.jit(lambda z, t: jax.jvp(normalize, [z], [t])[1])(*arguments)
        np.testing.assert_allclose(forward, expected, atol=2e-6)
        cotangent = np.float32(rng.normal(size=z.shape))
        (slopes,) = jax.jit(lambda z, c: jax.vjp(normalize, z)[1](c))(arguments[0], cotangent)
        np.testing.assert_allclose((slopes * direction).sum(), (cotangent * expected).sum(), atol=1e-5)

    def test_jacobian_forward_equals_reverse_also_under_vmap(self, normalize):
        z = draw("ties", 5, 12, 1.0)
        forward = jax.jit(jax.vmap(jax.jacfwd(normalize)))(z)
        np.testing.assert_allclose(forward, jax.jit(jax.vmap(jax.jacrev(normalize)))(z), atol=1e-7)
        alone = jax.jit(jax.jacrev(normalize))
        for i in range(5):
            np.testing.assert_allclose(forward[i], alone(z[i]), atol=1e-7)
        np.testing.assert_allclose(jax.vmap(normalize)(z), normalize(z), atol=1e-7)
        np.testing.assert_allclose(jax.vmap(normalize, in_axes=1, out_axes=1)(z.T), normalize(z.T, axis=0), atol=1e-7)

    def test_second_order(self, normalize):
        rng = np.random.default_rng(4)
        z, target = rng.normal(size=(2, 9))
        exact = {simplex.sparsemax: lambda x: reference(x)[0], simplex.softmax: softmax_reference}[normalize]

        def loss64(x):
            return ((exact(x) - target) ** 3).sum()

        def loss(x):
            return ((normalize(x) - np.float32(target)) ** 3).sum()

        step, unit = 1e-4, np.eye(9)
        expected = [
            [
                sum(s * t * loss64(z + s * step * a + t * step * b) for s in (1, -1) for t in (1, -1)) / (4 * step**2)
                for a in unit
            ]
            for b in unit
        ]
        for hessian in (jax.hessian(loss), jax.jacrev(jax.jacrev(loss)), jax.jacfwd(jax.jacfwd(loss))):
            np.testing.assert_allclose(jax.jit(hessian)(np.float32(z)), expected, atol=2e-5)

    def test_no_derivative_reaches_the_masked(self, normalize):
        z = draw("normal", 2, 20, 1.0)
        mask = np.arange(20) % 3 > 0
        slopes = jax.jit(jax.grad(lambda z: (normalize(z, where=mask[None]) * jnp.arange(20.0)[None]).sum()))(z)
        assert (slopes[:, ~mask] == 0).all() and (slopes[:, mask] != 0).any()
        np.testing.assert_allclose(slopes.sum(axis=-1), 0, atol=1e-5)

    def test_bad_input(self, normalize):
        with pytest.raises(ValueError, match="scores must be floating, got int32"):
            normalize(np.arange(3, dtype=np.int32))
        with pytest.raises(ValueError, match=r"axis 2 is not an axis of scores of shape \(2, 3\)"):
            normalize(np.zeros((2, 3), np.float32), axis=2)
        with pytest.raises(ValueError, match=r"shape \(2, 0\) have no candidates along axis -1"):
            normalize(np.zeros((2, 0), np.float32))
        with pytest.raises(ValueError, match="where must be boolean, got float32"):
            normalize(np.zeros((2, 3), np.float32), where=np.ones((2, 3), np.float32))
        with pytest.raises(ValueError, match=r"where of shape \(3,\) does not broadcast to scores of shape \(2, 3\)"):
            normalize(np.zeros((2, 3), np.float32), where=np.ones(3, bool))


def test_derivatives_of_the_parts():
    z = draw("normal", 3, 40, 1.0)
    inside = np.asarray(simplex.sparsemax(z)) > 0
    slopes = jax.grad(lambda z: simplex.sparsemax_parts(z).threshold.sum())(z)
    np.testing.assert_allclose(slopes, inside / inside.sum(axis=-1, keepdims=True), atol=1e-7)
    slopes = jax.grad(lambda z: simplex.softmax_parts(z).threshold.sum())(z)
    np.testing.assert_allclose(slopes, softmax_reference(z), atol=2e-7)


def test_derivative_with_a_large_support():
    z, cotangent = draw("near-constant", 2, 100_000, 1.0), draw("normal", 2, 100_000, 1.0)
    slopes = jax.jit(lambda z, c: jax.vjp(simplex.sparsemax, z)[1](c)[0])(z, cotangent)
    inside = reference(z)[0] > 0
    mean = (cotangent.astype(np.float64) * inside).sum(axis=-1, keepdims=True) / inside.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(slopes, np.where(inside, cotangent - mean, 0), atol=1e-6)


def primitives(jaxpr) -> set[str]:
    found = set()
    for equation in jaxpr.eqns:
        found.add(equation.primitive.name)
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found |= primitives(inner)
    return found


@pytest.mark.parametrize("normalize", [simplex.sparsemax, simplex.softmax])
def test_nothing_sorts(normalize):
    z, mask = np.zeros((4, 3000), np.float32), np.ones((4, 3000), bool)
    forward = primitives(jax.make_jaxpr(normalize)(z, where=mask).jaxpr)
    backward = primitives(jax.make_jaxpr(jax.grad(lambda z: normalize(z, where=mask)[0, 0]))(z).jaxpr)
    assert "reduce_max" in forward
    assert ("while" in forward) == (normalize is simplex.sparsemax)
    slow = {"sort", "top_k", "approx_top_k", "cumsum", "scatter", "scatter-add"}
    assert not slow & (forward | backward)


def test_the_search_for_sorts_sees_into_calls():
    assert "sort" in primitives(
        jax.make_jaxpr(jax.jit(lambda z: jax.lax.cond(z[0] > 0, jnp.sort, jnp.abs, z)))(np.zeros(3, np.float32)).jaxpr
    )
