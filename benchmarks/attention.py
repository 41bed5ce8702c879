"""Attention over a database: queries that ask for the weighted mean of the values of their prototypes.

Every implementation ends with the outputs `[batch, v]`, those that only search too: they go on with sparsemax over what
they found. Keys are clustered: those of a trained run (`--run`) repeated with noise, or drawn around random centres.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks.measure import OURS, Case, Implementation
from benchmarks.sparsemax import reference
from protojax import ops

WIDTH = 64
"""Prototypes listed, and k of the searches."""

ROWS = 32
"""Candidates in a block of the index."""

NOISE = 0.05
"""What tells copies of a trained key apart, in standard deviations of every number of the keys."""


ACCELERATOR = 4096, 1_281_167, 128
"""Queries, candidates (the training split of ImageNet) and numbers of a value that an accelerator is asked for."""

MEMORY = 24e6
"""Bytes beside the largest database, at most."""


class Problem(NamedTuple):
    """Queries and a database, ordered by `ops.cluster`, in NumPy."""

    source: str
    """Where the keys come from."""
    queries: np.ndarray
    keys: np.ndarray
    values: np.ndarray

    def first(self, queries: int) -> "Problem":
        """The same database, asked by fewer."""
        return self._replace(queries=self.queries[:queries])


def cases(options: Any) -> Iterator[Case]:
    """The cases, one after another."""
    sizes = (2048,) if options.quick else (32768, 262144, 1_000_000)
    queries = 8 if options.quick else 128
    for size in sizes:
        problem = clustered(options, size, queries)
        index = jax.block_until_ready(ops.cluster_index(jnp.asarray(problem.keys), ROWS))
        last = size == max(sizes) and not options.quick
        for one in (problem, problem.first(1)):
            yield _case(options, one, index, goals=last)
    size = 2048 if options.quick else 32768
    yield _case(options, _spread(size, queries), None, goals=not options.quick)
    if jax.default_backend() != "cpu":
        yield _on_accelerator(options, *ACCELERATOR)
    elif options.quick:
        yield _on_accelerator(options, 8, 2048, 16)


def _case(options: Any, problem: Problem, index: ops.ClusterIndex | None, goals: bool) -> Case:
    batch, size = len(problem.queries), len(problem.keys)
    check = partial(_close, _expected(problem))
    arrays = tuple(jnp.asarray(x) for x in problem[1:])
    attend = partial(ops.attend, width=min(WIDTH, size))
    plain = measure.compiled(OURS, attend, *arrays, check=check, memory_goal=MEMORY if goals and index else None)
    own = [plain]
    if index is not None:
        skipping = measure.compiled(
            f"{OURS}, skipping", lambda q, k, v, i: attend(q, k, v, index=i), *arrays, index, check=check
        )
        # One query skips nearly everything and is what is compared; many share their reads, and may not be slower.
        own = [skipping, plain] if batch == 1 else [plain, skipping._replace(goal=1.0 if goals else None)]
    searched = {1: 10.0}.get(batch, 5.0) if goals and index is not None else None
    by_torch = None if not goals or batch == 1 else (20.0 if index is not None else 2.0)
    peers = measure.with_peers(
        own, partial(_faiss, problem, check, searched), partial(_entmax, problem, check, by_torch)
    )
    flops, read = 2.0 * batch * size * problem.keys.shape[1], problem.keys.nbytes
    # A search for the best 64 cannot be right about a support of 200; it is compared where it can.
    if index is None:
        peers = [one for one in peers if "faiss" not in one.name]
    name = f"B = {batch}, {problem.source}, D = {size}"
    return Case("attention", name, size, peers, options.peaks.seconds(flops, read))


def _on_accelerator(options: Any, queries: int, size: int, values: int) -> Case:
    """In bfloat16, by XLA and by the kernel, which a CPU interprets."""
    random = np.random.default_rng(0)
    centres = 3 * random.normal(size=(512, 16))
    owners = random.integers(0, len(centres), size + queries)
    points = (centres[owners] + 0.3 * random.normal(size=(size + queries, 16))).astype(jnp.bfloat16)
    weighed = random.normal(size=(size, values)).astype(jnp.bfloat16)
    problem = Problem("", *(x.astype(np.float32) for x in (points[size:], points[:size], weighed)))
    check = partial(_close, _expected(problem))
    arrays = tuple(jnp.asarray(x) for x in (points[size:], points[:size], weighed))
    attend = partial(ops.attend, width=min(WIDTH, size), execution="streamed")
    own = [
        measure.compiled(OURS, attend, *arrays, check=check),
        measure.compiled(f"{OURS}, Pallas", partial(attend, kernel="pallas"), *arrays, check=check),
    ]
    flops, read = 2.0 * queries * size * 16, points[:size].nbytes
    return Case("attention", f"B = {queries}, bfloat16, D = {size}", size, own, options.peaks.seconds(flops, read))


def clustered(options: Any, size: int, queries: int, rows: int = ROWS) -> Problem:
    """Keys in which blocks of `rows` consecutive ones are near each other: of `--run`, or around random centres."""
    random = np.random.default_rng(size)
    if options.run is None:
        source, values_size = "keys around random centres", 64
        centres = 3 * random.normal(size=(512, 16))
        owners = random.integers(0, len(centres), size + queries)
        points = (centres[owners] + 0.3 * random.normal(size=(size + queries, 16))).astype(np.float32)
        keys, asked = points[:size], points[size:]
        values = random.normal(size=(size, values_size)).astype(np.float32)
    else:
        from benchmarks import trained

        source = "keys of a trained run, repeated with noise"
        keys, values, asked = trained.embeddings(options.run, queries)
        repeated = np.resize(np.arange(len(keys)), size)
        noise = NOISE * keys.std(axis=0, keepdims=True)
        keys = (keys[repeated] + noise * random.normal(size=(size, keys.shape[1]))).astype(np.float32)
        values = values[repeated]
    order = ops.cluster(jnp.asarray(keys), rows)
    return Problem(source, asked, keys[order], values[order])


def _spread(size: int, queries: int) -> Problem:
    """The hard case: scores so flat that each query has a support of about 200."""
    random = np.random.default_rng(0)
    keys = random.normal(size=(size, 16))
    values = random.normal(size=(size, 64)).astype(np.float32)
    asked = random.normal(size=(queries, 16))
    # Scores of standard deviation 0.3.
    asked *= 0.3 * 4 / np.linalg.norm(asked, axis=1, keepdims=True)
    return Problem("support of about 200", asked.astype(np.float32), keys.astype(np.float32), values)


def _expected(problem: Problem) -> np.ndarray:
    """Outputs in float64 of the first queries, which are enough to tell a wrong algorithm."""
    some = problem.queries[:8].astype(np.float64)
    scores = some @ problem.keys.T.astype(np.float64) / problem.keys.shape[1] ** 0.5
    return reference(scores)[0] @ problem.values


def _close(expected: np.ndarray, found: Any) -> bool:
    outputs = np.asarray(found.outputs if hasattr(found, "outputs") else found)
    # Scores of 40 are rounded to 4e-6 before anybody weighs them.
    return bool(np.abs(outputs[: len(expected)] - expected).max() < 1e-4 * max(1.0, np.abs(expected).max()))


def _faiss(problem: Problem, check: Any, goal: float | None) -> list[Implementation]:
    faiss = measure.peer("faiss")
    faiss.omp_set_num_threads(measure.threads())
    index = faiss.IndexFlatIP(problem.keys.shape[1])
    index.add(problem.keys)
    width = min(WIDTH, len(problem.keys))
    scaled = problem.queries / np.float32(problem.keys.shape[1] ** 0.5)

    def run() -> np.ndarray:
        scores, places = index.search(scaled, width)
        # They come in descending order.
        candidates = (np.cumsum(scores, axis=1) - 1) / np.arange(1, width + 1, dtype=np.float32)
        weights = np.maximum(scores - candidates.max(axis=1, keepdims=True), 0)
        return np.einsum("bk,bkv->bv", weights, problem.values[places])

    return [Implementation(f"faiss FlatIP, k = {WIDTH}", run, check=check, goal=goal)]


def _entmax(problem: Problem, check: Any, goal: float | None) -> list[Implementation]:
    torch, entmax = measure.torch(), measure.peer("entmax")
    queries, keys, values = (torch.from_numpy(x) for x in problem[1:])

    def run() -> np.ndarray:
        scores = queries @ keys.T / keys.shape[1] ** 0.5
        return (entmax.sparsemax(scores, dim=-1, k=WIDTH) @ values).numpy()

    return [Implementation(f"torch and entmax, top-k {WIDTH}", run, check=check, goal=goal)]
