"""Tests of protojax.candidates: what edits do to the record, and that they compile nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax import ops
from protojax.candidates import CandidateDatabase


def some(n: int = 6, capacity: int | None = None, seed: int = 0) -> CandidateDatabase:
    rng = np.random.default_rng(seed)
    embeddings = {
        "keys": jnp.asarray(rng.normal(size=(n, 4)), jnp.float32),
        "values": jnp.asarray(rng.normal(size=(n, 3)), jnp.float32),
        "codes": jnp.asarray(rng.integers(0, 9, n), jnp.int32),
    }
    ids = jnp.arange(n, dtype=jnp.int32) * 10
    encoder = jnp.arange(32, dtype=jnp.uint8)
    database = CandidateDatabase(ids, jnp.arange(n, dtype=jnp.int32) % 3, embeddings, encoder=encoder)
    return database.grow(capacity or n)


def new(ids, seed: int = 1):
    rng, n = np.random.default_rng(seed), len(ids)
    embeddings = {
        "keys": rng.normal(size=(n, 4)).astype(np.float32),
        "values": rng.normal(size=(n, 3)).astype(np.float32),
        "codes": np.arange(n, dtype=np.int32),
    }
    return ids, np.full(n, 2), embeddings


def content(database: CandidateDatabase) -> dict[int, tuple]:
    """Label and embeddings by id."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(database.embeddings)]
    ids, labels = np.asarray(database.ids), np.asarray(database.labels)
    assert (labels[ids == -1] == -1).all() and len(set(ids[ids >= 0])) == (ids >= 0).sum() == int(database.count)
    return {int(ids[i]): (int(labels[i]), *(x[i].tolist() for x in leaves)) for i in np.flatnonzero(ids >= 0)}


def attended(database: CandidateDatabase, queries) -> dict[int, float]:
    """Weights by id, of one query."""
    keys, values = database.embeddings["keys"], database.embeddings["values"]
    places = (database.ids >= 0)[None, :]
    _, weights = ops.dense_attend(queries, keys, values, where=jnp.broadcast_to(places, (1, database.capacity)))
    return {int(i): float(w) for i, w in zip(database.ids, weights[0], strict=True) if w > 0}


def test_growing_adds_empty_places_alone():
    database = some(6)
    grown = database.grow(10)
    assert grown.capacity == 10 and int(grown.count) == 6 and content(grown) == content(database)
    np.testing.assert_array_equal(grown.ids[6:], -1)
    with pytest.raises(ValueError, match="capacity 6 cannot grow to 5"):
        database.grow(5)


def test_removed_examples_leave_places_that_others_fill():
    database = some(6, 8)
    before = content(database)
    removed = database.remove([20, 0])
    assert content(removed) == {i: x for i, x in before.items() if i not in (0, 20)}
    ids, labels, embeddings = new([7, 8, 9])
    filled = removed.append(ids, labels, embeddings)
    np.testing.assert_array_equal(filled.ids, [7, 10, 8, 30, 40, 50, 9, -1])
    expected = {ids[i]: (2, *(x[i].tolist() for x in jax.tree.leaves(embeddings))) for i in range(3)}
    assert content(filled) == content(removed) | expected
    # Nothing changed in place.
    assert content(database) == before and len(content(removed)) == 4
    assert filled.encoder_sha256 == bytes(range(32)).hex()


def test_relabelling_changes_labels_alone():
    database = some(6)
    changed = database.relabel([50, 0], 7)
    np.testing.assert_array_equal(changed.labels, [7, 1, 2, 0, 1, 7])
    np.testing.assert_array_equal(database.relabel([50, 0], [8, 9]).labels, [9, 1, 2, 0, 1, 8])
    np.testing.assert_array_equal(changed.ids, database.ids)


def test_compaction_keeps_the_order():
    database = some(6, 9).remove([0, 30])
    compacted = database.compact()
    np.testing.assert_array_equal(compacted.ids, [10, 20, 40, 50])
    assert content(compacted) == content(database)
    roomy = database.compact(7)
    assert roomy.capacity == 7 and content(roomy) == content(database)
    with pytest.raises(ValueError, match="capacity 3 does not hold the 4 examples"):
        database.compact(3)
    assert some(2).remove([0, 10]).compact().capacity == 1


@pytest.mark.parametrize("count", [1, 3, 256, 700])
def test_more_than_are_written_at_once(count):
    database = some(6, 1000)
    ids, labels, embeddings = new(np.arange(1, count + 1) * 1000)
    filled = database.append(ids, labels, embeddings)
    np.testing.assert_array_equal(filled.embeddings["keys"][6 : 6 + count], embeddings["keys"])
    np.testing.assert_array_equal(filled.embeddings["keys"][:6], database.embeddings["keys"][:6])
    np.testing.assert_array_equal(filled.ids[6 : 6 + count], ids)
    assert int(filled.count) == 6 + count


def test_within_the_capacity_nothing_compiles():
    names = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(event)

    calls = []

    @jax.jit
    def use(database):
        calls.append(1)
        return database.embeddings["keys"].sum(), (database.ids >= 0).sum()

    database = some(200, 1000).index(50)
    database = database.append(*new([1])).remove([1]).relabel([10], 3)
    use(database)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for count in (1, 2, 100, 300):
            database = database.append(*new(10_000 + np.arange(count), count))
            use(database)
            database = database.relabel(10_000 + np.arange(count // 2 + 1), 5)
            use(database)
            database = database.remove(10_000 + np.arange(count))
            use(database)
            use(database.replace(encoder=jax.device_put(np.full(32, count % 256, np.uint8))))
        assert not names
        jax.jit(lambda x: x + 41)(jnp.zeros(3))
        # The listener does hear of compilations.
        assert names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.remove([7]), r"ids \[7\] are not in the database \(1 of 1\); leave them out"),
        (lambda d: d.remove([10, 7, 8]), r"ids \[7, 8\] are not in the database \(2 of 3\)"),
        (lambda d: d.remove([-1]), r"ids \[-1\] are not in the database"),
        (lambda d: d.remove([10, 10]), r"ids \[10\] stand there more than once"),
        (lambda d: d.remove([]), "ids must be a sequence of at least one integer"),
        (lambda d: d.remove([1.5]), "ids must be a sequence of at least one integer, got float64"),
        (lambda d: d.remove([2**40]), r"ids must fit int32, got \[1099511627776\]"),
        (lambda d: d.relabel([7], 1), r"ids \[7\] are not in the database"),
        (lambda d: d.relabel([10], -1), r"ids \[10\] have negative labels"),
        (lambda d: d.relabel([10], [1, 2]), "2 labels for 1 ids"),
        (lambda d: d.append(*new([20, 3])), r"ids \[20\] are in the database already \(1 of 2\)"),
        (lambda d: d.append(*new([3, 3])), r"ids \[3\] stand there more than once"),
        (lambda d: d.append(*new([3, -2])), r"ids \[-2\] are negative"),
        (lambda d: d.append([3], [-4], new([3])[2]), r"ids \[3\] have negative labels"),
        (lambda d: d.append([3], [4, 5], new([3])[2]), "2 labels for 1 ids"),
        (lambda d: d.append(*new([1, 2, 3])), r"3 examples do not fit: 2 of 8 places .* grow\(16\)"),
        (lambda d: d.append([3], [1], {"keys": np.zeros((1, 4))}), "have the structure"),
        (lambda d: d.append([3, 4], [1, 1], new([3])[2]), r"\['codes'\]: got shape \[1\], but 2 ids need \[2\]"),
        (lambda d: d.append([3], [1], new([3])[2] | {"codes": np.ones(1)}), r"\['codes'\]: got float64, .* int32"),
        (
            lambda d: d.append([3], [1], new([3])[2] | {"keys": np.full((1, 4), np.nan)}),
            r"1 examples have non-finite embeddings\['keys'\], first ids \[3\]",
        ),
        (lambda d: d.index(0), "blocks of 0 rows"),
        (lambda d: d.replace(embeddings=jnp.zeros((8, 2))).index(), r"needs embeddings\['keys'\]"),
        (lambda d: d.remove([0, 10, 20, 30, 40, 50]).index(), "this database is empty"),
        (lambda d: d.index(4).grow(10), r"capacity 10 is no multiple of 4 \(blocks of 4 rows, devices\); choose 12"),
    ],
)
def test_impossible_edits_are_refused(change, message):
    database = some(6, 8)
    with pytest.raises(ValueError, match=message):
        change(database)
    assert content(database) == content(some(6, 8))


def holds(database: CandidateDatabase) -> bool:
    """Whether every key of an example is within the ball of its block."""
    blocks = database.clusters.radii.shape[0]
    rows = database.capacity // blocks
    centers = np.repeat(np.asarray(database.clusters.centers, np.float64), rows, axis=0)
    away = np.linalg.norm(np.asarray(database.embeddings["keys"], np.float64) - centers, axis=1)
    radii = np.repeat(np.asarray(database.clusters.radii, np.float64), rows)
    # With room for the rounding of a product.
    return bool((away * (1 + 1e-6) <= radii)[np.asarray(database.ids) >= 0].all())


def test_an_index_reorders_and_changes_no_result():
    database = some(300, 400).remove([50, 60])
    indexed = database.index(32)
    assert indexed.capacity == 416 and indexed.clusters.radii.shape == (13,)
    assert content(indexed) == content(database) and holds(indexed)
    np.testing.assert_array_equal(indexed.ids[298:], -1)
    query = jnp.asarray(np.random.default_rng(5).normal(size=(1, 4)) * 3, jnp.float32)
    assert attended(indexed, query) == pytest.approx(attended(database, query), abs=1e-6)
    # Neighbours are near: the balls are smaller than those of the order that came.
    unordered = ops.cluster_index(database.embeddings["keys"][:288], 32)
    assert float(indexed.clusters.radii[:9].mean()) < 0.8 * float(unordered.radii.mean())


def test_edits_keep_an_index_true():
    indexed = some(100, 128).index(16)
    far = {**new([1, 2, 3])[2], "keys": np.full((3, 4), 50, np.float32)}
    changed = indexed.remove([0, 500]).append([1, 2, 3], [0, 0, 0], far)
    assert holds(changed) and changed.clusters.radii.shape == (8,)
    grown = changed.grow(160)
    assert holds(grown) and grown.clusters.radii.shape == (10,)
    full = grown.append(*new(1000 + np.arange(50)))
    assert holds(full) and content(full.compact()) == content(full)
    compacted = changed.remove([1, 2, 3]).compact()
    assert holds(compacted) and compacted.capacity == 112 and compacted.clusters.radii.shape == (7,)
