"""The arguments of the command line, and its help."""

import argparse
from pathlib import Path
from typing import Any, NoReturn

EXIT_CODES = """exit status: 0 done; 1 the run failed; 2 bad input or usage; 75 stopped by
SIGTERM with its state saved (run the same command again to resume)"""

_REOPENED = "evaluate.*, explain.* and data.data_dir can be overridden as section.key=value."


class _Parser(argparse.ArgumentParser):
    """Reports wrong usage in one line, as any other bad input."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of `protojax`; what it does not know (settings) is left to the caller."""
    top = _Parser(
        prog="protojax",
        description="Prototype learning: a class, and the few training examples that decided it.",
        epilog=f"{EXIT_CODES}\n\n`protojax COMMAND --help` has its options and an example.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True)
    _add_prepare(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_explain(commands)
    return top


def _command(commands: Any, name: str, help: str, example: str, more: str = "") -> _Parser:
    return commands.add_parser(
        name,
        help=help,
        description=f"{help}\n{more}" if more else help,
        epilog=f"example:\n  {example}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_prepare(commands: Any) -> None:
    example = (
        "protojax prepare csv adult.csv.gz --name adult --label income \\\n      --data-dir data --duplicates drop\n"
        "then:\n  protojax train experiments/protoattend/adult_sparsemax.toml \\\n"
        "      --workdir runs/adult data.name=adult data.data_dir=data"
    )
    parser = _command(commands, "prepare", "Write raw files as a TFDS data set.", example)
    parser.add_argument("kind", choices=["idx", "image-folder", "csv", "text"], help="what the source is")
    parser.add_argument("source", type=Path, help="an IDX folder, a folder of images by class, or a CSV/TSV file")
    parser.add_argument("--name", required=True, help="name of the data set: lower-case letters, digits, underscores")
    parser.add_argument("--data-dir", metavar="DIR", type=Path, help="folder of data sets (default: that of TFDS)")
    parser.add_argument("--label", metavar="COLUMN", help="label column of a CSV or text file (default: label)")
    parser.add_argument("--text", metavar="COLUMN", help="text column of a text file (default: text)")
    parser.add_argument("--numeric", metavar="COLUMNS", help="numeric CSV columns, comma-separated (default: inferred)")
    parser.add_argument("--categorical", metavar="COLUMNS", help="categorical CSV columns (default: inferred)")
    parser.add_argument("--label-names", metavar="NAMES", help="class names of an IDX set, comma-separated, in order")
    parser.add_argument("--image-size", metavar="HxW", help="resize images of a folder to this height and width")
    parser.add_argument(
        "--validation", metavar="SHARE", type=float, default=0.1, help="share held out for validation (default: 0.1)"
    )
    parser.add_argument(
        "--test",
        metavar="SHARE",
        type=float,
        default=0.2,
        help="share held out for testing where the source has no test split (default: 0.2)",
    )
    parser.add_argument(
        "--duplicates",
        choices=["refuse", "drop"],
        default="refuse",
        help="what to do with an example whose content stands in two splits: refuse the set, or drop the training copy",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a prepared set of this name")


def _add_train(commands: Any) -> None:
    example = "protojax train experiments/protoattend_digits.toml --workdir runs/digits \\\n      train.steps=500"
    parser = _command(commands, "train", "Train (or resume), evaluate and explain an experiment.", example)
    parser.add_argument(
        "experiment", type=Path, help="experiment file (TOML); any setting as section.key=value after it"
    )
    parser.add_argument(
        "--workdir", metavar="RUN", type=Path, required=True, help="run folder, made where it does not exist"
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--resume",
        action="store_true",
        help="refuse to start anew (resuming is the default where the folder holds the same experiment)",
    )
    again.add_argument("--overwrite", action="store_true", help="delete the run that the folder holds")
    parser.add_argument(
        "--seeds", metavar="S,S,...", help="one run a seed in WORKDIR/seed-S; results.json has mean and spread"
    )
    parser.add_argument(
        "--coordinator", metavar="HOST:PORT", help="address of process 0, for a run of several processes"
    )
    parser.add_argument("--processes", metavar="N", type=int, default=1, help="number of processes (default: 1)")
    parser.add_argument("--process-index", metavar="I", type=int, default=0, help="which process this is, from 0")


def _add_evaluate(commands: Any) -> None:
    example = "protojax evaluate --workdir runs/digits evaluate.neighbours=25"
    parser = _command(commands, "evaluate", "Score the whole test split anew.", example, _REOPENED)
    parser.add_argument("--workdir", metavar="RUN", type=Path, required=True, help="run folder")


def _add_explain(commands: Any) -> None:
    example = "protojax explain --workdir runs/digits --split test --wrong"
    parser = _command(commands, "explain", "Show decisions with their prototypes.", example, _REOPENED)
    parser.add_argument("--workdir", metavar="RUN", type=Path, required=True, help="run folder")
    parser.add_argument(
        "--split",
        choices=["train", "validation", "test"],
        default="test",
        help="where the decisions are taken from (default: test)",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--ids", metavar="ID,ID,...", help="these examples")
    which.add_argument("--wrong", action="store_true", help="decisions that are wrong")
    which.add_argument("--least-confident", type=int, metavar="N", help="the N least confident decisions")
    parser.add_argument(
        "--count",
        metavar="N",
        type=int,
        help="decisions shown at most, without --ids and --least-confident (default: 20)",
    )
