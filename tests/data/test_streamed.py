"""Streamed feeding; the sources are classes of this module, which worker processes import under its test name."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax.data import resident, sampling, streamed
from protojax.data.source import DataError


@pytest.fixture(autouse=True)
def _importable_by_workers(monkeypatch):
    # Workers inherit the path and import this module by its name below the root, which `pytest` alone does not add.
    monkeypatch.syspath_prepend(Path(__file__).parents[2])


class Squares:
    def __init__(self, n, odd=None):
        self.ids = np.arange(1000, 1000 + n, dtype=np.int32)
        self.labels = (np.arange(n) % 3).astype(np.int32)
        self.odd = odd

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        inputs = np.full(3 if i != self.odd else 2, i * i, np.float32)
        return {"id": self.ids[i], "inputs": inputs, "label": self.labels[i]}


SAMPLER = sampling.sampler(50, 8, 12, seed=4)


def _assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        jax.tree.map(np.testing.assert_array_equal, batch, other)


@pytest.fixture(scope="module")
def in_threads():
    return list(streamed.batches(Squares(50), SAMPLER, start=0, stop=12))


def test_streamed_equals_resident(in_threads):
    arrays = resident.load(Squares(50))

    @jax.jit
    def taken(step):
        batch = resident.take(arrays, sampling.batch_indices(SAMPLER, step))
        batch["candidates"] = resident.take(arrays, sampling.candidate_indices(SAMPLER, step))
        return batch

    _assert_same(in_threads, [taken(jnp.int32(step)) for step in range(12)])


def test_worker_processes_change_nothing(in_threads):
    for workers in (1, 2):
        read = list(streamed.batches(Squares(50), SAMPLER, start=3, stop=12, workers=workers, prefetch=3))
        _assert_same(read, in_threads[3:])


def test_starts_and_stops_anywhere(in_threads):
    _assert_same(list(streamed.batches(Squares(50), SAMPLER, start=5, stop=7, prefetch=7)), in_threads[5:7])
    assert list(streamed.batches(Squares(50), SAMPLER, start=5, stop=5)) == []


def test_no_candidates():
    sampler = sampling.sampler(50, 8, 0, seed=4)
    (batch,) = streamed.batches(Squares(50), sampler, start=0, stop=1)
    assert set(batch) == {"id", "inputs", "label"}


def test_processes_read_contiguous_rows(in_threads):
    parts = [list(streamed.batches(Squares(50), SAMPLER, start=0, stop=3, process=p, processes=4)) for p in range(4)]
    joined = [jax.tree.map(lambda *x: np.concatenate(x), *step) for step in zip(*parts, strict=True)]
    _assert_same(joined, in_threads[:3])


def test_rows_that_do_not_divide_among_processes():
    with pytest.raises(ValueError, match="train.batch_size = 8 is not a multiple of the 3 processes"):
        streamed.batches(Squares(50), SAMPLER, start=0, stop=3, process=0, processes=3)
    sampler = sampling.sampler(50, 8, 10, seed=4)
    with pytest.raises(ValueError, match="train.candidate_count = 10 is not a multiple of the 4 processes"):
        streamed.batches(Squares(50), sampler, start=0, stop=3, process=0, processes=4)


def test_steps_must_ascend():
    with pytest.raises(ValueError, match="cannot read steps 3 to 2"):
        streamed.batches(Squares(50), SAMPLER, start=3, stop=2)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_example_is_named(workers):
    with pytest.raises(DataError, match=r"example 1007 has inputs float32 \[2\]"):
        list(streamed.batches(Squares(50, odd=7), SAMPLER, start=0, stop=10, workers=workers))


PROGRAM = """
    import os, sys
    import numpy as np
    from protojax.data import sampling, streamed

    class Zeros:
        ids = labels = np.arange(50, dtype=np.int32)

        def __len__(self):
            return 50

        def __getitem__(self, i):
            return {"id": self.ids[i], "inputs": np.zeros(1000, np.uint8), "label": self.labels[i]}

    if __name__ == "__main__":
        sampler = sampling.sampler(50, 8, 0, 0)
        batches = streamed.batches(Zeros(), sampler, start=0, stop=int(sys.argv[1]), workers=1)
        next(batches)
        if sys.argv[2] == "die":
            os.kill(os.getpid(), 9)
        print(1 + sum(1 for batch in batches if sys.argv[2] == "all"))
"""


@pytest.mark.parametrize("end", ["all", "die"])
def test_a_program_leaves_no_workers(tmp_path, end):
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(PROGRAM))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-W", "error", str(path), "5" if end == "all" else "1000000", end]
    # Workers hold the pipe of the standard output, so this returns when the last of them has gone.
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    if end == "all":
        assert (done.returncode, done.stdout, done.stderr) == (0, "5\n", "")
    else:
        assert done.returncode == -9
