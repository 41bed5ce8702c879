"""What an edit of a candidate database may ask for: ids, labels and embeddings, checked before anything changes."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

EMPTY = -1
"""The id, and the label, of an empty place."""


def integers(values: Any, name: str) -> np.ndarray:
    """int32 `[n]` of a sequence of integers.

    Raises:
      ValueError: it is empty, has another shape or type, or a number that int32 does not hold.
    """
    array = np.asarray(values)
    if array.ndim != 1 or not len(array) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must be a sequence of at least one integer, got {array.dtype} {list(array.shape)}")
    limits = np.iinfo(np.int32)
    if (outside := (array < limits.min) | (array > limits.max)).any():
        raise ValueError(f"{name} must fit int32, got {array[outside][:10].tolist()}")
    return array.astype(np.int32)


def labels_for(label: int | Sequence[int], ids: np.ndarray) -> np.ndarray:
    """int32 labels, one for each of the ids.

    Raises:
      ValueError: a label is negative, or there is neither one nor one for each.
    """
    labels = np.broadcast_to(integers([label], "label"), ids.shape) if np.ndim(label) == 0 else integers(label, "label")
    if labels.shape != ids.shape:
        raise ValueError(f"{len(labels)} labels for {len(ids)} ids: give one for all, or one each")
    if (labels < 0).any():
        raise ValueError(f"ids {ids[labels < 0][:10].tolist()} have negative labels; classes count from 0")
    return labels


def check_changes(ids: np.ndarray, before: np.ndarray, labels: np.ndarray, names: Sequence[str] | None = None) -> None:
    """Refuses labels `[n]` that are those of before.

    Raises:
      ValueError: names the first of the ids, and its label by its name, where there are names.
    """
    if (same := before == labels).any():
        label = int(labels[same][0])
        shown = names[label] if names is not None and label < len(names) else label
        raise ValueError(f"id {ids[same][0]} has the label {shown} already; leave it out")


def check_new(ids: np.ndarray, labels: np.ndarray, own: np.ndarray) -> None:
    """Refuses examples that cannot join those with the ids `own`.

    Raises:
      ValueError: as `CandidateDatabase.append`.
    """
    labels_for(labels, ids)
    if (ids < 0).any():
        raise ValueError(f"ids {ids[ids < 0][:10].tolist()} are negative; the ids of examples count from 0")
    _check_distinct(ids)
    if (known := np.isin(ids, own)).any():
        raise ValueError(
            f"ids {ids[known][:10].tolist()} are in the database already ({known.sum()} of {len(ids)}); remove them "
            "first, or append the others alone"
        )


def first_repeated(ids: np.ndarray) -> int | None:
    """The first place of `ids` whose id stands in an earlier place, too; None where there is none."""
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    again = order[1:][(ordered[1:] == ordered[:-1]) & (ordered[1:] != EMPTY)]
    return int(again.min()) if len(again) else None


def places_of(ids: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Positions of `ids` in `own`.

    Raises:
      ValueError: an id is not there, or repeated.
    """
    _check_distinct(ids)
    order = np.argsort(own, kind="stable")
    found = order[np.minimum(np.searchsorted(own, ids, sorter=order), len(own) - 1)]
    if (missing := (own[found] != ids) | (ids == EMPTY)).any():
        raise ValueError(
            f"ids {ids[missing][:10].tolist()} are not in the database ({missing.sum()} of {len(ids)}); leave them out"
        )
    return found


def fitting(embeddings: Any, like: Any, ids: np.ndarray) -> Any:
    """Embeddings of new examples as NumPy arrays of the structure, row shapes and types of `like`.

    Raises:
      ValueError: structure or shapes differ, or one is not finite.
    """
    if (got := jax.tree.structure(embeddings)) != (wanted := jax.tree.structure(like)):
        raise ValueError(f"embeddings have the structure {got}, but those of the database {wanted}")

    def fit(path: Any, x: Any, known: Any) -> np.ndarray:
        x, name = np.asarray(x), f"embeddings{jax.tree_util.keystr(path)}"
        shape = (len(ids), *known.shape[1:])
        if x.shape != shape:
            raise ValueError(f"{name}: got shape {list(x.shape)}, but {len(ids)} ids need {list(shape)}")
        if not np.can_cast(x.dtype, known.dtype, "same_kind"):
            raise ValueError(f"{name}: got {x.dtype}, but the database has {known.dtype}")
        return x.astype(known.dtype)

    fitted = jax.tree_util.tree_map_with_path(fit, embeddings, like)
    check_finite(fitted, ids)
    return fitted


def check_finite(embeddings: Any, ids: np.ndarray) -> None:
    """Refuses embeddings `[n, ...]` that are not finite.

    Raises:
      ValueError: names the arrays and the first ids.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(embeddings):
        broken = ~np.isfinite(leaf).reshape(len(ids), -1).all(axis=1)
        if broken.any():
            raise ValueError(
                f"{broken.sum()} examples have non-finite embeddings{jax.tree_util.keystr(path)}, "
                f"first ids {ids[broken][:10].tolist()}: the parameters or these inputs are damaged"
            )


def _check_distinct(ids: np.ndarray) -> None:
    unique, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"ids {unique[counts > 1][:10].tolist()} stand there more than once")
