"""The prototype autoencoder and the attention autoencoder against float64 references in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax import config, health, methods
from protojax.candidates import CandidateDatabase
from protojax.methods import attention_autoencoder, prototype_autoencoder
from protojax.networks import Autoencoder

RNG = np.random.default_rng(0)
SHAPE = (12, 12, 1)
TRUNK = Autoencoder((5, 4), (2, 2))
CLASSES = 3
BATCH = {
    "id": jnp.arange(7, dtype=jnp.int32),
    "inputs": jnp.asarray(RNG.uniform(0, 1, (7, *SHAPE)), jnp.float32),
    "label": jnp.asarray(RNG.integers(0, CLASSES, 7), jnp.int32),
}
PIXELS = {"augment": {"standardize": False}}
SYSTEMS = {
    "prototypes": {"kind": "prototype_autoencoder", "prototypes": 4},
    "attention": {"kind": "attention_autoencoder", "prototypes": 4},
    "two heads": {"kind": "attention_autoencoder", "prototypes": 4, "heads": 2},
    "linear": {"kind": "attention_autoencoder", "head": "linear"},
}


def settings_of(system: str) -> config.Settings:
    encoder = {"kind": "autoencoder", "filters": [5, 4], "strides": [2, 2]}
    return config.from_tree({"name": "test", "data": PIXELS, "encoder": encoder, "method": SYSTEMS[system]}, "test")


def method_and_variables(system: str, spread: float = 20.0):
    """Variables far from 0, so that every term of the loss counts."""
    method = methods.build(settings_of(system), CLASSES)
    variables = jax.jit(method.init)(jax.random.key(0), BATCH)
    return method, jax.tree.map(lambda x: spread * x if x.ndim == 4 else x + 0.1, variables)


def made_by(system: str, method, variables) -> dict[str, np.ndarray]:
    """What the network makes of the batch, in float64."""
    settings = settings_of(system).method
    if system == "prototypes":
        network = prototype_autoencoder.Network(TRUNK, settings.prototypes, CLASSES)
    else:
        network = attention_autoencoder.Network(TRUNK, settings.heads, settings.head, settings.prototypes, CLASSES)
    logits, made = network.apply(variables, BATCH["inputs"])
    return {"logits": np.asarray(logits, np.float64)} | {k: np.asarray(v, np.float64) for k, v in made.items()}


def cross_entropy(logits: np.ndarray) -> float:
    top = logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
    return (log_sum - logits[np.arange(len(logits)), np.asarray(BATCH["label"])]).mean()


def head_of(made: dict[str, np.ndarray], variables) -> np.ndarray:
    """The logits of latents, and the distances between; against what the network made."""
    layer = {k: np.asarray(v, np.float64) for k, v in variables["params"]["layer"].items()}
    if "kernel" in layer:
        expected = made["latent"] @ layer["kernel"] + layer["bias"]
    else:
        d = np.array([[((a - p) ** 2).sum() for p in layer["prototypes"]] for a in made["latent"]])
        np.testing.assert_allclose(made["distances"], d, rtol=1e-5)
        expected = d @ layer["weights"]
    np.testing.assert_allclose(made["logits"], expected, rtol=1e-5)
    return expected


def test_every_term_of_the_prototype_autoencoder():
    method, variables = method_and_variables("prototypes")
    total, (_, metrics) = method.loss(variables, BATCH, jax.random.key(0), jnp.int32(0))
    made = made_by("prototypes", method, variables)
    x, d = np.asarray(BATCH["inputs"], np.float64), made["distances"]
    expected = {
        "loss_class": cross_entropy(head_of(made, variables)),
        "loss_reconstruction": ((made["reconstruction"] - x) ** 2).sum(axis=(1, 2, 3)).mean(),
        "loss_prototypes_near_examples": d.min(axis=0).mean(),
        "loss_examples_near_prototypes": d.min(axis=1).mean(),
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-5), name
    assert total == pytest.approx(np.dot([20, 1, 1, 1], list(expected.values())), rel=1e-5)


@pytest.mark.parametrize("system", ["attention", "two heads", "linear"])
def test_every_term_of_the_attention_autoencoder(system):
    method, variables = method_and_variables(system)
    total, (_, metrics) = method.loss(variables, BATCH, jax.random.key(0), jnp.int32(0))
    made = made_by(system, method, variables)
    x, alpha = np.asarray(BATCH["inputs"], np.float64), made["attention"]
    np.testing.assert_allclose(alpha.sum(axis=-1), 1, atol=1e-6)
    assert np.ptp(alpha) > 0.01
    shown = 1 / (1 + np.exp(-made["reconstruction"]))
    expected = {
        "loss_class": cross_entropy(head_of(made, variables)),
        "loss_reconstruction": -(x * np.log(shown) + (1 - x) * np.log(1 - shown)).mean(),
        "loss_attention": (alpha * np.log(alpha * alpha.shape[-1])).sum(axis=-1).mean(),
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert total == pytest.approx(np.dot([20, 1, 0.1], list(expected.values())), rel=1e-5)
    correct = (made["logits"].argmax(axis=1) == np.asarray(BATCH["label"])).mean()
    assert metrics["accuracy_encoder" if system == "linear" else "accuracy_prototypes"] == pytest.approx(correct)


def test_token_attention_is_that_of_the_formula():
    tokens = jnp.asarray(RNG.normal(size=(2, 5, 6)), jnp.float32)
    layer = attention_autoencoder.TokenAttention()
    variables = layer.init(jax.random.key(1), tokens)
    attended, alpha = layer.apply(variables, tokens)
    weights = {k: np.asarray(v["kernel"], np.float64)[:, 0] for k, v in variables["params"].items()}
    q, k, v = (np.asarray(tokens, np.float64) @ weights[name] for name in ("query", "key", "value"))
    scores = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(6))
    expected = scores / scores.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(alpha[:, 0], expected, atol=1e-6)
    np.testing.assert_allclose(attended, expected @ v, atol=1e-6)


def test_attention_in_heads_is_that_of_the_formula():
    tokens = jnp.asarray(RNG.normal(size=(2, 5, 6)), jnp.float32)
    layer = attention_autoencoder.TokenAttention(heads=2)
    variables = jax.tree.map(
        lambda x: jnp.asarray(RNG.normal(size=x.shape), jnp.float32), layer.init(jax.random.key(1), tokens)
    )
    attended, alpha = layer.apply(variables, tokens)
    x, own = np.asarray(tokens, np.float64), jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    parts = []
    for head in range(2):
        q, k, v = (x @ own[n]["kernel"][:, head] + own[n]["bias"][head] for n in ("query", "key", "value"))
        scores = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(3))
        expected = scores / scores.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(alpha[:, head], expected, atol=1e-5)
        parts.append(expected @ v)
    joined = np.concatenate(parts, axis=-1) @ own["join"]["kernel"] + own["join"]["bias"]
    np.testing.assert_allclose(attended, joined, atol=1e-4)


def test_what_attention_shows_is_what_tokens_receive():
    method, variables = method_and_variables("attention")
    made = made_by("attention", method, variables)
    database = CandidateDatabase(BATCH["id"], BATCH["label"], method.encode(variables, BATCH["inputs"]))
    views = method.views(variables, method.memory(variables, database), BATCH)
    h, w, features = TRUNK.latent_shape(SHAPE)
    alpha = np.asarray(made["attention"], np.float64)
    received = np.array([alpha[b, :, :, t].mean() for b in range(len(alpha)) for t in range(h * w)]).reshape(-1, h * w)
    np.testing.assert_allclose(np.asarray(views["attention"]).reshape(received.shape), received, rtol=1e-5)
    assert np.ptp(received) > 1e-4
    footprints = TRUNK.footprints(SHAPE)
    shown = np.tensordot(received, footprints, axes=1)
    equal = np.tensordot(np.full(h * w, 1 / (h * w)), footprints, axes=1)
    np.testing.assert_allclose(views["attention_in_image"], shown / equal, rtol=1e-4)
    latent = np.asarray(made["latent"], np.float64).reshape(len(alpha), h * w, features)
    np.testing.assert_allclose(views["feature_to_image"], latent.sum(axis=1).T, rtol=1e-4, atol=1e-5)


def test_what_is_decoded_are_the_attended_tokens():
    method, variables = method_and_variables("linear")
    made = made_by("linear", method, variables)
    own = {"params": variables["params"]["autoencoder"]}
    maps = jnp.asarray(made["latent"], jnp.float32).reshape(-1, *TRUNK.latent_shape(SHAPE))
    np.testing.assert_allclose(TRUNK.apply(own, maps, SHAPE), made["reconstruction"], atol=1e-5)
    unattended = TRUNK.apply(own, TRUNK.apply(own, BATCH["inputs"]), SHAPE)
    assert np.abs(np.asarray(unattended) - made["reconstruction"]).max() > 1e-3


@pytest.mark.parametrize("system", SYSTEMS)
def test_gradients_are_those_of_finite_differences(system):
    method, variables = method_and_variables(system)

    @jax.jit
    def loss(variables):
        return method.loss(variables, BATCH, jax.random.key(0), jnp.int32(0))[0]

    gradient = jax.grad(loss)(variables)
    leaves, tree = jax.tree.flatten(gradient)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        direction = [jnp.asarray(rng.normal(size=x.shape), jnp.float32) for x in leaves]
        slope = sum(float((a * b).sum()) for a, b in zip(leaves, direction, strict=True))
        direction = tree.unflatten(direction)
        ahead, behind = (
            float(loss(jax.tree.map(lambda x, d, by=by: x + by * d, variables, direction))) for by in (1e-3, -1e-3)
        )
        assert (ahead - behind) / 2e-3 == pytest.approx(slope, rel=2e-2)


def test_prototypes_stand_for_their_nearest_examples():
    prototypes = RNG.uniform(0, 1, (4, 6)).astype(np.float32)
    latents = RNG.uniform(0, 1, (50, 6)).astype(np.float32)
    ids = RNG.permutation(1000)[:50].astype(np.int32)
    ids[7] = -1
    latents[7] = prototypes[0]
    labels = RNG.integers(0, 3, 50).astype(np.int32)
    database = CandidateDatabase(jnp.asarray(ids), jnp.asarray(labels), {"latent": jnp.asarray(latents)})
    memory = prototype_autoencoder.nearest_examples(jnp.asarray(prototypes), database)
    for j, prototype in enumerate(prototypes):
        distances = ((latents.astype(np.float64) - prototype) ** 2).sum(axis=1)
        distances[7] = np.inf
        order = np.argsort(distances)[: prototype_autoencoder.NEAREST]
        np.testing.assert_array_equal(memory.embeddings["ids"][j], ids[order])
        np.testing.assert_array_equal(memory.embeddings["labels"][j], labels[order])
        np.testing.assert_allclose(memory.embeddings["distances"][j], distances[order], rtol=1e-5)
    np.testing.assert_array_equal(memory.ids, memory.embeddings["ids"][:, 0])


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_prediction_has_the_form_of_every_method(system):
    method, variables = method_and_variables(system)
    database = CandidateDatabase(BATCH["id"], BATCH["label"], method.encode(variables, BATCH["inputs"]))
    memory = method.memory(variables, database)
    prediction = method.predict(variables, memory, BATCH, 3)
    np.testing.assert_allclose(prediction.scores.sum(axis=1), 1, atol=1e-5)
    assert prediction.support.ids.shape == (7, 3)
    if system == "linear":
        assert (prediction.support.size == 0).all()
        return
    assert (prediction.support.size == 4).all() and (prediction.support.ids >= 0).all()
    distances = made_by(system, method, variables)["distances"]
    shares = np.exp(-(distances - distances.min(axis=1, keepdims=True)))
    shares /= shares.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(prediction.support.weights, -np.sort(-shares)[:, :3], atol=1e-5)
    which = np.argsort(-shares, axis=1)[:, :3]
    np.testing.assert_array_equal(prediction.support.prototypes, which)
    np.testing.assert_array_equal(prediction.support.ids, np.asarray(memory.ids)[which])
    np.testing.assert_array_equal(prediction.confidence, np.asarray(prediction.scores).max(axis=1))


def test_prototypes_that_do_no_work_are_found():
    prototypes = np.eye(5, 6)
    prototypes[3] = prototypes[1] + 1e-4
    pictures = RNG.uniform(0, 1, (5, 4, 4, 1))
    pictures[4] = pictures[0] + 1e-3
    views = {
        "prototypes": prototypes,
        "prototype_pictures": pictures,
        "nearest_distances": np.array([[0.1], [0.2], [3.0], [0.1], [0.1]]),
        "nearest_labels": np.array([[0], [1], [1], [0], [0]]),
        "typical_distance": np.full(5, 1.0),
    }
    found = health.examine(views, np.array([0, 1, 1, 3]), 4)
    assert found == {
        "prototypes": 5,
        "collapsed": [[1, 3]],
        "same_picture": [[0, 4]],
        "far": [2],
        "classes_without_prototype": [2, 3],
        "dead_classes": [2],
    }
    together = {**views, "prototypes": prototypes * 1e-4}
    assert len(health.examine(together, np.arange(4), 4)["collapsed"]) == 10
    lines = health.warnings(found, ["a", "b", "c", "d"])
    assert "prototypes that fell together: 1 and 3" in lines
    assert "classes that are never decided: c" in lines and len(lines) == 5


def test_what_does_not_fit_is_refused():
    tree = {"name": "t", "encoder": {"kind": "conv"}, "method": {"kind": "prototype_autoencoder"}}
    with pytest.raises(config.SettingsError, match=r"need encoder\.kind = 'autoencoder'"):
        config.from_tree(tree, "test")
    tree = {"name": "t", "encoder": {"kind": "autoencoder"}, "method": {"kind": "attention_autoencoder", "heads": 3}}
    with pytest.raises(config.SettingsError, match=r"data\.augment\.standardize must be false with encoder"):
        config.from_tree(tree, "test")
    tree["data"] = PIXELS
    with pytest.raises(config.SettingsError, match="heads = 3 does not divide the 10 features"):
        config.from_tree(tree, "test")
    tree["method"]["heads"] = 2
    tree["explain"] = {"width": 16}
    with pytest.raises(config.SettingsError, match=r"width = 16, but decisions have 15 prototypes \(method"):
        config.from_tree(tree, "test")
    tree["explain"], tree["evaluate"] = {}, {"neighbours": 5}
    with pytest.raises(config.SettingsError, match=r"evaluate\.neighbours needs a database of training examples"):
        config.from_tree(tree, "test")
    linear = {**tree, "method": {**tree["method"], "head": "linear"}}
    assert config.from_tree(linear, "test").evaluate.neighbours == 5
    tree["encoder"]["filters"] = []
    with pytest.raises(config.SettingsError, match=r"encoder\.filters"):
        config.from_tree(tree, "test")
    del tree["encoder"]["filters"]
    tree["encoder"]["strides"] = [2, 2]
    with pytest.raises(config.SettingsError, match="filters has 4 layers but strides has 2"):
        config.from_tree(tree, "test")
