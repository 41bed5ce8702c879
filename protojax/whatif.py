"""What if training examples were removed from the database, or had another label: which decisions change, and how.

Nothing is trained. With sparsemax almost nothing is computed either, because the other decisions cannot change:

    removed     p minimises |p - z|^2 over the simplex. Where p_j = 0, p without its entry j is the minimiser over the
                candidates that are left: weights, class and confidence stay.
    relabelled  labels enter a decision as sum_j p_j [y_j = m] (equation 3 of ProtoAttend): where p_j = 0, j adds
                nothing to any class.

So the decisions that change are found among those whose support holds an edited candidate, and these alone are computed
anew with the edited database. With softmax every candidate has a weight, and every decision is computed anew.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from protojax import readable
from protojax.candidates import CandidateDatabase
from protojax.evaluate import Scored, number
from protojax.opened import Opened, score, split_of

SCHEMA = "protojax.what_if/1"

_PROOF = {
    True: "sparsemax gives every edited candidate a weight of exactly 0 in those, so they cannot change: removing it "
    "leaves the projection onto the simplex as it is, and relabelling it leaves the sums of the classes as they are",
    False: "softmax gives every candidate a weight, so every decision may change",
}
_NO_PROOF = "each gives an edited candidate a weight, so each may change"
"""Where sparsemax spares nothing."""


class Edits(NamedTuple):
    """What is asked about."""

    remove: tuple[int, ...]
    """Ids."""
    relabel: Mapping[int, int]
    """New labels by id."""


class Answer(NamedTuple):
    """Decisions before and after."""

    edits: Edits
    sparse: bool
    """Whether candidates without a weight exist."""
    split: str
    before: Scored
    """All decisions asked about, as they are."""
    recomputed: np.ndarray
    """Positions in `before` that were computed anew; no other can have changed."""
    after: Scored
    """These, from the edited database."""


def check(edits: Edits) -> None:
    """Refuses questions that need no database to be wrong.

    Raises:
      ValueError: there is nothing to edit, or an id is to be removed and relabelled.
    """
    if not edits.remove and not edits.relabel:
        raise ValueError("nothing to ask about: name candidates with --remove ID,... or --relabel ID=LABEL,...")
    if both := sorted(set(edits.remove).intersection(edits.relabel)):
        raise ValueError(f"id {both[0]} is to be removed and relabelled; ask one of both")


def edited(memory: CandidateDatabase, edits: Edits, label_names: Sequence[str]) -> CandidateDatabase:
    """The database with the edits.

    Raises:
      ValueError: as `check`, an id is not in the database or named twice, a label does not exist or is the one that the
        candidate has, or nothing would be left.
    """
    check(edits)
    for id, label in edits.relabel.items():
        if not 0 <= label < len(label_names):
            raise ValueError(f"id {id}: label {label} does not exist; the labels are 0 to {len(label_names) - 1}")
    if edits.relabel:
        before = memory
        memory = memory.relabel(list(edits.relabel), list(edits.relabel.values()))
        changed = set(np.asarray(memory.ids)[np.asarray(memory.labels != before.labels)].tolist())
        if same := [id for id in edits.relabel if id not in changed]:
            raise ValueError(f"id {same[0]} has the label {label_names[edits.relabel[same[0]]]} already")
    if edits.remove:
        memory = memory.remove(edits.remove)
    if not int(memory.count):
        raise ValueError("no candidate would be left; decisions need at least one")
    return memory


def ask(
    opened: Opened, edits: Edits, split: str = "test", ids: Sequence[int] | None = None, quiet: bool = False
) -> Answer:
    """Finds the decisions that change, and computes them.

    Args:
      opened: the run; its database stays as it is, in memory and on disk.
      edits: what would be different.
      split: where the decisions are taken from.
      ids: of the decisions; None for all of the split.
      quiet: shows no progress bar.

    Raises:
      ValueError: as `edited`, the split or one of the ids does not exist, or the method has no prototypes.
    """
    if opened.method.leans_on is None:
        raise ValueError(
            f"method.kind = {opened.settings.method.kind!r}: what-if needs decisions that lean on training examples "
            "themselves, as those of protoattend do"
        )
    source, sparse = split_of(opened.dataset, split), opened.method.leans_on == "support"
    memory = edited(opened.memory, edits, opened.dataset.info.label_names)
    if ids is not None:
        source = _Rows(source, readable.places(source.ids, ids, f"split {split}"))
    before = score(opened, source, quiet)
    if not sparse:
        after = score(opened._replace(memory=memory), source, quiet)
        return Answer(edits, sparse, split, before, np.arange(len(before.ids)), after)
    before = before._replace(support=_whole(opened, source, before, quiet))
    touched = [*edits.remove, *edits.relabel]
    recomputed = np.flatnonzero(np.isin(before.support.ids, touched).any(axis=1))
    width = before.support.ids.shape[1]
    if len(recomputed):
        after = _score_rows(opened._replace(memory=memory), source, recomputed, width, quiet)
    else:
        after = jax.tree.map(lambda x: x[:0], before)
    return Answer(edits, sparse, split, before, recomputed, after)


def _whole(opened: Opened, source: Any, scored: Scored, quiet: bool) -> Any:
    """Supports that hold every candidate with a weight; rows wider than what was kept are asked again."""
    support = scored.support
    width, largest = support.ids.shape[1], int(support.size.max())
    if largest <= width:
        return support
    wide = np.flatnonzero(support.size > width)
    # A power of two, so that not every question compiles a width of its own.
    wider = min(1 << (largest - 1).bit_length(), opened.memory.capacity)
    again = _score_rows(opened, source, wide, wider, quiet).support
    more = [(0, 0), (0, wider - width)]
    ids, labels = (np.pad(x, more, constant_values=-1) for x in (support.ids, support.labels))
    weights = np.pad(support.weights, more)
    ids[wide], labels[wide], weights[wide] = again.ids, again.labels, again.weights
    return support._replace(ids=ids, weights=weights, labels=labels)


class _Rows:
    """Some examples of a source."""

    def __init__(self, source: Any, positions: np.ndarray):
        self._source = source
        self._positions = positions
        self.ids = source.ids[positions]
        self.labels = source.labels[positions]

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[int(self._positions[index])]

    def show(self, index: int) -> Any:
        return self._source.show(int(self._positions[index]))


def _score_rows(opened: Opened, source: Any, positions: np.ndarray, width: int, quiet: bool) -> Scored:
    # As many rows as fill the batch in which the whole source was scored, so that nothing compiles anew.
    filled = min(opened.settings.evaluate.batch_size, len(source))
    padded = np.zeros(max(filled, len(positions)), int)
    padded[: len(positions)] = positions
    scored = score(opened, _Rows(source, padded), quiet, width=width)
    return jax.tree.map(lambda x: x[: len(positions)], scored)


def records(answer: Answer, opened: Opened) -> dict[str, Any]:
    """The answer as plain JSON values.

    Returns:
      `schema`, `label_names`, `split`, `edits`, `examples` asked about, `recomputed`, `changed` (decisions, those whose
      class changes first, then by the change of their confidence), `unchanged_by_proof` (how many were not computed
      anew) with the `proof` (why these cannot change or, where there are none, why all may), and `accuracy` before and
      after. A decision has `id`, `label`, `changes` (of `class`, `confidence`, `prototypes`), `before` and `after` with
      `predicted`, `confidence` and `support_size`, and `prototypes`: `id`, `label`, `weight` before and after; a weight
      of None is below those that were kept.
    """
    dataset, before, after = opened.dataset, answer.before, answer.after
    changed = [
        decision
        for row, position in enumerate(answer.recomputed)
        if (decision := _decision(answer, int(position), row))["changes"]
    ]
    spared = len(before.ids) - len(answer.recomputed)
    changed.sort(
        key=lambda d: ("class" not in d["changes"], -abs(d["after"]["confidence"] - d["before"]["confidence"]))
    )
    candidates = readable.everything(dataset)
    readable.add_inputs(changed, split_of(dataset, answer.split), f"split {answer.split}")
    readable.add_inputs([p for d in changed for p in d["prototypes"]], candidates, "the data set")
    correct = before.correct.copy()
    correct[answer.recomputed] = after.correct
    labels = dict(zip(np.asarray(opened.memory.ids).tolist(), np.asarray(opened.memory.labels).tolist(), strict=True))
    return {
        "schema": SCHEMA,
        "label_names": list(dataset.info.label_names),
        "split": answer.split,
        "edits": {
            "remove": [{"id": id, "label": labels[id]} for id in answer.edits.remove],
            "relabel": [{"id": id, "from": labels[id], "to": to} for id, to in answer.edits.relabel.items()],
        },
        "examples": len(before.ids),
        "recomputed": len(answer.recomputed),
        "changed": changed,
        "unchanged_by_proof": spared,
        "proof": _PROOF[answer.sparse] if spared or not answer.sparse else _NO_PROOF,
        "accuracy": {"before": number(before.correct.mean()), "after": number(correct.mean())},
    }


def _decision(answer: Answer, position: int, row: int) -> dict[str, Any]:
    sides = {"before": (answer.before, position), "after": (answer.after, row)}
    prototypes: dict[int, dict[str, Any]] = {}
    for side, (scored, i) in sides.items():
        support = scored.support
        for j in np.flatnonzero(support.weights[i] > 0):
            entry = prototypes.setdefault(int(support.ids[i, j]), {"label": {}, "weight": {}})
            entry["label"][side] = int(support.labels[i, j])
            entry["weight"][side] = number(support.weights[i, j])
    missing = {s: 0.0 if x.support.size[i] <= x.support.ids.shape[1] else None for s, (x, i) in sides.items()}
    (before, _), (after, _) = sides.values()
    changes = {
        "class": before.predicted[position] != after.predicted[row],
        "confidence": before.confidence[position] != after.confidence[row],
        "prototypes": any(
            not np.array_equal(a[position], b[row])
            for a, b in zip(before.support, after.support, strict=True)
            if a is not None
        ),
    }
    return {
        "id": int(before.ids[position]),
        "label": int(before.labels[position]),
        "changes": [name for name, differs in changes.items() if differs],
        **{
            side: {
                "predicted": int(scored.predicted[i]),
                "confidence": number(scored.confidence[i]),
                "support_size": int(scored.support.size[i]),
            }
            for side, (scored, i) in sides.items()
        },
        "prototypes": [
            {"id": id, "label": p["label"], "weight": missing | p["weight"]} for id, p in prototypes.items()
        ],
    }
