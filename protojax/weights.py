"""Published weights of frozen backbones, read from safetensors files; nothing is filled in, nothing is left over.

A file is recognised by its names (see `layouts`), which also tell the number of classes of its classifier and the size
of its position embeddings. Of a `vit` the shapes tell all sizes but the heads, which the metadata of its file say.
Pickles, which run code when they are read, are refused.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import traverse_util
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from protojax import layouts, naming, resumable
from protojax.layouts import Table
from protojax.naming import Wanted
from protojax.networks.backbones import BACKBONES

_PICKLES = (".pth", ".pt", ".bin", ".pkl", ".pickle", ".ckpt", ".tar")
_LISTED = 5


class WeightsError(ValueError):
    """A file of weights is missing, no safetensors, or does not fit the network; the message lists all that differs."""


class Pretrained(NamedTuple):
    """A backbone with its published weights."""

    name: str
    module: nn.Module
    """`(images, train) -> (outputs, intermediates)`, and `classify(means of the map) -> logits` with a classifier."""
    variables: dict[str, Any]
    """NumPy arrays float32: `params` and, where the network keeps statistics, `batch_stats`."""
    sha256: str
    """Of the file."""


def load(path: str | Path, network: str, dtype: DTypeLike = jnp.float32) -> Pretrained:
    """Reads the weights of a backbone.

    Args:
      path: a safetensors file, with the names of timm, of Hugging Face transformers, or another publisher of `layouts`.
      network: one of `networks.backbones.BACKBONES`.
      dtype: arithmetic of the network; its parameters are float32, whatever the file holds.

    Raises:
      WeightsError: the file is missing, damaged or a pickle, or its names or shapes are not those of the network; the
        message lists every missing, unexpected and misshapen name.
    """
    path = Path(path)
    with _opened(path) as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        said = file.metadata() or {}
        table = table_of(network)
        names = _without_prefix(stored, table)
        publisher = _publisher(path, network, table, names)
        module = _module(path, network, table, publisher, names, stored, said, dtype)
        wanted = list(naming.wanted(module, table, publisher))
        # timm keeps no position of the class token where there are registers: it is part of the token.
        bare = _registers(network) and table.publishers[publisher] == "timm"
        _check(path, network, table, wanted, names, stored, bare)
        flat = {}
        for row in wanted:
            arrays = [_float32(file, names[name]) for name in row.names]
            array = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
            if bare and row.path[-1] == "positions":
                array = np.pad(array, ((0, 0), (1, 0), (0, 0)))
            flat[row.path] = array if row.axes is None else np.ascontiguousarray(array.transpose(row.axes))
    return Pretrained(network, module, traverse_util.unflatten_dict(flat), sha256_of(path))


def save(path: str | Path, source: str | Path, network: str, changed: Mapping[str, Any]) -> None:
    """Writes the weights of a file with some of them changed, under the names that they have there.

    Args:
      path: the safetensors file to write; replaced where it exists.
      source: the file they were read from.
      network: of them.
      changed: variables of the network that stand in for those of the file, such as the stages that were tuned and
        another classifier.

    Raises:
      WeightsError: the source is not there or not of the network, or the file cannot be written.
    """
    found, flat = load(source, network), traverse_util.flatten_dict(dict(changed))
    table = table_of(network)
    with _opened(Path(source)) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        said = file.metadata()
    names = _without_prefix(tensors, table)
    publisher = _publisher(Path(source), network, table, names)
    head = flat.get(("params", "head", "bias"))
    module = found.module if head is None else found.module.clone(classes=len(head))
    rows = {row.path: row for row in naming.wanted(module, table, publisher)}
    for path_of, value in flat.items():
        tensors |= {names.get(name, name): part for name, part in naming.as_stored(rows[path_of], value)}
    _write(Path(path), tensors, said)


def create(path: str | Path, network: str, variables: Mapping[str, Any], said: Mapping[str, str]) -> None:
    """Writes the weights of a network that was trained here from random values, under the names of timm.

    Args:
      path: the safetensors file to write; replaced where it exists.
      network: of them.
      variables: all of the network.
      said: what `load` cannot read off their shapes, such as the `heads` of a `vit`; the metadata of the file.

    Raises:
      WeightsError: the file cannot be written.
    """
    flat = traverse_util.flatten_dict(dict(variables))
    rows = naming.named({path: np.shape(value) for path, value in flat.items()}, table_of(network), 0)
    _write(Path(path), dict(part for row in rows for part in naming.as_stored(row, flat[row.path])), said)


def _write(path: Path, tensors: dict[str, np.ndarray], said: Mapping[str, str] | None) -> None:
    temporary = path.with_name(f".{path.name}")
    try:
        save_file(tensors, temporary, None if said is None else dict(said))
        temporary.replace(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file of weights.

    Raises:
      WeightsError: it cannot be read.
    """
    try:
        return resumable.sha256_of(Path(path))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from None


def table_of(network: str) -> Table:
    """The table by which the weights of a network are read."""
    if network.startswith("dinov2"):
        return layouts.DINOV2
    if network.startswith(("deit", "vit")):
        return layouts.VIT
    if network.startswith("convnext"):
        return layouts.CONVNEXT
    return layouts.RESNET if network.startswith("resnet") else layouts.EFFICIENTNET_LITE


def _opened(path: Path) -> Any:
    if path.suffix.lower() in _PICKLES:
        raise WeightsError(
            f"{path}: a pickle, which could run any code when it is read; convert it once with "
            f"`pip install 'protojax[torch]'` and `protojax convert-weights {path} {path.with_suffix('.safetensors')}`"
        )
    if not path.is_file():
        raise WeightsError(f"{path}: no such file of weights; give a safetensors file")
    try:
        return safetensors.safe_open(path, framework="np")
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: not a safetensors file ({error}); a file of PyTorch is converted with `protojax convert-weights`"
        ) from None


def _float32(file: Any, name: str) -> np.ndarray:
    return np.asarray(file.get_tensor(name)).astype(np.float32)


def _without_prefix(stored: Mapping[str, Any], table: Table) -> dict[str, str]:
    """The names of a file as they stand there, by those without a prefix."""
    names = {}
    for name in stored:
        prefix = next((p for p in table.prefixes if name.startswith(p)), "")
        names[name.removeprefix(prefix)] = name
    return names


def _publisher(path: Path, network: str, table: Table, names: Mapping[str, str]) -> int:
    """Whose names these are."""
    found = []
    for publisher in range(len(table.publishers)):
        known = [layouts.pattern(name) for row in table.rows for name in naming.listed(row.theirs[publisher])]
        found.append(sum(any(p.fullmatch(name) for p in known) for name in names))
    if not max(found):
        shown = ", ".join(list(names.values())[:_LISTED])
        raise WeightsError(
            f"{path}: no weights of {network}: it has none of the names that {' or '.join(table.publishers)} give "
            f"them, but {shown}{', ...' if len(names) > _LISTED else ''}"
        )
    return int(np.argmax(found))


def _module(
    path: Path,
    network: str,
    table: Table,
    publisher: int,
    names: Mapping[str, str],
    stored: Mapping[str, tuple[int, ...]],
    said: Mapping[str, str],
    dtype: DTypeLike,
) -> nn.Module:
    """The network with the classifier and the position embeddings of the file, of a `vit` with all its sizes."""
    rows = {row.ours: row.theirs[publisher] for row in table.rows}
    head = names.get(rows["head/kernel"])
    more: dict[str, Any] = {"classes": stored[head][0] if head else 0, "dtype": dtype}
    if "positions" in rows:
        places, timm = names.get(rows["positions"]), table.publishers[publisher] == "timm"
        # timm antialiases, transformers only where there are registers.
        more["antialias"] = timm or _registers(network)
        tokens = 0 if timm and _registers(network) else 1
        count = stored[places][1] - tokens if places and len(stored[places]) == 3 else 1
        more["grid"] = round(count**0.5)
        if more["grid"] ** 2 != count:
            raise WeightsError(f"{path}: {places} has {count} places of patches, which make no square")
    if network == "vit":
        more |= _sizes(path, rows, names, stored, said)
    return BACKBONES[network].module(**more)


def _sizes(
    path: Path,
    rows: Mapping[str, layouts.Names],
    names: Mapping[str, str],
    stored: Mapping[str, tuple[int, ...]],
    said: Mapping[str, str],
) -> dict[str, int]:
    """The sizes of a transformer that has no published ones."""
    patches = stored.get(names.get(rows["patches/kernel"], ""), ())
    block = layouts.pattern(rows["block_{i}/norm_1/scale"])
    heads = said.get("heads", "")
    if len(patches) != 4 or not heads.isdecimal() or not int(heads) or patches[0] % int(heads):
        raise WeightsError(
            f"{path}: not the weights of a vit as a run of fine_tuning leaves them: {rows['patches/kernel']} is "
            f"{list(patches) or 'missing'}, and its metadata say heads = {heads or 'nothing'!r}, which has to divide "
            "the width; a published network has a name of its own (encoder.network)"
        )
    depth = sum(block.fullmatch(name) is not None for name in names)
    return {"patch": patches[-1], "width": patches[0], "depth": depth, "heads": int(heads)}


def _check(
    path: Path,
    network: str,
    table: Table,
    wanted: Sequence[Wanted],
    names: Mapping[str, str],
    stored: Mapping[str, tuple[int, ...]],
    bare: bool,
) -> None:
    missing, misshapen, used = [], [], set()
    for row in wanted:
        shape = row.shape_of_each(1 if bare and row.path[-1] == "positions" else 0)
        for name in row.names:
            used.add(name)
            if name not in names:
                missing.append(f"missing: {name} {list(shape)}")
            elif stored[names[name]] != shape:
                misshapen.append(f"misshapen: {names[name]} is {list(stored[names[name]])}, not {list(shape)}")
    unused = [layouts.pattern(name) for name in table.unused]
    unexpected = [
        f"unexpected: {whole} {list(stored[whole])}"
        for name, whole in names.items()
        if name not in used and not any(p.fullmatch(name) for p in unused)
    ]
    if problems := [*missing, *unexpected, *misshapen]:
        lines = "\n".join(f"  {line}" for line in problems)
        raise WeightsError(f"{path}: not the weights of {network} ({len(problems)} names differ):\n{lines}")


def _registers(network: str) -> bool:
    return getattr(BACKBONES[network].module, "keywords", {}).get("registers", 0) > 0
