"""What a training run has learnt, for benchmarks whose figures depend on it: how many candidates have a weight."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from benchmarks.measure import Skipped
from protojax import config, data, database, networks, opened, step
from protojax.config import Settings
from protojax.data import DataSet
from protojax.methods import protoattend

BATCH, CANDIDATES = 128, 128
"""Of the training that comes before the measuring; with 128 candidates, 1000 steps see every example."""


class Trained(NamedTuple):
    """A trained state and where it comes from."""

    source: str
    settings: Settings
    dataset: DataSet
    state: step.TrainState


def paper(data_dir: str | None, dataset: str, steps: int) -> Settings:
    """The paper's network for 28 x 28 images (ResNet-32, appendix A.1) and its optimiser."""
    tree = {
        "name": "benchmark",
        "data": {"name": dataset, "data_dir": data_dir, "augment": {"pad_crop": 2}},
        "encoder": {"kind": "resnet"},
        "method": {"kind": "protoattend"},
        "train": {"batch_size": BATCH, "candidate_count": CANDIDATES, "steps": steps},
    }
    return config.from_tree(tree, "benchmarks")


def tiny() -> Settings:
    """A network that only shows that everything runs."""
    tree = {
        "name": "benchmark",
        "encoder": {"kind": "resnet", "blocks": [1], "filters": [4], "dense": [8], "norm": "group"},
        "method": {"kind": "protoattend", "key_size": 4, "value_size": 8},
        "train": {"batch_size": 8, "candidate_count": 16, "steps": 2},
    }
    return config.from_tree(tree, "benchmarks")


def load(options: Any) -> Trained:
    """The state of `--run`, or one that is trained here for `--steps` steps.

    Raises:
      Skipped: there is neither a run nor a folder of prepared data.
    """
    if options.run is not None:
        encoder = opened.open_encoder(options.run)
        _need_protoattend(options.run, encoder.settings)
        return Trained(f"run of {int(encoder.state.step)} steps", encoder.settings, encoder.dataset, encoder.state)
    if options.quick:
        settings = tiny()
    elif options.data_dir is None:
        raise Skipped(
            "the supports have to be those of a trained model: give --run FOLDER of a training run, or --data-dir "
            "FOLDER with Fashion-MNIST prepared (protojax prepare idx), on which --steps steps are trained first"
        )
    else:
        settings = paper(options.data_dir, options.dataset, options.steps)
    dataset = data.load(settings.data)
    state = step.fresh(settings, dataset)
    if options.quick:
        return Trained("untrained", settings, dataset, state)
    loop = step.compile(settings, dataset)
    arrays = next(loop.data(0))
    state = loop.devices.place_state(state)
    for _ in tqdm(range(settings.train.steps), desc="train first"):
        state, _ = loop.dispatch(state, arrays)
    return Trained(f"trained {settings.train.steps} steps", settings, dataset, loop.devices.fetch(state))


@functools.cache
def embeddings(folder: Path, queries: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys and values of the training examples of a run, and queries of its test split, all float32.

    Raises:
      ValueError: the run has fewer test examples, or is not one of ProtoAttend.
    """
    encoder = opened.open_encoder(folder)
    method, variables, dataset, settings = encoder.method, encoder.state.variables, encoder.dataset, encoder.settings
    _need_protoattend(folder, settings)
    if len(dataset.test) < queries:
        raise ValueError(f"{folder} has {len(dataset.test)} test examples, but {queries} queries are needed")
    chosen = database.choose(len(dataset.train), min(len(dataset.train), 32768), 0)
    memory = database.build(method, variables, dataset.train, chosen, encoder.transform, settings.evaluate.batch_size)
    inputs = jnp.asarray(np.stack([dataset.test[i]["inputs"] for i in range(queries)]))
    # A method shows no queries, its network does.
    network = protoattend.Network(
        networks.build(settings.encoder, jnp.dtype(settings.train.precision), None),
        len(dataset.info.label_names),
        settings.method.key_size,
        settings.method.value_size,
    )
    asked = jax.jit(lambda v, x: network.apply(v, encoder.transform(x, None), train=False)[0].queries)(
        variables, inputs
    )
    return tuple(np.array(x) for x in (memory.embeddings["keys"], memory.embeddings["values"], asked))


def _need_protoattend(folder: Path, settings: Settings) -> None:
    if settings.method.kind != "protoattend":
        raise ValueError(
            f"{folder} is a run of {settings.method.kind}, which has no candidates; give one of protoattend"
        )
