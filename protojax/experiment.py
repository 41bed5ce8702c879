"""What the command line does, as functions: train, evaluate and explain an experiment in its run folder."""

import statistics
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from protojax import (
    checkpoint,
    codes,
    curate,
    data,
    database,
    evaluate,
    explain,
    figures,
    health,
    neighbours,
    parallel,
    readable,
    retrieval,
    run,
    self_portrait,
    sharding,
    train,
    tuned,
)
from protojax.candidates import CandidateDatabase
from protojax.config import Settings
from protojax.data import DataSet, frozen, images
from protojax.database import Transform
from protojax.evaluate import Scored
from protojax.methods import Method, Variables
from protojax.opened import Opened, candidates, check, open_run, preparation, score, split_of, width_of

WEIGHTS = "weights.safetensors"
"""Where a run leaves its network, if its method says so, for `encoder.weights` and `encoder.head`."""


def train_run(settings: Settings, folder: Path, overwrite: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Trains an experiment (or resumes it), evaluates and explains it; returns what `results.json` says.

    Raises:
      RunError, DataError, ValueError, NonFiniteError, Interrupted, CheckpointError: as their texts say.
    """
    quiet = quiet or jax.process_index() > 0
    with sharding.together():
        dataset = frozen.load(settings)
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
        summary = {**summary, **run.results(folder).get("train", {})}
    opened = open_run(folder, settings, dataset, quiet, trained)
    if opened.method.leaves_weights and jax.process_index() == 0:
        tuned.write(folder / WEIGHTS, settings.encoder, opened.state.variables)
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


def evaluate_run(opened: Opened, trained: Mapping[str, Any] | None = None, quiet: bool = False) -> dict[str, Any]:
    """Scores the whole test split, writes `results.json` and the figures, and returns the results."""
    settings, dataset, folder = opened.settings, opened.dataset, opened.folder
    if line := retrieval.warning(settings, len(dataset.train)):
        warnings.warn(line, stacklevel=2)
    scored = score(opened, dataset.test, quiet)
    results = {
        "experiment": settings.name,
        "seed": settings.train.seed,
        "train": dict(trained or run.results(folder).get("train", {"steps": int(opened.state.step)})),
        "test": evaluate.results(scored, dataset.info.label_names),
        "parameters_sha256": checkpoint.digest(opened.state.params),
        "database": curate.summary(folder),
    }
    if shifted := _shifted(opened, quiet):
        results["test"]["shift"] = {name: evaluate.shift(scored, other) for name, other in shifted.items()}
    if settings.evaluate.neighbours:
        results["test"]["neighbours"] = _neighbours(opened, scored, quiet)
    if lost := self_portrait.reconstruction(opened, quiet):
        results["test"]["reconstruction"] = lost
    if heads := self_portrait.heads(opened, quiet):
        results["test"]["heads"] = heads
    if found := self_portrait.examine(opened, scored):
        results["health"] = found
        for line in health.warnings(found, dataset.info.label_names):
            warnings.warn(line, stacklevel=2)
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
    source = split_of(opened.dataset, split)
    explain.check(source, ids, least_confident, f"split {split}")
    scored = score(opened, source, quiet)
    positions = explain.select(scored, ids, wrong, least_confident, count)
    names = opened.dataset.info.label_names
    with sharding.together():
        if jax.process_index() > 0:
            return []
        everything = readable.everything(opened.dataset)
        files = explain.write(opened.folder / "figures", scored, positions, source, everything, names, split)
        return files + self_portrait.draw(opened, source, positions)


def edit_run(opened: Opened, edit: codes.Edit, split: str = "test", quiet: bool = False) -> tuple[dict[str, Any], Path]:
    """What the decisions of a run would be with other codes; writes `figures/edit.json` and returns it with its path.

    Raises:
      ValueError: the split or a code does not exist, or no code would be left.
    """
    source, before = split_of(opened.dataset, split), opened.state.variables
    after = codes.edited(before, edit)
    state = opened.state._replace(params=after["params"], statistics={k: v for k, v in after.items() if k != "params"})
    scored = [score(it, source, quiet) for it in (opened, opened._replace(state=state))]
    names = opened.dataset.info.label_names
    answer = codes.records(edit, *scored, before, opened.memory, names, split)
    path = opened.folder / "figures" / "edit.json"
    path.parent.mkdir(exist_ok=True)
    run.write_json(path, answer)
    return answer, path


def spread(trees: Sequence[Any]) -> Any:
    """`{mean, spread}` (standard deviation between runs) of every number that all trees have; curves are left out."""
    first = trees[0]
    if isinstance(first, dict):
        result = {k: spread([t[k] for t in trees]) for k in first if all(isinstance(t, dict) and k in t for t in trees)}
        return {k: v for k, v in result.items() if v is not None}
    if not all(isinstance(t, int | float) for t in trees):
        return None
    return {"mean": statistics.fmean(trees), "spread": statistics.stdev(trees) if len(trees) > 1 else 0.0}


def _encode(
    settings: Settings,
    dataset: DataSet,
    transform: Transform,
    method: Method,
    variables: Variables,
    quiet: bool,
) -> CandidateDatabase:
    indices = candidates(settings, dataset)
    encoded = database.build(
        method, variables, dataset.train, indices, transform, settings.evaluate.batch_size, progress=not quiet
    )
    return method.memory(variables, encoded)


def _validate(
    settings: Settings, dataset: DataSet, transform: Transform, method: Method, variables: Variables
) -> dict[str, float]:
    """Accuracies on the validation split; `score`, which ranks checkpoints, is that of the decision."""
    memory = _encode(settings, dataset, transform, method, variables, quiet=True)
    batch_size, width = settings.evaluate.batch_size, width_of(settings, memory)
    scored = evaluate.score(method, variables, memory, dataset.validation, transform, batch_size, width, progress=False)
    scores = {"score": float(scored.correct.mean())}
    if scored.encoder_predicted is not None:
        scores["accuracy_encoder"] = float((scored.encoder_predicted == scored.labels).mean())
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
        scored[f"rotated by {degrees} degrees"] = score(opened, dataset.test, quiet, transform)
    for name in settings.evaluate.shift_names:
        scored[name] = score(opened, data.load_test(settings.data, name, dataset.info), quiet)
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
