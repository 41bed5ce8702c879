import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax.networks import layers

SHARDS = 4


def _random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def _shard(x):
    return x.reshape(SHARDS, -1, *x.shape[1:])


def _apply_batch_norm(x, mask=None):
    layer = layers.BatchNorm()
    variables = layer.init(jax.random.key(0), x, True, mask)
    return layer.apply(variables, x, True, mask, mutable=["batch_stats"])


def test_batch_norm_normalises_and_records_the_counted_positions_only():
    x, mask = _random(0, 6, 5, 3) * 2 + 1, np.random.default_rng(1).random((6, 5)) < 0.6
    y, updates = _apply_batch_norm(jnp.float32(x), jnp.asarray(mask))
    counted = x[mask]
    mean, var = counted.mean(0), counted.var(0)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), atol=2e-6)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], 0.1 * mean, atol=1e-6)
    np.testing.assert_allclose(updates["batch_stats"]["var"], 0.9 + 0.1 * var, atol=1e-6)


def test_batch_norm_without_mask_is_that_of_flax():
    x = jnp.float32(_random(2, 8, 4, 4, 3))
    y, updates = _apply_batch_norm(x)
    reference = nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5)
    wanted, wanted_updates = reference.apply(reference.init(jax.random.key(0), x), x, mutable=["batch_stats"])
    np.testing.assert_allclose(y, wanted, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), updates, wanted_updates)


def test_batch_norm_of_shards_with_unequal_masks_is_that_of_the_global_batch():
    x = jnp.float32(_random(3, 8, 5, 3))
    mask = jnp.arange(5)[None, :] < jnp.array([5, 5, 1, 1, 3, 0, 2, 4])[:, None]
    wanted, wanted_updates = _apply_batch_norm(x, mask)
    layer = layers.BatchNorm(axis_name="devices")
    variables = layer.init(jax.random.key(0), x, True, mask)
    y, updates = jax.vmap(
        lambda x, mask: layer.apply(variables, x, True, mask, mutable=["batch_stats"]), axis_name="devices"
    )(_shard(x), _shard(mask))
    np.testing.assert_allclose(y.reshape(x.shape), wanted, atol=1e-6)
    for name in ("mean", "var"):
        got = updates["batch_stats"][name]
        np.testing.assert_allclose(got, np.tile(wanted_updates["batch_stats"][name], (SHARDS, 1)), atol=1e-6)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_norm_of_nothing_but_padding_is_zero_with_a_finite_gradient(norm):
    layer = layers.ConvNorm(4, (3,), norm=norm)
    x, mask = jnp.float32(_random(4, 2, 6, 3)), jnp.zeros((2, 6), bool)
    variables = layer.init(jax.random.key(0), x, True, mask)

    def total(variables, x):
        y, _ = layer.apply(variables, x, True, mask, mutable=["batch_stats"])
        return jnp.sum(y)

    value, gradient = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(variables, x)
    assert value == 0.0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_group_norm_counts_only_unmasked_positions_of_the_own_example():
    layer = layers.ConvNorm(12, (1,), norm="group")
    x, mask = jnp.float32(_random(5, 2, 6, 3)), jnp.arange(6)[None, :] < jnp.array([4, 6])[:, None]
    variables = layer.init(jax.random.key(0), x, True, mask)
    y = layer.apply(variables, x, True, mask)
    mapped = np.float64(x) @ np.float64(variables["params"]["conv"]["kernel"][0])
    # 12 filters: 4 groups of 3, since 8 does not divide 12.
    grouped = mapped[0, :4].reshape(4, 4, 3)
    mean, var = grouped.mean((0, 2), keepdims=True), grouped.var((0, 2), keepdims=True)
    np.testing.assert_allclose(y[0, :4], ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(4, 12), atol=1e-5)
    np.testing.assert_array_equal(y[0, 4:], 0.0)


@pytest.mark.parametrize(("size", "kernel", "stride"), [(7, 3, 1), (7, 3, 2), (8, 3, 2), (8, 1, 2)])
def test_convolution_is_centred_on_every_stride_th_pixel(size, kernel, stride):
    layer = layers.ConvNorm(4, (kernel, kernel), stride)
    x = _random(6, 2, size, size, 3)
    variables = layer.init(jax.random.key(0), jnp.float32(x), False)
    weights = np.float64(variables["params"]["conv"]["kernel"])
    padded = np.pad(x, ((0, 0), (kernel // 2,) * 2, (kernel // 2,) * 2, (0, 0)))
    wanted = [
        [
            np.einsum("bijc,ijcf->bf", padded[:, row : row + kernel, column : column + kernel], weights)
            for column in range(0, size, stride)
        ]
        for row in range(0, size, stride)
    ]
    # Fresh running statistics are mean 0 and variance 1.
    wanted = np.moveaxis(np.array(wanted), 2, 0) / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(layer.apply(variables, jnp.float32(x), False), wanted, atol=1e-5)


def _drop(layer, x, key):
    return layer.apply({}, x, True, rngs={"dropout": key})


def test_dropout_drops_its_rate_and_keeps_the_mean():
    layer = layers.Dropout(0.3)
    y = np.asarray(_drop(layer, jnp.full((400, 500), 2.0), jax.random.key(0)))
    # Five standard deviations of a mean over 200 000 draws.
    assert abs((y == 0.0).mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / y.size)
    np.testing.assert_allclose(y[y != 0.0], 2.0 / 0.7, rtol=1e-6)


def test_dropout_does_nothing_outside_training_or_at_rate_0():
    x = jnp.float32(_random(7, 5, 4))
    np.testing.assert_array_equal(layers.Dropout(0.5).apply({}, x, False), x)
    np.testing.assert_array_equal(layers.Dropout(0.0).apply({}, x, True), x)


def test_dropout_of_shards_is_that_of_the_global_batch():
    x, key = jnp.ones((12, 40)), jax.random.key(1)
    wanted = _drop(layers.Dropout(0.5), x, key)
    sharded = layers.Dropout(0.5, axis_name="devices")
    got = jax.vmap(lambda x: _drop(sharded, x, key), axis_name="devices")(_shard(x))
    np.testing.assert_array_equal(got.reshape(x.shape), wanted)
    assert not np.array_equal(got[0], got[1])


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 1)])
def test_max_pool_pairs_drops_no_row_and_agrees_with_a_window_in_value_and_gradient(height, width):
    x = jnp.float32(_random(8, 2, height, width, 3)) - 10.0
    upstream = jnp.float32(_random(9, 2, -(-height // 2), -(-width // 2), 3))
    y, pull = jax.vjp(layers.max_pool_pairs, x)
    padding = ((0, height % 2), (0, width % 2))
    wanted, wanted_pull = jax.vjp(lambda x: nn.max_pool(x, (2, 2), (2, 2), padding), x)
    np.testing.assert_array_equal(y, wanted)
    np.testing.assert_array_equal(pull(upstream)[0], wanted_pull(upstream)[0])


@pytest.mark.parametrize("length", [1, 2, 7, 8])
def test_max_pool_triples_is_centred_on_even_positions(length):
    x = _random(10, 2, length, 3) - 10.0
    wanted = np.stack([x[:, max(0, i - 1) : i + 2].max(1) for i in range(0, length, 2)], axis=1)
    np.testing.assert_array_equal(layers.max_pool_triples(jnp.asarray(x, jnp.float32)), np.float32(wanted))


def test_k_max_pool_keeps_the_order_of_positions():
    x = np.float32(_random(11, 3, 9, 4))
    values, positions = layers.k_max_pool(jnp.asarray(x), jnp.ones((3, 9), bool), 4)
    wanted = np.sort(np.argsort(-x, axis=1)[:, :4], axis=1)
    np.testing.assert_array_equal(positions, wanted)
    np.testing.assert_array_equal(values, np.take_along_axis(x, wanted, axis=1))


def test_k_max_pool_never_chooses_masked_positions():
    x = np.float32(_random(12, 3, 6, 2)) - 10.0
    mask = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [0] * 6], bool)
    x[~mask] = 5.0
    values, positions = layers.k_max_pool(jnp.asarray(x), jnp.asarray(mask), 3)
    wanted = np.sort(np.argsort(-x[:1, :4], axis=1)[:, :3], axis=1)
    np.testing.assert_array_equal(positions[:1], wanted)
    np.testing.assert_array_equal(positions[1], [[0, 0], [1, 1], [-1, -1]])
    np.testing.assert_array_equal(values[1], np.concatenate([x[1, :2], np.zeros((1, 2))]))
    np.testing.assert_array_equal(positions[2], -1)
    np.testing.assert_array_equal(values[2], 0.0)


def test_k_max_pool_sends_the_gradient_to_the_chosen_positions():
    x = jnp.array([[3.0, 1.0, 4.0, 2.0, 9.0]])[..., None]
    mask = jnp.array([[True, True, True, True, False]])
    weights = jnp.array([[10.0, 20.0]])[..., None]
    gradient = jax.grad(lambda x: jnp.sum(weights * layers.k_max_pool(x, mask, 2)[0]))(x)
    np.testing.assert_array_equal(gradient[0, :, 0], [10.0, 0.0, 20.0, 0.0, 0.0])


def test_dense_stack_is_dense_relu_layer_norm():
    stack = layers.DenseStack((7, 5))
    x = _random(13, 4, 6)
    variables = stack.init(jax.random.key(2), jnp.float32(x), False)
    wanted = x
    for i in (1, 2):
        dense = variables["params"][f"dense_{i}"]
        wanted = np.maximum(wanted @ np.float64(dense["kernel"]) + np.float64(dense["bias"]), 0.0)
        deviation = wanted - wanted.mean(1, keepdims=True)
        wanted = deviation / np.sqrt(wanted.var(1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(stack.apply(variables, jnp.float32(x), False), wanted, atol=1e-4)
