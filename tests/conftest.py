"""Every test runs on CPU and treats implicit rank promotion as an error; two folders run in processes of their own.

A process has the devices and the compiler it started with. `multidevice/` needs 8 devices: `test_multidevice.py` runs
it. `as_for_users/` has the numbers that must be right as XLA compiles them for users: `test_as_for_users.py` runs it.
All else is compiled fast.
"""

import gc
import json
import os
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path

DEVICES, AS_FOR_USERS = "--simulated-devices", "--as-for-users"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs compile for long here and run for milliseconds.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(AS_FOR_USERS not in sys.argv).lower()
# The emitters of fusions take two fifths of the suite's time; versions after 0.10 cannot do without them. And a program
# compiled in parts makes more work, where other tests want the cores.
FAST = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
if metadata.version("jax").startswith("0.10.") and AS_FOR_USERS not in sys.argv:
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAST}".strip()

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

collect_ignore = [
    folder for option, folder in ((DEVICES, "multidevice"), (AS_FOR_USERS, "as_for_users")) if option not in sys.argv
]


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """What took long to compile is not compiled again in this process.

    Processes that work together must not have it: where one reads a program and another compiles it, both wait forever.
    """
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture(scope="session")
def results_of():
    """Trains settings in a folder, and gives what `results.json` says; the warnings are those of tiny runs."""

    from protojax import experiment

    def trained(settings, folder):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            experiment.train_run(settings, folder, quiet=True)
        return json.loads((folder / "results.json").read_text())

    return trained


@pytest.fixture
def passes_alone():
    """Asserts that the tests of a folder pass in a process of their own, with an option of pytest and flags of XLA."""

    def check(folder, option, flags=""):
        environment = os.environ | {"XLA_FLAGS": flags}
        path = Path(__file__).parent / folder
        command = [sys.executable, "-m", "pytest", "-n", "0", option, str(path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=path.parent.parent)
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]

    return check


def pytest_collection_modifyitems(items):
    """A folder is one long test: these start first, so that none runs alone at the end."""
    items.sort(key=lambda item: "passes_alone" not in item.fixturenames)


def pytest_collection_finish():
    """What was imported stays: a twentieth of the time would go into searching it for garbage, again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)


def pytest_addoption(parser):
    parser.addoption(DEVICES, action="store_true", help="collect multidevice/ in a process of 8 devices")
    parser.addoption(AS_FOR_USERS, action="store_true", help="collect as_for_users/, compiled with the defaults of XLA")
