import jax
import jax.numpy as jnp
import numpy as np

from protojax import networks
from protojax.config import LSTMSettings


def _start(x, **settings):
    network = networks.build(LSTMSettings(**settings))
    variables = network.init(jax.random.key(0), x, False)
    return network, jax.tree.map(lambda leaf: leaf + 0.05, variables)


def test_the_sizes_of_the_paper():
    network = networks.build(LSTMSettings())
    (features, seen), variables = jax.eval_shape(
        lambda key: network.init_with_output(key, jnp.zeros((3, 105)), False), jax.random.key(0)
    )
    assert features.shape == (3, 64)
    assert seen["outputs"].shape == (3, 4, 64)
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert count == (105 * 64 + 64) + 4 * (64 * 64 + 64 * 64 + 64) == 39808


def _sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def _lstm(params, embedded):
    cell = jax.tree.map(np.float64, params["cell"])
    c = h = np.zeros_like(embedded[0])
    for x in embedded:
        i, f, g, o = (
            x @ cell[f"i{gate}"]["kernel"] + h @ cell[f"h{gate}"]["kernel"] + cell[f"h{gate}"]["bias"]
            for gate in "ifgo"
        )
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
    return h


def test_outside_training_every_step_reads_the_whole_embedding():
    x = np.random.default_rng(0).normal(size=(5, 7))
    network, variables = _start(jnp.float32(x), steps=4, width=6)
    dense = jax.tree.map(np.float64, variables["params"]["embedding"])
    embedded = np.maximum(x @ dense["kernel"] + dense["bias"], 0.0)
    features, seen = network.apply(variables, jnp.float32(x), False)
    np.testing.assert_allclose(seen["embedded"], embedded, atol=1e-6)
    np.testing.assert_allclose(features, _lstm(variables["params"], [embedded] * 4), atol=1e-6)


def test_in_training_every_step_and_the_output_have_a_dropout_mask_of_their_own():
    x = jnp.float32(np.random.default_rng(1).normal(size=(5, 7)))
    network, variables = _start(x, steps=3, width=6)
    (features, _), state = network.apply(
        variables, x, True, rngs={"dropout": jax.random.key(1)}, capture_intermediates=True, mutable=["intermediates"]
    )
    calls = state["intermediates"]
    embedded = np.float64(calls["embedding"]["__call__"][0]).clip(0.0)
    steps = [np.float64(calls[f"dropout_{i}"]["__call__"][0]) for i in (1, 2, 3)]
    for step in steps:
        np.testing.assert_allclose(step[step != 0.0], 2.0 * embedded[step != 0.0], rtol=1e-6)
    patterns = {(step != 0.0).tobytes() for step in steps}
    assert len(patterns) == 3
    output = _lstm(variables["params"], steps)
    kept = np.asarray(features) != 0.0
    assert 0 < kept.sum() < kept.size
    np.testing.assert_allclose(features, np.where(kept, 2.0 * output, 0.0), atol=1e-5)
