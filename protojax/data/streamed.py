"""Streamed feeding: Grain reads the examples of every step, ahead of it, in threads or worker processes."""

import dataclasses
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import connection
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from protojax.data import resident, sampling
from protojax.data.sampling import Sampler
from protojax.data.source import Source

Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Read:
    """What a worker needs to read the part of a batch that belongs to one process."""

    source: Source
    sampler: Sampler
    process: int
    processes: int

    def __call__(self, step: int) -> Batch:
        batch = self._rows(sampling.batch_indices(self.sampler, step))
        if self.sampler.candidate_count:
            batch["candidates"] = self._rows(sampling.candidate_indices(self.sampler, step))
        return batch

    def _rows(self, indices: np.ndarray) -> Batch:
        own = np.split(indices, self.processes)[self.process]
        return resident.read(self.source, own, len(own))


def batches(
    source: Source,
    sampler: Sampler,
    *,
    start: int,
    stop: int,
    workers: int = 0,
    prefetch: int = 2,
    process: int | None = None,
    processes: int | None = None,
) -> Iterator[Batch]:
    """The batches of steps `start` to `stop - 1`: for any number of workers those that resident feeding takes.

    Process p of P reads the rows from p * batch / P to (p + 1) * batch / P of the batch, and of its candidates.

    Args:
      source: the split; picklable where there are workers.
      sampler: which examples are drawn.
      start: first step.
      stop: the step before which to end.
      workers: worker processes; 0 reads in threads of this one.
      prefetch: batches kept ready.
      process: which process this is; that of JAX when absent.
      processes: how many there are; those of JAX when absent.

    Returns:
      NumPy arrays `id`, `inputs` and `label` a step, and a dict of the same, `candidates`, where there are any.

    Raises:
      ValueError: batches that do not divide evenly among the processes, or an impossible range.
      DataError: examples of different shapes.
    """
    process = jax.process_index() if process is None else process
    processes = jax.process_count() if processes is None else processes
    if not 0 <= start <= stop <= sampling.MAX_STEPS:
        raise ValueError(f"cannot read steps {start} to {stop}: they go up, from 0 to at most {sampling.MAX_STEPS}")
    for key in ("batch_size", "candidate_count"):
        if getattr(sampler, key) % processes:
            raise ValueError(f"train.{key} = {getattr(sampler, key)} is not a multiple of the {processes} processes")
    if start == stop:
        return iter(())
    # Each thread reads one batch; a worker process reads its batches one after another.
    ahead = 1 if workers else prefetch
    dataset = (
        grain.MapDataset.range(start, stop)
        .map(_Read(source, sampler, process, processes))
        .to_iter_dataset(grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead))
    )
    if workers:
        # Grain reads a flag of its own before it starts a worker, which fails in a program that is no absl app.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        buffer = -(-prefetch // workers)
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=buffer)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_begin_worker)
    return _iterate(dataset)


def _begin_worker(index: int, count: int) -> None:
    """Ties a worker process to its parent: it outlives signals that end a group of processes, but not the parent."""
    # The parent decides what they mean: it may still have to save its state, and needs no broken pipeline for that.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Grain's workers wait forever for a parent that was killed.
    parent = multiprocessing.parent_process()
    threading.Thread(target=_exit_with, args=(parent.sentinel,), daemon=True).start()


def _exit_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _iterate(dataset: grain.IterDataset) -> Iterator[Batch]:
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        # Ends threads and worker processes now, where the reader stops early.
        iterator.close()
        # A cycle keeps the last batch of every worker, in shared memory that has to go before the program ends.
        del iterator
        gc.collect()
