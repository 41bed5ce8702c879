"""Feeding a step: the examples of a batch and of its candidates, from arrays in memory to the device."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks.database import Images
from benchmarks.measure import OURS, Case, Implementation
from protojax.data import resident, sampling, streamed

BATCH = 128


def cases(options: Any) -> Iterator[Case]:
    """The cases, one after another."""
    examples, shape = (256, (8, 8, 1)) if options.quick else (60_000, (28, 28, 1))
    batch = 16 if options.quick else BATCH
    source = Images(examples, shape)
    for size in (16, 32) if options.quick else (1024, 8192):
        sampler = sampling.sampler(examples, batch, size, 0)
        worker_counts = (0,) if options.quick else (0, 2)
        peers = [partial(_torch, source, batch + size, workers) for workers in worker_counts]
        with contextlib.ExitStack() as stack:
            streams = [_streamed(source, sampler, workers, stack) for workers in worker_counts]
            ours = [_resident(source, sampler), *streams]
            yield Case("feeding", f"{examples} images, B = {batch}, D = {size}", size, measure.with_peers(ours, *peers))


def _resident(source: Images, sampler: sampling.Sampler) -> Implementation:
    arrays = jax.tree.map(jnp.asarray, {"id": source.ids, "inputs": source.inputs, "label": source.labels})

    def take(arrays: Any, step: jax.Array) -> Any:
        batch = resident.take(arrays, sampling.batch_indices(sampler, step))
        return {**batch, "candidates": resident.take(arrays, sampling.candidate_indices(sampler, step))}

    return measure.compiled(f"{OURS}, resident", take, arrays, jnp.int32(3), check=partial(_belong_together, source))


def _streamed(source: Images, sampler: sampling.Sampler, workers: int, stack: contextlib.ExitStack) -> Implementation:
    steps = streamed.batches(source, sampler, start=0, stop=sampling.MAX_STEPS, workers=workers)
    stack.enter_context(contextlib.closing(steps))

    def run() -> Any:
        return jax.block_until_ready(jax.device_put(next(steps)))

    name = f"{OURS}, streamed, {workers} workers" if workers else f"{OURS}, streamed"
    return Implementation(name, run, check=partial(_belong_together, source))


def _torch(source: Images, size: int, workers: int) -> list[Implementation]:
    torch = measure.torch()
    arrays = [torch.from_numpy(x) for x in (source.ids, source.inputs, source.labels)]
    dataset = torch.utils.data.TensorDataset(*arrays)

    def epochs() -> Iterator[Any]:
        loader = torch.utils.data.DataLoader(
            dataset, batch_size=min(size, len(source)), shuffle=True, drop_last=True, num_workers=workers
        )
        while True:
            yield from loader

    steps = epochs()
    name = f"PyTorch DataLoader, {workers} workers" if workers else "PyTorch DataLoader"
    return [Implementation(name, lambda: next(steps))]


def _belong_together(source: Images, batch: Any) -> bool:
    """Every row is the example whose id it carries, and no candidate comes twice."""
    parts = jax.device_get(batch)
    ids = parts["candidates"]["id"]
    rows = [np.array_equal(source.inputs[part["id"]], part["inputs"]) for part in (parts, parts["candidates"])]
    return all(rows) and len(np.unique(ids)) == len(ids)
