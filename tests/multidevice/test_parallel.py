"""The same run on one device, on 8 under jit, and on 8 under pmap gives the same numbers."""

import functools

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh

from protojax import config, data, optimizer, sharding, train


def settings_with(norm="batch", feeding="resident", parallel="jit", candidates="sampled"):
    return config.from_tree(
        {
            "name": "tiny",
            "data": {"feeding": feeding, "augment": {"pad_crop": 1}, "label_noise": 0.2},
            "encoder": {
                "kind": "conv",
                "filters": [4],
                "dense": [16],
                "norm": norm,
                "dropout": 0.2 if candidates == "sampled" else 0.0,
            },
            "method": {"kind": "protoattend", "key_size": 4, "value_size": 8},
            "train": {
                "steps": 6,
                "batch_size": 16,
                "candidate_count": 32,
                "candidates": candidates,
                "candidate_chunk": 16,
                "refresh_every": 4,
                "steps_per_dispatch": 2,
                "log_every": 2,
                "parallel": parallel,
            },
        },
        "test",
    )


@pytest.fixture(scope="module")
def digits():
    assert jax.device_count() == 8
    return data.load(config.DataSettings())


def parameters(settings, dataset, folder):
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        # Adam turns the rounding of a gradient that is zero (of a bias that sparsemax or a norm takes out again) into
        # whole steps.
        patch.setattr(optimizer, "build", lambda *_: optax.sgd(0.05))
        trained = train.fit(settings, dataset, folder, lambda method, variables: {"score": 0.0}, quiet=True)
    return jax.device_get(trained.state.variables)


@pytest.fixture(scope="module")
def on_one_device(digits, tmp_path_factory):
    """Parameters by where candidates come from, each trained once."""

    @functools.cache
    def trained(candidates):
        with pytest.MonkeyPatch.context() as patch:
            one = Mesh(np.array(jax.devices()[:1]), ("data",), axis_types=(AxisType.Auto,))
            patch.setattr(sharding, "mesh", lambda: one)
            return parameters(settings_with(candidates=candidates), digits, tmp_path_factory.mktemp("one") / "run")

    return trained


def assert_same(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4), found, expected)


@pytest.mark.parametrize("parallel", ["jit", "pmap"])
@pytest.mark.parametrize("feeding", ["resident", "streamed"])
def test_8_devices_give_the_numbers_of_one(digits, tmp_path, on_one_device, parallel, feeding):
    found = parameters(settings_with(feeding=feeding, parallel=parallel), digits, tmp_path / "run")
    assert_same(found, on_one_device("sampled"))


@pytest.mark.parametrize("candidates, parallel", [("support", "jit"), ("support", "pmap"), ("retrieved", "jit")])
def test_8_devices_share_the_candidates(digits, tmp_path, on_one_device, candidates, parallel):
    found = parameters(settings_with(candidates=candidates, parallel=parallel), digits, tmp_path / "run")
    assert_same(found, on_one_device(candidates))


def test_a_batch_that_the_devices_cannot_share(digits, tmp_path):
    settings = config.override(settings_with(), ["train.batch_size=12"], "test")
    with pytest.raises(ValueError, match=r"train.batch_size = 12 .* 8 devices"):
        parameters(settings, digits, tmp_path / "run")
