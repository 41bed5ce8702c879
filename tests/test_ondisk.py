"""Tests of protojax.ondisk: what is solved shard by shard is what is solved at once."""

import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax import manifest, ondisk, ops, prefetch, shards, storage
from protojax.candidates import CandidateDatabase
from protojax.manifest import DatabaseError

SHARES = (0.5, 0.9)
N, D, V, CLASSES = 300, 6, 5, 4


def some(spread: float = 1.0, seed: int = 0) -> CandidateDatabase:
    rng = np.random.default_rng(seed)
    embeddings = {
        "keys": jnp.asarray(rng.normal(size=(N, D)) * spread, jnp.float32),
        "values": jnp.asarray(rng.normal(size=(N, V)), jnp.float32),
    }
    ids = rng.permutation(10 * N)[:N].astype(np.int32)
    labels = rng.integers(0, CLASSES, N).astype(np.int32)
    encoder = jnp.asarray(shards.encoder_leaf("a" * 64))
    return CandidateDatabase(jnp.asarray(ids), jnp.asarray(labels), embeddings, encoder=encoder)


def queries(scale: float, count: int = 9, seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(count, D)) * scale, jnp.float32)


@pytest.fixture
def put(tmp_path, monkeypatch):
    def put(memory: CandidateDatabase, rows: int = 64) -> shards.Shards:
        monkeypatch.setattr(manifest, "ROWS", rows)
        storage.save(tmp_path / "database", memory)
        return shards.read(tmp_path / "database")

    return put


def at_once(memory: CandidateDatabase, asked: jax.Array, **options) -> ops.Attended:
    keys, values = memory.embeddings["keys"], memory.embeddings["values"]
    return ops.attend(asked, keys, values, ids=memory.ids, labels=memory.labels, execution="dense", **options)


def check(got: ops.Attended, wanted: ops.Attended) -> None:
    for name in ("outputs", "weights", "threshold", "class_mass"):
        np.testing.assert_allclose(getattr(got, name), getattr(wanted, name), atol=2e-6, rtol=1e-5, err_msg=name)
    for name in ("ids", "labels", "size", "fewest", "exact"):
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name), err_msg=name)
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape


def excluding(memory: CandidateDatabase, asked: jax.Array) -> np.ndarray:
    """The best candidate of most queries, an unknown id of others, and nobody's."""
    best = np.array(at_once(memory, asked, width=1).ids)[:, 0]
    best[1], best[2] = 10 * N + 5, -1
    return best


@pytest.mark.parametrize(("scale", "width"), [(30.0, 8), (3.0, 8), (0.1, 8), (0.1, 100)])
def test_supports_that_straddle_shards(put, scale, width):
    memory, asked = some(), queries(scale)
    options = {"width": width, "classes": CLASSES, "shares": SHARES, "exclude": excluding(memory, asked)}
    wanted = at_once(memory, asked, **options)
    # From a handful of candidates to more than are listed of a shard.
    assert int(wanted.size.max()) > 16 if scale < 1 else int(wanted.size.max()) < 12
    check(ondisk.attend(put(memory), asked, **options), wanted)


def test_a_support_of_everything(put):
    memory, asked = some(spread=1e-4), queries(1)
    wanted = at_once(memory, asked, width=8, classes=CLASSES, shares=SHARES)
    assert int(wanted.size.min()) == N
    check(ondisk.attend(put(memory), asked, width=8, classes=CLASSES, shares=SHARES), wanted)


def test_one_shard_that_holds_every_support(put):
    memory, asked = some(), queries(1)
    keys = np.array(memory.embeddings["keys"]) * 0.01
    keys[130:140] = np.random.default_rng(3).normal(size=(10, D)) * 0.1 + np.asarray(asked[0]) * 3
    memory = memory.replace(embeddings={**memory.embeddings, "keys": jnp.asarray(keys)})
    asked = asked[:1] + asked * 0.01
    wanted = at_once(memory, asked, width=8, classes=CLASSES, shares=SHARES)
    assert set(np.asarray(wanted.ids)[np.asarray(wanted.weights) > 0]) <= set(np.asarray(memory.ids[130:140]).tolist())
    check(ondisk.attend(put(memory), asked, width=8, classes=CLASSES, shares=SHARES), wanted)


def test_empty_places_get_no_weight(put):
    memory, asked = some(), queries(3)
    best = np.unique(np.asarray(at_once(memory, asked, width=3).ids))
    # A whole shard of empty places, too.
    removed = memory.remove(np.union1d(best[best >= 0], np.asarray(memory.ids[64:128])))
    wanted = at_once(removed, asked, width=8, classes=CLASSES, shares=SHARES)
    check(ondisk.attend(put(removed), asked, width=8, classes=CLASSES, shares=SHARES), wanted)


@pytest.mark.parametrize("normalizer", ["sparsemax", "softmax"])
def test_a_query_without_candidates(put, normalizer):
    memory, asked = some(), queries(1)
    empty = memory.remove(memory.ids[1:])
    options = {"width": 8, "classes": CLASSES, "normalizer": normalizer, "exclude": np.full(9, memory.ids[0])}
    options["exclude"][3] = -1
    got = ondisk.attend(put(empty), asked, shares=SHARES, **options)
    np.testing.assert_array_equal(got.size, [0, 0, 0, 1, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(got.outputs[3], memory.embeddings["values"][0], rtol=1e-6)
    assert not np.asarray(got.outputs)[[0, 1, 8]].any() and (np.asarray(got.ids)[[0, 8]] == -1).all()


@pytest.mark.parametrize(("scale", "width"), [(30.0, 100), (1.0, 8)])
def test_softmax(put, scale, width):
    memory, asked = some(), queries(scale)
    memory = memory.remove(memory.ids[3:70:2])
    options = {"width": width, "classes": CLASSES, "shares": SHARES, "normalizer": "softmax"}
    options["exclude"] = excluding(memory, asked)
    wanted = at_once(memory, asked, **options)
    got = ondisk.attend(put(memory), asked, **options)
    # Weights that only vanish beside those of other shards are counted.
    assert (np.asarray(got.size) >= np.asarray(wanted.size)).all()
    check(got._replace(size=wanted.size), wanted)


@pytest.mark.parametrize("normalizer", ["sparsemax", "softmax"])
@pytest.mark.parametrize("rows_a_block", [None, 8])
@pytest.mark.parametrize("key", [np.nan, np.inf])
def test_a_key_that_is_not_finite_is_no_less_seen_than_in_memory(put, key, rows_a_block, normalizer):
    memory, asked = some(), queries(3.0, 3)
    if rows_a_block:
        memory = memory.index(rows_a_block)
    keys = memory.embeddings["keys"].at[130, 2].set(key)
    memory = memory.replace(embeddings={**memory.embeddings, "keys": keys})
    if rows_a_block:
        memory = memory.replace(clusters=ops.cluster_index(keys, rows_a_block))
    options = {"width": 8, "classes": CLASSES, "shares": SHARES, "normalizer": normalizer}
    wanted = at_once(memory, asked, **options)
    # An infinite key takes the last query away from itself: a score of -inf is a number.
    assert np.asarray(wanted.exact).tolist() == [False, False, np.isinf(key)]
    wanted = wanted._replace(weights=jnp.where(wanted.exact[:, None], wanted.weights, jnp.nan))
    check(ondisk.attend(put(memory), asked, **options), wanted)


def test_one_candidate_a_shard(put):
    memory, asked = some().remove(some().ids[20:]).compact(), queries(3)
    check(
        ondisk.attend(put(memory, rows=1), asked[:2], width=8, classes=CLASSES, shares=SHARES),
        at_once(memory, asked[:2], width=8, classes=CLASSES, shares=SHARES),
    )


def test_large_unions_are_solved_in_groups(put, monkeypatch):
    monkeypatch.setattr(ondisk, "_FLOATS_AT_ONCE", 5000)
    memory, asked = some(), queries(1)
    wanted = at_once(memory, asked, width=8, classes=CLASSES, shares=SHARES)
    check(ondisk.attend(put(memory), asked, width=8, classes=CLASSES, shares=SHARES), wanted)


def test_an_index_spares_shards(put):
    rng, centres = np.random.default_rng(0), np.random.default_rng(4).normal(size=(10, D)) * 5
    memory = some()
    keys = jnp.asarray(centres[rng.integers(0, 10, N)] + rng.normal(size=(N, D)) * 0.01, jnp.float32)
    indexed = memory.replace(embeddings={**memory.embeddings, "keys": keys}).index(8)
    stored = put(indexed)
    assert [shard.rows for shard in stored.manifest.shards] == [64, 64, 64, 64, 48]
    options = {"width": 8, "classes": CLASSES, "shares": SHARES}
    asked = jnp.asarray(centres[:1] * 2, jnp.float32)
    check(ondisk.attend(stored, asked, **options), at_once(indexed, asked, **options))
    keys_read = {name for name in stored._checked if "-02-" in name}
    assert 1 <= len(keys_read) <= 3
    check(ondisk.attend(stored, queries(1), **options), at_once(indexed, queries(1), **options))


def test_two_shards_are_held_at_a_time(put, monkeypatch):
    held, most, lock = 0, [], threading.Lock()
    kept = prefetch.Reader.read

    class Watched:
        """Something that dies with its shard."""

        def __init__(self):
            nonlocal held
            with lock:
                held += 1
                most.append(held)

        def __del__(self):
            nonlocal held
            with lock:
                held -= 1

    def read(self, position):
        watch = Watched()
        part = kept(self, position)
        return part._replace(host_ids=Lived.of(part.host_ids, watch))

    class Lived(np.ndarray):
        @classmethod
        def of(cls, array, watch):
            array = array.view(cls)
            array.watch = watch
            return array

    monkeypatch.setattr(prefetch.Reader, "read", read)
    stored = put(some())
    for normalizer in ("sparsemax", "softmax"):
        ondisk.attend(stored, queries(1), width=8, normalizer=normalizer)
    assert len(most) == 2 * 5 and max(most) == 2 and held == 0


def test_damage_is_named(put):
    memory = some()
    stored = put(memory)
    victim: Path = next(stored.folder.glob("00003-02-*.npy"))
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(DatabaseError, match=rf"{victim.name}: damaged"):
        ondisk.attend(stored, queries(1))


@pytest.mark.parametrize(
    ("asked", "options", "message"),
    [
        (queries(1).at[[2, 5], 1].set(jnp.nan), {}, r"queries \[2, 5\] are not finite"),
        (queries(1), {"width": N + 1}, f"width must be 1 to {N}"),
        (queries(1)[:, :3], {}, "queries .* and keys .* differ in their last axis"),
        (queries(1), {"normalizer": "hardmax"}, "normalizer must be"),
    ],
)
def test_what_does_not_fit_is_refused(put, asked, options, message):
    with pytest.raises(ValueError, match=message):
        ondisk.attend(put(some()), asked, **options)


def test_a_database_without_keys_is_refused(put):
    stored = put(some().replace(embeddings={"values": jnp.zeros((N, 2))}))
    with pytest.raises(ValueError, match=r"attention needs embeddings\['keys'\]"):
        ondisk.attend(stored, queries(1))
