"""What holds for every encoder."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax import networks
from protojax.config import ConvSettings, LSTMSettings, ProtoAttendSettings, ResNetSettings, VDCNNSettings

BATCH = 8
SHARDS = 4


def _settings(kind, **changes):
    match kind:
        case "conv":
            return ConvSettings(**{"filters": (8, 8), "dense": (12,), "dropout": 0.3} | changes)
        case "resnet":
            small = {"blocks": (1, 1), "filters": (4, 8), "stem": "downsample", "dense": (12,), "dropout": 0.3}
            return ResNetSettings(**small | changes)
        case "vdcnn":
            small = {"embedding": 4, "stem": 8, "filters": (8, 8, 12), "k_max": 3, "dense": (12,), "dropout": 0.3}
            return VDCNNSettings(**small | changes)
    return LSTMSettings(**{"steps": 3, "width": 12} | changes)


def _inputs(kind):
    rng = np.random.default_rng(0)
    if kind == "vdcnn":
        codes = rng.integers(1, 71, (BATCH, 32), np.int32)
        return jnp.asarray(np.where(np.arange(32) < rng.integers(1, 33, (BATCH, 1)), codes, 0))
    return jnp.asarray(rng.normal(size=(BATCH, 9) if kind == "lstm" else (BATCH, 10, 10, 2)), jnp.float32)


KEY = jax.random.key(0)
ALL = pytest.mark.parametrize("kind", ["conv", "resnet", "vdcnn", "lstm"])
WITH_STATISTICS = pytest.mark.parametrize("kind", ["conv", "resnet", "vdcnn"])
AXES = {"vdcnn": r"\[batch, length\]", "lstm": r"\[batch, features\]"}


@functools.cache
def _start(kind, **changes):
    network = networks.build(_settings(kind, **changes))
    # Statistics away from their start, so that evaluation depends on them.
    variables = jax.tree.map(lambda x: x + 0.05, jax.jit(network.init, static_argnums=2)(KEY, _inputs(kind), False))
    return network, variables


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(network, variables, inputs):
    (features, _), updates = network.apply(variables, inputs, False, mutable=["batch_stats"])
    return features, updates


@functools.partial(jax.jit, static_argnums=0)
def _train(network, variables, inputs, key=KEY):
    (features, _), updates = network.apply(variables, inputs, True, rngs={"dropout": key}, mutable=["batch_stats"])
    return features, updates


@ALL
def test_evaluation_needs_no_randomness_and_looks_at_one_example_at_a_time(kind):
    inputs = _inputs(kind)
    network, variables = _start(kind)
    features, _ = _evaluate(network, variables, inputs)
    assert features.shape == (BATCH, 12) and features.dtype == jnp.float32
    np.testing.assert_array_equal(_evaluate(network, variables, inputs)[0], features)
    others = inputs.at[2:].set(inputs[:1])
    np.testing.assert_allclose(_evaluate(network, variables, others)[0][:2], features[:2], atol=1e-5)


@WITH_STATISTICS
def test_statistics_change_in_training_only(kind):
    network, variables = _start(kind)
    _, unchanged = _evaluate(network, variables, _inputs(kind))
    jax.tree.map(np.testing.assert_array_equal, unchanged["batch_stats"], variables["batch_stats"])
    _, changed = _train(network, variables, _inputs(kind))
    for before, after in zip(
        jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(changed["batch_stats"]), strict=True
    ):
        assert not np.array_equal(before, after)


@WITH_STATISTICS
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_training_looks_at_the_whole_batch_with_batch_normalisation_only(kind, norm):
    inputs = _inputs(kind)
    network, variables = _start(kind, norm=norm)
    assert set(variables) == ({"params", "batch_stats"} if norm == "batch" else {"params"})
    others = inputs.at[2:].set(inputs[:1])
    difference = _train(network, variables, inputs)[0] - _train(network, variables, others)[0]
    assert (np.abs(difference[:2]).max() > 1e-3) == (norm == "batch")
    assert np.abs(difference[:2]).max() < 1e-5 or norm == "batch"


@ALL
def test_dropout_is_drawn_anew_from_each_key_in_training(kind):
    network, variables = _start(kind)
    first, again, second = (_train(network, variables, _inputs(kind), jax.random.key(i))[0] for i in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first == 0.0, second == 0.0)


@ALL
def test_bfloat16_keeps_float32_parameters_statistics_gradients_and_features(kind):
    inputs = _inputs(kind)
    network, variables = _start(kind)
    half = networks.build(_settings(kind), "bfloat16")

    def loss(variables):
        (features, _), updates = half.apply(variables, inputs, True, rngs={"dropout": KEY}, mutable=["batch_stats"])
        return jnp.mean(features * jnp.arange(12.0)[None, :]), (features, updates)

    gradient, (features, updates) = jax.jit(jax.grad(loss, has_aux=True))(variables)
    shapes = jax.eval_shape(lambda: half.init(KEY, inputs, False))
    for leaf in jax.tree.leaves((shapes, gradient, features, updates)):
        assert leaf.dtype == jnp.float32
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    exact, _ = _train(network, variables, inputs)
    np.testing.assert_allclose(features, exact, atol=0.3)
    assert not np.array_equal(features, exact)


@ALL
def test_training_on_shards_equals_training_on_the_global_batch(kind):
    inputs = _inputs(kind)
    network, variables = _start(kind)
    wanted, wanted_updates = _train(network, variables, inputs)
    sharded = networks.build(_settings(kind), axis_name="devices")
    step = jax.vmap(lambda x: _train(sharded, variables, x), axis_name="devices")
    features, updates = step(inputs.reshape(SHARDS, -1, *inputs.shape[1:]))
    np.testing.assert_allclose(features.reshape(wanted.shape), wanted, atol=1e-4)
    np.testing.assert_array_equal(features.reshape(wanted.shape) == 0.0, wanted == 0.0)
    for i in range(SHARDS):
        own = jax.tree.map(lambda x, i=i: x[i], updates)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), own, wanted_updates)


@ALL
def test_inputs_of_the_wrong_rank_are_refused_with_the_axes_wanted_and_the_shape_got(kind):
    network = networks.build(_settings(kind))
    wanted = AXES.get(kind, r"\[batch, height, width, channels\]")
    message = rf"{type(network).__name__} reads {wanted}, got an array of shape \(3, 4, 5\)"
    with pytest.raises(ValueError, match=message):
        network.init(KEY, jnp.zeros((3, 4, 5)), False)


def test_build_passes_every_setting_on():
    settings = ResNetSettings(blocks=(2, 1), filters=(8, 4), stem="downsample", dense=(5,), norm="group", dropout=0.25)
    assert networks.build(settings, "bfloat16", "devices") == networks.ResNet(
        (2, 1), (8, 4), "downsample", (5,), "group", 0.25, jnp.dtype("bfloat16"), "devices"
    )
    assert networks.build(LSTMSettings()) == networks.LSTM(4, 64, 0.5, jnp.dtype("float32"), None)
    assert isinstance(networks.build(ConvSettings()), nn.Module)


def test_build_refuses_what_is_no_encoder():
    with pytest.raises(ValueError, match="no encoder is built from ProtoAttendSettings"):
        networks.build(ProtoAttendSettings())
