"""Tests of protojax.storage, protojax.manifest and protojax.amend: what stands on disk, and what damage does."""

import errno
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax import amend, manifest, resumable, shards, storage
from protojax.candidates import CandidateDatabase
from protojax.manifest import DatabaseError

KEY = "a" * 64


def some(n: int = 25, key: str = KEY) -> CandidateDatabase:
    rng = np.random.default_rng(1)
    floats = [jnp.asarray(rng.normal(size=(n, d)), jnp.float32) for d in (2, 3)]
    return CandidateDatabase(
        jnp.arange(n, dtype=jnp.int32) + 7,
        jnp.arange(n, dtype=jnp.int32) % 2,
        {"keys": floats[0], "deep/er": {"values": floats[1]}},
        encoder=jnp.asarray(shards.encoder_leaf(key)),
    )


def equal(a, b) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(manifest, "ROWS", 10)


@pytest.fixture
def saved(tmp_path) -> Path:
    storage.save(tmp_path / "database", some(), "made of this")
    return tmp_path / "database"


def tree(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def edit(folder: Path, change) -> None:
    content = tree(folder)
    change(content)
    (folder / "manifest.json").write_text(json.dumps(content))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("embeddings", ["dicts", "array"])
@pytest.mark.parametrize("n", [1, 10, 25])
def test_what_is_saved_is_loaded(tmp_path, embeddings, n):
    memory = some(n)
    if embeddings == "array":
        memory = memory.replace(embeddings=memory.embeddings["keys"])
    storage.save(tmp_path / "runs" / "database", memory)
    assert equal(storage.load(tmp_path / "runs" / "database", KEY), memory)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["database"]


def test_shards_are_mapped_one_by_one(saved):
    stored = shards.read(saved, KEY)
    parts = list(stored)
    assert [part.capacity for part in parts] == [10, 10, 5] and stored.capacity == 25
    assert isinstance(parts[0].embeddings["keys"], np.memmap) and parts[2].encoder_sha256 == KEY
    memory = some()
    for name in ("ids", "labels"):
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(memory, name))
        np.testing.assert_array_equal(stored.whole(name), getattr(memory, name))


def test_a_shard_is_checked_when_it_is_first_read(saved, monkeypatch):
    stored = shards.read(saved)
    stored[0]
    victim = next(saved.glob("00001-02-*.npy"))
    victim.write_bytes(victim.read_bytes()[:-1])
    stored[0], stored[2]
    with pytest.raises(DatabaseError, match=r"00001-02-.*\.npy: damaged"):
        stored[1]
    monkeypatch.setattr(resumable, "sha256_of", lambda file: pytest.fail("checked twice"))
    stored[0]


def test_wide_rows_make_small_shards(monkeypatch):
    monkeypatch.setattr(manifest, "ROWS", 65536)
    wide = some(2).replace(embeddings=jnp.zeros((2, 2**16)))
    assert manifest.rows_a_shard(manifest.plan(wide, 2, KEY, None)) == 2**28 // 2**18
    assert manifest.rows_a_shard(manifest.plan(some(2), 2, KEY, None)) == 65536


def test_a_newer_database_replaces_the_older(saved):
    storage.save(saved, some(3, "b" * 64).replace(embeddings=jnp.ones((3, 2))))
    assert storage.load(saved, "b" * 64).capacity == 3
    assert len(list(saved.iterdir())) == 4
    storage.save(saved, some(3, "b" * 64).replace(embeddings=jnp.ones((3, 2))))
    assert storage.load(saved, "b" * 64).capacity == 3 and len(list(saved.iterdir())) == 4


@pytest.mark.parametrize("after", range(12))
def test_a_full_disk_leaves_the_older_database(saved, monkeypatch, after):
    before, kept, calls = files_of(saved), np.save, []

    def full(file, array, **options):
        calls.append(file)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        kept(file, array, **options)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        storage.save(saved, some(25).replace(labels=jnp.zeros(25, jnp.int32)))
    assert files_of(saved) == before and [path.name for path in saved.parent.iterdir()] == ["database"]


@pytest.mark.parametrize("change", ["save", "remove"])
def test_a_crash_while_files_are_moved_leaves_the_older_database(saved, monkeypatch, change):
    """Every rename in turn is the one at which the process dies; what runs on the way out does not count."""
    before, kept = storage.load(saved, KEY), os.replace
    after = some(25).replace(embeddings={"keys": jnp.zeros((25, 2))}) if change == "save" else before.remove([9])
    crashed = 0
    for after_moves in range(100):
        moves = []

        def dying(source, target, moves=moves, last=after_moves):
            if len(moves) == last:
                raise SystemExit
            moves.append(target)
            kept(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying)
            patch.setattr(manifest, "sweep", lambda folder: None)
            try:
                storage.save(saved, after, "made of this") if change == "save" else amend.remove(saved, [9])
            except SystemExit:
                crashed += 1
                assert equal(storage.load(saved, KEY), before)
                continue
        break
    assert crashed >= (12 if change == "save" else 3) and equal(storage.load(saved, KEY), after)
    manifest.sweep(saved)
    assert equal(storage.load(saved, KEY), after)
    assert set(files_of(saved)) == manifest.named(manifest.read(saved)) | {"manifest.json"}


def test_files_of_others_are_not_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DatabaseError, match="holds files but no database"):
        storage.save(tmp_path, some())
    assert (tmp_path / "thesis.txt").exists()


def test_files_of_others_in_the_folder_stay(saved):
    (saved / "notes.txt").write_text("years of work")
    storage.save(saved, some(3))
    amend.remove(saved, [7])
    assert (saved / "notes.txt").exists()


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        ([jnp.zeros((25, 2))], r"embeddings\[0\]: .* dicts with text keys only"),
        ({"keys": jnp.zeros((25, 2), jnp.bfloat16)}, r"embeddings\.keys: npy files do not know bfloat16"),
    ],
)
def test_what_cannot_be_kept_is_refused(tmp_path, embeddings, message):
    with pytest.raises(DatabaseError, match=message):
        storage.save(tmp_path / "database", some().replace(embeddings=embeddings))
    with pytest.raises(DatabaseError, match="without the hash of its encoder"):
        storage.save(tmp_path / "database", some().replace(encoder=None))
    assert not list(tmp_path.iterdir())


def test_a_stale_database_is_refused(saved):
    with pytest.raises(DatabaseError, match=r"manifest.json: stale: encoded by parameters aaaaaaaaaaaa\.\.\."):
        storage.load(saved, "b" * 64)
    assert storage.load(saved, None).encoder_sha256 == KEY


def test_what_a_database_was_made_from(saved):
    assert storage.is_of(saved, "made of this")
    assert not storage.is_of(saved, "made of that") and not storage.is_of(saved / "nowhere", "made of this")
    (saved / "manifest.json").write_text('{"schema": "protojax.database/1", "arrays": []}')
    assert not storage.is_of(saved, "made of this")
    storage.save(saved, some(3))
    assert storage.load(saved, KEY).capacity == 3
    (saved / "manifest.json").write_text("{")
    with pytest.raises(DatabaseError, match="damaged manifest"):
        storage.is_of(saved, "made of this")


def test_a_missing_database_is_named(tmp_path):
    with pytest.raises(DatabaseError, match=r"nowhere/manifest.json: no database here"):
        storage.load(tmp_path / "nowhere", KEY)


@pytest.mark.parametrize("array", range(4))
@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_damage_is_named(saved, array, damage):
    victim = next(saved.glob(f"00001-{array:02d}-*.npy"))
    content = bytearray(victim.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
    victim.write_bytes(content[:-1] if damage == "cut" else content)
    if damage == "missing":
        victim.unlink()
    with pytest.raises(DatabaseError, match=rf"{victim.name}: {'missing' if damage == 'missing' else 'damaged'}"):
        storage.load(saved, KEY)


EDITED = r"delete the folder and build the database again; that loses its edits \(relabel\), so keep manifest\.json"


@pytest.mark.parametrize("edit", [lambda d: amend.remove(d, [8]), lambda d: amend.relabel(d, [8], 5), "append"])
@pytest.mark.parametrize(("array", "damage"), [(0, "missing"), (1, "missing"), (1, "flip"), (3, "missing")])
def test_damage_is_named_before_anything_is_edited(saved, edit, array, damage):
    if edit == "append":
        more = some(1).replace(ids=jnp.arange(1))

        def edit(folder):
            amend.append(folder, more)

    amend.relabel(saved, [7], 4)
    # Another shard than the one that the edits change.
    victim = next(saved.glob(f"00001-{array:02d}-*.npy"))
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content) if damage == "flip" else victim.unlink()
    before = files_of(saved)
    word = "missing" if damage == "missing" else "damaged: .*"
    for asked in (edit, storage.info):
        with pytest.raises(DatabaseError, match=rf"{victim.name}: {word}; {EDITED}"):
            asked(saved)
    assert files_of(saved) == before


@pytest.mark.parametrize("place", [3, 17])
def test_an_id_twice_is_refused(saved, place):
    stored = shards.read(saved)
    ids, file = stored.whole("ids"), stored.manifest.shards[place // 10].files[0]
    ids[place] = 7
    own = ids[place // 10 * 10 :][:10]
    np.save(saved / file.file, own)
    entry = {"file": file.file, "sha256": resumable.sha256_of(saved / file.file)}
    edit(saved, lambda m: m["shards"][place // 10]["files"].__setitem__(0, entry))
    for ask in (lambda: storage.load(saved, KEY), lambda: storage.info(saved), lambda: amend.remove(saved, [8])):
        with pytest.raises(DatabaseError, match=rf"{file.file}: damaged: id 7 stands more than once in this database"):
            ask()


def put(folder: Path, array: np.ndarray, **options) -> None:
    """Puts an array in place of the ids of the first shard, with the right hash."""
    np.save(folder / "00000-00.npy", array, **options)
    entry = {"file": "00000-00.npy", "sha256": resumable.sha256_of(folder / "00000-00.npy")}
    edit(folder, lambda m: m["shards"][0]["files"].__setitem__(0, entry))


def test_a_pickle_is_not_opened(saved):
    put(saved, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DatabaseError, match=r"00000-00\.npy: not an array of numbers"):
        storage.load(saved, KEY)


@pytest.mark.parametrize("array", [np.zeros(9, np.int32), np.zeros(10, np.int64), np.zeros((10, 1), np.int32)])
def test_another_shape_or_type_is_refused(saved, array):
    put(saved, array)
    message = (
        rf"00000-00\.npy: holds {array.dtype} \{str(list(array.shape))[:-1]}\], but manifest.json says int32 \[10\]"
    )
    with pytest.raises(DatabaseError, match=message):
        storage.load(saved, KEY)


@pytest.mark.parametrize("name", ["../secret.npy", "sub/../../secret.npy", "..", "", "{tmp}/secret.npy"])
def test_a_path_outside_the_folder_is_refused(saved, name):
    np.save(saved.parent / "secret.npy", np.zeros(10, np.int32))
    edit(saved, lambda m: m["shards"][0]["files"][0].update(file=name.format(tmp=saved.parent)))
    with pytest.raises(DatabaseError, match=r"manifest.json: names a file outside its folder"):
        storage.load(saved, KEY)


def test_a_link_out_of_the_folder_is_refused(saved):
    victim = next(saved.glob("00000-00-*.npy"))
    np.save(saved.parent / "secret.npy", np.arange(10, dtype=np.int32))
    victim.unlink()
    victim.symlink_to(saved.parent / "secret.npy")
    with pytest.raises(DatabaseError, match="outside its folder"):
        storage.load(saved, KEY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema="protojax.database/9"), "schema 'protojax.database/9'"),
        (lambda m: m.pop("schema"), "damaged manifest .schema: Field required"),
        (lambda m: m.pop("arrays"), "damaged manifest .arrays: Field required"),
        (lambda m: m.update(rows=0), "damaged manifest .rows"),
        (lambda m: m.update(parameters_sha256="x"), "damaged manifest .parameters_sha256"),
        (lambda m: m["arrays"][0].update(path=[]), r"damaged manifest .arrays\.0\.path"),
        (lambda m: m["arrays"][2].update(dtype="object"), r"damaged manifest .arrays\.2\.dtype"),
        (lambda m: m["arrays"][0].update(dtype="float32"), "damaged manifest: ids of float32"),
        (lambda m: m["arrays"].pop(0), r"damaged manifest: holds \['embeddings', 'labels'\]"),
        (lambda m: m["arrays"].append(m["arrays"][0]), "damaged manifest: two arrays at ids"),
        (lambda m: m["arrays"].append({**m["arrays"][0], "path": ["ids", "x"]}), r".*two arrays at ids\.x"),
        (lambda m: m["shards"].pop(), "unfinished: 20 of 25 rows"),
        (lambda m: m["shards"].pop(1), "damaged manifest: shard 1 begins with row 20, not 10"),
        (lambda m: m["shards"][1]["files"].pop(), "damaged manifest: shard 1 has 3 files for 4 arrays"),
        (lambda m: m.update(index=[m["shards"][0]["files"][0]]), "damaged manifest: an index of 1 files"),
    ],
)
def test_an_odd_manifest_is_refused(saved, change, message):
    edit(saved, change)
    with pytest.raises(DatabaseError, match=rf"manifest\.json: {message}"):
        storage.load(saved, KEY)


def test_a_cut_manifest_is_refused(saved):
    path = saved / "manifest.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(DatabaseError, match=r"manifest\.json: damaged manifest"):
        storage.load(saved, KEY)


def test_info_says_what_is_there(saved):
    amend.remove(saved, [7, 9])
    about = storage.info(saved)
    assert (about["rows"], about["examples"], about["shards"], about["blocks"]) == (25, 23, 3, None)
    assert about["labels"] == {"0": 11, "1": 12} and about["made_from"] == "made of this"
    assert about["arrays"]["embeddings/deep/er/values"] == {"dtype": "float32", "shape": [3]}
    assert about["bytes"] == sum(path.stat().st_size for path in saved.glob("*.npy"))
    assert [(made["edit"], made["ids"]) for made in about["edits"]] == [("remove", [7, 9])]
    assert json.loads(json.dumps(about)) == about


def test_edits_on_disk_are_those_in_memory(saved):
    memory = some()
    amend.remove(saved, [7, 20])
    amend.relabel(saved, [8, 30], 5)
    amend.relabel(saved, [9, 21], [6, 7])
    memory = memory.remove([7, 20]).relabel([8, 30], 5).relabel([9, 21], [6, 7])
    assert equal(storage.load(saved, KEY), memory)
    more = some(50).replace(ids=jnp.arange(50, dtype=jnp.int32) + 1000).remove([1003])
    amend.append(saved, more)
    kept = np.delete(np.arange(50), 3)
    loaded = storage.load(saved, KEY)
    # The two places that were emptied come first, then those behind the others.
    wanted = memory.grow(72).append(more.ids[kept], more.labels[kept], jax.tree.map(lambda x: x[kept], more.embeddings))
    assert loaded.capacity == 72 and int(loaded.count) == 23 + 49
    assert equal(loaded, wanted)
    # The last shard was filled up first.
    assert [shard["rows"] for shard in tree(saved)["shards"]] == [10] * 7 + [2]
    assert [made["edit"] for made in tree(saved)["edits"]] == ["remove", "relabel", "relabel", "append"]
    assert storage.is_of(saved, "made of this") and tree(saved)["parameters_sha256"] == KEY
    assert set(files_of(saved)) == manifest.named(manifest.read(saved)) | {"manifest.json"}


def test_only_what_changes_is_written(saved):
    before = files_of(saved)
    amend.relabel(saved, [20], 9)
    after = files_of(saved)
    assert {name[:8] for name in set(before) ^ set(after)} == {"00001-01"}
    amend.remove(saved, [20])
    assert {name[:8] for name in set(files_of(saved)) ^ set(after)} == {"00001-00", "00001-01"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: amend.remove(folder, [7, 3]), r"ids \[3\] are not in the database \(1 of 2\)"),
        (lambda folder: amend.relabel(folder, [7], -1), r"ids \[7\] have negative labels"),
        (lambda folder: amend.append(folder, some(2)), r"ids \[7, 8\] are in the database already"),
        (lambda folder: amend.append(folder, some(2, "b" * 64)), r"but the examples to append by bbbbbbbbbbbb"),
        (lambda folder: amend.append(folder, some(2).replace(encoder=None)), "append by unknown one"),
        (
            lambda folder: amend.append(folder, some(2).replace(ids=jnp.arange(2), embeddings=jnp.zeros((2, 2)))),
            "embeddings have the structure",
        ),
        (lambda folder: amend.index(folder, some(2, "b" * 64)), "stale"),
    ],
)
def test_impossible_edits_change_nothing(saved, change, message):
    before = files_of(saved)
    with pytest.raises(ValueError, match=message):
        change(saved)
    assert files_of(saved) == before


def test_a_full_disk_leaves_the_database_unedited(saved, monkeypatch):
    before = files_of(saved)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(OSError, match="No space left"):
            amend.remove(saved, [7])
    assert files_of(saved) == before
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        amend.remove(saved, [7, 20])
    assert files_of(saved) == before


def test_two_edits_at_once_are_not_mixed(saved, monkeypatch):
    kept = manifest.write_array

    def meanwhile(folder, name, array):
        monkeypatch.setattr(manifest, "write_array", kept)
        amend.relabel(saved, [25], 4)
        return kept(folder, name, array)

    monkeypatch.setattr(manifest, "write_array", meanwhile)
    with pytest.raises(DatabaseError, match="changed by somebody else meanwhile"):
        amend.remove(saved, [7])
    assert equal(storage.load(saved, KEY), some().relabel([25], 4))


def test_compaction_on_disk_is_that_in_memory(saved):
    amend.remove(saved, [7, 9, *range(17, 27)])
    wanted = storage.load(saved, KEY).compact()
    amend.compact(saved)
    assert equal(storage.load(saved, KEY), wanted) and storage.is_of(saved, "made of this")
    assert [shard["rows"] for shard in tree(saved)["shards"]] == [10, 3]
    assert [made["edit"] for made in tree(saved)["edits"]] == ["remove", "compact"]
    assert set(files_of(saved)) == manifest.named(manifest.read(saved)) | {"manifest.json"}


def test_a_database_without_gaps_is_not_compacted(saved):
    before = files_of(saved)
    amend.compact(saved)
    assert files_of(saved) == before


def test_files_that_another_edit_swept_away_are_missed_before_they_are_named(saved, monkeypatch):
    amend.remove(saved, [7, 8])
    before, kept = files_of(saved), manifest.add_shard

    def swept(folder, changed, rows):
        kept(folder, changed, rows)
        manifest.sweep(folder)

    monkeypatch.setattr(manifest, "add_shard", swept)
    with pytest.raises(DatabaseError, match=r"00000-00-.*\.npy: missing"):
        amend.compact(saved)
    assert files_of(saved) == before


def test_a_compacted_database_of_nobody_has_one_place(saved):
    amend.remove(saved, np.arange(7, 32))
    amend.compact(saved)
    assert (storage.info(saved)["rows"], storage.info(saved)["examples"]) == (1, 0)
    amend.append(saved, some(2).replace(ids=jnp.arange(2)))
    assert storage.load(saved, KEY).ids.tolist() == [0, 1]


def test_appended_examples_take_empty_places_before_new_ones(saved):
    amend.remove(saved, [9, 30])
    few = some(1).replace(ids=jnp.arange(1))
    untouched = {name for name in files_of(saved) if name.startswith(("00001", "00002"))}
    amend.append(saved, few)
    loaded = storage.load(saved, KEY)
    assert loaded.capacity == 25 and loaded.ids[2] == 0 and loaded.ids[23] == -1
    assert untouched <= set(files_of(saved))


def test_rows_are_taken_from_any_places(saved):
    stored = shards.read(saved)
    rows, keys = np.array([[24, 0, -1], [9, 10, 24]]), np.asarray(some().embeddings["keys"])
    taken = stored.take(stored.place("embeddings", "keys"), rows)
    np.testing.assert_array_equal(taken, np.where(rows[..., None] >= 0, keys[rows], 0))
    np.testing.assert_array_equal(stored.take(stored.place("ids"), rows), np.where(rows >= 0, rows + 7, -1))


def test_an_index_is_kept_until_rows_are_appended(saved):
    indexed = storage.load(saved, KEY).index(4)
    amend.index(saved, indexed)
    assert equal(storage.load(saved, KEY), indexed) and storage.info(saved)["blocks"] == 7
    amend.remove(saved, [9])
    assert equal(storage.load(saved, KEY), indexed.remove([9]))
    amend.append(saved, some(1).replace(ids=jnp.arange(1)))
    assert storage.load(saved, KEY).clusters is None
    assert not list(saved.glob("index*"))
