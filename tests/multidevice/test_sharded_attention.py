"""Attention over a database that is split over 8 devices equals that of one, and what crosses devices does not grow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from protojax import ops

CANDIDATES, BATCH, SIZE = 16384, 12, 8


@pytest.fixture(scope="module")
def mesh():
    assert jax.device_count() == 8
    return Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))


def operands(candidates=CANDIDATES):
    rng = np.random.default_rng(0)
    shapes = (BATCH, SIZE), (candidates, SIZE), (candidates, 5)
    queries, keys, values = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    # From a support of one to one of thousands, so that every way of solving is taken.
    queries *= np.geomspace(10, 1e-4, BATCH, dtype=np.float32)[:, None]
    ids = rng.permutation(3 * candidates)[:candidates].astype(np.int32)
    ids[rng.random(candidates) < 0.1] = -1
    labels = rng.integers(0, 4, candidates).astype(np.int32)
    exclude = ids[(queries @ keys.T).argmax(axis=1)]
    return queries, keys, values, ids, labels, exclude


def place(mesh, *arrays):
    return jax.device_put(arrays, NamedSharding(mesh, PartitionSpec("data")))


OPTIONS = {"width": 20, "classes": 4, "shares": (0.5, 0.9, 0.95)}


def equal(found, expected):
    for name in ("outputs", "weights", "threshold", "class_mass"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-5, err_msg=name)
    for name in ("size", "fewest", "exact"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    # Weights that are equal up to rounding may change places.
    sure = np.abs(np.diff(np.asarray(expected.weights), axis=1, append=-1)) > 1e-6
    sure[:, 1:] &= sure[:, :-1]
    np.testing.assert_array_equal(np.asarray(found.ids)[sure], np.asarray(expected.ids)[sure])
    np.testing.assert_array_equal(np.asarray(found.labels)[sure], np.asarray(expected.labels)[sure])


@pytest.mark.parametrize("normalizer", ["sparsemax", "softmax"])
def test_8_devices_answer_as_one(mesh, normalizer):
    queries, keys, values, ids, labels, exclude = operands()
    expected = ops.attend(
        queries,
        keys,
        values,
        normalizer=normalizer,
        ids=ids,
        labels=labels,
        exclude=exclude,
        execution="dense",
        **OPTIONS,
    )
    keys, values, ids, labels = place(mesh, keys, values, ids, labels)
    # Where the keys are tells how to go about it.
    found = ops.attend(queries, keys, values, normalizer=normalizer, ids=ids, labels=labels, exclude=exclude, **OPTIONS)
    equal(found, expected)
    if normalizer == "sparsemax":
        assert np.asarray(expected.size).min() < 4 and np.asarray(expected.size).max() > 2000


def test_an_index_is_split_like_the_keys(mesh):
    queries, keys, values, ids, labels, exclude = operands()
    order = ops.cluster(keys)
    keys, values, ids, labels = keys[order], values[order], ids[order], labels[order]
    expected = ops.attend(queries, keys, values, ids=ids, labels=labels, exclude=exclude, execution="dense", **OPTIONS)
    keys, values, ids, labels = place(mesh, keys, values, ids, labels)
    index = ops.ClusterIndex(*place(mesh, *ops.cluster_index(keys)))
    found = ops.attend(
        queries, keys, values, ids=ids, labels=labels, exclude=exclude, index=index, mesh=mesh, **OPTIONS
    )
    equal(found, expected)


def test_gradients_lie_where_the_candidates_lie(mesh):
    queries, keys, values, *_ = operands(2048)

    def loss(queries, keys, values, execution):
        found = ops.attend(queries, keys, values, width=20, execution=execution, mesh=mesh)
        return (found.outputs**3).sum() + (found.weights**2).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)), static_argnums=3)
    expected = gradient(queries, keys, values, "dense")
    found = gradient(queries, *place(mesh, keys, values), "sharded")
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
    assert found[1].sharding.spec[0] == found[2].sharding.spec[0] == "data"


def compiled(mesh, candidates):
    """Answers and gradients, compiled."""
    split = NamedSharding(mesh, PartitionSpec("data"))
    everywhere = NamedSharding(mesh, PartitionSpec())

    def abstract(shape, dtype, sharding):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def answer(queries, exclude, keys, values, ids, labels, index):
        given = {"ids": ids, "labels": labels, "exclude": exclude, "index": index, "mesh": mesh}
        found = ops.attend(queries, keys, values, execution="sharded", **given, **OPTIONS)
        return found.outputs.sum() + found.class_mass[:, 0].sum() + found.weights[:, 1].sum(), found

    arguments = (
        abstract((BATCH, SIZE), jnp.float32, everywhere),
        abstract((BATCH,), jnp.int32, everywhere),
        abstract((candidates, SIZE), jnp.float32, split),
        abstract((candidates, 5), jnp.float32, split),
        abstract((candidates,), jnp.int32, split),
        abstract((candidates,), jnp.int32, split),
        ops.ClusterIndex(
            abstract((candidates // 32, SIZE), jnp.float32, split), abstract((candidates // 32,), jnp.float32, split)
        ),
    )
    both = jax.jit(jax.value_and_grad(answer, argnums=(0, 2, 3), has_aux=True))
    return both.lower(*arguments).compile()


def test_what_crosses_devices_does_not_grow_with_the_database(mesh, crossing):
    # Large enough for every way of solving, and far beyond what may cross.
    moved, sizes = crossing(compiled(mesh, 1 << 23))
    assert {kind for _, kind in moved} == {"all-gather", "all-reduce"}
    assert 8 * 64 <= max(sizes) < 8 * 1024


def test_bad_input(mesh):
    queries, keys, values, *_ = operands(1000)
    with pytest.raises(ValueError, match="1001 candidates do not divide evenly among 8 devices: fill up .* id -1"):
        ops.attend(queries, np.pad(keys, [(0, 1), (0, 0)]), np.pad(values, [(0, 1), (0, 0)]), mesh=mesh)
    with pytest.raises(ValueError, match="the 20 blocks of the index do not divide evenly among 8 devices"):
        ops.attend(queries, keys, values, index=ops.cluster_index(keys, rows=50), mesh=mesh)
    with pytest.raises(ValueError, match="sharded execution needs the mesh"):
        ops.attend(queries, keys, values, execution="sharded")
