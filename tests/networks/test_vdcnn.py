import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax import networks
from protojax.config import VDCNNSettings

SMALL = VDCNNSettings(embedding=4, stem=8, filters=(8, 8, 12, 12), k_max=3, dense=(16,))


def _texts(length, *lengths):
    codes = np.random.default_rng(0).integers(1, 71, (len(lengths), max(lengths)), np.int32)
    codes = np.where(np.arange(max(lengths)) < np.array(lengths)[:, None], codes, 0)
    return jnp.asarray(np.pad(codes, ((0, 0), (0, length - max(lengths)))))


@functools.cache
def _start(norm="batch"):
    network = networks.build(SMALL.model_copy(update={"norm": norm}))
    variables = jax.jit(network.init, static_argnums=2)(jax.random.key(0), _texts(64, 64), False)
    return network, jax.tree.map(lambda x: x + 0.05, variables)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _apply(network, variables, codes, train=False):
    return network.apply(variables, codes, train, mutable=["batch_stats"])


def test_the_sizes_of_the_paper():
    network = networks.build(VDCNNSettings())
    (features, seen), variables = jax.eval_shape(
        lambda key: network.init_with_output(key, jnp.zeros((2, 448), jnp.int32), False), jax.random.key(0)
    )
    assert features.shape == (2, 1024)
    # 448 halved by the stem and by three poolings.
    assert seen["map"].shape == (2, 28, 512)
    assert seen["chosen"].shape == (2, 8, 512)
    embedding, stem = 71 * 16, 3 * 16 * 64 + 2 * 64
    pairs = zip((64, 64, 64, 128, 128, 256, 256, 512), (64, 64, 128, 128, 256, 256, 512, 512), strict=True)
    convolutions = sum(3 * i * o + 2 * o for i, o in pairs)
    dense = (8 * 512 * 1024 + 3 * 1024) + (1024 * 1024 + 3 * 1024)
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert count == embedding + stem + convolutions + dense == 6830064


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("train", [False, True])
def test_features_do_not_depend_on_how_far_texts_are_padded(norm, train):
    network, variables = _start(norm)
    lengths = (47, 30, 16, 1)
    (wanted, _), wanted_updates = _apply(network, variables, _texts(47, *lengths), train)
    for length in (48, 61):
        (features, _), updates = _apply(network, variables, _texts(length, *lengths), train)
        np.testing.assert_allclose(features, wanted, atol=2e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), updates, wanted_updates)


def test_a_text_that_fills_its_array_ends_like_a_padded_one():
    network, variables = _start()
    (full, _), _ = _apply(network, variables, _texts(40, 40))
    (padded, _), _ = _apply(network, variables, _texts(64, 40))
    np.testing.assert_allclose(full, padded, atol=1e-5)


def test_only_positions_of_the_text_are_chosen_unless_it_is_too_short():
    network, variables = _start()
    (_, seen), _ = _apply(network, variables, _texts(64, 64, 12, 5, 1))
    # Stem and one pooling: a position for every 4 characters begun.
    np.testing.assert_array_equal(seen["mask"].sum(1), [16, 3, 2, 1])
    np.testing.assert_array_equal(seen["map"][1, 3:], 0.0)
    chosen = np.asarray(seen["chosen"])
    assert chosen[0].min() >= 0 and (np.diff(chosen[0], axis=0) > 0).all()
    np.testing.assert_array_equal(chosen[1], np.tile([[0], [1], [2]], (1, 12)))
    np.testing.assert_array_equal(chosen[2], np.tile([[0], [1], [-1]], (1, 12)))
    np.testing.assert_array_equal(chosen[3], np.tile([[0], [-1], [-1]], (1, 12)))


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_an_empty_text_leaves_features_and_gradients_finite(norm):
    network, variables = _start(norm)
    codes = _texts(64, 64, 20).at[1].set(0)

    def loss(params):
        (features, _), _ = network.apply({**variables, "params": params}, codes, True, mutable=["batch_stats"])
        return jnp.sum(jnp.square(features) * jnp.arange(16.0)[None, :])

    value, gradient = jax.jit(jax.value_and_grad(loss))(variables["params"])
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert np.abs(gradient["embedding"][1:]).max() > 0.0
    np.testing.assert_array_equal(gradient["embedding"][0], 0.0)


def test_codes_are_read_alike_in_every_integer_type():
    network, variables = _start()
    codes = _texts(64, 50, 20)
    (wanted, _), _ = _apply(network, variables, codes)
    (features, _), _ = _apply(network, variables, codes.astype(jnp.uint8))
    np.testing.assert_array_equal(features, wanted)


@pytest.mark.parametrize("code", [71, -1])
def test_a_code_out_of_range_makes_the_features_of_its_text_nan(code):
    network, variables = _start()
    codes = _texts(64, 50, 20)
    (features, _), _ = _apply(network, variables, codes.at[1, 3].set(code))
    assert np.isnan(features[1]).all() and np.isfinite(features[0]).all()


def test_texts_shorter_than_the_largest_k_are_refused():
    with pytest.raises(ValueError, match=r"the 3 largest of 2 positions.* texts of length 8 .*data\.text\.length"):
        networks.build(SMALL).init(jax.random.key(0), _texts(8, 8), False)


def test_codes_must_be_integers():
    with pytest.raises(ValueError, match="integer codes of characters, got float32"):
        networks.build(SMALL).init(jax.random.key(0), jnp.zeros((2, 64)), False)
