import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax import ops
from protojax.ops import kernel


def drawn(candidates, batch, size, dtype=jnp.float32):
    random = np.random.default_rng(candidates)
    keys = jnp.asarray(random.normal(size=(candidates, size)), dtype)
    return keys, jnp.asarray(random.normal(size=(batch, size)), jnp.float32)


@pytest.mark.parametrize(
    "candidates, batch, size, rows, dtype",
    [
        (256, 64, 16, 32, jnp.float32),
        (1000, 5, 16, 32, jnp.bfloat16),
        (300, 70, 5, 128, jnp.float32),
        (40, 3, 24, 8, jnp.float32),
        (500, 2, 16, 256, jnp.float32),
    ],
)
def test_maxima_of_blocks_against_float64(candidates, batch, size, rows, dtype):
    keys, queries = drawn(candidates, batch, size, dtype)
    scores = np.asarray(keys, np.float64) @ np.asarray(queries, np.float64).T
    expected = [scores[start : start + rows].max(axis=0) for start in range(0, candidates, rows)]
    np.testing.assert_allclose(kernel.block_maxima(keys, queries, rows, interpret=True), expected, atol=1e-5)


@pytest.mark.parametrize("poison", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_block_with_a_key_that_is_not_finite_is_to_be_opened(poison):
    keys, queries = drawn(200, 3, 16)
    found = kernel.block_maxima(keys.at[199, 3].set(poison), queries, 32, interpret=True)
    assert (found[-1] == jnp.inf).all()
    assert jnp.isfinite(found[:-1]).all()


def test_attention_by_the_kernel_is_that_by_tiles():
    keys, queries = drawn(3000, 6, 16)
    ids = jnp.arange(3000, dtype=jnp.int32).at[64:128].set(-1)
    common = {"ids": ids, "exclude": ids[:6], "width": 20, "execution": "streamed"}
    found = ops.attend(queries, keys, keys, kernel="pallas", **common)
    expected = ops.attend(queries, keys, keys, **common)
    assert jnp.array_equal(found.ids, expected.ids) and jnp.array_equal(found.size, expected.size)
    np.testing.assert_allclose(found.weights, expected.weights, atol=1e-6)
    np.testing.assert_allclose(found.outputs, expected.outputs, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
def test_it_is_lowered_for_cuda():
    """As far as a machine without a GPU can show."""
    keys, queries = drawn(256, 64, 16)
    card = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="gpu")
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=card)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = kernel.block_maxima.trace(keys, queries, 32, interpret=False)
        assert "triton" in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_bad_input():
    keys, queries = drawn(64, 2, 16)
    with pytest.raises(ValueError, match="rows must be a power of two for kernel = 'pallas', got 24"):
        kernel.block_maxima(keys, queries, 24, interpret=True)
    with pytest.raises(ValueError, match="kernel must be 'xla' or 'pallas', got 'triton'"):
        ops.attend(queries, keys, keys, kernel="triton")
