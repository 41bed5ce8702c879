"""The command line: `protojax prepare | train | evaluate | explain | what-if | edit | database | export`.

And for frozen backbones: `protojax convert-weights | recognise | features`.
"""

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protojax import values
from protojax.arguments import build_parser

INTERRUPTED = 75
"""Exit status after SIGTERM: the state is saved and the same command resumes."""

_OF_KIND = {
    "funnybirds": (),
    "idx": ("label_names",),
    "image-folder": ("image_size",),
    "csv": ("label", "numeric", "categorical"),
    "text": ("label", "text"),
    "features": ("labels",),
}
"""The options of `prepare` that only some kinds of sources read, by kind."""


_WITHOUT_SETTINGS = (
    "prepare",
    "convert-weights",
    "recognise",
    "database info",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    parser = build_parser()
    parsed, rest = parser.parse_known_args(arguments)
    overrides = [r for r in rest if "=" in r and not r.startswith("-")]
    if unknown := [r for r in rest if r not in overrides]:
        parser.error(f"unknown argument {' '.join(unknown)}; a setting is given as section.key=value")
    command = " ".join([parsed.command, *([parsed.verb] if "verb" in parsed else [])])
    if overrides and command in _WITHOUT_SETTINGS:
        parser.error(f"{command} takes no settings, got {' '.join(overrides)}")
    parsed.overrides = overrides
    # XLA and gRPC write their own diagnostics to stderr, between the lines of the progress bar.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if not sys.stderr.isatty():
        # In a file every redrawing of a bar stays.
        os.environ.setdefault("TQDM_MININTERVAL", "10")
    from protojax import checkpoint, run, sharding, train

    try:
        _COMMANDS[parsed.command](parsed)
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
        case "funnybirds":
            # It has a test split of its own.
            del common["test"]
            done = prepare.funnybirds(parsed.source, name=parsed.name, **common)
        case "idx":
            done = prepare.idx(
                parsed.source, name=parsed.name, label_names=values.names(parsed, "label_names"), **common
            )
        case "image-folder":
            done = prepare.image_folder(
                parsed.source, name=parsed.name, image_size=values.size(parsed.image_size), **common
            )
        case "csv":
            columns = {kind: values.names(parsed, kind) or () for kind in ("numeric", "categorical")}
            done = prepare.table(parsed.source, name=parsed.name, label=label, **columns, **common)
        case "text":
            done = prepare.text(parsed.source, name=parsed.name, label=label, text=parsed.text or "text", **common)
        case "features":
            if parsed.labels is None:
                raise ValueError("prepare features needs --labels FILE: an npy file of a label for each example")
            done = prepare.features(parsed.source, name=parsed.name, labels=parsed.labels, **common)
    counts = ", ".join(f"{split} {count}" for split, count in done.counts.items())
    dropped = sum(len(ids) for ids in done.dropped.values())
    print(
        f"prepared {parsed.name}: {counts}" + (f" ({dropped} duplicates dropped)" if dropped else "") + f"\n{done.path}"
    )


def _convert_weights(parsed: argparse.Namespace) -> None:
    from protojax import convert

    count = convert.convert(parsed.source, parsed.target, parsed.overwrite)
    print(f"{parsed.target} holds {count} tensors")


def _recognise(parsed: argparse.Namespace) -> None:
    from protojax import config, recognise

    if parsed.top < 1:
        raise ValueError(f"--top {parsed.top}: show at least 1 class")
    known = config.FrozenSettings.model_fields["network"].annotation.__args__
    if parsed.network not in known:
        near = difflib.get_close_matches(parsed.network, known, n=1, cutoff=0.0)
        raise ValueError(f"--network: no {parsed.network!r}; did you mean {near[0]!r}? There are {', '.join(known)}")
    settings = config.FrozenSettings(network=parsed.network, weights=str(parsed.weights))
    names = None if parsed.names is None else recognise.read_names(parsed.names)
    guesses = recognise.recognise(parsed.images, settings, names, parsed.top)
    for image, found in zip(parsed.images, guesses, strict=True):
        print(image)
        for name, probability in found:
            print(f"  {100 * probability:6.2f} %  {name}")


def _features(parsed: argparse.Namespace) -> None:
    from protojax import config
    from protojax.data import frozen

    settings = config.load(parsed.experiment, parsed.overrides)
    counts, shape = frozen.write_store(settings, parsed.output, parsed.overwrite)
    print(f"features {list(shape)}: {', '.join(f'{split} {count}' for split, count in counts.items())}")
    print(f"{parsed.output}    train from it with encoder.features={parsed.output}")


def _train(parsed: argparse.Namespace) -> None:
    import jax

    from protojax import config, experiment, run, sharding

    seeds = values.numbers(parsed, "seeds")
    values.check_workdir(parsed.workdir)
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

    if parsed.compare:
        _compare(parsed)
        return
    if parsed.output:
        raise ValueError("--output is where --compare writes; an evaluation is written into its run folder")
    values.check_workdir(parsed.workdir)
    _report(parsed.workdir, experiment.evaluate_run(_opened(parsed)))


def _compare(parsed: argparse.Namespace) -> None:
    from protojax import compare

    if parsed.overrides:
        raise ValueError(f"evaluate --compare scores nothing and takes no settings, got {' '.join(parsed.overrides)}")
    record = compare.confusions(parsed.compare)
    output = parsed.output or parsed.compare[0] / "figures"
    values.check_workdir(output, "--output")
    files = compare.write(output, record)
    for scored in record["runs"]:
        print(f"test accuracy {scored['accuracy']:.4g}  {scored['run']}")
    print("", *files, sep="\n")


def _explain(parsed: argparse.Namespace) -> None:
    from protojax import experiment

    ids = values.numbers(parsed, "ids")
    values.check_workdir(parsed.workdir)
    if parsed.count is not None and (ids is not None or parsed.least_confident is not None):
        raise ValueError("--ids and --least-confident say how many decisions are shown; leave --count out")
    count = 20 if parsed.count is None else parsed.count
    if count < 1:
        raise ValueError(f"--count {count}: show at least 1 decision")
    opened = _opened(parsed, ids, parsed.least_confident)
    for path in experiment.explain_run(opened, parsed.split, ids, parsed.wrong, parsed.least_confident, count):
        print(path)


def _what_if(parsed: argparse.Namespace) -> None:
    from protojax import contrast, readable, run, whatif

    remove, ids = values.numbers(parsed, "remove") or [], values.numbers(parsed, "ids")
    values.check_workdir(parsed.workdir)
    if parsed.count < 1:
        raise ValueError(f"--count {parsed.count}: show at least 1 decision")
    if not remove and parsed.relabel is None:
        whatif.check(whatif.Edits((), {}))
    edits = whatif.Edits(tuple(remove), values.relabelled(parsed.relabel, run.label_names(parsed.workdir)))
    whatif.check(edits)
    opened = _opened(parsed, ids)
    answer = whatif.records(whatif.ask(opened, edits, parsed.split, ids), opened)
    everything = readable.everything(opened.dataset)
    files = contrast.write(parsed.workdir / "figures", answer, everything, parsed.count)
    print("\n".join([*contrast.table(answer, parsed.count), "", *map(str, files)]))


def _edit(parsed: argparse.Namespace) -> None:
    from protojax import codes, experiment, methods, run

    edit = codes.Edit(tuple(values.numbers(parsed, "drop") or ()), parsed.top_k)
    values.check_workdir(parsed.workdir)
    if parsed.count < 1:
        raise ValueError(f"--count {parsed.count}: show at least 1 of a kind")
    settings = run.read(parsed.workdir)
    codes.check(edit, methods.build(settings, len(run.label_names(parsed.workdir))), settings.method.kind)
    answer, path = experiment.edit_run(_opened(parsed), edit, parsed.split)
    print("\n".join([*codes.table(answer, parsed.count), "", str(path)]))
    if parsed.keep:
        print(f"{codes.keep(parsed.workdir, edit)}    from now on the run is opened without these codes")


def _database(parsed: argparse.Namespace) -> None:
    from protojax import curate, manifest, run

    folder, ids = parsed.workdir, values.numbers(parsed, "ids") if "ids" in parsed else None
    values.check_workdir(folder)
    names = run.label_names(folder)
    if parsed.verb != "build" and not (folder / "database" / manifest.NAME).exists():
        raise ValueError(f"{folder} has no database; protojax database build --workdir {folder} encodes one")
    match parsed.verb:
        case "build":
            if not parsed.overwrite:
                curate.check_unedited(folder / "database")
            curate.build(_encoder(parsed), parsed.split, parsed.count, parsed.overwrite)
        case "remove":
            curate.check(folder, ids)
            curate.remove(_encoder(parsed), ids)
        case "relabel":
            label = values.label(parsed.label, names, "--label")
            curate.check(folder, ids, label, names)
            curate.relabel(_encoder(parsed), ids, label)
        case "append":
            curate.append(_encoder(parsed, ids), parsed.split, ids)
    if parsed.verb == "info":
        print("\n".join(curate.describe(_encoder(parsed))))
        return
    print(f"{folder / 'database'} holds {curate.summary(folder)['count']} candidates")
    print(f"protojax evaluate --workdir {folder}    measures the run with them")


def _export(parsed: argparse.Namespace) -> None:
    from protojax import export

    values.check_workdir(parsed.workdir)
    export.check(parsed.output, parsed.overwrite)
    for path in export.write(parsed.output, _opened(parsed), parsed.overwrite):
        print(path)


def _opened(parsed: argparse.Namespace, ids: list[int] | None = None, least_confident: int | None = None) -> Any:
    from protojax import opened

    return opened.open_run(parsed.workdir, *_data(parsed, ids, least_confident))


def _encoder(parsed: argparse.Namespace, ids: list[int] | None = None) -> Any:
    from protojax import opened

    return opened.open_encoder(parsed.workdir, *_data(parsed, ids))


def _data(parsed: argparse.Namespace, ids: list[int] | None = None, least_confident: int | None = None) -> Any:
    """Settings and data of a run, after a check of what is asked of the split before anything is read or compiled."""
    from protojax import explain, opened
    from protojax.data import frozen

    settings = opened.reopened_settings(parsed.workdir, parsed.overrides)
    dataset = frozen.load(settings)
    if "split" in parsed:
        explain.check(opened.split_of(dataset, parsed.split), ids, least_confident, f"split {parsed.split}")
    return settings, dataset


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

    # Over several seeds, what no run has is left out.
    accuracy, support, needed = (test.get(key, {}) for key in ("accuracy", "support", "prototypes_for"))
    lines = [
        f"test accuracy of the encoder     {shown(accuracy.get('encoder'))}",
        f"test accuracy of the prototypes  {shown(accuracy.get('prototypes'))}",
        f"support size, median             {shown(support.get('median'))}",
        "prototypes for 50/90/95 %        " + " / ".join(shown(needed.get(s)) for s in ("50", "90", "95")),
    ]
    lines += [
        f"{'accuracy of the ' + name.replace('_', ' '):33}{shown(x)}" for name, x in test.get("heads", {}).items()
    ]
    if lost := test.get("reconstruction"):
        lines.append(f"squared error of decoded pixels  {shown(lost['mean_squared_error'])}")
    return lines


_COMMANDS = {
    "prepare": _prepare,
    "convert-weights": _convert_weights,
    "recognise": _recognise,
    "features": _features,
    "train": _train,
    "evaluate": _evaluate,
    "explain": _explain,
    "what-if": _what_if,
    "edit": _edit,
    "database": _database,
    "export": _export,
}


if __name__ == "__main__":
    sys.exit(main())
