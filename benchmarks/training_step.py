"""One step of training: dense, with derivatives for the support alone, with retrieved candidates, and in PyTorch.

How much the support saves depends on how large it is, so the parameters are those of a model really trained.
"""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure, trained
from benchmarks.measure import OURS, Case, Implementation
from benchmarks.peers import resnet
from benchmarks.trained import Trained
from protojax import config, methods, step
from protojax.config import Settings
from protojax.data import resident

GOALS = {1024: (0.8, 0.6), 4096: (0.55, 0.4)}
"""Time and memory of the support step, by candidates, relative to the dense one."""


def cases(options: Any) -> Iterator[Case]:
    """The cases, one after another.

    Raises:
      Skipped: there is no trained model.
    """
    start = trained.load(options)
    arrays = resident.load(start.dataset.train, progress=False)
    dense_sizes, largest, retrieved = ((16,), None, 16) if options.quick else ((1024, 4096), 8192, 256)
    base = dense_sizes[0]
    memory: dict[int, int] = {}
    for size in dense_sizes:
        loss: list[float] = []
        dense = ours(f"{OURS}, dense", start, arrays, size, "sampled", check=partial(_note, loss))
        memory[size] = dense.memory_bytes
        faster, smaller = GOALS.get(size, (None, None))
        # Batch normalisation has statistics of each chunk there, and of all candidates in the dense step.
        check = partial(_same, loss) if getattr(start.settings.encoder, "norm", "group") == "group" else None
        support = ours(f"{OURS}, support", start, arrays, size, "support", check=check, goal=faster)
        if smaller:
            support = support._replace(memory_goal=smaller * memory[size])
        peers = [partial(pytorch, start, size, None if options.quick else 1 / 1.8)] if size == base else []
        name = f"dense and support, {start.source}, D = {size}"
        yield Case(
            "training_step",
            name,
            size,
            measure.with_peers([dense, support], *peers),
            options.peaks.seconds(_flops(start, size)),
        )
    if largest is not None:
        support = ours(f"{OURS}, support", start, arrays, largest, "support", memory_goal=memory[base])
        name = f"dense and support, {start.source}, D = {largest}"
        yield Case("training_step", name, largest, [support], options.peaks.seconds(_flops(start, largest)))
    if options.quick or jax.default_backend() != "cpu":
        pair = [
            ours(f"{OURS}, {name}", start, arrays, base, candidates, "bfloat16")
            for name, candidates in (("dense", "sampled"), ("support", "support"))
        ]
        name = f"bfloat16, {start.source}, D = {base}"
        yield Case("training_step", name, base, pair, options.peaks.seconds(_flops(start, base)))
    step_alone, with_refresh = _retrieved(start, arrays, retrieved)
    name = f"retrieved, C = {retrieved} of {len(start.dataset.train)}, against dense D = {base}"
    peer = partial(pytorch, start, base, None if options.quick else 1.2)
    yield Case(
        "training_step",
        name,
        retrieved,
        measure.with_peers([step_alone, with_refresh], peer),
        options.peaks.seconds(_flops(start, retrieved)),
    )


def _with(settings: Settings, size: int, candidates: str, precision: str = "float32") -> Settings:
    tree = config.to_tree(settings)
    tree["train"] |= {
        "candidate_count": size,
        "candidates": candidates,
        "steps_per_dispatch": 1,
        "precision": precision,
    }
    tree["data"] |= {"feeding": "resident"}
    return config.from_tree(tree, "benchmarks")


class _Step:
    """A compiled step that keeps its state: every call trains on."""

    def __init__(self, start: Trained, arrays: Any, size: int, candidates: str, precision: str = "float32"):
        settings = _with(start.settings, size, candidates, precision)
        self.loop = step.compile(settings, start.dataset)
        fresh = step.fresh(settings, start.dataset)
        # A state that retrieves also has keys, which the trained one lacks.
        statistics = {**fresh.statistics, **start.state.statistics}
        # The step consumes what it is given, and the trained state is needed again.
        state = jax.tree.map(np.asarray, start.state._replace(statistics=statistics))
        self.state = self.loop.devices.place_state(state)
        self.arrays = self.loop.devices.place_arrays(arrays)
        if self.loop.refresh is not None:
            self.refresh()
        begin = time.perf_counter()
        self.program = self.loop.dispatch.lower(self.state, self.arrays).compile()
        self.compile_seconds = time.perf_counter() - begin

    def refresh(self) -> None:
        self.state, _ = self.loop.refresh(self.state, self.arrays)
        jax.block_until_ready(self.state)

    def __call__(self) -> dict[str, np.ndarray]:
        self.state, metrics = self.program(self.state, self.arrays)
        return jax.device_get(metrics)


def ours(
    name: str, start: Trained, arrays: Any, size: int, candidates: str, precision: str = "float32", **options: Any
) -> Implementation:
    """One step of training that goes on from a trained state, every call from where the last one ended."""
    run = _Step(start, arrays, size, candidates, precision)
    return Implementation(name, run, measure.memory_of(run.program), run.compile_seconds, **options)


def _flops(start: Trained, size: int) -> float:
    """Arithmetic of a dense step: encoding, and its derivatives by inputs and by parameters, which cost as much."""
    info, settings = start.dataset.info, start.settings
    method = methods.build(settings, len(info.label_names))
    lowered = jax.jit(method.encode).lower(start.state.variables, jnp.zeros((1, *info.input_shape)))
    return 3.0 * lowered.cost_analysis()["flops"] * (settings.train.batch_size + size)


def _retrieved(start: Trained, arrays: Any, size: int) -> tuple[Implementation, Implementation]:
    """The step alone, and with its share of the refresh of all keys, which is measured once."""
    run = _Step(start, arrays, size, "retrieved")
    begin = time.perf_counter()
    run.refresh()
    share = (time.perf_counter() - begin) / _with(start.settings, size, "retrieved").train.refresh_every
    alone = Implementation(f"{OURS}, retrieved", run, measure.memory_of(run.program), run.compile_seconds)
    return alone, alone._replace(name=f"{OURS}, retrieved, with its share of the refresh", extra_seconds=share)


def pytorch(start: Trained, size: int, goal: float | None) -> list[Implementation]:
    """The dense step in PyTorch."""
    info = start.dataset.info
    run = resnet.step(start.settings, len(info.label_names), info.input_shape, size)
    return [Implementation(f"PyTorch eager, dense, D = {size}", run, goal=goal)]


def _note(losses: list[float], metrics: dict[str, np.ndarray]) -> bool:
    losses.append(float(metrics["loss"][0]))
    return bool(np.isfinite(losses[0]))


def _same(losses: list[float], metrics: dict[str, np.ndarray]) -> bool:
    """The loss of the dense step from the same state on the same examples."""
    return bool(abs(float(metrics["loss"][0]) - losses[0]) < 1e-5 * max(1.0, abs(losses[0])))
