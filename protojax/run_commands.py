"""The commands of a run folder: `protojax train | evaluate | explain | what-if | edit | database | export`.

Each takes the parsed arguments, prints what it did, and imports what it needs only then.
"""

import argparse
from pathlib import Path
from typing import Any

from protojax import values


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
        case "compact":
            curate.compact(folder)
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
    for line in report_lines(results["test"]):
        print(line)
    print(f"\n{workdir}/results.json    every number")
    print(f"{workdir}/figures         curves and decisions with their prototypes")


def report_lines(test: dict[str, Any]) -> list[str]:
    """What is printed of the results on the test split, of one run or of several seeds."""

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


COMMANDS = {
    "train": _train,
    "evaluate": _evaluate,
    "explain": _explain,
    "what-if": _what_if,
    "edit": _edit,
    "database": _database,
    "export": _export,
}
