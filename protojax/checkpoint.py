"""State and data position, saved together and restored together.

Orbax writes checkpoints asynchronously and renames them into place when they are whole, so a killed run finds only whole
ones. Beside the state stands its position in the data (the sampling is a pure function of seed and step, so the position is
a few numbers) and a digest of every byte, by which a damaged file is recognised instead of being read as zeros.
"""

import hashlib
import logging
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


def manager(folder: Path, keep: int) -> ocp.CheckpointManager:
    """A manager of the checkpoints in `folder` that keeps the `keep` newest and the best on the validation split."""
    # Orbax reports every phase of every save at INFO and every missing optional file as a warning.
    logging.getLogger("absl").setLevel(logging.ERROR)
    newest = managers.LatestN(n=keep)
    best = managers.BestN(get_metric_fn=lambda m: m["score"], n=1, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=managers.AnyPreservationPolicy([newest, best]),
        best_fn=lambda m: m["score"],
        cleanup_tmp_directories=True,
    )
    return ocp.CheckpointManager(folder.absolute(), options=options, item_names=("state", "position"))


def save(
    checkpoints: ocp.CheckpointManager,
    step: int,
    state: Any,
    position: dict[str, Any],
    score: float | None,
) -> None:
    """Starts saving `state` and `position` at `step`; `score` (higher is better) ranks it among the best."""
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        position=ocp.args.JsonSave({**position, "digest": digest(state)}),
    )
    checkpoints.save(step, args=items, metrics=None if score is None else {"score": score}, force=True)


def restore(checkpoints: ocp.CheckpointManager, step: int, like: State) -> tuple[State, dict[str, Any]]:
    """The state and position saved at `step`; `like` is a state with the wanted shapes, types and shardings.

    Raises:
      CheckpointError: the checkpoint is damaged or has another structure.
    """
    folder = Path(checkpoints.directory) / str(step)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), position=ocp.args.JsonRestore())
    try:
        restored = checkpoints.restore(step, args=items)
    # Orbax and tensorstore raise a dozen unrelated types for a missing, truncated or foreign file.
    except Exception as error:
        raise CheckpointError(f"{folder}: cannot be restored: {str(error).splitlines()[0]}") from error
    if digest(restored.state) != restored.position["digest"]:
        raise CheckpointError(f"{folder}: damaged: the restored state differs from what was saved; delete this folder")
    return restored.state, restored.position
