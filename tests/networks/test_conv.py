import jax
import jax.numpy as jnp
import pytest

from protojax import networks
from protojax.config import ConvSettings


# Convolution 3x3xIxO and 2 O of normalisation; dense I x O + O and 2 O of layer normalisation.
@pytest.mark.parametrize(
    ("size", "maps", "parameters"),
    [
        (8, (4, 2), 288 + 64 + 18432 + 128 + 256 * 128 + 128 + 256),
        (28, (14, 7), 288 + 64 + 18432 + 128 + 3136 * 128 + 128 + 256),
        (7, (4, 2), 288 + 64 + 18432 + 128 + 256 * 128 + 128 + 256),
    ],
)
def test_shapes_and_parameter_count(size, maps, parameters):
    network = networks.build(ConvSettings())
    (features, intermediates), variables = jax.eval_shape(
        lambda key: network.init_with_output(key, jnp.zeros((3, size, size, 1)), False), jax.random.key(0)
    )
    assert features.shape == (3, 128)
    assert {name: x.shape for name, x in intermediates.items()} == {
        "map_1": (3, maps[0], maps[0], 32),
        "map_2": (3, maps[1], maps[1], 64),
    }
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == parameters


def test_without_dense_layers_the_features_are_the_flattened_map():
    network = networks.build(ConvSettings(filters=(4,), dense=()))
    x = jax.random.normal(jax.random.key(1), (2, 6, 6, 1))
    (features, intermediates), _ = network.init_with_output(jax.random.key(0), x, False)
    assert jnp.array_equal(features, intermediates["map_1"].reshape(2, 36))
