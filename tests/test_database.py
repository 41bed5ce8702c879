"""Tests of protojax.database."""

import errno
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax import database
from protojax.candidates import CandidateDatabase
from protojax.database import DatabaseError
from protojax.methods.method import Method

KEY = "a" * 64


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


def some_memory(n: int = 5) -> CandidateDatabase:
    rng = np.random.default_rng(1)
    floats = [jnp.asarray(rng.normal(size=(n, d)), jnp.float32) for d in (2, 3)]
    return CandidateDatabase(
        jnp.arange(n, dtype=jnp.int32) + 7,
        jnp.arange(n, dtype=jnp.int32) % 2,
        {"keys": floats[0], "deep/er": {"values": floats[1]}},
    )


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
    with pytest.raises(
        ValueError, match=r"1 training examples have non-finite embeddings\['keys'\], first ids \[104\]"
    ):
        database.build(method, {}, source, np.arange(6), plain, 4, progress=False)


def test_a_database_needs_examples():
    with pytest.raises(ValueError, match="at least one training example"):
        database.build(method_of(unused), {}, Source(3), np.arange(0), plain, 4)


@pytest.mark.parametrize("embeddings", ["dicts", "array"])
def test_what_is_saved_is_loaded(tmp_path, embeddings):
    memory = some_memory()
    if embeddings == "array":
        memory = memory.replace(embeddings=memory.embeddings["keys"])
    database.save(tmp_path / "runs" / "database", memory, KEY)
    loaded = database.load(tmp_path / "runs" / "database", KEY)
    assert jax.tree.structure(loaded) == jax.tree.structure(memory)
    for before, after in zip(jax.tree.leaves(memory), jax.tree.leaves(loaded), strict=True):
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["database"]


def test_a_newer_database_replaces_the_older(tmp_path):
    folder = tmp_path / "database"
    database.save(folder, some_memory(5), KEY)
    database.save(folder, some_memory(3).replace(embeddings=jnp.ones((3, 2))), "b" * 64)
    assert len(database.load(folder, "b" * 64).ids) == 3
    assert sorted(p.name for p in folder.iterdir()) == ["00.npy", "01.npy", "02.npy", "manifest.json"]


def test_a_full_disk_leaves_the_older_database(tmp_path, monkeypatch):
    folder = tmp_path / "database"
    database.save(folder, some_memory(), KEY)
    kept = np.save

    def full(file, array, **options):
        if "02" in Path(file).name:
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        kept(file, array, **options)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        database.save(folder, some_memory(9), KEY)
    assert len(database.load(folder, KEY).ids) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["database"]


def test_files_of_others_are_not_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DatabaseError, match="holds files but no database"):
        database.save(tmp_path, some_memory(), KEY)
    assert (tmp_path / "thesis.txt").exists()


def test_embeddings_in_other_containers_are_refused(tmp_path):
    memory = some_memory().replace(embeddings=[jnp.zeros((5, 2))])
    with pytest.raises(DatabaseError, match=r"embeddings\[0\]: .* dicts with text keys only"):
        database.save(tmp_path / "database", memory, KEY)


@pytest.fixture
def saved(tmp_path) -> Path:
    database.save(tmp_path / "database", some_memory(), KEY)
    return tmp_path / "database"


def edit(folder: Path, change) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_a_stale_database_is_refused(saved):
    with pytest.raises(DatabaseError, match=r"manifest.json: stale: encoded by parameters aaaaaaaaaaaa\.\.\."):
        database.load(saved, "b" * 64)


def test_whose_a_database_is(saved):
    assert database.is_of(saved, KEY)
    assert not database.is_of(saved, "b" * 64) and not database.is_of(saved / "nowhere", KEY)
    (saved / "manifest.json").write_text("{")
    with pytest.raises(DatabaseError, match="damaged manifest"):
        database.is_of(saved, KEY)


def test_a_missing_database_is_named(tmp_path):
    with pytest.raises(DatabaseError, match=r"nowhere/manifest.json: no database here"):
        database.load(tmp_path / "nowhere", KEY)


def test_a_flipped_bit_is_found(saved):
    content = bytearray((saved / "02.npy").read_bytes())
    content[-1] ^= 1
    (saved / "02.npy").write_bytes(content)
    with pytest.raises(DatabaseError, match=r"02\.npy: damaged"):
        database.load(saved, KEY)


def test_a_missing_file_is_named(saved):
    (saved / "01.npy").unlink()
    with pytest.raises(DatabaseError, match=r"01\.npy: missing"):
        database.load(saved, KEY)


def test_a_pickle_is_not_opened(saved):
    np.save(saved / "00.npy", np.array([{}], dtype=object), allow_pickle=True)
    edit(saved, lambda m: m["arrays"][0].update(sha256=database._sha256(saved / "00.npy")))
    with pytest.raises(DatabaseError, match=r"00\.npy: not an array of numbers"):
        database.load(saved, KEY)


def test_another_shape_is_refused(saved):
    np.save(saved / "00.npy", np.zeros(4, np.int32))
    edit(saved, lambda m: m["arrays"][0].update(sha256=database._sha256(saved / "00.npy")))
    with pytest.raises(DatabaseError, match=r"00\.npy: holds int32 \[4\], but manifest.json says int32 \[5\]"):
        database.load(saved, KEY)


@pytest.mark.parametrize("name", ["../secret.npy", "sub/../../secret.npy", "..", "", "{tmp}/secret.npy"])
def test_a_path_outside_the_folder_is_refused(saved, name):
    np.save(saved.parent / "secret.npy", np.zeros(5, np.int32))
    edit(saved, lambda m: m["arrays"][0].update(file=name.format(tmp=saved.parent)))
    with pytest.raises(DatabaseError, match=r"manifest.json: names a file outside its folder"):
        database.load(saved, KEY)


def test_a_link_out_of_the_folder_is_refused(saved):
    np.save(saved.parent / "secret.npy", np.arange(5, dtype=np.int32))
    (saved / "00.npy").unlink()
    (saved / "00.npy").symlink_to(saved.parent / "secret.npy")
    with pytest.raises(DatabaseError, match="outside its folder"):
        database.load(saved, KEY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema="protojax.database/9"), "schema 'protojax.database/9'"),
        (lambda m: m.pop("arrays"), "damaged manifest .arrays: Field required"),
        (lambda m: m["arrays"][0].update(path=[]), r"damaged manifest .arrays\.0\.path"),
        (lambda m: m["arrays"].pop(0), r"holds \['embeddings', 'labels'\]"),
        (lambda m: m["arrays"].append(m["arrays"][0]), "two arrays at ids"),
        (lambda m: m["arrays"].append({**m["arrays"][0], "path": ["ids", "x"]}), r"two arrays at ids\.x"),
    ],
)
def test_an_odd_manifest_is_refused(saved, change, message):
    edit(saved, change)
    with pytest.raises(DatabaseError, match=rf"manifest\.json: {message}"):
        database.load(saved, KEY)


def test_a_cut_manifest_is_refused(saved):
    path = saved / "manifest.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(DatabaseError, match=r"manifest\.json: damaged manifest"):
        database.load(saved, KEY)


def test_arrays_of_different_lengths_are_refused(saved):
    np.save(saved / "00.npy", np.zeros(4, np.int32))
    change = {"sha256": database._sha256(saved / "00.npy"), "shape": [4]}
    edit(saved, lambda m: m["arrays"][0].update(change))
    with pytest.raises(DatabaseError, match="arrays of different lengths"):
        database.load(saved, KEY)
