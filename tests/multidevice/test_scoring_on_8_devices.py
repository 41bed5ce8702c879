"""Scoring with a database that is split over 8 devices: the answers of one device, and no row leaves its own."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType, Mesh

from protojax import config, database, evaluate, neighbours, sharding, storage
from protojax.candidates import CandidateDatabase
from protojax.methods import protoattend

CLASSES, COUNT, SIZE, BATCH, WIDTH = 4, 1001, 6, 24, 32


class Flat(nn.Module):
    """Features are the inputs themselves."""

    def __call__(self, inputs, train):
        return inputs, {}


class Source:
    def __init__(self, n, first=0):
        rng = np.random.default_rng(n)
        self.ids = np.arange(first, first + n, dtype=np.int32)
        self.inputs = rng.normal(size=(n, SIZE)).astype(np.float32)
        self.labels = rng.integers(0, CLASSES, n).astype(np.int32)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"id": self.ids[i], "inputs": self.inputs[i], "label": self.labels[i]}


# The first are candidates themselves, which they are not to lean on.
TRAINING, ASKED = Source(COUNT), Source(37, first=990)
# From supports of a few to some that are not listed whole.
ASKED.inputs *= np.geomspace(4, 0.1, 37, dtype=np.float32)[:, None]


def plain(inputs, ids):
    return inputs


def method_of(normalizer="sparsemax"):
    settings = config.ProtoAttendSettings(normalizer=normalizer, key_size=SIZE, value_size=5)
    method = protoattend.build(Flat(), CLASSES, settings)
    variables = method.init(jax.random.key(0), {"inputs": jnp.zeros((1, SIZE))})
    # No query is 0, for which all candidates would weigh the same.
    variables["params"]["query"]["bias"] += 0.05
    return method, variables


def memory_of(method, variables):
    every = np.arange(COUNT)
    return database.build(method, variables, TRAINING, every, plain, 256, progress=False)


def score(method, variables, memory):
    return evaluate.score(method, variables, memory, ASKED, plain, BATCH, WIDTH, progress=False)


@contextlib.contextmanager
def on_one_device():
    one = Mesh(np.array(jax.devices()[:1]), ("data",), axis_types=(AxisType.Auto,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "mesh", lambda: one)
        yield


def assert_same(found, expected):
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.predicted, expected.predicted)
    for name in ("scores", "encoder_scores", "confidence"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(found.prototypes_for, expected.prototypes_for)
    np.testing.assert_allclose(found.support.weights, expected.support.weights, atol=1e-5)
    for name in ("ids", "labels", "size"):
        np.testing.assert_array_equal(getattr(found.support, name), getattr(expected.support, name), err_msg=name)


EDITED = {
    "as built": lambda memory: memory,
    "removed": lambda memory: memory.remove(np.arange(100, 500)),
    "indexed": lambda memory: memory.index(32),
}


@pytest.mark.parametrize("edit", EDITED)
def test_8_devices_score_as_one(edit):
    method, variables = method_of()
    memory = EDITED[edit](memory_of(method, variables))
    with on_one_device():
        expected = score(method, variables, memory)
    assert (expected.support.size > WIDTH).any() and (expected.support.size < WIDTH).any()
    assert not (expected.support.ids == expected.ids[:, None]).any()
    found = score(method, variables, memory)
    assert_same(found, expected)
    # One that was split before is left where it is, edited or not.
    split = memory_of(method, variables).split(sharding.mesh())
    assert_same(score(method, variables, EDITED[edit](split)), expected)


def test_softmax_on_8_devices_is_that_of_one():
    method, variables = method_of("softmax")
    memory = memory_of(method, variables).remove([3, 1000])
    with on_one_device():
        expected = score(method, variables, memory)
    assert_same(score(method, variables, memory), expected)


def test_what_crosses_devices_to_score_does_not_grow_with_the_database(crossing):
    method, variables = method_of()

    def compiled(candidates):
        numbers = jnp.arange(candidates, dtype=jnp.int32)
        embeddings = {"keys": jnp.zeros((candidates, SIZE)), "values": jnp.zeros((candidates, 5))}
        placed = evaluate._placed(method, CandidateDatabase(numbers, numbers % CLASSES, embeddings))
        batch = sharding.from_local(database._read(ASKED, np.arange(BATCH)), sharding.mesh())
        arguments = sharding.everywhere(variables), placed, batch
        return evaluate._predict.lower(method, plain, WIDTH, *arguments).compile()

    # Large enough for every way of solving, and far beyond what may cross.
    moved, sizes = crossing(compiled(1 << 19))
    assert {kind for _, kind in moved} <= {"all-gather", "all-reduce", "collective-permute", "all-to-all"}
    # Of one device come 256 candidates at most.
    assert 8 * 64 <= max(sizes) <= 8 * 256


def test_a_split_database_says_so():
    method, variables = method_of()
    memory, mesh = memory_of(method, variables), sharding.mesh()
    split = memory.split(mesh)
    edits = [
        lambda x: x,
        lambda x: x.remove([5]).append([2000], [1], jax.tree.map(lambda y: np.asarray(y[:1]), memory.embeddings)),
        lambda x: x.relabel([7], 2).grow(1016),
        lambda x: x.remove(np.arange(100)).compact(),
        lambda x: x.index(16),
    ]
    assert all(edit(split).mesh == mesh and edit(memory).mesh is None for edit in edits)
    few = Mesh(np.array(jax.devices()[:3]), ("data",), axis_types=(AxisType.Auto,))
    for other in (split.split(few).split(mesh), split.whole().split(mesh)):
        assert other.mesh == mesh and other.ids.sharding == sharding.along_data(mesh)
        np.testing.assert_array_equal(other.compact().ids[:COUNT], memory.ids)
    whole = split.whole()
    assert whole.mesh is None and len(whole.embeddings["keys"].devices()) == 1
    with on_one_device():
        assert_same(score(method, variables, split), score(method, variables, memory))


def test_a_method_whose_decisions_lean_on_no_example_has_its_memory_everywhere():
    method, variables = method_of()
    memory = memory_of(method, variables)
    placed = evaluate._placed(method._replace(leans_on=None), memory)
    assert placed.mesh is None and placed.capacity == COUNT
    assert all(x.sharding == sharding.replicated(sharding.mesh()) for x in jax.tree.leaves(placed))


def test_a_database_is_read_to_its_devices_and_predicts_there(tmp_path):
    method, variables = method_of()
    arguments = method, variables, TRAINING, np.arange(COUNT), plain, 256
    mesh = evaluate.mesh_of(method)
    loaded = database.load_or_build(tmp_path / "database", *arguments, progress=False, mesh=mesh)
    assert loaded.mesh == mesh == sharding.mesh() and loaded.capacity == 1008
    assert loaded.embeddings["values"].sharding == sharding.along_data(mesh)
    assert evaluate._placed(method, loaded) is loaded
    whole = storage.load(tmp_path / "database", loaded.encoder_sha256)
    batch = database._read(ASKED, np.arange(8))
    # Not compiled, as whoever asks in Python does it.
    found, expected = (method.predict(variables, memory, batch, WIDTH) for memory in (loaded, whole))
    np.testing.assert_array_equal(found.support.ids, expected.support.ids)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


def test_neighbours_in_a_split_database_are_those_in_a_whole_one():
    method, variables = method_of()
    memory = memory_of(method, variables)
    calibration, asked = (
        database.build(method, variables, source, np.arange(len(source)), plain, 32, progress=False)
        for source in (Source(50, first=3000), Source(20, first=4000))
    )
    expected = neighbours.judge(memory, calibration, asked, 25, CLASSES)
    found = neighbours.judge(memory.split(sharding.mesh()), calibration, asked, 25, CLASSES)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
