"""Decisions with the training examples that made them: as records, as pictures, as tables to read."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from protojax import figures, readable, tables
from protojax.evaluate import Scored, number

SCHEMA = "protojax.explanation/2"
WRONG_LABELS_SCHEMA = "protojax.wrong_labels/1"

ROWS_A_PICTURE = 12
PROTOTYPES_A_ROW = 8

_CANDIDATES = "the examples that prototypes come from"


def select(
    scored: Scored,
    ids: Sequence[int] | None = None,
    wrong: bool = False,
    least_confident: int | None = None,
    count: int | None = None,
) -> np.ndarray:
    """Picks decisions of a scored split.

    Args:
      scored: the split.
      ids: exactly these, in this order.
      wrong: wrong decisions only.
      least_confident: so many of lowest confidence, lowest first; with `wrong`, of the wrong ones.
      count: at most so many, where neither ids nor `least_confident` say how many; None for all.

    Returns:
      int positions in the split.

    Raises:
      ValueError: an id does not occur, ids stand beside another choice, or more of lowest confidence are wanted than
        there are.
    """
    if ids is not None:
        if wrong or least_confident is not None:
            raise ValueError("ids already name the decisions; leave out --wrong and --least-confident")
        return readable.places(scored.ids, ids, "the scored split")
    pool = np.flatnonzero(~scored.correct) if wrong else np.arange(len(scored.ids))
    if least_confident is not None:
        _check_count(least_confident, len(pool), "wrong decisions" if wrong else "examples")
        return pool[np.argsort(scored.confidence[pool], kind="stable")][:least_confident]
    return pool[:count]


def check(source: Any, ids: Sequence[int] | None, least_confident: int | None, where: str) -> None:
    """Refuses what `select` could not find in a split, before the split is scored.

    Raises:
      ValueError: an id does not occur, or more of lowest confidence are wanted than there are.
    """
    if ids is not None:
        readable.places(source.ids, ids, where)
    if least_confident is not None:
        _check_count(least_confident, len(source), "examples")


def records(
    scored: Scored,
    positions: np.ndarray,
    source: Any,
    candidates: Any,
    label_names: Sequence[str],
    split: str = "test",
) -> dict[str, Any]:
    """Decisions as plain JSON values.

    Args:
      scored: a scored split.
      positions: positions in it, from `select`.
      source: the split, for what a person reads of it.
      candidates: the examples that prototypes come from: the training split, or all splits.
      label_names: names of the classes; labels are positions in this list.
      split: name of the split.

    Returns:
      `schema`, `label_names` and `decisions`. Each has `id`, `split`, `label`, `predicted`, `encoder_predicted` (None
      where the network alone decides nothing), `confidence`, `support_size` (prototypes with a weight; more than are
      listed where the support is wider than what was kept) and `prototypes`, heaviest first: `id`, `label`,
      `weight` and `wrong_label`, whether its label is not that of the decision's example. A method's own prototype has
      its number, `prototype`, and stands for the training example nearest to it; it may speak for any class, and its
      `wrong_label` is None. Texts and rows stand in `input`.

    Raises:
      ValueError: an example of `scored` is in neither source.
    """
    predicted, encoder_predicted = scored.predicted, scored.encoder_predicted
    decisions = []
    for position in positions:
        decisions.append(
            {
                "id": int(scored.ids[position]),
                "split": split,
                "label": int(scored.labels[position]),
                "predicted": int(predicted[position]),
                "encoder_predicted": None if encoder_predicted is None else int(encoder_predicted[position]),
                "confidence": number(scored.confidence[position]),
                "support_size": int(scored.support.size[position]),
                "prototypes": _prototypes(scored, position),
            }
        )
    prototypes = [prototype for decision in decisions for prototype in decision["prototypes"]]
    readable.add_inputs(decisions, source, f"split {split}")
    readable.add_inputs(prototypes, candidates, _CANDIDATES)
    return {"schema": SCHEMA, "label_names": list(label_names), "decisions": decisions}


def wrong_label_prototypes(scored: Scored, label_names: Sequence[str], split: str = "test") -> dict[str, Any]:
    """All prototypes of a split whose label is not that of the example they decided on (paper figure 9).

    Args:
      scored: a scored split, whole.
      label_names: names of the classes.
      split: name of the split.

    Returns:
      `schema`, `label_names`, `split`, `examples` in it, `width` (prototypes kept of each decision);
      `decisions` with at least one such prototype, those first where they weigh most: `id`, `label`, `predicted`,
      `confidence`, `wrong_weight` (their sum) and these `prototypes` alone; and `by_prototype`, the same seen from the
      training examples: `id`, `label`, `decisions` (how many) and `weight` in sum, which is where to look for wrong
      labels in the training data.
    """
    support, predicted = scored.support, scored.predicted
    wrong = (support.weights > 0) & (support.labels != scored.labels[:, None])
    weight = np.where(wrong, support.weights, 0).sum(axis=1)
    affected = np.flatnonzero(wrong.any(axis=1))
    affected = affected[np.argsort(-weight[affected], kind="stable")]
    decisions = [
        {
            "id": int(scored.ids[position]),
            "label": int(scored.labels[position]),
            "predicted": int(predicted[position]),
            "confidence": number(scored.confidence[position]),
            "wrong_weight": number(weight[position]),
            "prototypes": [
                {key: p[key] for key in ("id", "label", "weight")}
                for p in _prototypes(scored, position)
                if p["wrong_label"]
            ],
        }
        for position in affected
    ]
    ids, first, inverse = np.unique(support.ids[wrong], return_index=True, return_inverse=True)
    labels = support.labels[wrong][first]
    times, total = np.bincount(inverse), np.bincount(inverse, weights=support.weights[wrong])
    by_prototype = [
        {"id": int(ids[i]), "label": int(labels[i]), "decisions": int(times[i]), "weight": number(total[i])}
        for i in np.argsort(-total, kind="stable")
    ]
    return {
        "schema": WRONG_LABELS_SCHEMA,
        "label_names": list(label_names),
        "split": split,
        "examples": len(scored.ids),
        "width": support.weights.shape[1],
        "decisions": decisions,
        "by_prototype": by_prototype,
    }


def write(
    folder: str | Path,
    scored: Scored,
    positions: np.ndarray,
    source: Any,
    candidates: Any,
    label_names: Sequence[str],
    split: str = "test",
) -> list[Path]:
    """Writes decisions for people and for programs.

    `explanations.json` holds the records. Beside it stand grids `explanations.png` for images (`explanations-2.png` and
    so on for more than fit one), or a table `explanations.md` for texts and rows. Where decisions lean on training
    examples themselves, `wrong_labels.json` holds the wrong-label prototypes of the whole split, and `wrong_labels.png`
    or `.md` shows the decisions where these weigh most.

    Args:
      folder: receives the files; made where it does not exist.
      scored: a scored split.
      positions: positions in it, from `select`.
      source: the split.
      candidates: the examples that prototypes come from.
      label_names: names of the classes.
      split: name of the split.

    Returns:
      The files written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("explanations*"), *folder.glob("wrong_labels*")):
        if old.suffix in (".png", ".md"):
            old.unlink()
    chosen = records(scored, positions, source, candidates, label_names, split)
    files, title = [_write_json(folder / "explanations.json", chosen)], f"Decisions on the {split} split"
    if scored.support.prototypes is not None:
        (folder / "wrong_labels.json").unlink(missing_ok=True)
        titles = {"explanations": (f"{title}: prototypes by number, with the training example nearest to each", chosen)}
    else:
        mistaken = wrong_label_prototypes(scored, label_names, split)
        files.append(_write_json(folder / "wrong_labels.json", mistaken))
        worst = select(scored, [decision["id"] for decision in mistaken["decisions"][:ROWS_A_PICTURE]])
        mistaken = records(scored, worst, source, candidates, label_names, split)
        titles = {
            "explanations": (f"{title} and the training examples that made them", chosen),
            "wrong_labels": (f"Prototypes with a wrong label: where they weigh most on the {split} split", mistaken),
        }
    for name, (title, explained) in titles.items():
        if readable.has_images(source):
            files += _pictures(folder, name, title, explained, source, candidates)
        else:
            files.append(tables.write(folder / f"{name}.md", title, explained))
    return files


def _check_count(wanted: int, there: int, what: str) -> None:
    if not 1 <= wanted <= there:
        advice = f"; ask for 1 to {there}" if there else ""
        raise ValueError(f"{wanted} least confident were asked for among {there} {what}{advice}")


def _prototypes(scored: Scored, position: int) -> list[dict[str, Any]]:
    support, label = scored.support, scored.labels[position]
    own = support.prototypes
    return [
        {
            "id": int(support.ids[position, j]),
            "label": int(support.labels[position, j]),
            "weight": number(support.weights[position, j]),
            "wrong_label": bool(support.labels[position, j] != label) if own is None else None,
            **({} if own is None else {"prototype": int(own[position, j])}),
        }
        for j in np.flatnonzero(support.weights[position] > 0)
    ]


def _write_json(path: Path, tree: dict[str, Any]) -> Path:
    path.write_text(json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    return path


def _pictures(
    folder: Path, name: str, title: str, explained: dict[str, Any], source: Any, candidates: Any
) -> list[Path]:
    """Grids of the decisions, a dozen a picture."""
    decisions, names = explained["decisions"], explained["label_names"]
    files = []
    for page, start in enumerate(range(0, len(decisions), ROWS_A_PICTURE), start=1):
        rows = []
        for decision in decisions[start : start + ROWS_A_PICTURE]:
            prototypes = decision["prototypes"][:PROTOTYPES_A_ROW]
            images = readable.shown(candidates, [p["id"] for p in prototypes], _CANDIDATES)
            cells = [
                figures.Cell(image, tables.weight(p), tables.label(p, names), p["id"], bool(p["wrong_label"]))
                for p, image in zip(prototypes, images, strict=True)
            ]
            query = readable.shown(source, [decision["id"]], f"split {decision['split']}")[0]
            note = tables.remainder(decision, prototypes)
            rows.append(figures.Row(query, tables.summary(decision, names), cells, note))
        suffix = "" if page == 1 else f"-{page}"
        files.append(figures.grid(folder / f"{name}{suffix}.png", title, rows))
    return files
