import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax import optimizer
from protojax.config import OptimizerSettings


def rates(steps, at, **changes):
    schedule = optimizer.schedule(OptimizerSettings(learning_rate=0.002, **changes), steps)
    return [float(schedule(s)) for s in at]


def test_the_exponential_decay_is_continuous():
    found = rates(10_000, [0, 1000, 2000, 3000], schedule="exponential", decay_rate=0.9, decay_every=2000)
    np.testing.assert_allclose(found, [0.002, 0.002 * 0.9**0.5, 0.0018, 0.002 * 0.9**1.5], rtol=1e-6)


def test_warm_up_and_cosine():
    found = rates(110, [0, 5, 10, 60, 110], schedule="cosine", warmup_steps=10)
    np.testing.assert_allclose(found, [0, 0.001, 0.002, 0.001, 0], atol=1e-9)
    np.testing.assert_allclose(rates(100, [0, 99], schedule="constant"), 0.002)


def first_update(params, gradient, **changes):
    transform = optimizer.build(OptimizerSettings(learning_rate=0.1, schedule="constant", **changes), 10)
    updates, _ = transform.update(gradient, transform.init(params), params)
    return updates


@pytest.mark.parametrize(
    ("changes", "moment"),
    [
        ({"clip": "none"}, [30.0, -40.0]),
        ({"clip": "value", "clip_at": 20.0}, [20.0, -20.0]),
        ({"clip": "norm", "clip_at": 5.0}, [3.0, -4.0]),
    ],
)
def test_clipping_comes_before_adam(changes, moment):
    params = {"dense": {"kernel": jnp.zeros(2)}}
    transform = optimizer.build(OptimizerSettings(schedule="constant", **changes), 10)
    _, state = transform.update({"dense": {"kernel": jnp.array([30.0, -40.0])}}, transform.init(params), params)
    first_moment = [x for x in jax.tree.leaves(state) if x.shape == (2,)][0]
    np.testing.assert_allclose(first_moment, 0.1 * np.array(moment), rtol=1e-6)


def test_weight_decay_reaches_convolution_filters_alone():
    params = {"conv": {"kernel": jnp.ones((3, 3, 1, 1))}, "dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    gradient = {
        "conv": {"kernel": jnp.zeros((3, 3, 1, 1))},
        "dense": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)},
    }
    updates = first_update(params, gradient, conv_weight_decay=0.01)
    assert (updates["conv"]["kernel"] < 0).all()
    assert not updates["dense"]["kernel"].any() and not updates["dense"]["bias"].any()
