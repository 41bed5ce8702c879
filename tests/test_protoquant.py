"""ProtoQuant against float64 references in NumPy: every term, every stage, pruning to the bit, and a small run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax import export

from protojax import methods, optimizer
from protojax.candidates import CandidateDatabase
from protojax.config import OptimizerSettings, ProtoQuantSettings
from protojax.methods import protoquant, pruning
from protojax.networks import MapEncoder
from protojax.step import create, train_step

RNG = np.random.default_rng(0)
CLASSES, CODES, SIZE = 3, 10, 6
MAPS = RNG.normal(size=(8, 2, 3, SIZE)).astype(np.float32)
BATCH = {
    "id": jnp.arange(8, dtype=jnp.int32),
    "inputs": jnp.asarray(MAPS),
    "label": jnp.asarray(RNG.integers(0, CLASSES, 8), jnp.int32),
}
KEY = jax.random.key(0)


class WithHead(nn.Module):
    """Maps as they are, with a frozen head on their mean."""

    def setup(self):
        self.dense = nn.Dense(CLASSES)

    def head(self, maps):
        return self.dense(maps.mean(axis=(1, 2)))

    def __call__(self, inputs, train):
        return self.head(inputs), {"map": inputs}


def built(head=True, **settings):
    settings = ProtoQuantSettings(**{"codes": CODES, "codebook_steps": 4} | settings)
    return protoquant.build(WithHead() if head else MapEncoder(), CLASSES, settings)


def variables_of(method):
    variables = jax.jit(method.init)(KEY, BATCH)
    # Some weights below 0, so that the rectifier counts.
    weights = variables["params"]["weights"].at[:, ::3].add(-1)
    return {**variables, "params": {**variables["params"], "weights": weights}}


def exact(variables):
    """The parameters in float64, and what the equations make of them."""
    codes = np.asarray(variables["params"]["codes"], np.float64)
    weights = np.maximum(np.asarray(variables["params"]["weights"], np.float64), 0)
    z = MAPS.astype(np.float64).reshape(8, 6, SIZE)
    cosines = z @ codes.T / np.linalg.norm(z, axis=-1)[..., None] / np.linalg.norm(codes, axis=1)
    shares = np.exp(cosines / 0.1)
    shares /= shares.sum(axis=-1, keepdims=True)
    return codes, weights, z, cosines, shares.max(axis=1)


def cross_entropy(logits, target=None):
    log = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    target = np.eye(CLASSES)[np.asarray(BATCH["label"])] if target is None else target
    return -(target * log).sum(axis=1).mean()


def codebook_loss(variables, task_weight):
    codes, _, z, cosines, _ = exact(variables)
    chosen = codes[cosines.argmax(axis=-1)]
    dense = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["frozen"]["params"]["dense"])
    logits = chosen.mean(axis=1) @ dense["kernel"] + dense["bias"]
    return ((z - chosen) ** 2).sum(axis=-1).mean(), cross_entropy(logits), cosines.argmax(axis=-1)


def classifier_loss(variables, target=None):
    _, weights, _, _, scores = exact(variables)
    return cross_entropy(scores @ weights.T, target), scores @ weights.T


def test_every_term_of_the_codebook_stage():
    method = built(task_weight=0.7)
    variables = variables_of(method)
    total, (updates, metrics) = method.loss(variables, BATCH, KEY, jnp.int32(3))
    loss, task, index = codebook_loss(variables, 0.7)
    assert metrics["loss_codebook"] == pytest.approx(loss, rel=1e-5)
    assert metrics["loss_task"] == pytest.approx(task, rel=1e-5)
    assert total == pytest.approx(loss + 0.7 * task, rel=1e-5)
    used = np.bincount(index.ravel(), minlength=CODES)
    np.testing.assert_array_equal(updates["codebook"]["used"], used)
    shares = used[used > 0] / used.sum()
    assert metrics["perplexity"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-5)
    assert metrics["codes_used"] == pytest.approx((used > 0).mean())
    assert np.isnan(metrics["loss_class"]) and np.isnan(metrics["accuracy_prototypes"])


def test_every_term_of_the_classifier_stage():
    method = built(head=False)
    variables = variables_of(method)
    total, (_, metrics) = method.loss(variables, BATCH, KEY, jnp.int32(4))
    loss, logits = classifier_loss(variables)
    assert total == pytest.approx(loss, rel=1e-5) == metrics["loss_class"]
    accuracy = (logits.argmax(axis=1) == np.asarray(BATCH["label"])).mean()
    assert metrics["accuracy_prototypes"] == pytest.approx(accuracy)
    assert np.isnan(metrics["loss_codebook"]) and "loss_task" not in metrics


@pytest.mark.parametrize("step", [3, 4])
def test_both_stages_take_soft_labels(step):
    method = built(task_weight=1.0)
    variables = variables_of(method)
    target = RNG.dirichlet(np.ones(CLASSES), 8)
    total, _ = method.loss(variables, {**BATCH, "target": jnp.asarray(target, jnp.float32)}, KEY, jnp.int32(step))
    if step == 3:
        loss, _, _ = codebook_loss(variables, 1.0)
        chosen = exact(variables)[0][codebook_loss(variables, 1.0)[2]]
        dense = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["frozen"]["params"]["dense"])
        expected = loss + cross_entropy(chosen.mean(axis=1) @ dense["kernel"] + dense["bias"], target)
    else:
        expected = classifier_loss(variables, target)[0]
    assert total == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("stage", ["codebook", "classifier", "tuned", "pruned"])
def test_gradients_are_those_of_finite_differences(stage):
    method = built(task_weight=0.5, tune_codes=stage == "tuned", prune_at=9, top_k=4)
    variables = variables_of(method)
    step = {"codebook": 0, "classifier": 4, "tuned": 8, "pruned": 9}[stage]

    def value(params):
        changed = {**variables, "params": params}
        if stage == "codebook":
            loss, task, _ = codebook_loss(changed, 0.5)
            return loss + 0.5 * task
        return classifier_loss(changed)[0]

    gradient = jax.jit(jax.grad(lambda p: method.loss({**variables, "params": p}, BATCH, KEY, jnp.int32(step))[0]))(
        variables["params"]
    )
    trains = {"codebook": ["codes"], "classifier": ["weights"]}.get(stage, ["codes", "weights"])
    for name, own in gradient.items():
        if name not in trains:
            assert (own == 0).all()
            continue
        for _ in range(3):
            direction = RNG.normal(size=own.shape)
            sides = [
                value({**variables["params"], name: np.asarray(variables["params"][name], np.float64) + by * direction})
                for by in (1e-6, -1e-6)
            ]
            slope = float((np.asarray(own, np.float64) * direction).sum())
            assert slope == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-3, abs=1e-4)


def trained(method, steps, **options):
    """States before and after every step, with an optimiser whose momentum and decay would move anything unfrozen."""
    settings = OptimizerSettings(learning_rate=0.05, schedule="constant", weight_decay=0.1, **options)
    transform = optimizer.build(settings, steps, method.stages)
    state = create(method, transform, KEY, BATCH)
    one = jax.jit(lambda state: train_step(state, BATCH, method=method, transform=transform, key=KEY)[0])
    states = [state]
    for _ in range(steps):
        states.append(one(states[-1]))
    return states


def test_a_stage_changes_nothing_but_what_it_trains():
    states = trained(built(prune_at=8, top_k=2), 11)
    for step, (before, after) in enumerate(zip(states, states[1:], strict=False)):
        changed = {k for k in before.params if (before.params[k] != after.params[k]).any()}
        expected = {"codes"} if step < 4 else {"weights"} if step < 8 else {"codes", "weights"}
        assert changed == expected, step
        frozen = [jax.tree.leaves(state.statistics["frozen"]) for state in (before, after)]
        assert all((a == b).all() for a, b in zip(*frozen, strict=True))
    kept = states[8].statistics["codebook"]["kept"]
    assert (kept.sum(axis=1) == 2).all() and states[7].statistics["codebook"]["kept"].all()
    np.testing.assert_array_equal(states[8].statistics["codebook"]["active"], kept.any(axis=0))
    np.testing.assert_array_equal(states[11].statistics["codebook"]["kept"], kept)


def test_every_stage_has_an_optimiser_of_its_own():
    stages = (methods.Stage("one", 0, ("a",)), methods.Stage("two", 2, ("a", "b")))
    transform = optimizer.in_stages(stages, [optax.adam(0.1), optax.sgd(0.5, momentum=0.9)])
    params = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([3.0])}
    state, alone = transform.init(params), optax.adam(0.1)
    alone_state = alone.init(params["a"])
    for step in range(4):
        gradient = {"a": jnp.array([0.3, -1.0]) * (step + 1), "b": jnp.array([2.0])}
        updates, state = transform.update(gradient, state, params)
        if step < 2:
            expected, alone_state = alone.update(gradient["a"], alone_state)
            np.testing.assert_allclose(updates["a"], expected, rtol=1e-6)
            assert updates["b"] == 0
        else:
            # Momentum starts at the stage: 1 gradient, then 0.9 of it and the next one.
            assert updates["b"] == pytest.approx(-0.5 * 2 * (1 if step == 2 else 1.9))
    with pytest.raises(ValueError, match=r"stages start at 0 and one after the other, got \[1, 0\]"):
        optimizer.build(OptimizerSettings(), 5, (stages[0]._replace(start=1), stages[1]._replace(start=0)))


@pytest.mark.parametrize("initializer", ["sampled", "kmeans++"])
def test_codes_start_as_patches_of_the_first_batch(initializer):
    states = trained(built(initializer=initializer), 1)
    codes, patches = np.asarray(states[1].params["codes"]), MAPS.reshape(-1, SIZE)
    assert all((patches == code).all(axis=1).any() for code in codes)
    assert len(np.unique(codes, axis=0)) == CODES and not states[1].statistics["codebook"]["used"].any()


def test_dead_codes_are_revived_in_the_codebook_stage_alone():
    method = built(revive_every=2, codebook_steps=6)
    variables = variables_of(method)
    dead = np.array([1, 5])
    used = jnp.ones(CODES, jnp.int32).at[dead].set(0)
    variables["codebook"] = {**variables["codebook"], "used": used}
    revise = jax.jit(method.revise)
    for step, revived in ((0, False), (1, False), (2, True), (4, True), (6, False), (8, False)):
        after = revise(variables, BATCH, KEY, jnp.int32(step))
        same = (after["params"]["codes"] == variables["params"]["codes"]).all(axis=1)
        np.testing.assert_array_equal(np.flatnonzero(~np.asarray(same)), dead if revived else [])
        assert (after["codebook"]["used"].sum() == 0) == revived


def test_pruning_keeps_the_heaviest():
    method = built()
    variables = variables_of(method)
    weights = np.maximum(np.asarray(variables["params"]["weights"]), 0)
    pruned = jax.jit(pruning.pruned, static_argnums=1)(variables, 3)
    for label in range(CLASSES):
        heaviest = np.argsort(-weights[label], kind="stable")[:3]
        np.testing.assert_array_equal(np.flatnonzero(pruned["codebook"]["kept"][label]), np.sort(heaviest))
    once_more = pruning.pruned(pruned, 5)
    np.testing.assert_array_equal(once_more["codebook"]["kept"], pruned["codebook"]["kept"])
    everything = pruning.pruned(variables, None)
    np.testing.assert_array_equal(everything["codebook"]["kept"], weights > 0)


@pytest.mark.parametrize("top_k", [1, 2, 5, None])
def test_physical_removal_changes_no_bit_of_the_logits(top_k):
    method = built(codes=50)
    variables = variables_of(method)
    # Codes that no class weighs at all.
    weights = variables["params"]["weights"].at[:, 1::4].set(-0.1)
    variables = pruning.pruned({**variables, "params": {**variables["params"], "weights": weights}}, top_k)
    small = pruning.shrunk(variables)
    active = np.asarray(variables["codebook"]["active"])
    assert small["params"]["codes"].shape == (active.sum(), SIZE) and (active.sum() < 50)
    np.testing.assert_array_equal(small["codebook"]["number"], np.flatnonzero(active))
    database = CandidateDatabase(BATCH["id"], BATCH["label"], method.encode(variables, BATCH["inputs"]))
    seen = jax.jit(method.views)
    whole = seen(variables, method.memory(variables, database), BATCH)
    database = CandidateDatabase(BATCH["id"], BATCH["label"], method.encode(small, BATCH["inputs"]))
    less = seen(small, method.memory(small, database), BATCH)
    bits = [np.asarray(x["image_to_class"]).view(np.int32) for x in (whole, less)]
    np.testing.assert_array_equal(*bits)
    shown = min(3 if top_k is None else top_k, less["concept_numbers"].shape[1])
    np.testing.assert_array_equal(whole["concept_numbers"][:, :shown], less["concept_numbers"][:, :shown])


def test_neutralised_codes_count_no_more():
    method = built()
    variables = variables_of(method)
    after = pruning.neutralised(variables, [1, 4])
    assert not pruning.classifier(after)[:, np.array([1, 4])].any()
    assert not after["codebook"]["active"][np.array([1, 4])].any()
    small = pruning.shrunk(after)
    memory = method.memory(small, CandidateDatabase(BATCH["id"], BATCH["label"], method.encode(small, BATCH["inputs"])))
    listed = method.predict(small, memory, BATCH, 1).support.prototypes
    shown = method.views(small, memory, BATCH)["concept_numbers"]
    np.testing.assert_array_equal(listed[:, 0], shown[:, 0])
    again = pruning.neutralised(pruning.shrunk(after), [2])
    assert 2 not in np.asarray(pruning.shrunk(again)["codebook"]["number"])
    with pytest.raises(ValueError, match="code 10 does not exist: there are 10 codes, with numbers 0 to 9"):
        pruning.neutralised(variables, [10])
    with pytest.raises(ValueError, match="a code is named twice among 1, 1"):
        pruning.neutralised(variables, [1, 1])
    with pytest.raises(ValueError, match="no code with a positive weight would be left"):
        pruning.neutralised(variables, range(10))


def test_codes_stand_for_their_nearest_patches():
    method = built(head=False)
    variables = variables_of(method)
    ids = np.array([5, 9, -1, 3, 7, 1, 2, 8], np.int32)
    database = CandidateDatabase(jnp.asarray(ids), BATCH["label"], method.encode(variables, BATCH["inputs"]))
    memory = method.memory(variables, database)
    cosines = exact(variables)[3]
    cosines[2] = -np.inf
    for code in range(CODES):
        best = cosines[:, :, code].max(axis=1)
        order = np.argsort(-best, kind="stable")[:7]
        np.testing.assert_array_equal(memory.embeddings["ids"][code, :7], ids[order])
        np.testing.assert_allclose(memory.embeddings["similarities"][code, :7], best[order], atol=1e-5)
        row, column = np.divmod(cosines[order, :, code].argmax(axis=1), 3)
        boxes = np.stack([row / 2, column / 3, (row + 1) / 2, (column + 1) / 3], axis=1)
        np.testing.assert_allclose(memory.embeddings["boxes"][code, :7], boxes, atol=1e-6)
    np.testing.assert_array_equal(memory.ids, memory.embeddings["ids"][:, 0])


def test_a_prediction_has_the_form_of_every_method():
    method = built()
    variables = variables_of(method)
    database = CandidateDatabase(BATCH["id"], BATCH["label"], method.encode(variables, BATCH["inputs"]))
    memory = method.memory(variables, database)
    prediction = jax.jit(method.predict, static_argnums=3)(variables, memory, BATCH, 4)
    _, weights, _, _, scores = exact(variables)
    logits = scores @ weights.T
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(prediction.scores, expected, atol=1e-5)
    shares = weights[logits.argmax(axis=1)] * scores
    shares /= shares.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(prediction.support.weights, -np.sort(-shares)[:, :4], atol=1e-5)
    np.testing.assert_array_equal(prediction.support.size, (shares > 0).sum(axis=1))
    np.testing.assert_allclose(prediction.confidence, expected.max(axis=1), atol=1e-5)
    np.testing.assert_array_equal(prediction.support.prototypes, np.argsort(-shares, axis=1, kind="stable")[:, :4])
    heaviest = shares.argmax(axis=1)
    np.testing.assert_array_equal(prediction.support.ids[:, 0], np.asarray(memory.ids)[heaviest])
    frozen = variables["frozen"]["params"]["dense"]
    frozen_logits = MAPS.mean(axis=(1, 2)) @ np.asarray(frozen["kernel"]) + np.asarray(frozen["bias"])
    np.testing.assert_allclose(prediction.encoder_scores, nn.softmax(frozen_logits), atol=1e-5)


def test_a_prediction_is_exported_for_any_batch():
    method = built()
    variables = variables_of(method)
    database = CandidateDatabase(BATCH["id"], BATCH["label"], method.encode(variables, BATCH["inputs"]))
    memory = method.memory(variables, database)

    def predict(inputs):
        answer = method.predict(variables, memory, {"inputs": inputs}, 4)
        return answer.scores, answer.support.ids, answer.support.weights

    (batch,) = export.symbolic_shape("batch")
    exported = export.export(jax.jit(predict))(jax.ShapeDtypeStruct((batch, *MAPS.shape[1:]), jnp.float32))
    for count in (1, 3, 8):
        for found, expected in zip(exported.call(MAPS[:count]), predict(MAPS[:count]), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_task_loss_needs_a_head():
    with pytest.raises(ValueError, match="task_weight = 1 needs a network with a classification head"):
        built(head=False, task_weight=1.0)
