"""The command line: `protojax prepare | train | evaluate | explain`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

INTERRUPTED = 75
"""Exit status after SIGTERM: the state is saved and the same command resumes."""

EXIT_CODES = (
    "exit status: 0 done; 1 the run failed; 2 bad input or usage; 75 stopped by SIGTERM with its state saved (run the same "
    "command again to resume)"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    parser = _parser()
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
        parsed.run(parsed)
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

    common: dict[str, Any] = {
        "data_dir": parsed.data_dir,
        "validation": parsed.validation,
        "test": parsed.test,
        "duplicates": parsed.duplicates,
        "overwrite": parsed.overwrite,
    }
    match parsed.kind:
        case "idx":
            done = prepare.idx(parsed.source, name=parsed.name, label_names=_names(parsed.label_names), **common)
        case "image-folder":
            done = prepare.image_folder(parsed.source, name=parsed.name, image_size=_size(parsed.image_size), **common)
        case "csv":
            columns = {"numeric": _names(parsed.numeric) or (), "categorical": _names(parsed.categorical) or ()}
            done = prepare.table(parsed.source, name=parsed.name, label=parsed.label, **columns, **common)
        case "text":
            done = prepare.text(parsed.source, name=parsed.name, label=parsed.label, text=parsed.text, **common)
    counts = ", ".join(f"{split} {count}" for split, count in done.counts.items())
    dropped = sum(len(ids) for ids in done.dropped.values())
    print(f"prepared {parsed.name}: {counts}" + (f" ({dropped} duplicates dropped)" if dropped else "") + f"\n{done.path}")


def _train(parsed: argparse.Namespace) -> None:
    import jax

    from protojax import config, experiment, run, sharding

    settings = config.load(parsed.experiment, parsed.overrides)
    if parsed.resume and not (parsed.workdir / "run.json").exists():
        raise run.RunError(f"{parsed.workdir} holds no run to resume; leave --resume out to start one")
    if parsed.coordinator:
        sharding.start_processes(parsed.coordinator, parsed.processes, parsed.process_index)
    if parsed.seeds:
        seeds = [int(s) for s in parsed.seeds.split(",")]
        results = experiment.train_seeds(settings, parsed.workdir, seeds, parsed.overwrite)
    else:
        results = experiment.train_run(settings, parsed.workdir, parsed.overwrite)
    if jax.process_index() == 0:
        _report(parsed.workdir, results)


def _evaluate(parsed: argparse.Namespace) -> None:
    from protojax import experiment

    opened = experiment.open_run(parsed.workdir, experiment.reopened_settings(parsed.workdir, parsed.overrides))
    _report(parsed.workdir, experiment.evaluate_run(opened))


def _explain(parsed: argparse.Namespace) -> None:
    from protojax import experiment

    opened = experiment.open_run(parsed.workdir, experiment.reopened_settings(parsed.workdir, parsed.overrides))
    ids = [int(i) for i in parsed.ids.split(",")] if parsed.ids else None
    for path in experiment.explain_run(opened, parsed.split, ids, parsed.wrong, parsed.least_confident, parsed.count):
        print(path)


def _report(workdir: Path, results: dict[str, Any]) -> None:
    for line in _flat(results["test"]):
        print(line)
    print(f"\n{workdir}/results.json    every number\n{workdir}/figures         curves and decisions with their prototypes")


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


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",")]


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise ValueError(f"--image-size {text!r}: give HEIGHTxWIDTH, such as 128x128")
    return int(height), int(width)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="protojax",
        description="Prototype learning: a class, and the few training examples that decided it.",
        epilog=EXIT_CODES,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_prepare(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_explain(commands)
    return parser


def _command(commands: Any, name: str, help: str, example: str, function: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=help,
        description=help,
        epilog=f"example:\n  {example}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=function)
    return parser


def _add_prepare(commands: Any) -> None:
    example = "protojax prepare csv adult.csv.gz --name adult --label income --data-dir data"
    parser = _command(commands, "prepare", "Write raw files as a TFDS data set.", example, _prepare)
    parser.add_argument("kind", choices=["idx", "image-folder", "csv", "text"], help="what the source is")
    parser.add_argument("source", type=Path, help="an IDX folder, a folder of images by class, or a CSV/TSV file")
    parser.add_argument("--name", required=True, help="name of the data set: lower-case letters, digits, underscores")
    parser.add_argument("--data-dir", type=Path, help="folder of data sets (default: that of TFDS)")
    parser.add_argument("--label", default="label", help="label column of a CSV or text file (default: label)")
    parser.add_argument("--text", default="text", help="text column (default: text)")
    parser.add_argument("--numeric", metavar="COLUMNS", help="numeric CSV columns, comma-separated (default: inferred)")
    parser.add_argument("--categorical", metavar="COLUMNS", help="categorical CSV columns (default: inferred)")
    parser.add_argument("--label-names", metavar="NAMES", help="class names of an IDX set, comma-separated, in order")
    parser.add_argument("--image-size", metavar="HxW", help="resize images of a folder to this size")
    parser.add_argument("--validation", type=float, default=0.1, help="share held out for validation (default: 0.1)")
    parser.add_argument("--test", type=float, default=0.2, help="share held out for testing where the source has no test "
                        "split (default: 0.2)")  # fmt: skip
    parser.add_argument("--duplicates", choices=["refuse", "drop"], default="refuse", help="what to do with an example whose "
                        "content stands in two splits: refuse the set, or drop the training copy")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace a prepared set of this name")


def _add_train(commands: Any) -> None:
    example = "protojax train experiments/protoattend_digits.toml --workdir runs/digits train.steps=500"
    parser = _command(commands, "train", "Train (or resume), evaluate and explain an experiment.", example, _train)
    parser.add_argument("experiment", type=Path, help="experiment file (TOML); any setting as section.key=value after it")
    parser.add_argument("--workdir", type=Path, required=True, help="run folder")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="refuse to start anew (resuming is the default where the "
                       "folder holds the same experiment)")  # fmt: skip
    again.add_argument("--overwrite", action="store_true", help="delete the run that the folder holds")
    parser.add_argument("--seeds", metavar="S,S,...", help="one run a seed in WORKDIR/seed-S; results.json has mean and spread")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0, for a run of several processes")
    parser.add_argument("--processes", type=int, default=1, help="number of processes")
    parser.add_argument("--process-index", type=int, default=0, help="index of this process")


def _add_evaluate(commands: Any) -> None:
    example = "protojax evaluate --workdir runs/digits evaluate.neighbours=25"
    help = "Score the whole test split anew; evaluate.*, explain.* and data.data_dir may be overridden."
    parser = _command(commands, "evaluate", help, example, _evaluate)
    parser.add_argument("--workdir", type=Path, required=True, help="run folder")


def _add_explain(commands: Any) -> None:
    example = "protojax explain --workdir runs/digits --split test --wrong"
    parser = _command(commands, "explain", "Show decisions with their prototypes.", example, _explain)
    parser.add_argument("--workdir", type=Path, required=True, help="run folder")
    parser.add_argument("--split", choices=["train", "validation", "test"], default="test")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--ids", metavar="ID,ID,...", help="these examples")
    which.add_argument("--wrong", action="store_true", help="decisions that are wrong")
    which.add_argument("--least-confident", type=int, metavar="N", help="the N least confident decisions")
    parser.add_argument("--count", type=int, default=20, help="decisions shown at most with --wrong (default: 20)")


if __name__ == "__main__":
    sys.exit(main())
