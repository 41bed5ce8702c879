"""What an edit of the database would change, for people: a table to read and pictures of decisions before and after."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from protojax import figures, readable, run, tables

ROWS = 20
"""Decisions in the table."""

PROTOTYPES = 4
"""Prototypes of a decision in the table, those whose weight changes most."""

EDITS = 5
"""Edits of a kind that the question names; the records hold all."""

DECISIONS_A_PICTURE = 6
PROTOTYPES_A_ROW = 8


def write(folder: Path, answer: Mapping[str, Any], examples: Any, count: int = ROWS) -> list[Path]:
    """Writes `what_if.json`, and for images grids `what_if.png`, two rows a decision: before and after.

    Args:
      folder: receives the files; made where it does not exist.
      answer: from `whatif.records`.
      examples: all of the data set, from `readable.everything`.
      count: decisions drawn at most.

    Returns:
      The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("what_if*.png"):
        old.unlink()
    files = [folder / "what_if.json"]
    run.write_json(files[0], answer)
    changed = answer["changed"][:count]
    if not readable.has_images(examples):
        return files
    title = f"{question(answer)}: decisions on the {answer['split']} split before and after"
    for page, start in enumerate(range(0, len(changed), DECISIONS_A_PICTURE), start=1):
        rows = []
        for decision in changed[start : start + DECISIONS_A_PICTURE]:
            rows += [_row(side, decision, answer, examples) for side in ("before", "after")]
        suffix = "" if page == 1 else f"-{page}"
        files.append(figures.grid(folder / f"what_if{suffix}.png", title, rows))
    return files


def question(answer: Mapping[str, Any]) -> str:
    """The edits in words, the first few of each kind by their ids."""
    names, edits = answer["label_names"], answer["edits"]
    parts = []
    if edits["remove"]:
        removed = [f"{e['id']} ({names[e['label']]})" for e in edits["remove"][:EDITS]]
        parts.append("without " + _listed(removed, ", ", len(edits["remove"])))
    if edits["relabel"]:
        relabelled = [f"{e['id']} as {names[e['to']]}, not {names[e['from']]}" for e in edits["relabel"][:EDITS]]
        parts.append("with " + _listed(relabelled, "; ", len(edits["relabel"])))
    return ", ".join(parts)


def _listed(shown: Sequence[str], separator: str, count: int) -> str:
    """The first of so many, and how many more there are."""
    return separator.join(shown) + (f" and {count - len(shown)} more" if count > len(shown) else "")


def table(answer: Mapping[str, Any], count: int = ROWS) -> list[str]:
    """The answer as lines of text: what was asked, what changes, and a table of the decisions that change most."""
    names, changed = answer["label_names"], answer["changed"]
    classes = sum("class" in decision["changes"] for decision in changed)
    accuracy, recomputed, spared = answer["accuracy"], answer["recomputed"], answer["unchanged_by_proof"]
    lines = [
        f"{question(answer)}: {answer['examples']} decisions on the {answer['split']} split",
        f"  {len(changed)} change, {classes} of them their class; accuracy {accuracy['before']:.4f} -> "
        f"{accuracy['after']:.4f}",
        f"  {recomputed} were computed anew, {spared} were not:" if spared else "  all were computed anew:",
        *textwrap.wrap(answer["proof"], 100, initial_indent="  ", subsequent_indent="  "),
    ]
    if not changed:
        return lines
    head = ["id", "label", "class", "confidence", "prototypes that change: weight before -> after"]
    rows = [_cells(decision, names) for decision in changed[:count]]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines.append("")
    for row in [head, *rows]:
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if len(changed) > count:
        lines.append(f"and {len(changed) - count} more, see what_if.json")
    return lines


def _cells(decision: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    before, after = decision["before"], decision["after"]
    first, second = names[before["predicted"]], names[after["predicted"]]
    moved = sorted(filter(_moved, decision["prototypes"]), key=_moved, reverse=True)
    shown = [_weights(prototype, names) for prototype in moved[:PROTOTYPES]]
    more = len(moved) - len(shown)
    return [
        str(decision["id"]),
        names[decision["label"]],
        first if first == second else f"{first} -> {second}",
        f"{before['confidence']:.3f} -> {after['confidence']:.3f}",
        "   ".join(shown) + (f"   + {more}" if more else ""),
    ]


def _moved(prototype: Mapping[str, Any]) -> float:
    """How much the edit changes of a prototype; 0 for nothing."""
    weight, label = prototype["weight"], prototype["label"]
    if "before" in label and "after" in label and label["before"] != label["after"]:
        return 1 + (weight["after"] or 0.0)
    return abs((weight["after"] or 0.0) - (weight["before"] or 0.0))


def _weights(prototype: Mapping[str, Any], names: Sequence[str]) -> str:
    def shown(weight: float | None) -> str:
        return "?" if weight is None else "0" if weight == 0 else tables.weight({"weight": weight})

    labels = dict.fromkeys(names[label] for label in prototype["label"].values())
    weights = dict.fromkeys(shown(weight) for weight in prototype["weight"].values())
    return f"{prototype['id']} ({' -> '.join(labels)}) {' -> '.join(weights)}"


def _row(side: str, decision: Mapping[str, Any], answer: Mapping[str, Any], examples: Any) -> figures.Row:
    names, seen = answer["label_names"], decision[side]
    touched = {edit["id"] for edits in answer["edits"].values() for edit in edits}
    used = [p for p in decision["prototypes"] if p["weight"][side]]
    used.sort(key=lambda p: -p["weight"][side])
    drawn = used[:PROTOTYPES_A_ROW]
    query, *images = readable.shown(examples, [decision["id"], *(p["id"] for p in drawn)], "the data set")
    cells = [
        figures.Cell(
            image, tables.weight({"weight": p["weight"][side]}), names[p["label"][side]], p["id"], p["id"] in touched
        )
        for p, image in zip(drawn, images, strict=True)
    ]
    wrong = seen["predicted"] != decision["label"]
    lines = [
        (f"{side}: {answer['split']} {decision['id']}", False),
        (f"label: {names[decision['label']]}", False),
        (f"predicted{' wrongly' if wrong else ''}: {names[seen['predicted']]}", wrong),
        (f"confidence: {seen['confidence']:.2f}", False),
    ]
    shown = {"support_size": seen["support_size"]}
    note = tables.remainder(shown, [{"weight": p["weight"][side]} for p in drawn])
    return figures.Row(query, lines, cells, note)
