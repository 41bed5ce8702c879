"""Results as a table and as plots."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- results: written by python -m benchmarks --report -->", "<!-- end of results -->"

_COLUMNS = (
    "benchmark",
    "case",
    "implementation",
    "ms",
    "fastest",
    "spread",
    "memory MB",
    "times ours",
    "times floor",
    "exact",
    "goal",
)


def combine(files: Sequence[Path]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The header of the first of some runs, and of every implementation its best median among them, of every floor the
    lowest.

    Raises:
      ValueError: a file is not a result of this program.
    """
    runs = []
    for file in files:
        try:
            run = json.loads(file.read_text())
            runs.append((run["machine"], run["rows"]))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is not a result of python -m benchmarks --json: {error!r}") from error
    best: dict[tuple, dict[str, Any]] = {}
    floors: dict[tuple, float] = {}
    for _, rows in runs:
        for row in rows:
            key = row["benchmark"], row["case"], row["implementation"]
            if floor := row["floor_seconds"]:
                floors[key[:2]] = min(floor, floors.get(key[:2], floor))
            if key not in best or row["seconds"] < best[key]["seconds"]:
                best[key] = dict(row)
    combined = list(best.values())
    ours: dict[tuple, float] = {}
    for row in combined:
        # The first of a case is the one that ratios refer to.
        first = ours.setdefault((row["benchmark"], row["case"]), row["seconds"])
        row["ratio_to_ours"] = row["seconds"] / first
        if floor := floors.get((row["benchmark"], row["case"])):
            row["ratio_to_floor"] = row["seconds"] / floor
    return runs[0][0], combined


def table(machine: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown, under a line about the machine."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    peak = f"{machine['bytes_per_second'] / 1e9:.1f} GB/s read, {machine['flops_per_second'] / 1e9:.0f} GFLOP/s float32"
    where = machine["cpu"] if machine["backend"] == "cpu" else f"{machine['device']} beside {machine['cpu']}"
    lines = [
        f"Machine: {where}, {machine['threads']} threads; measured peak: {peak}. Versions: {versions}.",
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "|---" * len(_COLUMNS) + "|",
    ]
    for row in rows:
        cells = (
            row["benchmark"],
            row["case"],
            row["implementation"],
            f"{row['seconds'] * 1e3:.3g}",
            f"{row['fastest_seconds'] * 1e3:.3g}",
            f"{row['spread']:.0%}",
            "" if row["memory_bytes"] is None else f"{row['memory_bytes'] / 1e6:.3g}",
            f"{row['ratio_to_ours']:.2f}",
            "" if row["ratio_to_floor"] is None else f"{row['ratio_to_floor']:.2f}",
            {True: "yes", False: "no", None: ""}[row["exact"]],
            goal(row),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def goal(row: dict[str, Any]) -> str:
    """What was to be reached, and whether it was."""
    found = []
    if (wanted := row["goal"]) is not None:
        ratio = row["ratio_to_ours"]
        if not row["implementation"].startswith("protojax"):
            found.append(f"at least {wanted:.3g}x: {_met(ratio >= wanted)}")
        else:
            found.append(f"at most {wanted:g}x: {_met(ratio <= wanted)}")
    if (most := row["memory_goal"]) is not None and row["memory_bytes"] is not None:
        found.append(f"at most {most / 1e6:.3g} MB: {_met(row['memory_bytes'] <= most)}")
    return "; ".join(found)


def _met(fulfilled: bool) -> str:
    return "met" if fulfilled else "MISSED"


def write_readme(readme: Path, text: str) -> None:
    """Puts a table between the markers of a README.

    Raises:
      ValueError: the markers are missing.
    """
    before, found, rest = readme.read_text().partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"{readme} has no place for results: it needs the lines {BEGIN!r} and {END!r}")
    readme.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")


def plot(rows: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Time and memory against the number of candidates, one file a benchmark that has several sizes."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    written = []
    for benchmark in dict.fromkeys(row["benchmark"] for row in rows):
        kinds: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            if row["benchmark"] == benchmark:
                kinds.setdefault(row["case"].rsplit(", D = ", 1)[0], []).append(row)
        kinds = {kind: some for kind, some in kinds.items() if len({row["size"] for row in some}) > 1}
        if not kinds:
            continue
        figure, axes = pyplot.subplots(
            2, len(kinds), figsize=(4.5 * len(kinds), 7), squeeze=False, layout="constrained"
        )
        for column, (kind, some) in enumerate(kinds.items()):
            for axis, key, label in zip(
                axes[:, column], ("seconds", "memory_bytes"), ("seconds", "bytes"), strict=True
            ):
                for name in dict.fromkeys(row["implementation"] for row in some):
                    points = sorted(
                        (row["size"], row[key]) for row in some if row["implementation"] == name and row[key]
                    )
                    if points:
                        axis.plot(*zip(*points, strict=True), marker="o", label=name)
                axis.set(xscale="log", yscale="log", xlabel="candidates", ylabel=label)
                sizes = sorted({row["size"] for row in some})
                axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
                axis.set_xticks([], minor=True)
                axis.set_title(kind, fontsize="small")
            axes[0, column].legend(fontsize="small")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{benchmark}.png"
        figure.savefig(path, dpi=100)
        pyplot.close(figure)
        written.append(path)
    return written
