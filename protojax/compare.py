"""Two trained runs side by side: their confusion matrices as a picture, with the numbers as JSON."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from protojax import portraits, run

SCHEMA = "protojax.confusions/1"


def confusions(folders: Sequence[Path]) -> dict[str, Any]:
    """What the results of runs say of their confusions, as plain JSON values.

    Args:
      folders: different run folders, each of one seed.

    Returns:
      `schema`, `label_names` and `runs`: of each its folder `run`, `experiment`, `examples` scored, their `accuracy`,
      and `confusion`, `[true class][class decided]` counts.

    Raises:
      RunError: a folder holds no run, or none that was evaluated, or its files are damaged.
      ValueError: a folder stands there twice, or the classes or the test examples differ.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError(f"{folders[0]} would be compared with itself; give two different run folders")
    names = [_label_names(folder) for folder in folders]
    for folder, own in zip(folders[1:], names[1:], strict=True):
        if own != names[0]:
            raise ValueError(
                f"{folders[0]} has the classes {', '.join(names[0])}, but {folder} has {', '.join(own)}; "
                "only runs with the same classes can be compared"
            )
    sets = [run.test_examples(folder) for folder in folders]
    for folder, own in zip(folders[1:], sets[1:], strict=True):
        if own != sets[0]:
            raise ValueError(
                f"{folders[0]} was scored on {sets[0]}, but {folder} on {own}; only runs scored on the same split "
                "can be compared"
            )
    return {
        "schema": SCHEMA,
        "label_names": list(names[0]),
        "runs": [_scored(folder, len(names[0])) for folder in folders],
    }


def write(folder: Path, record: dict[str, Any]) -> list[Path]:
    """Writes what `confusions` returned as `confusions.json` and `confusions.png` into a folder; returns both files."""
    folder.mkdir(parents=True, exist_ok=True)
    runs = record["runs"]
    places = [os.path.abspath(scored["run"]) for scored in runs]
    shown = [os.path.relpath(place, os.path.commonpath(places)) for place in places]
    run.write_json(folder / "confusions.json", record)
    picture = portraits.confusions(
        folder / "confusions.png", dict(zip(shown, runs, strict=True)), record["label_names"]
    )
    return [folder / "confusions.json", picture]


def _label_names(folder: Path) -> tuple[str, ...]:
    if not (folder / "run.json").exists() and (seeds := sorted(folder.glob("seed-*/run.json"))):
        raise run.RunError(
            f"{folder} holds one run for each of several seeds; give one of them, such as {seeds[0].parent}"
        )
    return run.label_names(folder)


def _scored(folder: Path, classes: int) -> dict[str, Any]:
    results = run.results(folder)
    if "test" not in results:
        raise run.RunError(f"{folder} has no results yet; protojax evaluate --workdir {folder} writes them")
    counts = np.asarray(results["test"].get("confusion"))
    if counts.shape != (classes, classes):
        raise run.RunError(
            f"{folder / 'results.json'} has no confusion matrix of its {classes} classes; "
            f"protojax evaluate --workdir {folder} writes one"
        )
    return {
        "run": str(folder),
        "experiment": results.get("experiment"),
        "examples": int(counts.sum()),
        "accuracy": float(np.trace(counts) / counts.sum()),
        "confusion": counts.tolist(),
    }
