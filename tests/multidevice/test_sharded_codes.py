"""A codebook that is split over 8 devices answers as one, and none of it crosses devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from protojax import ops, sharding

VECTORS, CODES, SIZE = 40, 4096, 8

LARGE = 256, 128
"""Vectors and features from which on products of bfloat16 come first."""


def operands(vectors=VECTORS, size=SIZE):
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(CODES, size)).astype(np.float32)
    # Near ones are clear on every device, but for their copies.
    vectors = codes[rng.integers(0, CODES, vectors)] + rng.normal(size=(vectors, size)).astype(np.float32)
    # Copies on other devices: the first of them is the one.
    codes[CODES // 2 :] = codes[: CODES // 2]
    return vectors, codes


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("sizes", [(VECTORS, SIZE), LARGE])
def test_8_devices_answer_as_one(metric, sizes):
    vectors, codes = operands(*sizes)
    expected = ops.nearest(vectors, codes, metric)
    assert (np.asarray(expected.index) < CODES // 2).all()
    split = jax.device_put(codes, sharding.along_data(sharding.mesh()))
    # Where the codes are tells how to go about it.
    found = ops.nearest(vectors, split, metric)
    np.testing.assert_array_equal(found.index, expected.index)
    np.testing.assert_allclose(found.value, expected.value, rtol=1e-6)


@pytest.mark.parametrize(("scale", "metric"), [(1e-24, "cosine"), (1e20, "cosine"), (1e4, "euclidean")])
def test_devices_are_told_apart_at_every_scale(scale, metric):
    vectors, codes = operands(*LARGE)
    codes, vectors = codes[: CODES // 2], vectors * np.float32(scale)
    split = jax.device_put(codes, sharding.along_data(sharding.mesh()))
    expected = ops.nearest(vectors, codes, metric)
    np.testing.assert_array_equal(ops.nearest(vectors, split, metric).index, expected.index)


def test_the_loss_and_its_derivative_lie_where_the_codes_lie():
    vectors, codes = operands()
    index = ops.nearest(vectors, codes).index
    split = jax.device_put(codes, sharding.along_data(sharding.mesh()))
    gradient = jax.jit(jax.value_and_grad(ops.codebook_loss, argnums=1), static_argnames="mesh")
    expected, found = gradient(vectors, codes, index), gradient(vectors, split, index, mesh=sharding.mesh())
    assert found[0] == pytest.approx(float(expected[0]), rel=1e-6)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-6)
    assert found[1].sharding.spec[0] == "data"


COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(("vectors", "size"), [(VECTORS, SIZE), LARGE])
def test_what_crosses_devices_is_two_numbers_a_vector(metric, vectors, size):
    mesh = sharding.mesh()

    def step(vectors, codes):
        found = ops.nearest(vectors, codes, metric, mesh)
        return ops.codebook_loss(vectors, codes, found.index, mesh), found

    def given(shape, spec):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))

    arguments = given((vectors, size), PartitionSpec()), given((1 << 17, size), PartitionSpec("data"))
    compiled = jax.jit(jax.value_and_grad(step, argnums=1, has_aux=True)).lower(*arguments).compile()
    moved = COLLECTIVE.findall(compiled.as_text())
    assert {kind for _, kind in moved} == {"all-reduce"}
    sizes = [int(n) for shape, _ in moved for n in re.findall(r"\d+", re.sub(r"\{.*?\}|[a-z]+\d+", "", shape))]
    assert max(sizes, default=1) <= vectors


def test_codes_must_divide():
    with pytest.raises(ValueError, match="30 codes do not divide evenly among 8 devices: .* such as 32"):
        ops.nearest(np.ones((2, 3), np.float32), np.ones((30, 3), np.float32), mesh=sharding.mesh())
