"""Attention tile by tile against float64 NumPy: whatever the scores, and without anything of batch x candidates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from protojax import ops
from protojax.ops import metrics

# Two whole tiles and a rest that does not divide into blocks.
BATCH, CANDIDATES, SIZE, WIDTH, CLASSES, SHARES = 12, 9001, 8, 40, 4, (0.5, 0.9, 0.95)


def reference(queries, keys, ids, exclude, normalizer):
    """Weights in float64; sparsemax by the sort of Martins and Astudillo (2016)."""
    scores = np.asarray(queries, np.float64) @ np.asarray(keys, np.float64).T / np.sqrt(keys.shape[1])
    weights = np.zeros(scores.shape)
    for i in range(len(scores)):
        own = (ids >= 0) & (ids != exclude[i])
        if not own.any():
            continue
        u = scores[i, own] - scores[i, own].max()
        if normalizer == "softmax":
            weights[i, own] = np.exp(u) / np.exp(u).sum()
        else:
            descending = -np.sort(-u)
            excess = (np.cumsum(descending) - 1) / np.arange(1, len(u) + 1)
            weights[i, own] = np.maximum(u - excess[(descending > excess).sum() - 1], 0)
    return weights


@functools.partial(jax.jit, static_argnames=("normalizer", "width", "execution", "kernel"))
def attend(
    queries,
    keys,
    values,
    ids,
    labels,
    exclude,
    normalizer="sparsemax",
    width=WIDTH,
    execution="streamed",
    kernel="xla",
):
    options = {"classes": CLASSES, "shares": SHARES, "execution": execution, "kernel": kernel}
    given = {"ids": ids, "labels": labels, "exclude": exclude}
    return ops.attend(queries, keys, values, normalizer=normalizer, width=width, **given, **options)


def operands(candidates=CANDIDATES, batch=BATCH, seed=0):
    rng = np.random.default_rng(seed)
    queries, keys, values = (
        rng.normal(size=(n, m)).astype(np.float32) for n, m in ((batch, SIZE), (candidates, SIZE), (candidates, 3))
    )
    ids = rng.permutation(2 * candidates)[:candidates].astype(np.int32)
    labels = rng.integers(0, CLASSES, candidates).astype(np.int32)
    return queries, keys, values, ids, labels, np.full(batch, -2, np.int32)


def check(arguments, normalizer="sparsemax", width=WIDTH, atol=1e-5):
    """Everything that is returned, against the reference; gives back the true support sizes."""
    queries, keys, values, ids, labels, exclude = arguments
    found = attend(*arguments, normalizer=normalizer, width=width)
    weights = reference(queries, keys, ids, exclude, normalizer)
    np.testing.assert_allclose(found.outputs, weights @ values, atol=atol * np.abs(values).max())
    heaviest = -np.sort(-weights, axis=1)[:, :width]
    np.testing.assert_allclose(found.weights, heaviest, atol=atol)
    mass = np.stack([weights[:, labels == m].sum(axis=1) for m in range(CLASSES)], axis=1)
    np.testing.assert_allclose(found.class_mass, mass, atol=5 * atol)
    place = {int(n): i for i, n in enumerate(ids) if n >= 0}
    for i in range(len(queries)):
        named = [place[int(n)] for n in found.ids[i] if n >= 0]
        assert len(set(named)) == len(named) == (np.asarray(found.weights[i]) > 0).sum()
        np.testing.assert_allclose(weights[i, named], np.asarray(found.weights[i])[: len(named)], atol=atol)
        np.testing.assert_array_equal(np.asarray(found.labels[i])[: len(named)], labels[named])
        assert (np.asarray(found.labels[i])[len(named) :] == -1).all()
    sizes = (weights > 0).sum(axis=1)
    if normalizer == "sparsemax":
        # A weight that float32 cannot tell from 0 may be counted or not.
        assert ((weights > 1e-6).sum(axis=1) <= found.size).all()
        assert (np.abs(found.size - sizes) <= 2).all()
        few = np.stack([np.cumsum(-np.sort(-weights, axis=1), axis=1) < s * (1 - metrics.TOLERANCE) for s in SHARES])
        expected = few.sum(axis=2).T + 1
        assert (np.abs(found.fewest - expected)[sizes > 0] <= 1).all()
    assert np.asarray(found.exact).all()
    return sizes


SCALES = np.geomspace(100, 1e-5, BATCH, dtype=np.float32)[:, None]


@pytest.mark.parametrize("normalizer", ["sparsemax", "softmax"])
def test_every_size_of_support(normalizer):
    queries, *rest = operands()
    sizes = check((queries * SCALES, *rest), normalizer, atol=3e-5)
    if normalizer == "sparsemax":
        # Settled by the first blocks, by more blocks, and by passes; listed wholly and in part.
        assert sizes[0] <= 3 and (sizes > 8000).any()
        assert ((sizes > 64) & (sizes < 256)).any() and ((sizes > 256) & (sizes < 4000)).any()


def test_one_hard_query_among_easy_ones():
    queries, *rest = operands(seed=1)
    queries *= 10
    queries[5] *= 1e-4
    sizes = check((queries, *rest))
    assert sizes[5] > 1000 and np.delete(sizes, 5).max() < 40


def test_equal_scores_share_the_weight():
    queries, *rest = operands()
    queries[:6] = 0
    sizes = check((queries, *rest))
    assert (sizes[:6] == CANDIDATES).all()


def test_ties_and_copies_of_keys():
    queries, keys, *rest = operands()
    keys = np.round(keys * 2) / 2
    keys[4000:8000] = keys[:4000]
    check((np.round(queries * 4), keys, *rest))


@pytest.mark.parametrize("normalizer", ["sparsemax", "softmax"])
def test_empty_places_anywhere_and_the_own_id_get_no_weight(normalizer):
    queries, keys, values, ids, labels, exclude = operands()
    queries *= SCALES.clip(0.1, 3)
    best = np.argsort(-(queries @ keys.T), axis=1)
    # The best of everyone, whole blocks at both ends, and many others.
    ids[best[:, :20]] = -1
    ids[:100] = ids[4000:4100] = ids[-100:] = -1
    ids[np.random.default_rng(2).random(CANDIDATES) < 0.3] = -1
    labels[ids < 0] = -1
    scores = np.where(ids[None] >= 0, queries @ keys.T, -np.inf)
    exclude = ids[scores.argmax(axis=1)]
    check((queries, keys, values, ids, labels, exclude), normalizer)


@pytest.mark.parametrize("normalizer", ["sparsemax", "softmax"])
def test_a_query_without_candidates(normalizer):
    queries, keys, values, ids, labels, exclude = operands()
    ids[:] = -1
    ids[7000] = 3
    exclude[::2] = 3
    check((queries, keys, values, ids, labels, exclude), normalizer)
    found = attend(queries, keys, values, ids, labels, exclude, normalizer)
    np.testing.assert_array_equal(found.size, [0, 1] * 6)
    np.testing.assert_array_equal(found.fewest[0], [-1, -1, -1])
    dense = attend(queries, keys, values, ids, labels, exclude, normalizer, execution="dense")
    np.testing.assert_array_equal(found.threshold[0], dense.threshold[0])


@pytest.mark.parametrize("candidates, width", [(1, 1), (33, 33), (4096, 300)])
def test_sizes_of_the_database(candidates, width):
    queries, *rest = operands(candidates, batch=3)
    check((queries * np.float32([[5], [0.5], [0]]), *rest), width=width)


def test_poison_stays_in_its_row_and_is_told():
    queries, keys, values, ids, labels, exclude = operands()
    queries[3, 0] = np.nan
    found = attend(queries, keys, values, ids, labels, exclude)
    np.testing.assert_array_equal(found.exact, np.arange(BATCH) != 3)
    assert np.isnan(found.outputs[3]).all() and np.isnan(found.threshold[3]) and (found.ids[3] == -1).all()
    assert np.isfinite(np.delete(np.asarray(found.outputs), 3, axis=0)).all()
    keys[5000, 0] = np.nan
    assert not np.asarray(attend(queries, keys, values, ids, labels, exclude).exact).any()
    # What stands in an empty place has no say.
    ids[5000] = -1
    found = attend(queries, keys, values, ids, labels, exclude)
    np.testing.assert_array_equal(found.exact, np.arange(BATCH) != 3)


NEGATIVE_NAN = np.uint32(0xFFC00000).view(np.float32)
"""What inf - inf is on x86; a sort puts it before -inf."""


@pytest.mark.parametrize("poison, kernel", [(NEGATIVE_NAN, "xla"), (np.inf, "xla"), (3e38, "xla"), (np.inf, "pallas")])
def test_a_key_that_makes_a_score_nan_is_told(poison, kernel):
    queries, keys, values, *rest = operands()
    queries[0] = 10
    keys[100] = np.where(np.arange(SIZE) % 2, -1, 1) * np.float32(poison)
    found = attend(queries, keys, values, *rest, kernel=kernel)
    assert not found.exact[0] and np.isnan(found.outputs[0]).all()
    index = ops.cluster_index(keys[:9000], rows=8)
    few = ops.attend(queries[:1], keys[:9000], values[:9000], index=index, execution="streamed")
    assert not few.exact[0] and np.isnan(few.outputs[0]).all()


def test_a_query_whose_products_may_overflow_is_not_called_exact():
    queries, *rest = operands()
    queries[2] = 1e17
    np.testing.assert_array_equal(attend(queries, *rest).exact, np.arange(BATCH) != 2)


def test_exported_for_any_batch_the_answers_are_the_same():
    queries, *rest, exclude = operands()
    (batch,) = export.symbolic_shape("b")
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in rest]
    asked = jax.ShapeDtypeStruct((batch, SIZE), jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.int32)
    exported = export.export(attend)(asked[0], *shapes, asked[1])
    for n in (1, BATCH):
        found, expected = exported.call(queries[:n], *rest, exclude[:n]), attend(queries[:n], *rest, exclude[:n])
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_allclose(found.outputs, expected.outputs, atol=1e-6)
        assert np.asarray(found.exact).all() and found.size.shape == (n,)


def test_no_queries_have_no_answers():
    queries, *rest, exclude = operands()
    for execution in ("streamed", "dense"):
        found = attend(queries[:0], *rest, exclude[:0], execution=execution)
        assert found.outputs.shape == (0, 3) and found.ids.shape == (0, WIDTH) and found.size.shape == (0,)
    outputs, weights = ops.dense_attend(queries[:0], *rest[:2])
    assert outputs.shape == (0, 3) and weights.shape == (0, CANDIDATES)


def test_bfloat16_is_computed_in_float32():
    queries, keys, values, *rest = operands()
    rounded = [jnp.asarray(x, jnp.bfloat16) for x in (queries, keys, values)]
    found = attend(*rounded, *rest)
    assert found.outputs.dtype == found.weights.dtype == jnp.float32
    expected = attend(*(x.astype(jnp.float32) for x in rounded), *rest)
    np.testing.assert_allclose(found.outputs, expected.outputs, atol=1e-6)


@pytest.mark.parametrize("normalizer", ["sparsemax", "softmax"])
def test_gradients_equal_those_of_dense_attention(normalizer):
    queries, keys, values, ids, labels, exclude = operands()
    queries *= SCALES.clip(0.01, 5)
    ids[::7] = -1
    exclude = ids[(queries @ keys.T).argmax(axis=1)]
    rng = np.random.default_rng(3)
    directions = {
        name: rng.normal(size=(BATCH, n)).astype(np.float32)
        for name, n in (("outputs", 3), ("weights", WIDTH), ("class_mass", CLASSES))
    }

    def loss(queries, keys, values, execution):
        found = attend(queries, keys, values, ids, labels, exclude, normalizer, execution=execution)
        listed = sum((getattr(found, name) * x).sum() for name, x in directions.items())
        return listed + found.threshold.sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)), static_argnums=3)
    found, expected = (gradient(queries, keys, values, how) for how in ("streamed", "dense"))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
    assert (np.asarray(found[1])[ids < 0] == 0).all()


def one_by_one(queries, keys, values, ids, labels, exclude):
    """Single queries under `vmap`, without the axis of the batch of each."""
    found = jax.vmap(lambda q, e: attend(q[None], keys, values, ids, labels, e[None]))(queries, exclude)
    return jax.tree.map(lambda x: x[:, 0], found)


def test_single_queries_under_vmap_are_a_batch():
    queries, *rest = operands()
    queries *= SCALES
    together, apart = (jax.jit(f).lower(queries, *rest).compile() for f in (attend, one_by_one))
    for one, other in zip(apart(queries, *rest), together(queries, *rest), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert apart.cost_analysis()["flops"] < 1.1 * together.cost_analysis()["flops"]


def test_single_queries_under_vmap_are_exported_for_any_number():
    queries, *rest = operands(3000)
    sizes = export.symbolic_shape("b, 8")
    shapes = jax.ShapeDtypeStruct(sizes, np.float32), jax.ShapeDtypeStruct(sizes[:1], np.int32)
    program = export.export(jax.jit(lambda q, e: one_by_one(q, *rest[:-1], e)))(*shapes)
    for count in (1, BATCH):
        found = jax.tree.leaves(program.call(queries[:count], rest[-1][:count]))
        for one, other in zip(
            found, jax.tree.leaves(attend(queries[:count], *rest[:-1], rest[-1][:count])), strict=True
        ):
            np.testing.assert_allclose(one, other, atol=1e-6)


def test_batches_under_vmap():
    queries, keys, values, *rest = operands(3000)
    several = queries.reshape(3, 4, SIZE)
    # Not mapped: the same four for every batch.
    rest[-1] = rest[-1][:4]
    found = jax.vmap(lambda q: attend(q, keys, values, *rest))(several)
    for i in range(3):
        alone = attend(several[i], keys, values, *rest)
        np.testing.assert_allclose(found.outputs[i], alone.outputs, atol=1e-6)
        np.testing.assert_array_equal(found.ids[i], alone.ids)


def test_databases_under_vmap():
    queries, keys, values, *rest = operands(3000)
    several = np.stack([keys, keys[::-1], 2 * keys])
    found = jax.vmap(lambda k: attend(queries, k, values, *rest))(several)
    for i in range(3):
        alone = attend(queries, several[i], values, *rest)
        np.testing.assert_allclose(found.outputs[i], alone.outputs, atol=1e-6)
        np.testing.assert_array_equal(found.ids[i], alone.ids)


def test_gradients_of_single_queries_under_vmap():
    queries, keys, values, *rest = operands(3000)

    def loss(queries, keys, found_by):
        return (found_by(queries, keys, values, *rest).outputs ** 2).sum()

    found, expected = (jax.grad(loss, (0, 1))(queries, keys, f) for f in (one_by_one, attend))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())
