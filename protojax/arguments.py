"""The arguments of the command line, with their help."""

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
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_prepare(commands)
    _add_convert_weights(commands)
    _add_recognise(commands)
    _add_features(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_explain(commands)
    _add_what_if(commands)
    _add_edit(commands)
    _add_database(commands)
    _add_export(commands)
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
    parser = _command(commands, "prepare", "Write raw files as a TFDS data set, or build an official one.", example)
    kinds = ["idx", "image-folder", "csv", "text", "features", "funnybirds", "tfds"]
    parser.add_argument("kind", choices=kinds, help="what the source is")
    parser.add_argument(
        "source",
        type=Path,
        help="an IDX folder, a folder of images by class, a CSV/TSV file, an npy file, FunnyBirds, or the name of an "
        "official TFDS data set, which is downloaded and built by TensorFlow",
    )
    parser.add_argument("--name", help="name of the data set: lower-case letters, digits, underscores; not of tfds")
    parser.add_argument("--data-dir", metavar="DIR", type=Path, help="folder of data sets (default: that of TFDS)")
    parser.add_argument("--label", metavar="COLUMN", help="label column of a CSV or text file (default: label)")
    parser.add_argument("--text", metavar="COLUMN", help="text column of a text file (default: text)")
    parser.add_argument("--numeric", metavar="COLUMNS", help="numeric CSV columns, comma-separated (default: inferred)")
    parser.add_argument("--categorical", metavar="COLUMNS", help="categorical CSV columns (default: inferred)")
    parser.add_argument("--label-names", metavar="NAMES", help="class names of an IDX set, comma-separated, in order")
    parser.add_argument("--labels", metavar="FILE", type=Path, help="npy file of the labels of features")
    parser.add_argument("--image-size", metavar="HxW", help="resize images of a folder to this height and width")
    parser.add_argument(
        "--validation", metavar="SHARE", type=float, help="share held out for validation (default: 0.1)"
    )
    parser.add_argument(
        "--test",
        metavar="SHARE",
        type=float,
        help="share held out for testing where the source has no test split (default: 0.2)",
    )
    parser.add_argument(
        "--duplicates",
        choices=["refuse", "drop"],
        help="what to do with an example whose content stands in two splits: refuse the set (the default), or drop the "
        "training copy",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a prepared set of this name")


def _add_convert_weights(commands: Any) -> None:
    example = "protojax convert-weights model.pth model.safetensors"
    more = "Needs PyTorch (pip install 'protojax[torch]'); reading the result does not."
    parser = _command(commands, "convert-weights", "Write the weights of a PyTorch file as safetensors.", example, more)
    parser.add_argument("source", type=Path, help="file of torch.save; read with weights_only=True, which runs no code")
    parser.add_argument("target", type=Path, help="safetensors file")
    parser.add_argument("--overwrite", action="store_true", help="replace a file of this name")


def _add_recognise(commands: Any) -> None:
    example = (
        "protojax recognise flower.jpg --network efficientnet_lite0 \\\n"
        "      --weights lite0.safetensors --names imagenet.txt"
    )
    parser = _command(commands, "recognise", "Say what a published classifier sees in photographs.", example)
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--network", required=True, help="a network of encoder.network, such as resnet50")
    parser.add_argument("--weights", metavar="FILE", type=Path, required=True, help="its safetensors file")
    parser.add_argument(
        "--names", metavar="FILE", type=Path, help="names of the classes: a line each, or JSON (default: numbers)"
    )
    parser.add_argument("--top", metavar="N", type=int, default=5, help="classes shown of each image (default: 5)")


def _add_features(commands: Any) -> None:
    example = "protojax features experiment.toml --output features/cub"
    more = (
        "The experiment has a frozen encoder (encoder.kind = 'frozen'). Training with\n"
        "encoder.features=DIR gets the numbers that it would compute from the images,\n"
        "up to rounding. What was interrupted stands in DIR.partial, and the same\n"
        "command goes on there."
    )
    parser = _command(commands, "features", "Run a frozen backbone over a data set once.", example, more)
    parser.add_argument(
        "experiment", type=Path, help="experiment file (TOML); any setting as section.key=value after it"
    )
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="folder of the store")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the store that the folder holds, or an unfinished one"
    )


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
    example = (
        "protojax evaluate --workdir runs/digits evaluate.neighbours=25\n"
        "  protojax evaluate --compare runs/prototypes runs/attention --output compared"
    )
    more = (
        "With --compare nothing is scored: the confusion matrices in the results of two\n"
        "runs are drawn side by side.\n" + _REOPENED
    )
    parser = _command(commands, "evaluate", "Score the whole test split anew, or compare two runs.", example, more)
    which = parser.add_mutually_exclusive_group(required=True)
    _add_run(which, required=False)
    which.add_argument("--compare", metavar="RUN", type=Path, nargs=2, help="two run folders, each of one seed")
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        help="receives confusions.png and confusions.json (default: figures of the first run compared)",
    )


def _add_explain(commands: Any) -> None:
    example = "protojax explain --workdir runs/digits --split test --wrong"
    parser = _command(commands, "explain", "Show decisions with their prototypes.", example, _REOPENED)
    _add_run(parser)
    _add_split(parser, "test", "where the decisions are taken from")
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


def _add_what_if(commands: Any) -> None:
    example = (
        "protojax what-if --workdir runs/digits --remove 17,18\n"
        "  protojax what-if --workdir runs/digits --relabel 5=3 --split validation"
    )
    more = (
        "Nothing is trained or changed. With sparsemax, only the decisions that lean on\n"
        "an edited candidate are computed anew; the others cannot change.\n" + _REOPENED
    )
    help = "Show which decisions change without some candidates, or with other labels."
    parser = _command(commands, "what-if", help, example, more)
    _add_run(parser)
    parser.add_argument("--remove", metavar="ID,...", help="candidates to be left out")
    parser.add_argument(
        "--relabel", metavar="ID=LABEL,...", help="candidates with another label: a class name, or its number"
    )
    _add_split(parser, "test", "where the decisions are taken from")
    parser.add_argument("--ids", metavar="ID,...", help="the decisions on these examples alone (default: all)")
    parser.add_argument("--count", metavar="N", type=int, default=20, help="decisions shown at most (default: 20)")


def _add_edit(commands: Any) -> None:
    example = "protojax edit --workdir runs/birds --drop 17,42\n  protojax edit --workdir runs/birds --top-k 5 --keep"
    more = "Nothing is trained, and without --keep nothing is changed.\n" + _REOPENED
    help = "Show which decisions change without some codes of a codebook."
    parser = _command(commands, "edit", help, example, more)
    _add_run(parser)
    parser.add_argument("--drop", metavar="CODE,...", help="codes that are to count no more")
    parser.add_argument("--top-k", metavar="K", type=int, help="codes that every class keeps, its heaviest")
    parser.add_argument("--keep", action="store_true", help="open the run without these codes from now on")
    _add_split(parser, "test", "where the decisions are taken from")
    parser.add_argument("--count", metavar="N", type=int, default=20, help="codes and decisions shown (default: 20)")


def _add_database(commands: Any) -> None:
    example = "protojax database remove --workdir runs/digits --ids 17,18"
    help = "Build, describe or edit the database of a run."
    top = _command(commands, "database", help, example, "Edits hold from then on; evaluate and explain use them.")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    start = "protojax database"

    example = f"{start} build --workdir runs/digits --count 500"
    build = _command(verbs, "build", "Encode examples into a new database.", example, _REOPENED)
    _add_run(build)
    _add_split(build, "train", "where the candidates are taken from")
    build.add_argument(
        "--count", metavar="N", type=int, help="candidates, drawn with the run's seed (default: as the run has them)"
    )
    build.add_argument("--overwrite", action="store_true", help="replace an edited database, whose edits are lost")

    example = f"{start} info --workdir runs/digits"
    _add_run(_command(verbs, "info", "Say what the database holds, and whether it fits.", example))

    example = f"{start} remove --workdir runs/digits --ids 17,18"
    remove = _command(verbs, "remove", "Take candidates out of the database.", example, _REOPENED)
    _add_run(remove)
    remove.add_argument("--ids", metavar="ID,...", required=True, help="the candidates")

    example = f"{start} relabel --workdir runs/digits --ids 5 --label 3"
    relabel = _command(verbs, "relabel", "Give candidates another label.", example, _REOPENED)
    _add_run(relabel)
    relabel.add_argument("--ids", metavar="ID,...", required=True, help="the candidates")
    relabel.add_argument("--label", metavar="LABEL", required=True, help="class name, or its number from 0")

    example = f"{start} append --workdir runs/digits --split validation"
    append = _command(verbs, "append", "Encode further examples into the database.", example, _REOPENED)
    _add_run(append)
    _add_split(append, None, "where the examples are taken from")
    append.add_argument("--ids", metavar="ID,...", help="these examples alone (default: all of the split)")

    example = f"{start} compact --workdir runs/digits"
    _add_run(_command(verbs, "compact", "Close the gaps that removed candidates left in the files.", example))


def _add_export(commands: Any) -> None:
    example = "protojax export --workdir runs/digits --output exported/digits"
    more = (
        "The folder holds the prediction as StableHLO for CPU and CUDA, the database and\n"
        "the parameters as npy files, a description, and an example that needs jax alone.\n" + _REOPENED
    )
    parser = _command(commands, "export", "Write a run as an artifact that needs no protojax.", example, more)
    _add_run(parser)
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="receives the artifact")
    parser.add_argument("--overwrite", action="store_true", help="replace the export that the folder holds")


def _add_run(parser: argparse._ActionsContainer, required: bool = True) -> None:
    parser.add_argument("--workdir", metavar="RUN", type=Path, required=required, help="run folder")


def _add_split(parser: _Parser, default: str | None, what: str) -> None:
    parser.add_argument(
        "--split",
        choices=["train", "validation", "test"],
        default=default,
        required=default is None,
        help=f"{what} (default: {default})" if default else what,
    )
