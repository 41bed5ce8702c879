"""All stages of ProtoQuant on one device, on 8 under jit, and on 8 under pmap give the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import AxisType, Mesh

from protojax import config, data, methods, optimizer, sharding, train


class Patches(nn.Module):
    """Windows of 2x2 pixels and where they stand as a frozen map, and a head on the sum: no two patches are alike."""

    def head(self, maps):
        return maps.sum(axis=(1, 2))[:, :1] * jnp.arange(10.0)[None]

    def __call__(self, inputs, train):
        windows = inputs.reshape(len(inputs), 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(len(inputs), 4, 4, 4)
        places = jnp.broadcast_to(jnp.arange(1.0, 17).reshape(1, 4, 4, 1) / 8, (len(inputs), 4, 4, 1))
        maps = jnp.concatenate([windows, places, jnp.cos(3 * places)], axis=-1)
        return self.head(maps), {"map": maps}


def settings(parallel):
    method = {"kind": "protoquant", "codes": 12, "codebook_steps": 3, "prune_at": 5, "top_k": 3, "task_weight": 0.1}
    method |= {"initializer": "sampled", "revive_every": 1}
    tree = {
        "name": "tiny",
        "data": {"augment": {"pad_crop": 1}, "mix": {"mixup": 0.8, "cutmix": 1.0}},
        "encoder": {"kind": "conv"},
        "method": method,
        "train": {"steps": 8, "batch_size": 16, "log_every": 2, "label_smoothing": 0.1, "parallel": parallel},
    }
    return config.from_tree(tree, "test")


def variables(parallel, folder, devices):
    folder.mkdir()
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",), axis_types=(AxisType.Auto,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "mesh", lambda: mesh)
        patch.setattr(methods.networks, "build", lambda *_: Patches())
        # Adam turns the rounding of a gradient that is zero into whole steps.
        patch.setattr(optimizer, "_adam", lambda *_: optax.sgd(0.05))
        dataset = data.load(config.DataSettings())
        trained = train.fit(settings(parallel), dataset, folder, lambda *_: {"score": 0.0}, quiet=True)
    return jax.device_get(trained.state.variables)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return variables("jit", tmp_path_factory.mktemp("one") / "run", 1)


@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_8_devices_give_the_numbers_of_one(tmp_path, expected, parallel):
    found = variables(parallel, tmp_path / "eight", 8)
    assert expected["codebook"]["kept"].sum() == 30 and len(np.unique(expected["params"]["codes"], axis=0)) > 6
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4), found, expected)
