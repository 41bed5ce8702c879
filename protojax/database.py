"""Encoded training examples: chosen, and built, in memory or on disk."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm import tqdm

from protojax import checkpoint, manifest, resumable, sharding, shards, storage
from protojax.candidates import CandidateDatabase
from protojax.data import resident
from protojax.edits import check_finite
from protojax.manifest import DatabaseError, Edit, Manifest
from protojax.methods.method import Batch, Method, Variables

Transform = Callable[[jax.Array, jax.Array], jax.Array]
"""`transform(inputs, ids)`: the preparation of raw inputs on the device, without augmentation."""


def choose(n: int, count: int | None, seed: int) -> np.ndarray:
    """Draws the examples of the database, without replacement.

    Args:
      n: examples of the training split.
      count: examples wanted; None takes all.
      seed: equal seeds give equal choices.

    Returns:
      int32 `[count]`, ascending positions in the training split.

    Raises:
      ValueError: more examples are wanted than there are, or none.
    """
    if count is None:
        count = n
    if not 1 <= count <= n:
        raise ValueError(
            f"evaluate.candidate_count = {count}, but the training split has {n} examples: choose 1 to {n}, "
            "or leave it out to take all"
        )
    if count == n:
        return np.arange(n, dtype=np.int32)
    # The raw stream of a bit generator never changes between NumPy releases; Generator.choice may.
    order = np.argsort(np.random.Philox(seed).random_raw(n), kind="stable")
    return np.sort(order[:count]).astype(np.int32)


def over(
    source: Any,
    positions: np.ndarray,
    batch_size: int,
    function: Callable[[Batch], Any],
    title: str,
    progress: bool = True,
) -> tuple[np.ndarray, np.ndarray, Any]:
    """Applies a compiled function to every example, in batches of one size so that it compiles once.

    Batches are split among all devices, and every process reads its own part of them alone. The last batch is filled up
    with copies of the last example, whose results are left out.

    Args:
      source: anything with `[position] -> {id, inputs, label}`.
      positions: int `[n]`, at least one.
      batch_size: examples of a batch; where there are fewer in all, that many; rounded up to a multiple of the devices.
      function: `batch -> tree` of arrays `[batch, ...]`; what else it uses is on all devices.
      title: stands before the progress bar.
      progress: shows the bar.

    Returns:
      ids int32 `[n]`, labels int32 `[n]`, and the tree of NumPy arrays `[n, ...]`.
    """
    with tqdm(total=len(positions), desc=title, unit="example", disable=not progress) as bar:
        return _apply(source, positions, sharding.whole_batch(min(batch_size, len(positions))), function, bar)


def _apply(
    source: Any, positions: np.ndarray, batch_size: int, function: Callable[[Batch], Any], bar: tqdm
) -> tuple[np.ndarray, np.ndarray, Any]:
    n, mesh = len(positions), sharding.mesh()
    own = np.split(np.arange(batch_size), jax.process_count())[jax.process_index()]
    parts: list[Any] = []
    ahead = None
    for start in range(0, n, batch_size):
        places = np.minimum(start + own, n - 1)
        batch = sharding.from_local(_read(source, positions[places]), mesh)
        # Fetched one batch late, so that the device works while the host reads.
        if ahead is not None:
            parts.append(sharding.to_host(ahead))
        ahead = batch["id"], batch["label"], function(batch)
        bar.update(min(batch_size, n - start))
    parts.append(sharding.to_host(ahead))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:n], *parts)


def _read(source: Any, positions: np.ndarray) -> dict[str, np.ndarray]:
    # The last batch repeats its last example.
    different = np.unique(positions)
    examples = dict(zip(different.tolist(), resident.examples(source, different.tolist()), strict=True))
    return {
        key: np.stack([examples[position][key] for position in positions.tolist()]) for key in ("id", "inputs", "label")
    }


def build(
    method: Method,
    variables: Variables,
    source: Any,
    indices: np.ndarray,
    transform: Transform,
    batch_size: int,
    progress: bool = True,
) -> CandidateDatabase:
    """Encodes examples, and keeps the database in memory.

    Args:
      method: the system; its `encode` is compiled once for one method, transform and batch size.
      variables: its trained variables.
      source: a split.
      indices: int32 `[candidates]`, positions in it; of the training split from `choose`.
      transform: preparation of the inputs on the device.
      batch_size: examples encoded together.
      progress: shows a bar.

    Returns:
      The database, floating point arrays in float32, in the order of `indices`.

    Raises:
      ValueError: there are no indices, a negative id, or an example has a non-finite embedding.
    """
    _check_examples(indices)
    encode = partial(_encode, method, transform, sharding.everywhere(variables))
    rows = over(source, indices, batch_size, encode, "database", progress)
    _check_rows(*rows)
    return CandidateDatabase(*jax.tree.map(jnp.asarray, rows), encoder=jnp.asarray(_encoder(variables)))


def build_into(
    folder: str | Path,
    method: Method,
    variables: Variables,
    source: Any,
    indices: np.ndarray,
    transform: Transform,
    batch_size: int,
    progress: bool = True,
    built_for: str | None = None,
    edits: Sequence[Edit] = (),
) -> None:
    """Encodes examples into a database on disk, shard by shard; see `build`.

    Shards are written to `FOLDER.partial` as they are encoded, so that a build that was killed goes on with the next
    one; the folder takes the place of `folder` (and of the database there) when it is whole. What an earlier build of
    other parameters or examples left in it is deleted.

    Args:
      folder: where it is to stand.
      method: as in `build`, as are the next five.
      variables: its trained variables.
      source: a split.
      indices: positions in it.
      transform: preparation of the inputs on the device.
      batch_size: examples encoded together.
      progress: shows a bar.
      built_for: the `stamp` that it has to have, where that is not its own.
      edits: what it is recorded with from the start.

    Raises:
      DatabaseError: `folder` holds something else than a database, or embeddings that npy files do not know.
      ValueError: as `build`.
    """
    folder = Path(folder)
    _check_examples(indices)
    n, unfinished = len(indices), resumable.place(folder)
    batch_size = sharding.whole_batch(min(batch_size, n))
    placed = sharding.everywhere(variables)
    encode = partial(_encode, method, transform, placed)
    shapes = partial(jax.eval_shape, partial(_encode, method, transform), placed)
    stamped = stamp(variables, np.asarray(source.ids)[indices])
    wanted = manifest.plan(_like(shapes, source, indices, batch_size), n, checkpoint.digest(variables), stamped)
    with sharding.together():
        if jax.process_index() == 0:
            manifest.check_free(folder)
            wanted = _resume(unfinished, wanted)
    done = int(_from_first(sum(shard.rows for shard in wanted.shards)))
    step = resumable.rows_of_whole_batches(manifest.rows_a_shard(wanted), batch_size)
    with tqdm(total=n, initial=done, desc="database", unit="example", disable=not progress) as bar:
        for start in range(done, n, step):
            rows = _apply(source, indices[start : start + step], batch_size, encode, bar)
            _check_rows(*rows)
            with sharding.together():
                if jax.process_index() == 0:
                    manifest.add_shard(unfinished, wanted, manifest.columns(CandidateDatabase(*rows)))
                    manifest.write(unfinished, wanted)
    with sharding.together():
        if jax.process_index() == 0:
            # Only now, so that a build which was killed is still recognised by its own stamp.
            wanted.made_from, wanted.edits = built_for or wanted.made_from, list(edits)
            manifest.write(unfinished, wanted)
            manifest.install(unfinished, folder)


def load_or_build(
    folder: str | Path,
    method: Method,
    variables: Variables,
    source: Any,
    indices: np.ndarray,
    transform: Transform,
    batch_size: int,
    progress: bool = True,
    mesh: Mesh | None = None,
) -> CandidateDatabase:
    """The database in `folder`, edited or not; built first where none of these variables and examples stands there.

    Where a mesh is given, rows are split over it, as in `storage.load`. With a progress bar, a line on stderr says that
    a database of other parameters is replaced.

    Raises:
      DatabaseError: it is damaged, or edited and of other variables or examples.
      ValueError: as `build`.
    """
    made_from = stamp(variables, np.asarray(source.ids)[indices])
    with sharding.together():
        is_built = storage.is_of(folder, made_from)
        if not is_built:
            storage.check_unedited(folder)
        if not is_built and progress and jax.process_index() == 0:
            _say_replaced(Path(folder), checkpoint.digest(variables))
    if not is_built:
        build_into(folder, method, variables, source, indices, transform, batch_size, progress)
    with sharding.together():
        return storage.load(folder, checkpoint.digest(variables), mesh)


def _say_replaced(folder: Path, parameters_sha256: str) -> None:
    if not (folder / manifest.NAME).exists() or manifest.is_older(folder):
        return
    if (before := manifest.read(folder).parameters_sha256) != parameters_sha256:
        line = f"{folder}: encoded by other parameters ({before[:12]}... than {parameters_sha256[:12]}...); built anew"
        tqdm.write(line, file=sys.stderr)


def stamp(variables: Variables, ids: np.ndarray) -> str:
    """What a database is made from: a digest of the variables, and of the ids chosen, which later edits leave alone."""
    return checkpoint.digest({"parameters": variables, "ids": np.asarray(ids)})


def _check_examples(indices: np.ndarray) -> None:
    if len(indices) == 0:
        raise ValueError("a database needs at least one example, got no indices")
    if len(np.unique(indices)) < len(indices):
        raise ValueError("the indices of a database must differ, got some of them twice")


def _check_rows(ids: np.ndarray, labels: np.ndarray, embeddings: Any) -> None:
    if (ids < 0).any():
        raise ValueError(f"ids {ids[ids < 0][:10].tolist()} are negative; the ids of examples count from 0")
    check_finite(embeddings, ids)


def _encoder(variables: Variables) -> np.ndarray:
    return shards.encoder_leaf(checkpoint.digest(variables))


@partial(jax.jit, static_argnames=("method", "transform"))
def _encode(method: Method, transform: Transform, variables: Variables, batch: Batch) -> Any:
    embeddings = method.encode(variables, transform(batch["inputs"], batch["id"]))
    return jax.tree.map(lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, embeddings)


def _like(shapes: Callable[[Batch], Any], source: Any, indices: np.ndarray, batch_size: int) -> CandidateDatabase:
    """Shapes and types of a batch of rows, of which none is encoded for that."""
    first = _read(source, indices[:1])
    batch = {key: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype) for key, x in first.items()}
    return CandidateDatabase(batch["id"], batch["label"], shapes(batch))


def _resume(folder: Path, wanted: Manifest) -> Manifest:
    """The manifest that a build goes on from; see `resumable.go_on`."""
    manifest.check_free(folder)
    try:
        found = manifest.read(folder)
    except DatabaseError:
        found = None
    return resumable.go_on(folder, found, wanted, manifest.write)


def _from_first(number: int) -> Any:
    """The number that process 0 has."""
    return multihost_utils.broadcast_one_to_all(np.int32(number)) if jax.process_count() > 1 else number
