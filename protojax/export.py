"""A trained run as a StableHLO artifact: prediction that needs jax alone, on CPU and CUDA, its database beside it.

A folder holds `prediction.jaxexport` (serialised by `jax.export`, for any batch size), `variables/` and `database/`
(npy files, the arguments of the prediction), `description.json` (shapes, types, preparation, class names, hashes) and
`example.py`, the fifteen lines that load all of it. Reading an artifact takes `flatbuffers` beside jax.
"""

import json
import re
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from protojax import resumable
from protojax.candidates import CandidateDatabase
from protojax.data import Info, text
from protojax.database import Transform
from protojax.methods import Method, Variables
from protojax.opened import Opened, width_of

SCHEMA = "protojax.export/1"

PLATFORMS = ("cpu", "cuda")

EXAMPLE = '''"""Asks the model beside this file; needs jax and flatbuffers. description.json says what it takes."""

import json
from pathlib import Path

import numpy as np
from jax import export

folder = Path(__file__).parent
about = json.loads((folder / "description.json").read_text(encoding="utf-8"))
predict = export.deserialize((folder / about["artifact"]["file"]).read_bytes()).call
variables, database = (
    {name: np.load(folder / array["file"]) for name, array in about[part].items()} for part in ("variables", "database")
)
inputs = np.zeros((3, *about["inputs"]["shape"][1:]), about["inputs"]["dtype"])  # your own, any number of them
ids = np.full(len(inputs), -1, np.int32)  # -1: not an example of the database
answer = predict(variables, database, inputs, ids)
for i, place in enumerate(answer["class"]):
    prototypes = zip(answer["ids"][i].tolist(), answer["weights"][i].tolist())
    print(about["class_names"][int(place)], float(answer["confidence"][i]), [p for p in prototypes if p[1] > 0])
'''
"""Written beside every artifact, and tested as it stands."""

_ARTIFACT = "prediction.jaxexport"

_OWN = re.compile(r"prediction\.jaxexport|description\.json|example\.py|(variables|database)/\d{2,}\.npy")
"""What the files of an export are called; others in the folder are left alone."""

_PARTS = ("variables", "database")

_DTYPES = {"image": np.uint8, "text": np.uint8, "table": np.float32, "features": np.float32}

_PREPARATION = {
    "image": {
        "wanted": "images [batch, height, width, channels] of 0 to 255, as stored; scaling and standardisation are "
        "part of the artifact"
    },
    "text": {
        "wanted": "codes [batch, length] of the first characters in lower case: 1 to 69 for those of `alphabet`, "
        "`unknown` for others, `padding` after the end",
        "alphabet": text.ALPHABET,
        "padding": text.PADDING,
        "unknown": text.UNKNOWN,
    },
    "table": {"wanted": "vectors [batch, features] as protojax.data makes them of the rows of this data set"},
    "features": {
        "wanted": "features [batch, features] or [batch, height, width, features] as the frozen backbone of the "
        "experiment makes them, which is no part of the artifact"
    },
}

_OUTPUTS = {
    "class": "int32 [batch]: the class decided, a position in class_names",
    "scores": "float32 [batch, classes]: class probabilities from the prototypes",
    "encoder_scores": "float32 [batch, classes]: class probabilities of the network without its database",
    "confidence": "float32 [batch], in [0, 1]",
    "ids": "int32 [batch, width]: the prototypes, heaviest first; -1 where there are no more",
    "labels": "int32 [batch, width]: their classes; -1 where there are no more",
    "weights": "float32 [batch, width]: their weights, descending; 0 where there are no more",
    "support_size": "int32 [batch]: candidates with a weight, which may be more than the width",
    "prototypes": "int32 [batch, width]: which of the method's own prototypes these are; ids and labels are of the "
    "training example nearest to each; -1 where there are no more",
}


class ExportError(ValueError):
    """An artifact cannot be written where it was wanted."""


def check(folder: Path, overwrite: bool) -> None:
    """Refuses a folder that an export would damage.

    Raises:
      ExportError: it holds something else, or an export that is not to be overwritten.
    """
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"{folder} is a file; give a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / _ARTIFACT).is_file():
        raise ExportError(f"{folder} holds files but no export (no {_ARTIFACT}); choose another folder")
    if not overwrite:
        raise ExportError(f"{folder} holds an export; choose another folder, or replace it with --overwrite")


def write(folder: Path, opened: Opened, overwrite: bool = False) -> list[Path]:
    """Writes the artifact with its arguments, through a temporary folder, so that none is ever half there.

    Args:
      folder: receives it.
      opened: the run.
      overwrite: replaces an export that stands there; what else is in the folder stays.

    Returns:
      The files to look at first.

    Raises:
      ExportError: as `check`.
    """
    # Made absolute, because a name such as "." has no neighbours.
    folder = folder.absolute()
    fresh, replaced = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    _finish(replaced, folder)
    check(folder, overwrite)
    info, variables, memory = opened.dataset.info, opened.state.variables, opened.memory
    width = width_of(opened.settings, memory)
    exported = trace(opened.method, opened.transform, variables, memory, info, width)
    database = {"ids": memory.ids, "labels": memory.labels, "embeddings": memory.embeddings}
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        (fresh / _ARTIFACT).write_bytes(exported.serialize())
        (fresh / "example.py").write_text(EXAMPLE, encoding="utf-8")
        description = {
            "schema": SCHEMA,
            "artifact": {
                "file": _ARTIFACT,
                "sha256": resumable.sha256_of(fresh / _ARTIFACT),
                "arguments": ["variables", "database", "inputs", "ids"],
                "platforms": list(exported.platforms),
                "calling_convention": exported.calling_convention_version,
                "jax": metadata.version("jax"),
                "protojax": metadata.version("protojax"),
            },
            "inputs": {
                "kind": info.kind,
                "shape": ["batch", *info.input_shape],
                "dtype": np.dtype(_DTYPES[info.kind]).name,
                **_PREPARATION[info.kind],
            },
            "ids": {
                "shape": ["batch"],
                "dtype": "int32",
                "wanted": "ids of the inputs: a candidate of the same id gets no weight; -1 for inputs that are none",
            },
            "outputs": {name: text for name, text in _OUTPUTS.items() if name in _names(exported)},
            "width": width,
            "class_names": list(info.label_names),
            "data": {"name": info.name, "version": info.version, "fingerprint": info.fingerprint},
            "experiment": opened.settings.name,
            "encoder_sha256": memory.encoder_sha256,
            "variables": _saved(fresh, "variables", flat(variables)),
            "database": _saved(fresh, "database", flat(database)),
        }
        text_of = json.dumps(description, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        (fresh / "description.json").write_text(text_of, encoding="utf-8")
        if folder.exists():
            folder.rename(replaced)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        _finish(replaced, folder)
    return [folder / name for name in (_ARTIFACT, "description.json", "example.py")]


def _finish(replaced: Path, folder: Path) -> None:
    """Ends the replacement of an export, or one that was killed: what no export wrote comes back, the rest is deleted.

    Raises:
      ExportError: a file would have to take the place of another.
    """
    if not replaced.exists():
        return
    if not folder.exists():
        replaced.rename(folder)
        return
    for part in (*(replaced / name for name in _PARTS), replaced):
        for path in sorted(part.iterdir()) if part.is_dir() else ():
            name = path.relative_to(replaced).as_posix()
            if _OWN.fullmatch(name):
                path.unlink()
            elif name in _PARTS:
                path.rmdir()
            elif (folder / name).exists():
                raise ExportError(f"{path} was kept from an export before, but {folder / name} exists; move one away")
            else:
                (folder / name).parent.mkdir(exist_ok=True)
                path.rename(folder / name)
    replaced.rmdir()


def trace(
    method: Method, transform: Transform, variables: Variables, memory: CandidateDatabase, info: Info, width: int
) -> jax_export.Exported:
    """The prediction of a trained method as an exported function of `(variables, database, inputs, ids)`.

    The batch size is open; the capacity of the database is fixed, its content is not. Variables and database are flat
    dicts, as `flat` makes them, so that whoever calls it needs no type of this library; an index of the database is
    left out, which changes no answer.

    Args:
      method: the system.
      transform: preparation of raw inputs, which becomes part of the artifact.
      variables: its variables; of them and of the database only shapes and types matter.
      memory: the database.
      info: the data set.
      width: prototypes of an answer.
    """
    embeddings = {"embeddings": memory.embeddings}
    names, structures = zip(
        *((list(flat(tree)), jax.tree.structure(tree)) for tree in (variables, embeddings)), strict=True
    )

    def predict(
        variables: dict[str, jax.Array], database: dict[str, jax.Array], inputs: jax.Array, ids: jax.Array
    ) -> dict[str, jax.Array]:
        variables, embeddings = (
            jax.tree.unflatten(structure, [arrays[name] for name in own])
            for structure, own, arrays in zip(structures, names, (variables, database), strict=True)
        )
        candidates = CandidateDatabase(database["ids"], database["labels"], **embeddings)
        batch = {"id": ids, "inputs": transform(inputs, ids)}
        answer = method.predict(variables, candidates, batch, width)
        answered = {
            "class": answer.scores.argmax(axis=-1).astype(np.int32),
            "scores": answer.scores,
            "encoder_scores": answer.encoder_scores,
            "confidence": answer.confidence,
            "ids": answer.support.ids,
            "labels": answer.support.labels,
            "weights": answer.support.weights,
            "support_size": answer.support.size,
            "prototypes": answer.support.prototypes,
        }
        return {name: value for name, value in answered.items() if value is not None}

    def abstract(tree: Any) -> dict[str, jax.ShapeDtypeStruct]:
        return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in flat(tree).items()}

    (batch,) = jax_export.symbolic_shape("batch")
    return jax_export.export(jax.jit(predict), platforms=PLATFORMS)(
        abstract(variables),
        abstract({"ids": memory.ids, "labels": memory.labels, **embeddings}),
        jax.ShapeDtypeStruct((batch, *info.input_shape), _DTYPES[info.kind]),
        jax.ShapeDtypeStruct((batch,), np.int32),
    )


def flat(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their path, such as `params.encoder.kernel`, in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        raise ExportError(f"two arrays of {len(leaves)} have the same path; rename what has a dot in its name")
    return named


def _names(exported: jax_export.Exported) -> set[str]:
    return set(jax.tree.unflatten(exported.out_tree, exported.out_avals))


def _saved(folder: Path, part: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    (folder / part).mkdir()
    entries = {}
    for place, (name, array) in enumerate(arrays.items()):
        # Numbered, because a name may hold characters that a file name may not.
        file, array = f"{part}/{place:02d}.npy", np.asarray(array)
        np.save(folder / file, array, allow_pickle=False)
        sha256 = resumable.sha256_of(folder / file)
        entries[name] = {"file": file, "shape": list(array.shape), "dtype": array.dtype.name, "sha256": sha256}
    return entries
