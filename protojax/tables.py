"""Readable tables of decisions on texts and rows, in Markdown."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PROTOTYPES = 8
"""Shown of each decision; the records hold all."""

CHARACTERS = 400
"""Shown of a text; the records hold all of it."""


def write(path: str | Path, title: str, explained: Mapping[str, Any]) -> Path:
    """Writes one table a decision: the input, then its prototypes, heaviest first.

    Args:
      path: the Markdown file.
      title: its heading.
      explained: what `explain.records` returned for texts or rows.
    """
    path = Path(path)
    parts = [f"# {title}"]
    if any(prototype["wrong_label"] for decision in explained["decisions"] for prototype in decision["prototypes"]):
        parts += ["", "A prototype whose label is not that of the input is marked with ≠."]
    for decision in explained["decisions"]:
        parts += ["", *_decision(decision, explained["label_names"])]
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return path


def summary(decision: Mapping[str, Any], names: Sequence[str]) -> list[tuple[str, bool]]:
    """A decision in a few short lines; True marks one that says that it was wrong."""
    wrong = decision["predicted"] != decision["label"]
    lines = [
        (f"{decision['split']} {decision['id']}", False),
        (f"label: {names[decision['label']]}", False),
        (f"predicted{' wrongly' if wrong else ''}: {names[decision['predicted']]}", wrong),
    ]
    if decision["encoder_predicted"] not in (None, decision["predicted"]):
        lines.append((f"encoder alone: {names[decision['encoder_predicted']]}", False))
    return [*lines, (f"confidence: {decision['confidence']:.2f}", False)]


def remainder(decision: Mapping[str, Any], shown: Sequence[Mapping[str, Any]]) -> str:
    """What is to be said of the prototypes that are not shown; empty where all are."""
    if not shown:
        return "no prototypes"
    hidden = decision["support_size"] - len(shown)
    return f"+ {hidden} more\n(shown: {sum(p['weight'] for p in shown):.2f})" if hidden else ""


def weight(prototype: Mapping[str, Any]) -> str:
    """The weight of a prototype, never rounded to nothing."""
    return f"{prototype['weight']:.2f}" if prototype["weight"] >= 0.005 else "<0.01"


def label(prototype: Mapping[str, Any], names: Sequence[str]) -> str:
    """The label of a prototype, with a sign where it is wrong, because colour alone tells nothing to some readers.

    A method's own prototype has a number, and the label of the example nearest to it.
    """
    if "prototype" in prototype:
        return f"{prototype['prototype']}, near {names[prototype['label']]}"
    return f"{'≠ ' if prototype['wrong_label'] else ''}{names[prototype['label']]}"


def _decision(decision: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    shown = decision["prototypes"][:PROTOTYPES]
    query = decision["input"]
    is_row = isinstance(query, dict)
    head = ["", "weight", "id", "label"]
    head += [f"same of {len(query)}", *map(_escaped, query)] if is_row else ["text"]
    first = ["**input**", "", str(decision["id"]), _escaped(names[decision["label"]])]
    rows = [[*first, *(["", *_values(query)] if is_row else [_text(query)])]]
    for i, prototype in enumerate(shown, start=1):
        cells = [str(i), _escaped(weight(prototype)), str(prototype["id"]), _escaped(label(prototype, names))]
        rows.append([*cells, *(_compared(prototype["input"], query) if is_row else [_text(prototype["input"])])])
    lines = [text for text, _ in summary(decision, names)]
    note = remainder(decision, shown).replace("\n", " ")
    about = _escaped(" · ".join([*lines[1:], *([note] if note else [])]))
    legend = ["In bold: equal to the input.", ""] if is_row else []
    table = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    return [f"## {lines[0]}", "", about, "", *legend, *table]


def _compared(row: dict[str, Any], query: dict[str, Any]) -> list[str]:
    """How many values are those of the query, and the values, these in bold."""
    same = [row[name] == query[name] for name in query]
    values = [
        f"**{value}**" if equal and value else value
        for value, equal in zip(_values({name: row[name] for name in query}), same, strict=True)
    ]
    return [str(sum(same)), *values]


def _values(row: dict[str, Any]) -> list[str]:
    return [_escaped(f"{value:.7g}" if isinstance(value, float) else str(value)) for value in row.values()]


def _text(text: str) -> str:
    more = len(text) - CHARACTERS
    return _escaped(text if more <= 0 else f"{text[:CHARACTERS]}… (+ {more} characters)")


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = re.sub(r"([\\|*`]|<(?=[A-Za-z/!?])|&(?=#?\w+;))", r"\\\1", text)
    return " ".join(text.split())
