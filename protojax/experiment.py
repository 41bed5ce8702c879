"""What the command line does, as functions: train, evaluate and explain an experiment in its run folder."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from protojax import checkpoint, data, database, evaluate, explain, figures, methods, neighbours, run, train
from protojax.config import Settings
from protojax.data import DataSet, images
from protojax.methods import Memory, Method, Variables


class Opened(NamedTuple):
    """A trained run, ready to answer."""

    folder: Path
    settings: Settings
    dataset: DataSet
    method: Method
    state: train.TrainState
    memory: Memory


def train_run(settings: Settings, folder: Path, overwrite: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Trains an experiment (or resumes it), evaluates and explains it; returns what `results.json` says.

    Raises:
      RunError, DataError, ValueError, NonFiniteError, Interrupted, CheckpointError: as their texts say.
    """
    run.claim(folder, settings, overwrite)
    dataset = data.load(settings.data)
    _check(settings, dataset)
    if jax.process_index() == 0:
        info = dataset.info
        run.write(folder, settings, {**info._asdict(), "examples": _sizes(dataset)})
    trained = train.fit(settings, dataset, folder, partial(_validate, settings, dataset), quiet)
    opened = open_run(folder, settings, dataset)
    summary = {
        "steps": int(trained.state.step),
        "bad_steps": int(trained.state.bad_total),
        "examples_per_second": trained.examples_per_second,
    }
    results = evaluate_run(opened, summary, quiet)
    explain_run(opened, count=settings.explain.count)
    return results


def train_seeds(settings: Settings, folder: Path, seeds: Sequence[int], overwrite: bool = False, quiet: bool = False):
    """Trains one run a seed in `folder/seed-N`, and writes mean and spread of their results to `folder/results.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    runs = []
    for seed in seeds:
        seeded = settings.model_copy(update={"train": settings.train.model_copy(update={"seed": seed})})
        runs.append(train_run(seeded, folder / f"seed-{seed}", overwrite, quiet))
    summary = {"experiment": settings.name, "seeds": list(seeds), "test": _spread([r["test"] for r in runs])}
    run.write_json(folder / "results.json", summary)
    return summary


def open_run(folder: Path, settings: Settings | None = None, dataset: DataSet | None = None) -> Opened:
    """Reads a trained run; its database is encoded anew where none stands there for the same parameters.

    Raises:
      RunError: the folder holds no trained run.
    """
    settings = settings or run.read(folder)
    dataset = dataset or data.load(settings.data)
    _check(settings, dataset)
    loop = train.compile(settings, dataset)
    checkpoints = checkpoint.manager(folder / "checkpoints", settings.train.keep)
    best = settings.evaluate.checkpoint == "best"
    step = checkpoints.best_step() if best else checkpoints.latest_step()
    if step is None:
        raise run.RunError(f"{folder} has no {'best' if best else ''} checkpoint yet; train it first")
    state, _ = checkpoint.restore(checkpoints, step, loop.fresh())
    checkpoints.close()
    method = methods.build(settings, len(dataset.info.label_names))
    key = checkpoint.digest(state.variables)
    try:
        memory = database.load(folder / "database", key)
    except database.DatabaseError:
        memory = _memory(settings, dataset, method, state.variables)
        if jax.process_index() == 0:
            database.save(folder / "database", memory, key)
    return Opened(folder, settings, dataset, method, state, memory)


def evaluate_run(opened: Opened, trained: Mapping[str, Any] | None = None, quiet: bool = False) -> dict[str, Any]:
    """Scores the whole test split, writes `results.json` and the figures, and returns the results."""
    settings, dataset, folder = opened.settings, opened.dataset, opened.folder
    scored = _score(opened, dataset.test)
    labels = dataset.info.label_names
    if trained is None:
        trained = _previous(folder).get("train", {"steps": int(opened.state.step)})
    results = {
        "experiment": settings.name,
        "seed": settings.train.seed,
        "train": dict(trained),
        "test": evaluate.results(scored, labels),
        "parameters_sha256": checkpoint.digest(opened.state.params),
    }
    shifted = {f"rotated {d}": partial(images.rotate, degrees=d) for d in settings.evaluate.rotations}
    return results
