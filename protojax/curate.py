"""The database of a run: built, described and edited on disk, where evaluation and explanation find it."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from protojax import amend, checkpoint, database, edits, manifest, readable, shards, storage
from protojax.opened import Encoder, candidates, split_of


def build(
    encoder: Encoder, split: str = "train", count: int | None = None, overwrite: bool = False, quiet: bool = False
) -> None:
    """Encodes the database of a run anew.

    Args:
      encoder: the run.
      split: where the candidates are taken from.
      count: candidates, drawn with the seed of the run; None for as many as the run has (all of another split).
      overwrite: replaces a database that was edited.
      quiet: shows no progress bar.

    Raises:
      ValueError: the split does not exist or has fewer examples, or the database was edited.
    """
    settings, folder, source = encoder.settings, encoder.folder / "database", split_of(encoder.dataset, split)
    if not overwrite:
        check_unedited(folder)
    own = candidates(settings, encoder.dataset)
    if split == "train" and count is None:
        chosen = own
    elif count is not None and not 1 <= count <= len(source):
        raise ValueError(f"--count {count}: the {split} split has {len(source)} examples; choose 1 to {len(source)}")
    else:
        chosen = database.choose(len(source), count, settings.train.seed)
    variables, method, transform = encoder.state.variables, encoder.method, encoder.transform
    recorded: dict[str, Any] = {}
    if split != "train" or not np.array_equal(chosen, own):
        # Recorded as an edit of what the run would have built, so that it stays when the run is opened.
        recorded["built_for"] = database.stamp(variables, encoder.dataset.train.ids[own])
        recorded["edits"] = [manifest.Edit(edit="build", at=_now())]
    batch_size = settings.evaluate.batch_size
    database.build_into(
        folder, method, variables, source, chosen, transform, batch_size, progress=not quiet, **recorded
    )


def check_unedited(folder: Path) -> None:
    """Refuses to lose the edits of a database.

    Raises:
      ValueError: it has some.
    """
    if not (folder / manifest.NAME).exists() or manifest.is_older(folder):
        return
    if made := manifest.read(folder).edits:
        kinds = ", ".join(dict.fromkeys(edit.edit for edit in made))
        raise ValueError(f"{folder} was edited ({kinds}); --overwrite builds it anew and loses that")


def check(folder: Path, ids: Sequence[int], label: int | None = None, names: Sequence[str] | None = None) -> None:
    """Refuses an edit of the database of the run in `folder`, before the parameters of the run are read.

    Args:
      folder: of the run.
      ids: candidates to be removed, or to get another label.
      label: the new label; None where they are removed.
      names: of the classes, for the message.

    Raises:
      ValueError: the database is damaged, an id is not there, has the label already, or nothing would be left.
    """
    stored, wanted = shards.editable(folder / "database"), edits.integers(ids, "ids")
    places = edits.places_of(wanted, stored.ids)
    if label is not None:
        edits.check_changes(wanted, stored.whole("labels")[places], edits.labels_for(label, wanted), names)
    elif len(wanted) == np.count_nonzero(stored.ids != edits.EMPTY):
        raise ValueError(f"{stored.folder}: no candidate would be left; decisions need at least one")


def remove(encoder: Encoder, ids: Sequence[int]) -> None:
    """Takes candidates out of the database of a run.

    Raises:
      ValueError: one is not there, or the database would be empty, or other parameters encoded it.
    """
    check(encoder.folder, ids)
    amend.remove(_editable(encoder).folder, ids)


def relabel(encoder: Encoder, ids: Sequence[int], label: int) -> None:
    """Gives candidates of the database of a run another label.

    Raises:
      ValueError: one is not there or has the label already, or other parameters encoded the database.
    """
    amend.relabel(_editable(encoder).folder, ids, label)


def append(encoder: Encoder, split: str, ids: Sequence[int] | None = None, quiet: bool = False) -> int:
    """Encodes further examples into the database of a run; returns how many.

    Args:
      encoder: the run.
      split: where they are taken from.
      ids: of the examples; None for all of the split.
      quiet: shows no progress bar.

    Raises:
      ValueError: one does not exist or is in the database already, or other parameters encoded the database.
    """
    source, variables, stored = split_of(encoder.dataset, split), encoder.state.variables, _editable(encoder)
    everything = np.arange(len(source))
    chosen = everything if ids is None else readable.places(source.ids, ids, f"split {split}")
    # Before anything is encoded.
    edits.check_new(source.ids[chosen], source.labels[chosen], stored.ids)
    batch_size = encoder.settings.evaluate.batch_size
    more = database.build(encoder.method, variables, source, chosen, encoder.transform, batch_size, progress=not quiet)
    amend.append(stored.folder, more)
    return len(chosen)


def compact(folder: Path) -> None:
    """Closes the gaps that removed candidates left in the database of the run in `folder`; no decision changes.

    Raises:
      ValueError: the database is damaged.
    """
    amend.compact(folder / "database")


def _editable(encoder: Encoder) -> shards.Shards:
    """The database of a run, refused where other parameters than those of the run encoded it."""
    return shards.editable(encoder.folder / "database", checkpoint.digest(encoder.state.variables))


def summary(folder: Path) -> dict[str, Any]:
    """What `results.json` says of the database of the run in `folder`."""
    about = storage.info(folder / "database")
    removed: set[int] = set()
    for edit in about["edits"]:
        if edit["edit"] == "remove":
            removed.update(edit["ids"])
        elif edit["edit"] == "append":
            removed.difference_update(edit["ids"])
    return {
        "count": about["examples"],
        "removed": len(removed),
        "edits": [
            {"edit": edit["edit"], "at": edit["at"], "examples": len(edit["ids"]) or about["examples"]}
            for edit in about["edits"]
        ],
    }


def describe(encoder: Encoder) -> list[str]:
    """The database of a run as lines of text."""
    folder, names = encoder.folder / "database", encoder.dataset.info.label_names
    about = storage.info(folder)
    empty = about["rows"] - about["examples"]
    fits = about["parameters_sha256"] == checkpoint.digest(encoder.state.variables)
    classes = {names[int(label)]: count for label, count in about["labels"].items()}
    missing = [name for name in names if name not in classes]
    arrays = (f"{name} {array['dtype']} {array['shape']}" for name, array in about["arrays"].items())
    lines = [
        ("candidates", f"{about['examples']}" + (f", and {empty} empty places" if empty else "")),
        ("classes", ", ".join(f"{name}: {count}" for name, count in classes.items())),
        *([("without", f"a candidate of {', '.join(missing)}")] if missing else []),
        ("arrays", ", ".join(arrays)),
        ("size", f"{about['bytes'] / 1e6:.1f} MB in {about['shards']} shard{'s' * (about['shards'] > 1)}"),
        ("index", "none" if about["blocks"] is None else f"{about['blocks']} blocks"),
        ("encoder", f"{about['parameters_sha256'][:12]}, {_FITS[fits]}"),
    ]
    for edit in about["edits"]:
        ids = edit["ids"]
        shown = " ".join(map(str, ids[:10])) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")
        to = " as " + ", ".join(names[label] for label in dict.fromkeys(edit["labels"])) if edit["labels"] else ""
        lines.append(("edited", f"{edit['at']}  {edit['edit']} {shown}{to}".rstrip()))
    return [str(folder), *(f"  {name:<11}{text}" for name, text in lines)]


_FITS = {
    True: "which is that of the run",
    False: "which is not that of the run: build the database again with protojax database build",
}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
