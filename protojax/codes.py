"""The codes of a run, edited: some taken out, or only the heaviest of every class left; nothing is trained.

What was decided to stay is kept in `codes.json` of the run. From then on the run is opened without these codes, which
are also removed physically: smaller, and to the last bit as if they only did not count (`methods.pruning`).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from protojax import run, tables
from protojax.evaluate import Scored, number
from protojax.methods import Method, Variables, pruning

NAME = "codes.json"
SCHEMA = "protojax.edit/1"


class Edit(NamedTuple):
    """Which codes are to count no more."""

    drop: tuple[int, ...] = ()
    """By their numbers."""
    top_k: int | None = None
    """Codes that every class keeps; None keeps all."""


def check(edit: Edit, method: Method, kind: str) -> None:
    """Refuses what needs no model to be wrong.

    Args:
      edit: what is asked about.
      method: of the run.
      kind: its name.

    Raises:
      ValueError: the method has no codes, or there is nothing to edit.
    """
    if not method.has_codes:
        raise ValueError(f"method.kind = {kind!r} has no codes to edit, as protoquant has")
    if not edit.drop and edit.top_k is None:
        raise ValueError("nothing to edit: name codes with --drop NUMBER,... or give --top-k K")
    if edit.top_k is not None and edit.top_k < 1:
        raise ValueError(f"--top-k {edit.top_k}: every class keeps at least 1 code")


def edited(variables: Variables, edit: Edit) -> Variables:
    """The model with the edit, all codes still in their places.

    Raises:
      ValueError: a code does not exist, or none that counts would be left.
    """
    if edit.drop:
        variables = pruning.neutralised(variables, edit.drop)
    return variables if edit.top_k is None else pruning.pruned(variables, edit.top_k)


def read(folder: Path) -> Edit:
    """What was kept for a run; nothing where nothing was.

    Raises:
      ValueError: the file is damaged.
    """
    path = folder / NAME
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return Edit(tuple(int(code) for code in tree["drop"]), tree["top_k"])
    except FileNotFoundError:
        return Edit()
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged: {error!r}; delete it to have all codes back") from None


def keep(folder: Path, edit: Edit) -> Path:
    """Adds an edit to those that a run is opened with; returns the file."""
    before = read(folder)
    limits = [k for k in (before.top_k, edit.top_k) if k is not None]
    together = Edit(tuple(sorted({*before.drop, *edit.drop})), min(limits, default=None))
    run.write_json(folder / NAME, {"schema": SCHEMA, **together._asdict()})
    return folder / NAME


def opened(folder: Path, variables: Variables) -> Variables:
    """The model as the run was edited, without the codes that do not count."""
    edit = read(folder)
    return variables if edit == Edit() else pruning.shrunk(edited(variables, edit))


def records(
    edit: Edit, before: Scored, after: Scored, variables: Variables, memory: Any, label_names: Sequence[str], split: str
) -> dict[str, Any]:
    """What an edit changes, and for whom, as plain JSON values.

    Args:
      edit: what was asked about.
      before: decisions with all codes.
      after: the same decisions with the edit.
      variables: the model before.
      memory: what its decisions lean on, for the training example that each code stands for.
      label_names: names of the classes.
      split: where the decisions are from.

    Returns:
      `schema`, `label_names`, `split`, `edit`, `examples`, `accuracy` before and after; `codes`, those that count no
      more: `code`, `id` and `label` of the example it stood for, and the `classes` that it weighed for, heaviest first;
      `classes` whose decisions change: `label`, `examples`, `changed`, `accuracy` before and after, most changed first;
      and `changed`, decisions whose class changes, by the confidence they had: `id`, `label`, `before`, `after`.
    """
    moved = before.predicted != after.predicted
    gone = np.flatnonzero(np.asarray(variables[pruning.BOOK]["active"]) & ~_left(variables, edit))
    weights, numbers = np.asarray(pruning.classifier(variables)), np.asarray(variables[pruning.BOOK]["number"])
    codes = [
        {
            "code": int(numbers[place]),
            "id": int(memory.ids[place]),
            "label": int(memory.labels[place]),
            "classes": [
                {"label": int(label), "weight": number(weights[label, place])}
                for label in np.argsort(-weights[:, place], kind="stable")
                if weights[label, place] > 0
            ],
        }
        for place in gone
    ]
    classes = []
    for label in np.unique(before.labels[moved]):
        own = before.labels == label
        accuracy = {"before": number(before.correct[own].mean()), "after": number(after.correct[own].mean())}
        counts = {"examples": int(own.sum()), "changed": int((moved & own).sum())}
        classes.append({"label": int(label), **counts, "accuracy": accuracy})
    order = sorted(np.flatnonzero(moved), key=lambda place: -before.confidence[place])
    return {
        "schema": SCHEMA,
        "label_names": list(label_names),
        "split": split,
        "edit": {"drop": list(edit.drop), "top_k": edit.top_k},
        "examples": len(before.ids),
        "accuracy": {"before": number(before.correct.mean()), "after": number(after.correct.mean())},
        "codes": codes,
        "classes": sorted(classes, key=lambda c: -c["changed"]),
        "changed": [
            {
                "id": int(before.ids[place]),
                "label": int(before.labels[place]),
                **{
                    side: {"predicted": int(s.predicted[place]), "confidence": number(s.confidence[place])}
                    for side, s in (("before", before), ("after", after))
                },
            }
            for place in order
        ],
    }


def table(answer: Mapping[str, Any], count: int) -> list[str]:
    """The answer as lines of text."""
    names, accuracy = answer["label_names"], answer["accuracy"]
    lines = [
        f"without {len(answer['codes'])} codes: {answer['examples']} decisions on the {answer['split']} split",
        f"  {len(answer['changed'])} change their class; accuracy {accuracy['before']:.4f} -> {accuracy['after']:.4f}",
    ]
    for code in answer["codes"][:count]:
        heard = ", ".join(f"{names[c['label']]} {tables.weight(c)}" for c in code["classes"][:3])
        more = len(code["classes"]) - 3
        lines.append(
            f"  code {code['code']} (as in #{code['id']}, {names[code['label']]}): {heard or 'no class'}"
            + (f" and {more} more classes" if more > 0 else "")
        )
    for own in answer["classes"][:count]:
        change = f"{own['accuracy']['before']:.3f} -> {own['accuracy']['after']:.3f}"
        lines.append(f"  {names[own['label']]}: {own['changed']} of {own['examples']} change, accuracy {change}")
    for decision in answer["changed"][:count]:
        sides = [names[decision[side]["predicted"]] for side in ("before", "after")]
        lines.append(f"  #{decision['id']} ({names[decision['label']]}): {' -> '.join(sides)}")
    return lines


def _left(variables: Variables, edit: Edit) -> np.ndarray:
    return np.asarray(jax.device_get(edited(variables, edit)[pruning.BOOK]["active"]))
