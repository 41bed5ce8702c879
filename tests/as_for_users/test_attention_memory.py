"""What attention over a large database needs beside it."""

import functools

import jax
import jax.numpy as jnp
import pytest

from protojax import ops

BATCH, CANDIDATES, SIZE, VALUES = 128, 1_000_000, 16, 64


@pytest.mark.parametrize("what", ["answers", "gradients"])
def test_memory_is_bounded(what):
    def given(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    arguments = given(BATCH, SIZE), given(CANDIDATES, SIZE), given(CANDIDATES, VALUES)
    numbers = [given(CANDIDATES, dtype=jnp.int32)] * 2
    index = ops.ClusterIndex(given(CANDIDATES // 32, SIZE), given(CANDIDATES // 32)) if what == "answers" else None

    def answer(queries, keys, values, ids, labels, index):
        options = {"classes": 10, "shares": (0.5, 0.9), "exclude": jnp.arange(BATCH)}
        return ops.attend(queries, keys, values, ids=ids, labels=labels, index=index, **options)

    def loss(*arguments):
        return answer(*arguments).outputs.sum()

    function = jax.grad(loss) if what == "gradients" else answer
    # What is to lie in memory is settled before LLVM, whose part takes as long as all before it.
    quickly = {"xla_backend_optimization_level": 0}
    compiled = jax.jit(function).lower(*arguments, *numbers, index).compile(compiler_options=quickly)
    # One float for every query and candidate would be 512 MB.
    assert compiled.memory_analysis().temp_size_in_bytes <= 24e6


def sizes_of_arrays(jaxpr) -> set[int]:
    found = {getattr(v.aval, "size", 0) for equation in jaxpr.eqns for v in equation.outvars}
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found |= sizes_of_arrays(inner)
    return found


@pytest.mark.parametrize("normalizer", ["sparsemax", "softmax"])
def test_nothing_of_batch_times_candidates_is_ever_made(normalizer):
    batch, candidates = 128, 200_000
    arguments = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((batch, 2), (candidates, 2), (candidates, 2))]

    def loss(queries, keys, values, execution):
        found = ops.attend(queries, keys, values, normalizer=normalizer, shares=(0.5,), execution=execution)
        return found.outputs.sum() + found.weights.sum()

    def largest(execution):
        gradient = jax.grad(functools.partial(loss, execution=execution), argnums=(0, 1, 2))
        return max(sizes_of_arrays(jax.make_jaxpr(gradient)(*arguments).jaxpr))

    assert largest("dense") >= batch * candidates > 10 * largest("streamed")
