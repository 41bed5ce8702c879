"""A training step of the autoencoders on 8 devices, under jit and under pmap, equals that on one."""

import contextlib
import functools

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh

from protojax import config, data, optimizer, sharding, step

METHODS = ["prototype_autoencoder", "attention_autoencoder"]


@pytest.fixture(scope="module")
def digits():
    assert jax.device_count() == 8
    return data.load(config.DataSettings())


def stepped(method, parallel, dataset):
    """Parameters before and after a step, and its metrics."""
    settings = config.from_tree(
        {
            "name": "tiny",
            "data": {"augment": {"standardize": False, "elastic_amplitude": 4.0}},
            "encoder": {"kind": "autoencoder", "filters": [4, 3], "strides": [2, 2], "initializer": "he"},
            "method": {"kind": method},
            "train": {"steps": 1, "batch_size": 16, "log_every": 1, "parallel": parallel},
        },
        "test",
    )
    with pytest.MonkeyPatch.context() as patch:
        # Adam turns the rounding of a gradient that is zero into a whole step.
        patch.setattr(optimizer, "build", lambda *_: optax.sgd(1e-3))
        loop, state = step.compile(settings, dataset), step.fresh(settings, dataset)
    before = jax.device_get(state.params)
    with contextlib.closing(loop.data(0)) as feed:
        after, metrics = loop.dispatch(loop.devices.place_state(state), next(feed))
    after, metrics = jax.device_get(loop.devices.fetch((after.params, metrics)))
    return before, after, metrics


@pytest.fixture(scope="module")
def on_one_device(digits):
    @functools.cache
    def done(method):
        with pytest.MonkeyPatch.context() as patch:
            one = Mesh(np.array(jax.devices()[:1]), ("data",), axis_types=(AxisType.Auto,))
            patch.setattr(sharding, "mesh", lambda: one)
            return stepped(method, "jit", digits)

    return done


@pytest.mark.parametrize("parallel", ["jit", "pmap"])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_on_8_devices_is_that_on_one(digits, on_one_device, method, parallel):
    before, expected, terms = on_one_device(method)
    _, found, metrics = stepped(method, parallel, digits)
    for part in before:
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before[part], expected[part])
        assert max(jax.tree.leaves(moved)) > 1e-5, part
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)
    assert metrics.keys() == terms.keys()
    for name, value in terms.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
