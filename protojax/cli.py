"""The command line: `protojax prepare | train | evaluate | explain`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protojax.arguments import build_parser

INTERRUPTED = 75
"""Exit status after SIGTERM: the state is saved and the same command resumes."""

_OF_KIND = {
    "idx": ("label_names",),
    "image-folder": ("image_size",),
    "csv": ("label", "numeric", "categorical"),
    "text": ("label", "text"),
}
"""The options of `prepare` that only some kinds of sources read, by kind."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    parser = build_parser()
    parsed, rest = parser.parse_known_args(arguments)
    overrides = [r for r in rest if "=" in r and not r.startswith("-")]
    if unknown := [r for r in rest if r not in overrides]:
        parser.error(f"unknown argument {' '.join(unknown)}; a setting is given as section.key=value")
    if overrides and parsed.command == "prepare":
        parser.error(f"prepare takes no settings, got {' '.join(overrides)}")
    parsed.overrides = overrides
    # XLA and gRPC write their own diagnostics to stderr, between the lines of the progress bar.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from protojax import checkpoint, run, sharding, train

    try:
        {"prepare": _prepare, "train": _train, "evaluate": _evaluate, "explain": _explain}[parsed.command](parsed)
    except train.Interrupted as error:
        print(f"protojax: {error}", file=sys.stderr)
        return INTERRUPTED
    except (train.NonFiniteError, checkpoint.CheckpointError, sharding.ProcessError) as error:
        print(f"protojax: error: {error}", file=sys.stderr)
        return 1
    except (ValueError, run.RunError, OSError) as error:
        if os.environ.get("PROTOJAX_TRACEBACK"):
            raise
        print(f"protojax: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _prepare(parsed: argparse.Namespace) -> None:
    from protojax.data import prepare

    for option in sorted(set().union(*_OF_KIND.values()).difference(_OF_KIND[parsed.kind])):
        if getattr(parsed, option) is not None:
            raise ValueError(f"--{option.replace('_', '-')} means nothing for {parsed.kind}; leave it out")
    label = parsed.label or "label"
    common: dict[str, Any] = {
        "data_dir": parsed.data_dir,
        "validation": parsed.validation,
        "test": parsed.test,
        "duplicates": parsed.duplicates,
        "overwrite": parsed.overwrite,
    }
    match parsed.kind:
        case "idx":
            done = prepare.idx(parsed.source, name=parsed.name, label_names=_names(parsed, "label_names"), **common)
        case "image-folder":
            done = prepare.image_folder(parsed.source, name=parsed.name, image_size=_size(parsed.image_size), **common)
        case "csv":
            columns = {kind: _names(parsed, kind) or () for kind in ("numeric", "categorical")}
            done = prepare.table(parsed.source, name=parsed.name, label=label, **columns, **common)
        case "text":
            done = prepare.text(parsed.source, name=parsed.name, label=label, text=parsed.text or "text", **common)
    counts = ", ".join(f"{split} {count}" for split, count in done.counts.items())
    dropped = sum(len(ids) for ids in done.dropped.values())
    print(
        f"prepared {parsed.name}: {counts}" + (f" ({dropped} duplicates dropped)" if dropped else "") + f"\n{done.path}"
    )


def _train(parsed: argparse.Namespace) -> None:
    import jax

    from protojax import config, experiment, run, sharding

    seeds = _numbers(parsed, "seeds")
    _check_workdir(parsed.workdir)
    if not parsed.coordinator and (parsed.processes != 1 or parsed.process_index != 0):
        raise ValueError("--processes and --process-index need --coordinator HOST:PORT, the address of process 0")
    settings = config.load(parsed.experiment, parsed.overrides)
    if parsed.resume and not (parsed.workdir / "run.json").exists():
        raise run.RunError(f"{parsed.workdir} holds no run to resume; leave --resume out to start one")
    if parsed.coordinator:
        sharding.start_processes(parsed.coordinator, parsed.processes, parsed.process_index)
    if seeds is not None:
        results = experiment.train_seeds(settings, parsed.workdir, seeds, parsed.overwrite)
    else:
        results = experiment.train_run(settings, parsed.workdir, parsed.overwrite)
    if jax.process_index() == 0:
        _report(parsed.workdir, results)


def _evaluate(parsed: argparse.Namespace) -> None:
    from protojax import experiment

    _check_workdir(parsed.workdir)
    opened = experiment.open_run(parsed.workdir, experiment.reopened_settings(parsed.workdir, parsed.overrides))
    _report(parsed.workdir, experiment.evaluate_run(opened))


def _explain(parsed: argparse.Namespace) -> None:
    from protojax import experiment

    ids = _numbers(parsed, "ids")
    _check_workdir(parsed.workdir)
    if parsed.count is not None and (ids is not None or parsed.least_confident is not None):
        raise ValueError("--ids and --least-confident say how many decisions are shown; leave --count out")
    count = 20 if parsed.count is None else parsed.count
    if count < 1:
        raise ValueError(f"--count {count}: show at least 1 decision")
    opened = experiment.open_run(parsed.workdir, experiment.reopened_settings(parsed.workdir, parsed.overrides))
    for path in experiment.explain_run(opened, parsed.split, ids, parsed.wrong, parsed.least_confident, count):
        print(path)


def _report(workdir: Path, results: dict[str, Any]) -> None:
    for line in _flat(results["test"]):
        print(line)
    print(f"\n{workdir}/results.json    every number")
    print(f"{workdir}/figures         curves and decisions with their prototypes")


def _flat(test: dict[str, Any]) -> list[str]:
    def shown(value: Any) -> str:
        if isinstance(value, dict):
            return f"{shown(value['mean'])} +- {shown(value['spread'])}"
        return "-" if value is None else f"{value:.4g}"

    accuracy, support, needed = test["accuracy"], test["support"], test["prototypes_for"]
    return [
        f"test accuracy of the encoder     {shown(accuracy['encoder'])}",
        f"test accuracy of the prototypes  {shown(accuracy['prototypes'])}",
        f"support size, median             {shown(support['median'])}",
        "prototypes for 50/90/95 %        " + " / ".join(shown(needed[s]) for s in ("50", "90", "95")),
    ]


def _names(parsed: argparse.Namespace, option: str) -> list[str] | None:
    if (text := getattr(parsed, option)) is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ValueError(f"--{option.replace('_', '-')} {text!r}: a name is empty; separate names by single commas")
    return names


def _numbers(parsed: argparse.Namespace, option: str) -> list[int] | None:
    if (text := getattr(parsed, option)) is None:
        return None
    numbers = [number.strip() for number in text.split(",")]
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise ValueError(f"--{option} {text!r}: give whole numbers from 0, separated by commas, such as 3,7")
    if repeated := [number for number in numbers if numbers.count(number) > 1]:
        raise ValueError(f"--{option} {text!r}: {repeated[0]} stands there twice")
    return [int(number) for number in numbers]


def _check_workdir(workdir: Path) -> None:
    # What exists of the path decides whether the rest can be made.
    there = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"--workdir {workdir}: {there} is a file; give a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"--workdir {workdir}: no permission to write in {there}; give another folder")


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise ValueError(f"--image-size {text!r}: give HEIGHTxWIDTH, such as 128x128")
    return int(height), int(width)


if __name__ == "__main__":
    sys.exit(main())
