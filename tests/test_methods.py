import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from protojax import config
from protojax.candidates import CandidateDatabase
from protojax.methods import encoder, protoattend
from protojax.methods.method import support_of


class Flat(nn.Module):
    """An encoder that a reader can follow: features are the inputs themselves."""

    def __call__(self, inputs, train):
        return inputs, {}


def reference_sparsemax(scores):
    sorted_scores = -np.sort(-scores, axis=-1)
    sums = np.cumsum(sorted_scores, axis=-1)
    counts = np.arange(1, scores.shape[-1] + 1)
    size = (1 + counts * sorted_scores > sums).sum(axis=-1)
    threshold = (np.take_along_axis(sums, size[:, None] - 1, axis=-1) - 1) / size[:, None]
    return np.maximum(scores - threshold, 0)


def reference_softmax(scores):
    exponents = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


def make(normalizer="sparsemax", sparsity=0.0, exclude_own=True, alpha=(0.45, 0.45)):
    settings = config.ProtoAttendSettings(
        normalizer=normalizer, key_size=3, value_size=4, sparsity=sparsity, exclude_own=exclude_own, alpha=alpha
    )
    method = protoattend.build(Flat(), 3, settings)
    keys = jax.random.split(jax.random.key(1), 4)
    batch = {
        "id": jnp.array([0, 1, 2, 7], jnp.int32),
        "inputs": 2 * jax.random.normal(keys[0], (4, 5)),
        "label": jnp.array([0, 1, 2, 1], jnp.int32),
        "candidates": {
            "id": jnp.array([2, 3, 4, 5, 6, 0], jnp.int32),
            "inputs": 2 * jax.random.normal(keys[1], (6, 5)),
            "label": jnp.array([0, 1, 2, 0, 1, 2], jnp.int32),
        },
    }
    return method, method.init(keys[2], batch), batch


def embeddings(params, inputs):
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    inputs = np.asarray(inputs, np.float64)

    def dense(x, layer):
        return np.maximum(x @ layer["kernel"] + layer["bias"], 0)

    values = dense(inputs, params["classifier"]["value"])
    values = (values - values.mean(-1, keepdims=True)) / np.sqrt(values.var(-1, keepdims=True) + 1e-6)
    values = values * params["classifier"]["value_norm"]["scale"] + params["classifier"]["value_norm"]["bias"]
    return dense(inputs, params["query"]), dense(inputs, params["key"]), values


def reference(variables, batch, normalizer, exclude_own):
    """Queries' values, weights and mixture of equation 1, in float64."""
    params = variables["params"]
    queries, _, values = embeddings(params, batch["inputs"])
    _, keys, candidate_values = embeddings(params, batch["candidates"]["inputs"])
    scores = queries @ keys.T / np.sqrt(3)
    if exclude_own:
        own = np.asarray(batch["id"])[:, None] == np.asarray(batch["candidates"]["id"])[None, :]
        scores = np.where(own, -1e30, scores)
    weights = {"sparsemax": reference_sparsemax, "softmax": reference_softmax}[normalizer](scores)
    decision = np.asarray(params["classifier"]["decision"]["kernel"], np.float64)
    return values, weights, weights @ candidate_values, decision


def cross_entropy(logits, labels):
    shifted = logits - logits.max(-1, keepdims=True)
    return np.mean(np.log(np.exp(shifted).sum(-1)) - np.take_along_axis(shifted, np.asarray(labels)[:, None], 1)[:, 0])


@pytest.mark.parametrize("normalizer", ["sparsemax", "softmax"])
@pytest.mark.parametrize("exclude_own", [True, False])
def test_every_term_of_the_loss_against_float64(normalizer, exclude_own):
    method, variables, batch = make(normalizer, sparsity=0.3, exclude_own=exclude_own)
    total, (_, metrics) = method.loss(variables, batch, jax.random.key(0), 0)
    values, weights, mixture, decision = reference(variables, batch, normalizer, exclude_own)
    expected = {
        "loss_encoder": cross_entropy(values @ decision, batch["label"]),
        "loss_prototypes": cross_entropy(mixture @ decision, batch["label"]),
        "loss_joint": cross_entropy((0.55 * values + 0.45 * mixture) @ decision, batch["label"]),
        "entropy": np.mean(-(weights * np.log(weights + 1e-6)).sum(-1)),
        "support_size": np.mean((weights > 0).sum(-1)),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-5, err_msg=name)
    three = expected["loss_encoder"] + expected["loss_prototypes"] + expected["loss_joint"]
    np.testing.assert_allclose(total, three + 0.3 * expected["entropy"], rtol=2e-5)


@pytest.mark.parametrize("normalizer", ["sparsemax", "softmax"])
def test_the_gradient_against_finite_differences(normalizer):
    method, variables, batch = make(normalizer, sparsity=0.1)

    def loss(params):
        return method.loss({"params": params}, batch, jax.random.key(0), 0)[0]

    gradient = jax.grad(loss)(variables["params"])
    directions = jax.tree.map(
        lambda x: jnp.asarray(np.random.default_rng(x.size).normal(size=x.shape), x.dtype), gradient
    )
    along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradient, directions)))
    step = 1e-3

    def at(t):
        return float(loss(jax.tree.map(lambda p, d: p + t * d, variables["params"], directions)))

    np.testing.assert_allclose(along, (at(step) - at(-step)) / (2 * step), rtol=2e-2)


def test_the_share_of_the_prototypes_is_drawn_between_its_bounds():
    method, variables, batch = make(alpha=(0.0, 0.9))
    joint = [float(method.loss(variables, batch, jax.random.key(s), 0)[1][1]["loss_joint"]) for s in range(4)]
    assert len(set(joint)) == 4
    _, (_, fixed) = make(alpha=(0.0, 0.0))[0].loss(variables, batch, jax.random.key(0), 0)
    np.testing.assert_allclose(fixed["loss_joint"], fixed["loss_encoder"], rtol=1e-6)


@pytest.mark.parametrize("normalizer", ["sparsemax", "softmax"])
def test_predictions_against_float64(normalizer):
    method, variables, batch = make(normalizer)
    candidates = batch["candidates"]
    memory = CandidateDatabase(candidates["id"], candidates["label"], method.encode(variables, candidates["inputs"]))
    prediction = method.predict(variables, memory, batch, 6)
    values, weights, mixture, decision = reference(variables, batch, normalizer, True)
    np.testing.assert_allclose(prediction.scores, reference_softmax(mixture @ decision), atol=1e-5)
    np.testing.assert_allclose(prediction.encoder_scores, reference_softmax(values @ decision), atol=1e-5)
    labels = np.asarray(memory.labels)
    mass = np.stack([weights[:, labels == m].sum(-1) for m in range(3)], axis=-1)
    np.testing.assert_allclose(prediction.confidence, mass.max(-1), atol=1e-5)
    order = np.argsort(-weights, axis=-1, kind="stable")
    heaviest = np.take_along_axis(weights, order, axis=-1)
    np.testing.assert_allclose(prediction.support.weights, heaviest, atol=1e-5)
    np.testing.assert_array_equal(prediction.support.size, (weights > 0).sum(-1))
    for j, share in enumerate((0.5, 0.9, 0.95)):
        needed = 1 + (np.cumsum(heaviest, axis=-1) < share - 1e-6).sum(-1)
        np.testing.assert_array_equal(prediction.prototypes_for[:, j], needed)
    used = heaviest > 0
    np.testing.assert_array_equal(prediction.support.ids, np.where(used, np.asarray(memory.ids)[order], -1))
    np.testing.assert_array_equal(prediction.support.labels, np.where(used, labels[order], -1))


def test_an_example_is_never_its_own_prototype():
    method, variables, batch = make()
    memory = CandidateDatabase(batch["id"], batch["label"], method.encode(variables, batch["inputs"]))
    prediction = method.predict(variables, memory, batch, 4)
    assert not (prediction.support.ids == batch["id"][:, None]).any()


def test_predictions_do_not_depend_on_the_order_of_the_candidates():
    method, variables, batch = make()
    candidates = batch["candidates"]
    memory = CandidateDatabase(candidates["id"], candidates["label"], method.encode(variables, candidates["inputs"]))
    order = jnp.array([3, 1, 5, 0, 2, 4])
    shuffled = jax.tree.map(lambda x: x[order], memory)
    first, second = (method.predict(variables, m, batch, 6) for m in (memory, shuffled))
    np.testing.assert_allclose(first.scores, second.scores, atol=1e-6)
    # Equal weights may stand in another order, so compare the weight that each id got.
    for a, b in zip(*(zip(p.support.ids, p.support.weights, strict=True) for p in (first, second)), strict=True):
        pairs = [dict(zip(ids.tolist(), weights.tolist(), strict=True)) for ids, weights in (a, b)]
        assert pairs[0] == pytest.approx(pairs[1], abs=1e-6)


def test_the_baseline_is_its_first_term():
    method, variables, batch = make()
    baseline = encoder.build(Flat(), 3, 4)
    trunk = {"params": variables["params"]["classifier"]}
    loss, (_, metrics) = baseline.loss(trunk, batch, jax.random.key(0), 0)
    _, (_, expected) = method.loss(variables, batch, jax.random.key(0), 0)
    np.testing.assert_allclose(loss, expected["loss_encoder"], rtol=1e-6)
    memory = CandidateDatabase(batch["id"], batch["label"], baseline.encode(trunk, batch["inputs"]))
    prediction = baseline.predict(trunk, memory, batch, 2)
    np.testing.assert_array_equal(prediction.support.size, 0)
    np.testing.assert_allclose(prediction.confidence, prediction.scores.max(-1))


def test_a_support_wider_than_there_are_prototypes():
    with pytest.raises(ValueError, match="a support of width 5 was asked for, but there are 3 prototypes"):
        support_of(jnp.ones((2, 3)) / 3, jnp.arange(3), jnp.arange(3), 5)
