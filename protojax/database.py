"""Encoded training examples: chosen, built once, and kept on disk beside the hash of the encoder that made them."""

import hashlib
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from pydantic import Field
from tqdm import tqdm

from protojax import sharding
from protojax.candidates import CandidateDatabase
from protojax.methods.method import Batch, Method, Variables

SCHEMA = "protojax.database/1"

_ADVICE = "delete the folder and build the database again"


class DatabaseError(ValueError):
    """A database on disk is missing, damaged or stale, or cannot be written; the message names the file."""


class _Array(pydantic.BaseModel):
    path: Annotated[list[str], Field(min_length=1)]
    """Place in the record `CandidateDatabase`, such as `["embeddings", "keys"]`."""
    file: str
    sha256: str
    shape: list[int]
    dtype: str


class _Manifest(pydantic.BaseModel):
    schema_name: str = Field(alias="schema")
    parameters_sha256: str
    arrays: list[_Array]


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
    n, mesh = len(positions), sharding.mesh()
    batch_size = -(-min(batch_size, n) // mesh.size) * mesh.size
    own = np.split(np.arange(batch_size), jax.process_count())[jax.process_index()]
    parts: list[Any] = []
    ahead = None
    with tqdm(total=n, desc=title, unit="example", disable=not progress) as bar:
        for start in range(0, n, batch_size):
            places = np.minimum(start + own, n - 1)
            examples = {place: source[int(positions[place])] for place in places}
            rows = {key: np.stack([examples[place][key] for place in places]) for key in ("id", "inputs", "label")}
            batch = sharding.from_local(rows, mesh)
            # Fetched one batch late, so that the device works while the host reads.
            if ahead is not None:
                parts.append(sharding.to_host(ahead))
            ahead = batch["id"], batch["label"], function(batch)
            bar.update(min(batch_size, n - start))
        parts.append(sharding.to_host(ahead))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:n], *parts)


def build(
    method: Method,
    variables: Variables,
    source: Any,
    indices: np.ndarray,
    transform: Transform,
    batch_size: int,
    progress: bool = True,
) -> CandidateDatabase:
    """Encodes the chosen training examples.

    Args:
      method: the system; its `encode` is compiled once for one method, transform and batch size.
      variables: its trained variables.
      source: the training split.
      indices: int32 `[candidates]`, positions in it, from `choose`.
      transform: preparation of the inputs on the device.
      batch_size: examples encoded together.
      progress: shows a bar.

    Returns:
      The database, floating point arrays in float32, in the order of `indices`.

    Raises:
      ValueError: there are no indices, or an example has a non-finite embedding.
    """
    if len(indices) == 0:
        raise ValueError("a database needs at least one training example, got no indices")
    encode = partial(_encode, method, transform, sharding.everywhere(variables))
    ids, labels, embeddings = over(source, indices, batch_size, encode, "database", progress)
    for path, leaf in jax.tree_util.tree_leaves_with_path(embeddings):
        broken = ~np.isfinite(leaf).reshape(len(leaf), -1).all(axis=-1)
        if broken.any():
            raise ValueError(
                f"{broken.sum()} training examples have non-finite embeddings{jax.tree_util.keystr(path)}, "
                f"first ids {ids[broken][:10].tolist()}: the parameters or these inputs are damaged"
            )
    return CandidateDatabase(jnp.asarray(ids), jnp.asarray(labels), jax.tree.map(jnp.asarray, embeddings))


@partial(jax.jit, static_argnames=("method", "transform"))
def _encode(method: Method, transform: Transform, variables: Variables, batch: Batch) -> Any:
    embeddings = method.encode(variables, transform(batch["inputs"], batch["id"]))
    return jax.tree.map(lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, embeddings)


def save(folder: str | Path, memory: CandidateDatabase, parameters_sha256: str) -> None:
    """Writes the database, one npy file an array, with a manifest of their hashes.

    The files are written to a temporary folder beside `folder`, which then takes its place: a full disk or a kill
    leaves either a whole database or none, never a mixture.

    Args:
      folder: where the database is to stand; an older one is replaced.
      memory: the database; its embeddings are one array or (nested) dicts of arrays.
      parameters_sha256: hash of the parameters that encoded it.

    Raises:
      DatabaseError: the embeddings are kept in other containers than dicts, or `folder` holds something else.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / "manifest.json").is_file():
        raise DatabaseError(f"{folder}: holds files but no database (no manifest.json); choose another folder")
    leaves = [(["ids"], memory.ids), (["labels"], memory.labels)]
    for keys, leaf in jax.tree_util.tree_leaves_with_path(memory.embeddings):
        leaves.append((["embeddings", *_names(keys)], leaf))
    fresh, replaced = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for leftover in (fresh, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        arrays = []
        for position, (path, leaf) in enumerate(leaves):
            array = np.asarray(leaf)
            # Numbered, because a key may hold characters that a file name may not.
            file = f"{position:02d}.npy"
            np.save(fresh / file, array, allow_pickle=False)
            sha256 = _sha256(fresh / file)
            arrays.append(_Array(path=path, file=file, sha256=sha256, shape=list(array.shape), dtype=array.dtype.name))
        manifest = _Manifest(schema=SCHEMA, parameters_sha256=parameters_sha256, arrays=arrays)
        text = manifest.model_dump_json(by_alias=True, indent=1) + "\n"
        (fresh / "manifest.json").write_text(text, encoding="utf-8")
        if folder.exists():
            os.replace(folder, replaced)
        os.replace(fresh, folder)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def is_of(folder: str | Path, parameters_sha256: str) -> bool:
    """Whether a database made by these parameters stands in `folder`.

    Raises:
      DatabaseError: one stands there, but its manifest is damaged.
    """
    folder = Path(folder)
    return (folder / "manifest.json").exists() and _manifest(folder).parameters_sha256 == parameters_sha256


def load(folder: str | Path, parameters_sha256: str) -> CandidateDatabase:
    """Reads a database that `save` wrote, after checking every byte of it.

    Args:
      folder: where it stands.
      parameters_sha256: hash of the parameters that are to use it.

    Raises:
      DatabaseError: the database is missing, damaged, made by other parameters, or names a file outside its folder;
        the message names the file.
    """
    folder = Path(folder)
    path, manifest = folder / "manifest.json", _manifest(folder)
    if manifest.parameters_sha256 != parameters_sha256:
        raise DatabaseError(
            f"{path}: stale: encoded by parameters {manifest.parameters_sha256[:12]}..., "
            f"but these are {parameters_sha256[:12]}...; {_ADVICE}"
        )
    tree: dict[str, Any] = {}
    for entry in manifest.arrays:
        _put(tree, entry.path, jnp.asarray(_read(folder, entry)), path)
    if set(tree) != {"ids", "labels", "embeddings"}:
        raise DatabaseError(f"{path}: holds {sorted(tree)}, not ids, labels and embeddings; {_ADVICE}")
    rows = {leaf.shape[:1] for leaf in jax.tree.leaves(tree)}
    if len(rows) != 1:
        raise DatabaseError(f"{path}: arrays of different lengths {sorted(rows)}; {_ADVICE}")
    return CandidateDatabase(**tree)


def _manifest(folder: Path) -> _Manifest:
    path = folder / "manifest.json"
    try:
        manifest = _Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise DatabaseError(f"{path}: no database here; build one first") from None
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise DatabaseError(
            f"{path}: damaged manifest ({f'{place}: ' if place else ''}{problem['msg']}); {_ADVICE}"
        ) from None
    if manifest.schema_name != SCHEMA:
        raise DatabaseError(f"{path}: schema {manifest.schema_name!r}, but this version reads {SCHEMA!r}; {_ADVICE}")
    return manifest


def _put(tree: dict[str, Any], path: list[str], array: jax.Array, manifest: Path) -> None:
    *parents, last = path
    for key in parents:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            break
    if not isinstance(tree, dict) or last in tree:
        raise DatabaseError(f"{manifest}: two arrays at {'.'.join(path)}; {_ADVICE}")
    tree[last] = array


def _read(folder: Path, entry: _Array) -> np.ndarray:
    file = folder / entry.file
    # Resolving sees through "..", absolute paths and links.
    if file.resolve().parent != folder.resolve():
        raise DatabaseError(f"{folder / 'manifest.json'}: names a file outside its folder: {entry.file!r}; {_ADVICE}")
    if not file.is_file():
        raise DatabaseError(f"{file}: missing; {_ADVICE}")
    if _sha256(file) != entry.sha256:
        raise DatabaseError(f"{file}: damaged: its content is not what manifest.json says; {_ADVICE}")
    try:
        array = np.load(file, allow_pickle=False)
    except ValueError as error:
        raise DatabaseError(f"{file}: not an array of numbers ({error}); {_ADVICE}") from None
    if list(array.shape) != entry.shape or array.dtype.name != entry.dtype:
        raise DatabaseError(
            f"{file}: holds {array.dtype.name} {list(array.shape)}, "
            f"but manifest.json says {entry.dtype} {entry.shape}; {_ADVICE}"
        )
    return array


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _names(keys: tuple[Any, ...]) -> list[str]:
    for key in keys:
        if not isinstance(key, jax.tree_util.DictKey) or not isinstance(key.key, str):
            raise DatabaseError(
                f"embeddings{jax.tree_util.keystr(keys)}: a database on disk keeps dicts with text keys only; "
                "return such dicts from encode"
            )
    return [key.key for key in keys]
