"""Networks compile for long and run for milliseconds: here they are compiled without most optimisations."""

import jax
import pytest


@pytest.fixture(autouse=True)
def _compile_fast():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
