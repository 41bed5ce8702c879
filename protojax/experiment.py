"""What the command line does, as functions: train, evaluate and explain an experiment in its run folder."""

import json
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from protojax import (
    checkpoint,
    config,
    data,
    database,
    evaluate,
    explain,
    figures,
    methods,
    neighbours,
    parallel,
    run,
    sharding,
    step,
    train,
)
from protojax.candidates import CandidateDatabase
from protojax.config import Settings
from protojax.data import DataSet, images
from protojax.database import Transform
from protojax.evaluate import Scored
from protojax.methods import Method, Variables

WIDTH = 64
"""Prototypes kept of a decision where `explain.width` says nothing."""


class Opened(NamedTuple):
    """A trained run, ready to answer."""

    folder: Path
    settings: Settings
    dataset: DataSet
    method: Method
    state: train.TrainState
    memory: CandidateDatabase
    transform: Transform


def train_run(settings: Settings, folder: Path, overwrite: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Trains an experiment (or resumes it), evaluates and explains it; returns what `results.json` says.

    Raises:
      RunError, DataError, ValueError, NonFiniteError, Interrupted, CheckpointError: as their texts say.
    """
    quiet = quiet or jax.process_index() > 0
    with sharding.together():
        dataset = data.load(settings.data)
        check(settings, dataset)
        parallel.check(settings.train, sharding.mesh())
    with sharding.together():
        if jax.process_index() == 0:
            run.claim(folder, settings, overwrite)
            run.write(folder, settings, dataset.info._asdict())
    validate = partial(_validate, settings, dataset, preparation(settings, dataset))
    trained = train.fit(settings, dataset, folder, validate, quiet)
    summary = {
        "steps": int(trained.state.step),
        "bad_steps": int(trained.state.bad_total),
        "examples_per_second": trained.examples_per_second,
    }
    if summary["examples_per_second"] is None:
        # A run that had nothing left to do keeps the speed it was measured at.
        summary = {**summary, **_previous(folder).get("train", {})}
    opened = open_run(folder, settings, dataset, quiet)
    results = evaluate_run(opened, summary, quiet)
    explain_run(opened, count=settings.explain.count, quiet=quiet)
    return results


def train_seeds(
    settings: Settings, folder: Path, seeds: Sequence[int], overwrite: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Trains one run a seed in `folder/seed-N`; `folder/results.json` gets mean and spread of their results."""
    results = []
    for seed in seeds:
        seeded = settings.model_copy(update={"train": settings.train.model_copy(update={"seed": seed})})
        results.append(train_run(seeded, folder / f"seed-{seed}", overwrite, quiet))
    summary = {
        "experiment": settings.name,
        "seeds": list(seeds),
        "train": spread([r["train"] for r in results]),
        "test": spread([r["test"] for r in results]),
    }
    if jax.process_index() == 0:
        run.write_json(folder / "results.json", summary)
    return summary


def open_run(
    folder: Path, settings: Settings | None = None, dataset: DataSet | None = None, quiet: bool = False
) -> Opened:
    """Reads a trained run; its database is encoded anew where the one on disk is of other parameters or examples.

    Raises:
      RunError: the folder holds no trained run.
      CheckpointError, ValueError: the checkpoint or the database is damaged.
    """
    settings = settings or run.read(folder)
    dataset = dataset or data.load(settings.data)
    check(settings, dataset)
    state = train.restore(settings, dataset, folder)
    method = methods.build(settings, len(dataset.info.label_names))
    transform = preparation(settings, dataset)
    key = checkpoint.digest({"parameters": state.variables, "ids": dataset.train.ids[_candidates(settings, dataset)]})
    if database.is_of(folder / "database", key):
        memory = database.load(folder / "database", key)
    else:
        memory = _encode(settings, dataset, transform, method, state.variables, quiet)
        with sharding.together():
            if jax.process_index() == 0:
                database.save(folder / "database", memory, key)
    return Opened(folder, settings, dataset, method, state, memory, transform)


def evaluate_run(opened: Opened, trained: Mapping[str, Any] | None = None, quiet: bool = False) -> dict[str, Any]:
    """Scores the whole test split, writes `results.json` and the figures, and returns the results."""
    settings, dataset, folder = opened.settings, opened.dataset, opened.folder
    scored = _score(opened, dataset.test, quiet)
    results = {
        "experiment": settings.name,
        "seed": settings.train.seed,
        "train": dict(trained or _previous(folder).get("train", {"steps": int(opened.state.step)})),
        "test": evaluate.results(scored, dataset.info.label_names),
        "parameters_sha256": checkpoint.digest(opened.state.params),
    }
    if shifted := _shifted(opened, quiet):
        results["test"]["shift"] = {name: evaluate.shift(scored, other) for name, other in shifted.items()}
    if settings.evaluate.neighbours:
        results["test"]["neighbours"] = _neighbours(opened, scored, quiet)
    with sharding.together():
        if jax.process_index() == 0:
            run.write_json(folder / "results.json", results)
            figures.evaluation(folder / "figures", results["test"])
    return results


def explain_run(
    opened: Opened,
    split: str = "test",
    ids: Sequence[int] | None = None,
    wrong: bool = False,
    least_confident: int | None = None,
    count: int | None = None,
    quiet: bool = False,
) -> list[Path]:
    """Writes decisions with their prototypes as JSON and as pictures or tables; returns the files."""
    source = getattr(opened.dataset, split)
    if source is None:
        name = opened.dataset.info.name
        raise ValueError(f"{name} has no {split} split; a run trained with data.validation_fraction has one")
    scored = _score(opened, source, quiet)
    positions = explain.select(scored, ids, wrong, least_confident, count)
    names = opened.dataset.info.label_names
    with sharding.together():
        if jax.process_index() > 0:
            return []
        return explain.write(opened.folder / "figures", scored, positions, source, opened.dataset.train, names, split)


def reopened_settings(folder: Path, overrides: Sequence[str]) -> Settings:
    """The settings of a run with overrides of what does not touch its training.

    Raises:
      SettingsError: an override is impossible, or of a setting that the parameters depend on.
    """
    settings = run.read(folder)
    changed = config.override(settings, overrides, str(folder / "run.json"))
    if different := run.differences(settings, changed):
        raise config.SettingsError(
            f"{', '.join(different)}: cannot change after training; evaluate.*, explain.* and data.data_dir can"
        )
    return changed


def check(settings: Settings, dataset: DataSet) -> None:
    """Refuses settings that do not fit the data, before anything is compiled.

    Raises:
      ValueError: says which setting, and what the data have.
    """
    info, encoder = dataset.info, settings.encoder.kind
    fitting = {"image": ("conv", "resnet", "autoencoder"), "text": ("vdcnn",), "table": ("lstm",)}[info.kind]
    if encoder not in fitting:
        needed = " or ".join(fitting)
        raise ValueError(f"encoder.kind = {encoder!r} does not read {info.kind}s; {info.name} needs {needed}")
    shares = settings.data.class_shares
    if shares is not None and len(shares) != len(info.label_names):
        raise ValueError(f"data.class_shares has {len(shares)} shares, {info.name} has {len(info.label_names)} classes")
    step.sampler_of(settings, dataset)
    width = settings.explain.width
    if width is not None and settings.train.candidate_count and width > (size := len(_candidates(settings, dataset))):
        raise ValueError(f"explain.width = {width}, but the database has {size} candidates (evaluate.candidate_count)")


def preparation(settings: Settings, dataset: DataSet) -> Transform:
    """The device-side preparation of inputs outside training: no augmentation, standardisation where wanted."""
    if dataset.info.kind != "image":
        return lambda inputs, ids: inputs
    return lambda inputs, ids: images.transform(inputs, settings.data.augment)


def spread(trees: Sequence[Any]) -> Any:
    """`{mean, spread}` (standard deviation between runs) of every number that all trees have; curves are left out."""
    first = trees[0]
    if isinstance(first, dict):
        result = {k: spread([t[k] for t in trees]) for k in first if all(isinstance(t, dict) and k in t for t in trees)}
        return {k: v for k, v in result.items() if v is not None}
    if not all(isinstance(t, int | float) for t in trees):
        return None
    return {"mean": statistics.fmean(trees), "spread": statistics.stdev(trees) if len(trees) > 1 else 0.0}


def _candidates(settings: Settings, dataset: DataSet) -> np.ndarray:
    return database.choose(len(dataset.train), settings.evaluate.candidate_count, settings.train.seed)


def _encode(
    settings: Settings,
    dataset: DataSet,
    transform: Transform,
    method: Method,
    variables: Variables,
    quiet: bool,
) -> CandidateDatabase:
    indices = _candidates(settings, dataset)
    encoded = database.build(
        method, variables, dataset.train, indices, transform, settings.evaluate.batch_size, progress=not quiet
    )
    return method.memory(variables, encoded)


def _width(settings: Settings, memory: CandidateDatabase) -> int:
    return settings.explain.width or min(WIDTH, len(memory.ids))


def _score(opened: Opened, source: Any, quiet: bool, transform: Transform | None = None) -> Scored:
    settings, memory = opened.settings, opened.memory
    return evaluate.score(
        opened.method,
        opened.state.variables,
        memory,
        source,
        transform or opened.transform,
        settings.evaluate.batch_size,
        _width(settings, memory),
        progress=not quiet,
    )


def _validate(
    settings: Settings, dataset: DataSet, transform: Transform, method: Method, variables: Variables
) -> dict[str, float]:
    """Accuracies on the validation split; `score`, which ranks checkpoints, is that of the decision."""
    memory = _encode(settings, dataset, transform, method, variables, quiet=True)
    batch_size, width = settings.evaluate.batch_size, _width(settings, memory)
    scored = evaluate.score(method, variables, memory, dataset.validation, transform, batch_size, width, progress=False)
    encoder = float((scored.encoder_predicted == scored.labels).mean())
    scores = {"accuracy_encoder": encoder, "score": float(scored.correct.mean())}
    if scored.has_prototypes:
        scores |= {"accuracy_prototypes": scores["score"], "support_size": float(np.median(scored.support.size))}
    return scores


def _shifted(opened: Opened, quiet: bool) -> dict[str, Scored]:
    """The test images rotated, and the test images of other data sets, scored."""
    settings, dataset = opened.settings, opened.dataset
    if dataset.info.kind != "image":
        return {}

    def rotated(inputs: jax.Array, ids: jax.Array, degrees: int) -> jax.Array:
        return opened.transform(images.rotate(inputs, degrees), ids)

    scored = {}
    for degrees in settings.evaluate.rotations:
        transform = partial(rotated, degrees=degrees)
        scored[f"rotated by {degrees} degrees"] = _score(opened, dataset.test, quiet, transform)
    for name in settings.evaluate.shift_names:
        scored[name] = _score(opened, data.load_test(settings.data, name, dataset.info), quiet)
    return scored


def _neighbours(opened: Opened, scored: Scored, quiet: bool) -> dict[str, Any]:
    """Deep k-nearest neighbours in the space of the database, calibrated on the validation split."""
    settings, dataset = opened.settings, opened.dataset
    if dataset.validation is None:
        raise ValueError("evaluate.neighbours needs a validation split to calibrate with; set data.validation_fraction")

    def encoded(source: Any) -> CandidateDatabase:
        everything = np.arange(len(source))
        batch_size = settings.evaluate.batch_size
        return database.build(
            opened.method, opened.state.variables, source, everything, opened.transform, batch_size, progress=not quiet
        )

    test, k = encoded(dataset.test), settings.evaluate.neighbours
    judged = neighbours.judge(opened.memory, encoded(dataset.validation), test, k, len(dataset.info.label_names))
    return neighbours.results(judged, test, k, scored)


def _previous(folder: Path) -> dict[str, Any]:
    path = folder / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
