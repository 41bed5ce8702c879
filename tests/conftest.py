"""Every test runs on CPU and treats implicit rank promotion as an error; those of `multidevice/` need 8 devices.

A process has the devices it started with, so `test_multidevice.py` runs `multidevice/` in a process of its own.
"""

import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

collect_ignore = [] if "--simulated-devices" in sys.argv else ["multidevice"]


@pytest.fixture(scope="module")
def compile_fast():
    """Compiles without most optimisations: training steps compile for long and run for milliseconds."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def pytest_addoption(parser):
    parser.addoption("--simulated-devices", action="store_true", help="collect multidevice/ in a process of 8 devices")
