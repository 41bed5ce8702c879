"""An index saves work and never changes a result; its bounds hold for every key, in every order."""

import jax
import numpy as np
import pytest

from protojax import ops
from protojax.ops import clusters

CANDIDATES, SIZE, ROWS = 8192, 6, 16


def draw(kind, seed=0):
    rng = np.random.default_rng(seed)
    keys = {
        "clustered": lambda: (
            rng.normal(size=(40, SIZE))[rng.integers(0, 40, CANDIDATES)] * 3 + 0.1 * rng.normal(size=(CANDIDATES, SIZE))
        ),
        "isotropic": lambda: rng.normal(size=(CANDIDATES, SIZE)),
        "copies": lambda: np.repeat(rng.normal(size=(CANDIDATES // 64, SIZE)), 64, axis=0),
        "zeros": lambda: np.zeros((CANDIDATES, SIZE)),
        "far": lambda: 1e4 + rng.normal(size=(CANDIDATES, SIZE)),
    }[kind]()
    return keys.astype(np.float32)


KINDS = ["clustered", "isotropic", "copies", "zeros", "far"]


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_hold(kind):
    keys = draw(kind)
    keys = keys[ops.cluster(keys, ROWS)]
    index = ops.cluster_index(keys, ROWS)
    blocks = keys.astype(np.float64).reshape(-1, ROWS, SIZE)
    distances = np.linalg.norm(blocks - np.float64(index.centers)[:, None], axis=2)
    assert (distances <= np.float64(index.radii)[:, None]).all()
    queries = np.concatenate([np.random.default_rng(1).normal(size=(20, SIZE)).astype(np.float32), keys[::1000]])
    scores = np.einsum("bd,nrd->bnr", queries.astype(np.float64), blocks)
    assert (np.float64(clusters.bounds(index, queries)) >= scores.max(axis=2)).all()
    # In float32, as attention makes them, in whatever order it adds.
    single = (queries @ keys.T).reshape(len(queries), -1, ROWS)
    assert (np.asarray(clusters.bounds(index, queries)) >= single.max(axis=2)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_is_a_permutation_and_the_same_every_time(kind):
    keys = draw(kind)
    order = ops.cluster(keys, ROWS, seed=3)
    np.testing.assert_array_equal(np.sort(order), np.arange(CANDIDATES))
    np.testing.assert_array_equal(order, ops.cluster(keys, ROWS, seed=3))
    assert order.dtype == np.int32


def test_blocks_are_compact():
    keys = draw("clustered")
    mixed = ops.cluster_index(keys, ROWS).radii
    assert ops.cluster_index(keys[ops.cluster(keys, ROWS)], ROWS).radii.mean() < 0.2 * mixed.mean()


@pytest.mark.parametrize("batch", [1, 3, 40])
def test_an_index_never_changes_a_result(batch):
    # One, few and many queries go different ways.
    @jax.jit
    def attend(queries, keys, values, ids, exclude, index):
        options = {"width": 20, "shares": (0.5,), "execution": "streamed"}
        return ops.attend(queries, keys, values, ids=ids, exclude=exclude, index=index, **options)

    rng = np.random.default_rng(0)
    values = rng.normal(size=(CANDIDATES, 3)).astype(np.float32)
    for kind in KINDS:
        keys = draw(kind) / np.float32(1e4 if kind == "far" else 1)
        keys = keys[ops.cluster(keys, ROWS)]
        index = ops.cluster_index(keys, ROWS)
        for scale in (0.01, 1, 30):
            queries = (scale * rng.normal(size=(batch, SIZE))).astype(np.float32)
            ids = rng.permutation(CANDIDATES).astype(np.int32)
            ids[rng.random(CANDIDATES) < 0.2] = -1
            exclude = ids[(queries @ keys.T).argmax(axis=1)]
            given = queries, keys, values, ids, exclude
            found, expected = attend(*given, index), attend(*given, None)
            np.testing.assert_allclose(found.outputs, expected.outputs, atol=2e-5)
            np.testing.assert_allclose(found.weights, expected.weights, atol=2e-5)
            np.testing.assert_allclose(found.threshold, expected.threshold, rtol=1e-5, atol=1e-5)
            assert np.asarray(found.exact).all()
            assert (np.abs(np.asarray(found.size) - np.asarray(expected.size)) <= 2).all()


def test_softmax_reads_everything_with_an_index_too():
    keys = draw("isotropic")
    queries, index = keys[:3], ops.cluster_index(keys, ROWS)
    found, expected = (
        ops.attend(queries, keys, keys, normalizer="softmax", index=i, execution="streamed") for i in (index, None)
    )
    np.testing.assert_array_equal(found.outputs, expected.outputs)


def test_bad_input():
    keys = draw("isotropic")
    with pytest.raises(ValueError, match="8192 keys do not divide into blocks of 100: fill up with places of id -1"):
        ops.cluster_index(keys, 100)
    with pytest.raises(ValueError, match=r"keys must be floating \[candidates, d\], got int32 of shape \(3,\)"):
        ops.cluster(np.arange(3, dtype=np.int32))
    with pytest.raises(ValueError, match="a block must have at least 1 row, got 0"):
        ops.cluster(keys, 0)
    keys[5, 1] = np.nan
    with pytest.raises(ValueError, match="keys to be clustered must be finite"):
        ops.cluster(keys)
