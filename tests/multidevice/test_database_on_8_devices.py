"""A database whose rows are split over 8 devices: edits keep the placement, files are read to it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax import candidates, checkpoint, database, manifest, ondisk, ops, sharding, shards, storage
from protojax.candidates import CandidateDatabase
from protojax.methods.method import Method

N, D, V = 1001, 6, 5


def some() -> CandidateDatabase:
    rng = np.random.default_rng(0)
    embeddings = {
        "keys": jnp.asarray(rng.normal(size=(N, D)), jnp.float32),
        "values": jnp.asarray(rng.normal(size=(N, V)), jnp.float32),
    }
    labels = jnp.asarray(rng.integers(0, 4, N), jnp.int32)
    return CandidateDatabase(
        jnp.arange(N, dtype=jnp.int32), labels, embeddings, encoder=jnp.asarray(shards.encoder_leaf("a" * 64))
    )


def rows(x: CandidateDatabase) -> list[jax.Array]:
    return jax.tree.leaves((x.ids, x.labels, x.embeddings))


def assert_split(x: CandidateDatabase) -> None:
    mesh = sharding.mesh()
    assert mesh.size == 8
    assert all(leaf.sharding.is_equivalent_to(sharding.along_data(mesh), leaf.ndim) for leaf in rows(x))


def assert_equal(a: CandidateDatabase, b: CandidateDatabase) -> None:
    for x, y in zip(rows(a), rows(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_edits_keep_the_placement():
    single = some().grow(1008)
    split = some().split(sharding.mesh())
    assert_split(split)
    assert_equal(split, single)
    new = {"keys": np.ones((300, D), np.float32), "values": np.full((300, V), 2, np.float32)}

    @jax.jit
    def use(x):
        return x.embeddings["keys"].sum()

    use(split)
    steps = [
        lambda x: x.remove(np.arange(100, 400)),
        lambda x: x.append(np.arange(2000, 2300), np.full(300, 3), new),
        lambda x: x.relabel([5, 2001], [1, 2]),
    ]
    for step in steps:
        split, single = step(split), step(single)
        assert_split(split)
        assert_equal(split, single)
        use(split)
    assert use._cache_size() == 1
    with pytest.raises(ValueError, match=r"capacity 1010 is no multiple of 8 .* choose 1016"):
        split.grow(1010)
    for step in (lambda x: x.grow(1016), lambda x: x.remove(np.arange(5, 95)).compact(1000)):
        split, single = step(split), step(single)
        assert_split(split)
        assert_equal(split, single)
    assert split.remove([5 + 90]).compact().capacity % 8 == 0


def test_appending_moves_no_rows_between_devices():
    split = some().split(sharding.mesh())
    places = np.zeros(256, np.int32)
    new = {"keys": np.ones((256, D), np.float32), "values": np.ones((256, V), np.float32)}
    shardings = candidates._split_shardings(split.embeddings)
    text = candidates._put.lower(split.embeddings, places, new, shardings).compile().as_text()
    assert not re.search(r"all-gather|all-to-all|collective-permute|all-reduce", text)


def test_an_index_of_split_rows(tmp_path):
    single, mesh = some().index(16), sharding.mesh()
    assert single.capacity == 1008
    split = single.split(mesh)
    assert split.capacity == 1024 and split.clusters.radii.shape == (64,)
    assert_split(split)
    assert_equal(split, single.grow(1024))
    anew = some().split(mesh).index(16)
    assert anew.capacity == 1024 and anew.clusters.radii.shape == (64,)
    assert_split(anew)
    assert_equal(anew, split)
    np.testing.assert_allclose(anew.clusters.radii[:62], split.clusters.radii[:62], rtol=1e-5)
    storage.save(tmp_path / "database", single)
    loaded = storage.load(tmp_path / "database", None, mesh)
    assert_equal(loaded, split)
    np.testing.assert_array_equal(loaded.clusters.radii, split.clusters.radii)


def test_files_are_read_to_their_devices(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "ROWS", 100)
    storage.save(tmp_path / "database", some())
    loaded = storage.load(tmp_path / "database", "a" * 64, sharding.mesh())
    assert_split(loaded)
    assert_equal(loaded, some().grow(1008))
    assert loaded.encoder_sha256 == "a" * 64 and loaded.encoder.sharding.is_fully_replicated
    storage.save(tmp_path / "again", loaded)
    assert_equal(storage.load(tmp_path / "again", None), loaded)


@pytest.mark.parametrize("normalizer", ["sparsemax", "softmax"])
def test_shards_are_solved_by_all_devices(tmp_path, monkeypatch, normalizer):
    monkeypatch.setattr(manifest, "ROWS", 300)
    memory = some()
    storage.save(tmp_path / "database", memory)
    asked = jnp.asarray(np.random.default_rng(1).normal(size=(9, D)), jnp.float32)
    options = {"width": 40, "classes": 4, "exclude": np.arange(9), "normalizer": normalizer}
    keys, values = memory.embeddings["keys"], memory.embeddings["values"]
    wanted = ops.attend(asked, keys, values, ids=memory.ids, labels=memory.labels, execution="dense", **options)
    got = ondisk.attend(shards.read(tmp_path / "database"), asked, mesh=sharding.mesh(), **options)
    for name in ("outputs", "ids", "labels", "weights", "size", "threshold", "exact", "class_mass"):
        np.testing.assert_allclose(getattr(got, name), getattr(wanted, name), atol=2e-6, rtol=1e-5, err_msg=name)


def test_a_database_is_built_by_all_devices(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "ROWS", 20)
    inputs = np.random.default_rng(2).normal(size=(50, 3)).astype(np.float32)

    class Source:
        ids = np.arange(50, dtype=np.int32)

        def __getitem__(self, i):
            return {"id": self.ids[i], "inputs": inputs[i], "label": np.int32(i % 4)}

    def unused(*_):
        raise AssertionError("not needed to build a database")

    method = Method(unused, unused, lambda variables, x: {"keys": x * variables["scale"]}, unused)
    arguments = method, {"scale": jnp.float32(2)}, Source(), np.arange(50), lambda x, ids: x, 12
    database.build_into(tmp_path / "database", *arguments, progress=False)
    loaded = storage.load(tmp_path / "database", checkpoint.digest(arguments[1]))
    np.testing.assert_array_equal(loaded.embeddings["keys"], inputs * 2)
    assert_equal(loaded, database.build(*arguments, progress=False))
