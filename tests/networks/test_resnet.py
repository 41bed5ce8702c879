import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax import networks
from protojax.config import ResNetSettings
from protojax.networks.resnet import Block


def _shapes(settings, *image):
    network = networks.build(settings)
    (features, maps), variables = jax.eval_shape(
        lambda key: network.init_with_output(key, jnp.zeros((2, *image)), False), jax.random.key(0)
    )
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    return features.shape[1], [maps[name].shape[1:] for name in sorted(maps)], count, variables["params"]


def test_the_32_layers_of_mnist():
    features, maps, count, params = _shapes(ResNetSettings(), 28, 28, 1)
    assert features == 256
    assert maps == [(28, 28, 16), (14, 14, 32), (7, 7, 64), (28, 28, 16)]
    # Convolutions without bias, and a scale and a shift for every filter.
    stem = 3 * 3 * 1 * 16 + 2 * 16
    first = 5 * (2 * (9 * 16 * 16) + 2 * (2 * 16))
    second = (9 * 16 * 32 + 9 * 32 * 32 + 16 * 32 + 3 * (2 * 32)) + 4 * (2 * (9 * 32 * 32) + 2 * (2 * 32))
    third = (9 * 32 * 64 + 9 * 64 * 64 + 32 * 64 + 3 * (2 * 64)) + 4 * (2 * (9 * 64 * 64) + 2 * (2 * 64))
    dense = 64 * 256 + 256 + 2 * 256
    assert count == stem + first + second + third + dense == 483120
    convolutions = [path for path, x in jax.tree_util.tree_leaves_with_path(params) if x.ndim == 4]
    # 32 layers are 31 convolutions and a dense layer; the two shortcuts are not counted among them.
    assert len(convolutions) == 31 + 2
    assert [name for name in params if "shortcut" in params[name]] == ["stage_2_block_1", "stage_3_block_1"]


def test_the_50_layers_of_cifar():
    settings = ResNetSettings(blocks=(8, 8, 8), dense=(256, 512))
    features, maps, _, params = _shapes(settings, 32, 32, 3)
    assert features == 512
    assert maps == [(32, 32, 16), (16, 16, 32), (8, 8, 64), (32, 32, 16)]
    assert len([x for x in jax.tree.leaves(params) if x.ndim == 4]) == 49 + 2


@pytest.mark.parametrize(("blocks", "size", "sizes"), [(5, 100, (25, 13, 7)), (8, 128, (32, 16, 8))])
def test_the_downsampling_stem_of_fruits_and_isic(blocks, size, sizes):
    settings = ResNetSettings(blocks=(blocks,) * 3, stem="downsample", dense=(128,))
    features, maps, _, params = _shapes(settings, size, size, 3)
    assert features == 128
    assert [m[0] for m in maps] == [*sizes, sizes[0]]
    assert params["downsample"]["conv"]["kernel"].shape == (3, 3, 3, 16)


def test_a_block_adds_its_input_before_the_last_relu():
    block = Block(4, 1, "batch", jnp.float32, None)
    x = jax.random.normal(jax.random.key(1), (2, 5, 5, 4))
    variables = block.init(jax.random.key(0), x, False)
    assert set(variables["params"]) == {"conv_1", "conv_2"}
    variables["params"]["conv_2"]["norm"]["scale"] = jnp.zeros(4)
    np.testing.assert_array_equal(block.apply(variables, x, False), np.maximum(x, 0.0))


def test_features_read_the_average_of_the_whole_remaining_map():
    network = networks.build(ResNetSettings(blocks=(1,), filters=(4,), dense=()))
    x = jax.random.normal(jax.random.key(1), (2, 5, 3, 1))
    (features, maps), _ = network.init_with_output(jax.random.key(0), x, False)
    np.testing.assert_allclose(features, np.float64(maps["stage_1"]).mean((1, 2)), atol=1e-6)
