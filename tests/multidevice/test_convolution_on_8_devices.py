import re

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from protojax import sharding
from protojax.networks import windows
from protojax.networks.convolution import conv_general_dilated

COLLECTIVE = re.compile(r" = (.*) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")

SHAPES = (3, 3, 3, 4), (3, 3, 4, 5), (3, 3, 1, 5)
"""The last has one filter a channel."""


def test_a_split_batch_stays_where_it_is(monkeypatch):
    monkeypatch.setattr(windows, "_CHUNK_BYTES", 20_000)
    mesh = sharding.mesh()
    split, replicated = sharding.along_data(mesh), sharding.replicated(mesh)
    rng = np.random.default_rng(0)
    kernels = [jnp.asarray(rng.normal(size=shape) / 3, jnp.float32) for shape in SHAPES]
    x = jnp.asarray(rng.normal(size=(48, 9, 9, 3)), jnp.float32)

    def loss(convolve, kernels, x):
        for stride, kernel in zip((1, 2, 1), kernels, strict=True):
            more = {
                "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
                "feature_group_count": x.shape[-1] // kernel.shape[-2],
            }
            x = jnp.tanh(convolve(x, kernel, (stride, stride), [(1, 1), (1, 1)], **more))
        return jnp.sum(jnp.square(x))

    gradient = jax.jit(
        lambda kernels, x: jax.grad(loss, 1)(conv_general_dilated, kernels, x),
        in_shardings=(replicated, split),
        out_shardings=replicated,
    )
    got = gradient(kernels, jax.device_put(x, split))
    wanted = jax.jit(jax.grad(loss, 1), static_argnums=0)(lax.conv_general_dilated, kernels, x)
    for ours, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * float(jnp.abs(theirs).max()))
    program = gradient.lower(kernels, x).compile().as_text()
    assert " while(" in program
    # Of all arrays only the gradients themselves cross devices, and outside the loops.
    moved = COLLECTIVE.findall(program)
    assert moved and {name for _, name in moved} == {"all-reduce"}
    sizes = [
        np.prod([int(n) for n in shape.split(",")])
        for shapes, _ in moved
        for shape in re.findall(r"\[([\d,]+)\]", shapes)
    ]
    assert sorted(sizes) == sorted(kernel.size for kernel in kernels)
