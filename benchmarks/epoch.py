"""A step of training ProtoQuant, from a feature store and from images, beside one that trains its backbone (table 6).

All take the same examples of the same data. From images the backbone computes their features in every step, as the
paper's does; a step and its batch follow each other, as reading ahead would take the time of those whose turn it is.
The backbone is trained by `fine_tuning`, with all of its stages: its stem stays as it is and its head is linear, which
makes the step cheaper than that of a network that is trained as a whole, and the savings smaller than they are.
Memory is that of the compiled step, without the backbone in front of it.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks.measure import OURS, Case, Implementation, Skipped
from protojax import config, run, step, weights
from protojax.config import FrozenSettings, Settings
from protojax.data import DataSet, frozen, resident, sampling
from protojax.networks.backbones import stages_of

STAGE = 20_000
"""Steps of each stage, more than are measured."""

IMAGES_GOAL, STORE_GOAL = 1 - 0.476, 0.1
"""Of the time of a step that trains the backbone: the paper's, and what a store is to reach."""


def cases(options: Any) -> Iterator[Case]:
    """The cases, one after another.

    Raises:
      Skipped: there is no run of ProtoQuant on a feature store, or its network has no stages to train.
    """
    settings = _settings(options)
    tuned, computing, storing = _tuned(settings), _codes(settings, features=None), _codes(settings)
    computed, stored = frozen.load(computing), frozen.load(storing)
    arrays = resident.load(stored.train, progress=False, views=settings.encoder.views)
    here = _codes(settings, feeding="resident")
    losses: list[float] = []
    # From one state and the same examples, the classifier's first loss is to be the same from everywhere.
    note, same = partial(_note, losses), partial(_same, losses)
    implementations = [
        _implementation("backbone trained", tuned, frozen.load(tuned), 0, _finite),
        _implementation("images, classifier", computing, computed, STAGE, note, IMAGES_GOAL),
        _implementation("store on disk, classifier", storing, stored, STAGE, same, STORE_GOAL),
        _implementation("store, classifier", here, stored, STAGE, same, STORE_GOAL, arrays),
        _implementation("store, codebook", here, stored, 1, _finite, STORE_GOAL, arrays),
    ]
    batch, examples = settings.train.batch_size, len(stored.train)
    yield Case("epoch", f"{settings.encoder.network}, {batch} of {examples} examples", batch, implementations)


def _settings(options: Any) -> Settings:
    if options.run is None:
        raise Skipped("it needs the data and the weights of a run: give --run FOLDER of one of protoquant")
    settings = run.read(options.run)
    encoder = settings.encoder
    if settings.method.kind != "protoquant" or not isinstance(encoder, FrozenSettings) or encoder.features is None:
        raise Skipped(f"{options.run} is no run of protoquant on a feature store (encoder.features)")
    return settings


def _codes(settings: Settings, feeding: str = "streamed", **encoder: Any) -> Settings:
    tree = _each(settings, feeding, encoder)
    tree["method"] |= {"codebook_steps": STAGE, "prune_at": None, "top_k": None}
    return config.from_tree(tree, "benchmarks")


def _tuned(settings: Settings) -> Settings:
    """Training of all stages of the network."""
    network = settings.encoder.network
    stages = stages_of(weights.load(settings.encoder.weights, network).module)
    if not stages:
        raise Skipped(f"{network} has no stages that fine_tuning could train: give a run with a convolution net")
    tree = _each(settings, "streamed", {"features": None, "tuned_stages": stages})
    tree["method"] = {"kind": "fine_tuning"}
    return config.from_tree(tree, "benchmarks")


def _each(settings: Settings, feeding: str, encoder: dict[str, Any]) -> dict[str, Any]:
    tree = config.to_tree(settings)
    tree["data"]["feeding"] = feeding
    tree["encoder"] |= encoder
    tree["train"] |= {"steps": 2 * STAGE, "checkpoint_every": 2 * STAGE, "evaluate_every": 0, "steps_per_dispatch": 1}
    return tree


class _Step:
    """A compiled step that keeps its state: every call trains on."""

    def __init__(self, settings: Settings, dataset: DataSet, first: int, arrays: Any):
        self.loop = step.compile(settings, dataset)
        self.sampler, self.source, self.next = step.sampler_of(settings, dataset), dataset.train, first
        state = step.fresh(settings, dataset)._replace(step=jnp.int32(first))
        self.state = self.loop.devices.place_state(state)
        self.arrays = None if arrays is None else self.loop.devices.place_arrays(arrays)
        data = self.read()
        begin = time.perf_counter()
        self.program = self.loop.dispatch.lower(self.state, data).compile()
        self.compile_seconds = time.perf_counter() - begin

    def read(self) -> Any:
        """What the next step reads."""
        if self.arrays is not None:
            return self.arrays
        indices = sampling.batch_indices(self.sampler, self.next)
        batch = resident.read(self.source, indices, len(indices))
        return self.loop.devices.place_batches(jax.tree.map(lambda x: x[None], batch))

    def __call__(self) -> dict[str, np.ndarray]:
        self.state, metrics = self.program(self.state, self.read())
        self.next += 1
        return jax.device_get(metrics)


def _implementation(
    name: str,
    settings: Settings,
    dataset: DataSet,
    first: int,
    check: Callable[[Any], bool],
    goal: float | None = None,
    arrays: Any = None,
) -> Implementation:
    made = _Step(settings, dataset, first, arrays)
    memory = measure.memory_of(made.program)
    return Implementation(f"{OURS}, {name}", made, memory, made.compile_seconds, check, goal)


def _finite(metrics: dict[str, np.ndarray]) -> bool:
    return bool(np.isfinite(metrics["loss"][0]))


def _note(losses: list[float], metrics: dict[str, np.ndarray]) -> bool:
    losses[:] = [float(metrics["loss"][0])]
    return _finite(metrics)


def _same(losses: list[float], metrics: dict[str, np.ndarray]) -> bool:
    return bool(abs(float(metrics["loss"][0]) - losses[0]) < 1e-4 * max(1.0, abs(losses[0])))
