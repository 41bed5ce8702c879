"""State and data position, saved together and restored together.

Orbax writes checkpoints asynchronously and renames them into place when they are whole, so a killed run finds only
whole ones. Beside the state stands its position in the data (sampling is a pure function of seed and step, so that is a
few numbers) and a digest of every byte, by which a damaged file is recognised instead of being read as zeros.
"""

import contextlib
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as managers

State = TypeVar("State")


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged or belongs to something else."""


def digest(tree: Any) -> str:
    """SHA-256 of the paths, types, shapes and bytes of all arrays of a tree, in the order of their paths."""
    leaves = sorted((jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(tree))
    result = hashlib.sha256()
    for path, leaf in leaves:
        array = np.ascontiguousarray(jax.device_get(leaf))
        result.update(f"{path} {array.dtype} {array.shape};".encode())
        result.update(array.tobytes())
    return result.hexdigest()


@contextlib.contextmanager
def manager(folder: Path, keep: int, read_only: bool = False) -> Iterator[ocp.CheckpointManager]:
    """The checkpoints in `folder`, of which the `keep` newest and the best on the validation split are kept.

    Whoever only reads must say so: a run that is training in the same folder may be saving just now.

    Raises:
      CheckpointError: what was still being saved at the end could not be.
    """
    # Orbax reports every phase of every save at INFO and every missing optional file as a warning.
    logging.getLogger("absl").setLevel(logging.ERROR)
    newest = managers.LatestN(n=keep)
    best = managers.BestN(get_metric_fn=lambda m: m["score"], n=1, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=managers.AnyPreservationPolicy([newest, best]),
        best_fn=lambda m: m["score"],
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
    )
    checkpoints = ocp.CheckpointManager(folder.absolute(), options=options, item_names=("state", "position"))
    try:
        yield checkpoints
        if not read_only:
            finish(checkpoints)
    finally:
        checkpoints.close()


def save(
    checkpoints: ocp.CheckpointManager,
    step: int,
    state: Any,
    position: dict[str, Any],
    score: float | None,
) -> None:
    """Starts saving `state` and `position` at `step`; `score` (higher is better) ranks it among the best.

    Raises:
      CheckpointError: the checkpoint before it could not be saved.
    """
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        position=ocp.args.JsonSave({**position, "digest": digest(state)}),
    )
    metrics = None if score is None else {"score": score}
    with _naming(f"{checkpoints.directory}: cannot be saved; the checkpoints before are whole"):
        checkpoints.save(step, args=items, metrics=metrics, force=True)


def finish(checkpoints: ocp.CheckpointManager) -> None:
    """Waits until what is being saved is on disk.

    Raises:
      CheckpointError: it could not be saved.
    """
    with _naming(f"{checkpoints.directory}: cannot be saved; the checkpoints before are whole"):
        checkpoints.wait_until_finished()


def restore(checkpoints: ocp.CheckpointManager, step: int, like: State) -> tuple[State, dict[str, Any]]:
    """The state and position saved at `step`; `like` is a state with the wanted shapes, types and shardings.

    Raises:
      CheckpointError: the checkpoint is damaged or has another structure.
    """
    folder = Path(checkpoints.directory) / str(step)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), position=ocp.args.JsonRestore())
    with _naming(f"{folder}: cannot be restored"):
        restored = checkpoints.restore(step, args=items)
    if digest(restored.state) != restored.position["digest"]:
        raise CheckpointError(f"{folder}: damaged: the restored state differs from what was saved; delete this folder")
    return restored.state, restored.position


@contextlib.contextmanager
def _naming(what: str) -> Iterator[None]:
    try:
        yield
    # Orbax and tensorstore raise a dozen unrelated types for a full disk, a missing, a truncated or a foreign file.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{what}: {reason}") from error
