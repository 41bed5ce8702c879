"""Tests of protojax.database: choosing, and building in memory and on disk."""

import errno

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax import amend, checkpoint, database, manifest, storage
from protojax.manifest import DatabaseError
from protojax.methods.method import Method


class Source:
    def __init__(self, n: int):
        rng = np.random.default_rng(0)
        self.inputs = rng.normal(size=(n, 3)).astype(np.float32)
        self.ids = np.arange(100, 100 + n, dtype=np.int32)
        self.labels = rng.integers(0, 4, n).astype(np.int32)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict:
        return {"id": self.ids[i], "inputs": self.inputs[i], "label": self.labels[i]}


def unused(*_):
    raise AssertionError("not needed to build a database")


def method_of(encode) -> Method:
    return Method(unused, unused, encode, unused)


def plain(inputs, ids):
    return inputs


def test_all_examples_are_chosen_without_a_count():
    np.testing.assert_array_equal(database.choose(5, None, 3), [0, 1, 2, 3, 4])


def test_a_choice_is_distinct_and_depends_on_the_seed_alone():
    chosen = database.choose(1000, 300, 3)
    assert chosen.dtype == np.int32
    assert len(np.unique(chosen)) == 300 and chosen.min() >= 0 and chosen.max() < 1000
    np.testing.assert_array_equal(chosen, database.choose(1000, 300, 3))
    assert not np.array_equal(chosen, database.choose(1000, 300, 4))


def test_a_choice_is_the_same_for_every_numpy():
    np.testing.assert_array_equal(database.choose(20, 5, 3), [0, 1, 2, 10, 16])


def test_every_example_is_equally_likely():
    counts = np.zeros(20)
    for seed in range(2000):
        counts[database.choose(20, 5, seed)] += 1
    # Five standard deviations of a binomial count of mean 500.
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500 * 0.75)


@pytest.mark.parametrize("count", [0, 11])
def test_more_than_there_are_cannot_be_chosen(count):
    with pytest.raises(ValueError, match=rf"evaluate.candidate_count = {count}, .* has 10 examples"):
        database.choose(10, count, 0)


@pytest.mark.parametrize("n", [1, 3, 4, 5, 8, 11])
def test_encodes_the_chosen_examples_in_order(n):
    source = Source(12)
    indices = database.choose(12, n, 0)[::-1].astype(np.int32)
    weights = np.random.default_rng(2).normal(size=(3, 2))

    def transform(inputs, ids):
        return inputs + ids[:, None].astype(jnp.float32)

    def encode(variables, inputs):
        assert inputs.shape == (min(4, n), 3)
        return {"keys": inputs @ variables["w"]}

    memory = database.build(
        method_of(encode), {"w": jnp.asarray(weights, jnp.float32)}, source, indices, transform, 4, progress=False
    )
    expected = (source.inputs[indices].astype(np.float64) + source.ids[indices][:, None]) @ weights
    np.testing.assert_array_equal(memory.ids, source.ids[indices])
    np.testing.assert_array_equal(memory.labels, source.labels[indices])
    assert memory.ids.dtype == jnp.int32 and memory.embeddings["keys"].dtype == jnp.float32
    np.testing.assert_allclose(memory.embeddings["keys"], expected, rtol=1e-5)
    assert memory.encoder_sha256 == checkpoint.digest({"w": jnp.asarray(weights, jnp.float32)})


def test_compiles_once_and_keeps_float32():
    traces = []

    def encode(variables, inputs):
        traces.append(inputs.shape)
        return {"low": inputs.astype(jnp.bfloat16) * variables["scale"], "codes": inputs.astype(jnp.int8)}

    method, source = method_of(encode), Source(10)
    for scale in (1.0, 2.0):
        variables = {"scale": jnp.asarray(scale, jnp.bfloat16)}
        memory = database.build(method, variables, source, np.arange(10), plain, 4, progress=False)
    assert traces == [(4, 3)]
    assert memory.embeddings["low"].dtype == jnp.float32 and memory.embeddings["codes"].dtype == jnp.int8


def test_a_damaged_embedding_names_its_example():
    source = Source(6)
    source.inputs[4, 1] = np.inf
    method = method_of(lambda variables, inputs: {"keys": inputs})
    with pytest.raises(ValueError, match=r"1 examples have non-finite embeddings\['keys'\], first ids \[104\]"):
        database.build(method, {}, source, np.arange(6), plain, 4, progress=False)


def test_a_database_needs_examples():
    with pytest.raises(ValueError, match="at least one example"):
        database.build(method_of(unused), {}, Source(3), np.arange(0), plain, 4)


def test_an_id_below_zero_is_refused():
    source = Source(3)
    source.ids[1] = -1
    with pytest.raises(ValueError, match=r"ids \[-1\] are negative"):
        database.build(method_of(lambda variables, inputs: {"keys": inputs}), {}, source, np.arange(3), plain, 4, False)


def test_an_example_twice_is_refused():
    with pytest.raises(ValueError, match="indices of a database must differ"):
        database.build(method_of(unused), {}, Source(3), np.array([1, 1]), plain, 4)


def scaled(variables, inputs):
    return {"keys": inputs * variables["scale"], "deep": {"values": inputs[:, :2]}}


METHOD = method_of(scaled)
VARIABLES = {"scale": jnp.float32(2)}


class Counted(Source):
    """Counts what is read, and fails after so many examples, as a killed process does."""

    def __init__(self, n: int, failing_after: int | None = None):
        super().__init__(n)
        self.read = []
        self.failing_after = failing_after

    def __getitem__(self, i: int) -> dict:
        if len(self.read) == self.failing_after:
            raise KeyboardInterrupt
        self.read.append(i)
        return super().__getitem__(i)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(manifest, "ROWS", 10)


def build_into(folder, source, variables=VARIABLES, indices=None, batch_size=4):
    indices = np.arange(len(source)) if indices is None else indices
    database.build_into(folder, METHOD, variables, source, indices, plain, batch_size, progress=False)


def equal(a, b) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize("n", [1, 8, 25])
def test_a_database_on_disk_is_that_in_memory(tmp_path, small_shards, n):
    source, indices = Source(30), database.choose(30, n, 1)
    build_into(tmp_path / "database", source, indices=indices)
    memory = database.build(METHOD, VARIABLES, source, indices, plain, 4, progress=False)
    assert equal(storage.load(tmp_path / "database", checkpoint.digest(VARIABLES)), memory)
    assert [path.name for path in tmp_path.iterdir()] == ["database"]
    # 8 is the largest number of whole batches in 10 rows.
    assert storage.info(tmp_path / "database")["shards"] == -(-n // 8)


def test_a_killed_build_goes_on_with_the_next_shard(tmp_path, small_shards):
    folder, whole = tmp_path / "database", Source(30)
    with pytest.raises(KeyboardInterrupt):
        build_into(folder, Counted(30, failing_after=1 + 19))
    assert [path.name for path in tmp_path.iterdir()] == ["database.partial"]
    with pytest.raises(DatabaseError, match="unfinished: 16 of 30 rows"):
        storage.load(tmp_path / "database.partial", None)
    # A kill while a file is written leaves such a file.
    (tmp_path / "database.partial" / "00002-00.npy.tmp").write_bytes(b"half")
    second = Counted(30)
    build_into(folder, second)
    assert sorted(set(second.read)) == [0, *range(16, 30)]
    memory = database.build(METHOD, VARIABLES, whole, np.arange(30), plain, 4, progress=False)
    assert equal(storage.load(folder, checkpoint.digest(VARIABLES)), memory)
    assert [path.name for path in tmp_path.iterdir()] == ["database"]
    assert not list(folder.glob("*.tmp"))


def test_a_damaged_shard_is_encoded_again(tmp_path, small_shards):
    folder = tmp_path / "database"
    with pytest.raises(KeyboardInterrupt):
        build_into(folder, Counted(30, failing_after=1 + 25))
    damaged = next((tmp_path / "database.partial").glob("00001-02-*.npy"))
    damaged.write_bytes(damaged.read_bytes()[:-5])
    second = Counted(30)
    with pytest.warns(UserWarning, match=f"{damaged}: damaged: its content is not what its manifest says; made again"):
        build_into(folder, second)
    assert sorted(set(second.read)) == [0, *range(8, 30)]
    assert storage.load(folder, None).capacity == 30


@pytest.mark.parametrize("change", ["encoder", "ids"])
def test_what_another_build_left_is_discarded(tmp_path, small_shards, change):
    folder = tmp_path / "database"
    with pytest.raises(KeyboardInterrupt):
        build_into(folder, Counted(30, failing_after=20))
    second = Counted(30)
    variables = {"scale": jnp.float32(3)} if change == "encoder" else VARIABLES
    indices = np.arange(30) if change == "encoder" else np.arange(30)[::-1]
    build_into(folder, second, variables, indices)
    assert sorted(set(second.read)) == list(range(30))
    expected = database.build(METHOD, variables, Source(30), indices, plain, 4, progress=False)
    assert equal(storage.load(folder, checkpoint.digest(variables)), expected)


def test_a_full_disk_leaves_the_database_before(tmp_path, small_shards, monkeypatch):
    folder, kept, saved = tmp_path / "database", np.save, []
    build_into(folder, Source(12))

    def full(file, array, **options):
        if len(saved) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        saved.append(file)
        kept(file, array, **options)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        build_into(folder, Source(30))
    assert storage.load(folder, None).capacity == 12
    monkeypatch.setattr(np, "save", kept)
    build_into(folder, Source(30))
    assert storage.load(folder, None).capacity == 30 and [path.name for path in tmp_path.iterdir()] == ["database"]


def test_files_of_others_are_not_replaced(tmp_path):
    for name in ("database", "database.partial"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "thesis.txt").write_text("years of work")
        with pytest.raises(DatabaseError, match=rf"{name}: holds files but no database"):
            build_into(tmp_path / "database", Source(4))
        (folder / "thesis.txt").unlink()
    build_into(tmp_path / "database", Source(4))


def test_on_disk_encoding_compiles_once(tmp_path, small_shards):
    shapes = []

    def encode(variables, inputs):
        shapes.append(inputs.shape)
        return {"keys": inputs}

    database.build_into(tmp_path / "database", method_of(encode), {}, Source(30), np.arange(30), plain, 4, False)
    assert set(shapes) == {(4, 3)} and len(shapes) <= 2


def load_or_build(folder, source, variables=VARIABLES):
    return database.load_or_build(folder, METHOD, variables, source, np.arange(len(source)), plain, 4, progress=False)


def test_a_database_is_built_once_and_kept_when_edited(tmp_path):
    folder, source = tmp_path / "database", Counted(6)
    first = load_or_build(folder, source)
    read = len(source.read)
    assert equal(load_or_build(folder, source), first) and len(source.read) == read
    amend.remove(folder, [102])
    edited = load_or_build(folder, source)
    assert int(edited.count) == 5 and len(source.read) == read


def test_an_edited_database_is_not_built_anew(tmp_path):
    folder = tmp_path / "database"
    load_or_build(folder, Source(6))
    assert load_or_build(folder, Source(6), {"scale": jnp.float32(3)}).embeddings["keys"].shape == (6, 3)
    amend.remove(folder, [102])
    with pytest.raises(DatabaseError, match=r"and edited \(remove\): building it anew would undo that"):
        load_or_build(folder, Source(6))
