"""A candidate database on disk: written, read whole, and described."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from protojax import manifest as manifests
from protojax import resumable, sharding
from protojax.candidates import CandidateDatabase
from protojax.edits import EMPTY
from protojax.manifest import NAME, DatabaseError, Edit
from protojax.shards import editable, encoder_leaf, read


def load(folder: str | Path, parameters_sha256: str | None, mesh: Mesh | None = None) -> CandidateDatabase:
    """Reads a whole database, after checking every byte of it.

    Args:
      folder: where it stands.
      parameters_sha256: hash of the parameters that are to use it; None where nothing is encoded for it.
      mesh: where given, rows are split over it (every process reads its own), and empty places fill up the capacity.

    Raises:
      DatabaseError: the database is missing, damaged, made by other parameters, holds an id twice, or names a file
        outside its folder; the message names the file.
    """
    stored = read(folder, parameters_sha256)
    _ = stored.ids
    clusters = stored.clusters()
    blocks = 0 if clusters is None else len(clusters.radii)
    rows_a_block = stored.capacity // blocks if blocks else 1
    step = 1 if mesh is None else mesh.size * rows_a_block
    capacity = -(-stored.capacity // step) * step

    def place(array: int) -> jax.Array:
        if mesh is None:
            return jnp.asarray(stored.rows(array, 0, capacity))
        shape = (capacity, *stored.manifest.arrays[array].shape)
        return jax.make_array_from_callback(
            shape, sharding.along_data(mesh), lambda index: stored.rows(array, *index[0].indices(capacity)[:2])
        )

    tree = manifests.tree(stored.manifest, [place(array) for array in range(len(stored.manifest.arrays))])
    few: Any = (clusters, encoder_leaf(stored.manifest.parameters_sha256))
    if clusters is not None:
        more = capacity // rows_a_block - blocks
        few = (jax.tree.map(lambda x: np.pad(x, [(0, more)] + [(0, 0)] * (x.ndim - 1)), clusters), few[1])

    def place_whole(x: np.ndarray) -> jax.Array:
        if mesh is None:
            return jnp.asarray(x)
        # Unlike jax.device_put, this asks nothing of other processes, one of which may have failed.
        return jax.make_array_from_callback(x.shape, sharding.replicated(mesh), lambda index: x[index])

    few = jax.tree.map(place_whole, few)
    return CandidateDatabase(**tree, clusters=few[0], encoder=few[1], mesh=mesh)


def save(
    folder: str | Path, memory: CandidateDatabase, made_from: str | None = None, edits: Sequence[Edit] = ()
) -> None:
    """Writes a database, in place of an older one.

    Args:
      folder: where it is to stand.
      memory: the database, with the hash of its encoder; its embeddings are one array or (nested) dicts of arrays.
      made_from: what it was built for, see `database.stamp`.
      edits: what was done to it since.

    Raises:
      DatabaseError: the database has no encoder, its embeddings are in other containers than dicts or of a type that
        npy files do not know, or `folder` holds something else.
    """
    folder = Path(folder)
    manifests.check_free(folder)
    if memory.encoder is None:
        raise DatabaseError("a database without the hash of its encoder cannot be saved; set its field `encoder`")
    manifest = manifests.plan(memory, memory.capacity, memory.encoder_sha256, made_from)
    manifest.edits = list(edits)
    columns = [np.asarray(x) for x in manifests.columns(memory)]
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        # Whole blocks, so that the index holds for every shard alone.
        step = resumable.rows_of_whole_batches(manifests.rows_a_shard(manifest), memory.rows_a_block)
        for start in range(0, manifest.rows, step):
            manifests.add_shard(fresh, manifest, [x[start : start + step] for x in columns])
        if memory.clusters is not None:
            manifest.index = [manifests.write_array(fresh, "index", np.asarray(x)) for x in memory.clusters]
        manifests.write(fresh, manifest)
        manifests.install(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def is_of(folder: str | Path, made_from: str) -> bool:
    """Whether the database in `folder` was made from this (`database.stamp`), whatever was edited since.

    Raises:
      DatabaseError: one stands there, but its manifest is damaged.
    """
    folder = Path(folder)
    if not (folder / NAME).exists() or manifests.is_older(folder):
        return False
    return manifests.read(folder).made_from == made_from


def check_unedited(folder: str | Path) -> None:
    """Refuses to have an edited database built anew: what was removed from it would be back without a word.

    Raises:
      DatabaseError: a database stands there, and it was edited, or is damaged.
    """
    folder = Path(folder)
    if not (folder / NAME).exists() or manifests.is_older(folder):
        return
    if made := manifests.read(folder).edits:
        names = ", ".join(edit.edit for edit in made[:10])
        raise DatabaseError(
            f"{folder / NAME}: of other parameters or examples, and edited ({names}): building it anew would undo "
            "that; move the folder away, then repeat the edits on the new database"
        )


def info(folder: str | Path) -> dict[str, Any]:
    """What a database holds, as JSON values; reads ids and labels, and no embeddings.

    Returns:
      `schema`, `parameters_sha256`, `made_from`, `rows` (places), `examples`, `labels` (examples by label), `arrays`
      (type and row shape by path), `shards`, `bytes`, `blocks` (of the index, or None) and `edits`.

    Raises:
      DatabaseError: as `load`.
    """
    stored = editable(folder)
    manifest = stored.manifest
    labels = stored.whole("labels")
    occupied = stored.ids != EMPTY
    found, counts = np.unique(labels[occupied], return_counts=True)
    clusters = stored.clusters()
    return {
        "schema": manifest.schema_name,
        "parameters_sha256": manifest.parameters_sha256,
        "made_from": manifest.made_from,
        "rows": manifest.rows,
        "examples": int(occupied.sum()),
        "labels": dict(zip(map(str, found.tolist()), counts.tolist(), strict=True)),
        "arrays": {"/".join(array.path): {"dtype": array.dtype, "shape": array.shape} for array in manifest.arrays},
        "shards": len(manifest.shards),
        "bytes": sum((stored.folder / name).stat().st_size for name in sorted(manifests.named(manifest))),
        "blocks": None if clusters is None else len(clusters.radii),
        "edits": [edit.model_dump() for edit in manifest.edits],
    }
