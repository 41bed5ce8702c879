"""Where the candidates of a step come from changes what a step costs, not what is computed with them."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from protojax import checkpoint, config, data, networks, ops, optimizer, retrieval, sharding, train
from protojax.methods import protoattend
from protojax.methods.rematerialise import encode_sparsely
from protojax.methods.retrieval import relevance
from protojax.networks.layers import MOMENTUM


class Dense(nn.Module):
    """An encoder that compiles in no time, of inputs `[batch, 8, 8, 1]`."""

    @nn.compact
    def __call__(self, inputs, train):
        return nn.relu(nn.Dense(16)(inputs.reshape(len(inputs), -1))), {}


def convolutions(norm, dropout=0.0):
    return networks.build(config.ConvSettings(filters=(8,), dense=(16,), norm=norm, dropout=dropout))


def make(chunk=None, norm=None, candidates=40, dropout=0.0, sparsity=0.2, scale=1.0, drift=0.0, **changes):
    """A method, its variables and a batch; far-apart keys (a large scale) make small supports."""
    encoder = Dense() if norm is None else convolutions(norm, dropout)
    settings = config.ProtoAttendSettings(key_size=6, value_size=8, sparsity=sparsity, **changes)
    method = protoattend.build(encoder, 5, settings, chunk=chunk)
    keys = jax.random.split(jax.random.key(3), 4)

    def examples(ids, key):
        keys = jax.random.split(key)
        # Later candidates differ from the first ones, so that it matters which of them statistics are taken of.
        inputs = jax.random.normal(keys[0], (len(ids), 8, 8, 1)) + drift * ids[:, None, None, None] / len(ids)
        return {"id": ids, "inputs": inputs, "label": jax.random.randint(keys[1], (len(ids),), 0, 5)}

    batch = examples(jnp.arange(12), keys[0])
    batch["candidates"] = examples(jnp.arange(candidates) + 6, keys[1])
    variables = method.init(keys[2], batch)
    variables["params"]["key"]["kernel"] *= scale
    return method, variables, batch


def loss_and_gradient(method, variables, batch):
    def objective(params):
        return method.loss({**variables, "params": params}, batch, jax.random.key(0), 0)

    (loss, (updates, metrics)), gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(variables["params"])
    return loss, gradient, updates, metrics


@functools.cache
def dense(**changes):
    return loss_and_gradient(*make(**changes))


def assert_close(found, expected):
    """To 1e-5 of its norm: the loss, the whole gradient, all statistics and all metrics."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(found, expected, strict=True):
        a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)] or [np.zeros(1)]) for t in (a, b))
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)


def union_of_supports(variables, batch):
    network = protoattend.Network(Dense(), 5, 6, 8)
    queries = network.apply(variables, batch["inputs"], train=True)[0].queries
    keys = network.apply(variables, batch["candidates"]["inputs"], train=True)[0].keys
    others = batch["id"][:, None] != batch["candidates"]["id"][None, :]
    return int((ops.sparsemax(queries @ keys.T / 6**0.5, where=others) > 0).any(axis=0).sum())


@pytest.mark.parametrize("normalizer", ["sparsemax", "softmax"])
def test_support_back_propagation_gives_the_dense_loss_and_gradient(normalizer):
    """Of a convolution network with group normalisation."""
    changes = {"normalizer": normalizer, "norm": "group"}
    assert_close(loss_and_gradient(*make(16, **changes)), dense(**changes))


def test_candidates_without_dropout_are_those_of_the_database():
    method, variables, batch = make(norm="group", dropout=0.5)
    inputs, candidates = batch["inputs"], batch["candidates"]["inputs"]

    def embedded(candidate_dropout):
        network = protoattend.Network(convolutions("group", 0.5), 5, 6, 8, candidate_dropout)
        rngs = {"dropout": jax.random.key(1)}
        return network.apply(variables, inputs, candidates, method="with_candidates", rngs=rngs)

    stored = jax.jit(method.encode)(variables, candidates)
    (_, dropped), (query, plain) = embedded(True), embedded(False)
    for name in ("keys", "values"):
        np.testing.assert_allclose(getattr(plain, name), stored[name], atol=1e-6)
        assert not np.allclose(getattr(dropped, name), stored[name], atol=0.1)
    assert not np.allclose(query.values, jax.jit(method.encode)(variables, inputs)["values"], atol=0.1)


def test_support_back_propagation_of_an_encoder_with_dropout():
    changes = {"norm": "group", "dropout": 0.5, "candidate_dropout": False}
    assert_close(loss_and_gradient(*make(16, **changes)), dense(**changes))


@pytest.mark.parametrize("chunk, normalizer", [(3, "sparsemax"), (39, "sparsemax"), (256, "sparsemax"), (8, "softmax")])
def test_any_chunk_will_do(chunk, normalizer):
    assert_close(loss_and_gradient(*make(chunk, normalizer=normalizer)), dense(normalizer=normalizer))


@pytest.mark.parametrize("candidates, exclude_own", [(2, True), (7, False), (37, True)])
def test_any_number_of_candidates_will_do(candidates, exclude_own):
    changes = {"candidates": candidates, "exclude_own": exclude_own}
    assert_close(loss_and_gradient(*make(4, **changes)), dense(**changes))


@pytest.mark.parametrize("scale, least, most", [(0.0, 40, 40), (1.0, 17, 39), (1000.0, 1, 8)])
def test_any_union_of_supports_will_do(scale, least, most):
    """More than a round of 8 holds, and less; equal keys put every candidate into every support."""
    _, variables, batch = make(scale=scale)
    assert least <= union_of_supports(variables, batch) <= most
    assert_close(loss_and_gradient(*make(8, scale=scale)), dense(scale=scale))


def test_only_what_got_a_gradient_is_encoded_again():
    rows = []

    def rest(params, held, inputs):
        jax.debug.callback(lambda x: rows.append(np.ravel(x)), inputs)
        return params * inputs

    def loss(params, inputs):
        encoded, _ = encode_sparsely(lambda p, x: (rest(p, (), x), ()), rest, params, inputs, 4, 1)
        return (encoded[jnp.array([3, 11, 8, 17, 3])] ** 2).sum()

    inputs = jnp.arange(1.0, 20.0)[:, None]
    value, gradient = jax.value_and_grad(loss)(jnp.float32(2.0), inputs)
    jax.effects_barrier()
    chosen = np.array([4.0, 12.0, 9.0, 18.0, 4.0])
    np.testing.assert_allclose([value, gradient], [4 * (chosen**2).sum(), 4 * (chosen**2).sum()], rtol=1e-6)
    # Five chunks of four, and one round for the four rows that the loss reads.
    assert len(rows) == 6
    assert set(rows[-1]) == set(chosen)


def test_a_gradient_that_is_not_a_number_is_not_lost():
    def loss(params):
        encoded, _ = encode_sparsely(lambda p, x: (p * x, ()), lambda p, h, x: p * x, params, jnp.ones((6, 1)), 2, 1)
        return jnp.sqrt(encoded[4, 0] * 0)

    assert np.isnan(jax.grad(loss)(jnp.float32(1.0)))


def test_batch_statistics_of_the_first_chunk_are_held():
    """The dense loss with candidates normalised by constants: the statistics of every third one, the first chunk."""
    method, variables, batch = make(16, norm="batch", drift=3.0, candidates=41)
    network = protoattend.Network(convolutions("batch"), 5, 6, 8)

    def averages(start, inputs):
        collections = {"params": variables["params"], "batch_stats": start}
        return network.apply(collections, inputs, train=True, mutable=["batch_stats"])[1]["batch_stats"]

    blank = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    first = batch["candidates"]["inputs"][::3]
    held = jax.tree.map(lambda x: x / (1 - MOMENTUM), averages(blank, first))

    def reference(params):
        query = network.apply({**variables, "params": params}, batch["inputs"], train=True, mutable=["batch_stats"])[0][
            0
        ]
        candidate = network.apply({"params": params, "batch_stats": held}, batch["candidates"]["inputs"], train=False)[
            0
        ]
        others = batch["id"][:, None] != batch["candidates"]["id"][None, :]
        mixture, weights = ops.dense_attend(query.queries, candidate.keys, candidate.values, where=others)
        share = jax.random.uniform(jax.random.split(jax.random.key(0))[1], minval=0.45, maxval=0.5)
        return 0.2 * ops.weight_entropy(weights, protoattend.ENTROPY_EPSILON).mean() + sum(
            ops.cross_entropy(network.apply({"params": params}, v, method="decide"), batch["label"]).mean()
            for v in (query.values, mixture, (1 - share) * query.values + share * mixture)
        )

    loss, gradient, updates, _ = loss_and_gradient(method, variables, batch)
    assert_close((loss, gradient), jax.jit(jax.value_and_grad(reference))(variables["params"]))
    assert_close([updates["batch_stats"]], [averages(averages(variables["batch_stats"], batch["inputs"]), first)])


def reference_weights(scores, normalizer):
    if normalizer == "softmax":
        return np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    ordered = -np.sort(-scores, axis=-1)
    sums, counts = np.cumsum(ordered, axis=-1), np.arange(1, scores.shape[-1] + 1)
    size = (1 + counts * ordered > sums).sum(axis=-1)
    return np.maximum(scores - ((np.take_along_axis(sums, size[:, None] - 1, axis=-1) - 1) / size[:, None]), 0)


@pytest.mark.parametrize("normalizer", ["sparsemax", "softmax"])
def test_relevance_against_float64(normalizer):
    """Of more examples than a tile holds, of which some are empty places, and some the queries themselves."""
    keys = jax.random.split(jax.random.key(0))
    queries, examples = 2 * jax.random.normal(keys[0], (5, 4)), jax.random.normal(keys[1], (1500, 4))
    ids = jnp.arange(1500).at[::7].set(-1)
    found = relevance(queries, jnp.array([1, 2, 3, 1499, 4]), examples, ids, normalizer)
    scores = np.asarray(queries, np.float64) @ np.asarray(examples, np.float64).T / 2
    scores[:, ::7] = -1e30
    scores[np.arange(5), [1, 2, 3, 1499, 4]] = -1e30
    weights = reference_weights(scores, normalizer)
    np.testing.assert_allclose(found.weight, weights.sum(0), atol=1e-5)
    assert np.all(np.asarray(found.margin[::7]) == -np.inf)
    if normalizer == "sparsemax":
        np.testing.assert_array_equal(found.margin > 0, weights.max(0) > 0)
    largest = jnp.maximum(found.margin, 0) if normalizer == "sparsemax" else jnp.exp(found.margin)
    np.testing.assert_allclose(largest, weights.max(0), atol=1e-5)


TINY = {
    "name": "tiny",
    "data": {"augment": {"pad_crop": 1}},
    "encoder": {"kind": "conv", "filters": [4], "dense": [16]},
    "method": {"kind": "protoattend", "key_size": 4, "value_size": 8},
    "train": {
        "steps": 12,
        "batch_size": 16,
        "candidate_count": 24,
        "candidates": "retrieved",
        "candidate_chunk": 512,
        "refresh_every": 3,
        "log_every": 6,
        "checkpoint_every": 4,
    },
}


def settings_with(*overrides):
    return config.override(config.from_tree(TINY, "test"), overrides, "test")


@pytest.fixture(scope="module")
def digits():
    return data.load(config.DataSettings())


def fit(settings, dataset, folder):
    folder.mkdir(exist_ok=True)
    return train.fit(settings, dataset, folder, lambda method, variables: {"score": 0.0}, quiet=True)


def test_resumed_retrieval_is_bitwise_equal(digits, tmp_path):
    """Stopped between two refreshes, so that the stale keys have to be those of before."""
    whole = fit(settings_with(), digits, tmp_path / "whole")
    fit(settings_with("train.steps=4"), digits, tmp_path / "parts")
    resumed = fit(settings_with(), digits, tmp_path / "parts")
    assert resumed.steps_run == 8
    assert checkpoint.digest(resumed.state) == checkpoint.digest(whole.state)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    recalls = [row["retrieval_recall"] for row in rows if "loss" in row]
    assert len(recalls) == 2
    assert all(0 < recall <= 1.0001 for recall in recalls)


def test_retrieving_everything_is_the_dense_step_over_the_training_split(digits, tmp_path):
    small = digits._replace(train=Few(digits.train, 60))
    common = ("train.steps=2", "train.candidate_count=60", "train.refresh_every=1", "optimizer.learning_rate=0.1")
    with pytest.MonkeyPatch.context() as patch:
        # Adam makes whole steps of gradients that are 0 but for rounding.
        patch.setattr(optimizer, "build", lambda *_: optax.sgd(0.05))
        found = fit(settings_with(*common), small, tmp_path / "retrieved").state
        expected = fit(settings_with(*common, "train.candidates=sampled"), small, tmp_path / "sampled").state
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found.params, expected.params)


class Few:
    """The first examples of a split."""

    def __init__(self, source, count):
        self.source, self.count = source, count
        self.ids, self.labels = source.ids[:count], source.labels[:count]

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return self.source[i]


def test_fresh_keys_find_the_whole_support():
    method, variables, batch = make(scale=3.0)
    everything = batch["candidates"]
    keys = method.retrieval.keys(variables, everything["inputs"])
    union = union_of_supports(variables, batch)
    assert union < 40
    for count, complete in ((40, True), (union, True), (union - 1, False)):
        settings = settings_with(f"train.candidate_count={count}", "method.key_size=6")
        retriever = retrieval.build(method, settings, 40, lambda x: x, sharding.mesh())
        assert jnp.array_equal(retriever.refresh(variables, everything), keys)
        recall = float(retriever.recall(variables, keys, keys, everything, batch))
        assert recall == pytest.approx(1, abs=1e-6) if complete else recall < 1 - 1e-6
        stale = float(retriever.recall(variables, -keys, keys, everything, batch))
        assert count == 40 or stale < recall


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.steps_per_dispatch=2", "train.refresh_every = 3 is not a multiple of train.steps_per_dispatch = 2"),
        ("train.parallel=pmap", "'retrieved' needs train.parallel = 'jit'"),
        ("data.class_shares=[0.5, 0.5]", "data.class_shares prescribes the classes"),
    ],
)
def test_what_cannot_be_retrieved(override, message):
    with pytest.raises(ValueError, match=message):
        retrieval.check(settings_with(override))


@pytest.mark.parametrize(
    "overrides, warned",
    [((), True), (("train.candidates=support",), False), (("evaluate.candidate_count=60",), False)],
)
def test_a_database_without_most_of_what_was_retrieved_is_warned_of(overrides, warned):
    line = retrieval.warning(settings_with("evaluate.candidate_count=20", *overrides), 60)
    assert (line or "").startswith("evaluate.candidate_count = 20 of 60: ") == warned
