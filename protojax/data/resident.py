"""Resident feeding: the whole split as arrays on the devices, from which the compiled step takes its examples."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from protojax.data.source import DataError, Source


def load(source: Source, progress: bool = True, views: int = 0) -> dict[str, np.ndarray]:
    """Reads every example; `sharding.split` places what it returns on a mesh.

    Args:
      source: the split.
      progress: shows a bar where it takes more than a moment.
      views: augmented views of every example, which lie behind the examples as they are (see `sampling.Sampler`).

    Returns:
      `id` int32 `[examples]`, `inputs` `[examples, ...]` and `label` int32 `[examples]`.

    Raises:
      DataError: there are no examples, or inputs of different shapes or types.
    """
    n = len(source) * (1 + views)
    if n == 0:
        raise DataError("the split to load has no examples")
    return read(source, tqdm(range(n), desc="load", unit="example", delay=0.5, disable=not progress), n)


def take(arrays: Any, indices: jax.Array) -> Any:
    """The examples at some positions; for use inside a compiled function.

    Args:
      arrays: `[examples, ...]`, possibly padded and sharded along their first axis.
      indices: int32 `[batch]`, within the examples; the sampler draws no others.

    Returns:
      Arrays `[batch, ...]`.
    """
    return jax.tree.map(lambda x: jnp.take(x, indices, axis=0, mode="clip"), arrays)


def examples(source: Source, indices: Iterable[int]) -> Iterator[dict[str, Any]]:
    """The examples at some positions, many at a time where the source reads so."""
    many = getattr(source, "many", None)
    return (source[int(index)] for index in indices) if many is None else many(indices)


def read(source: Source, indices: Iterable[int], count: int) -> dict[str, np.ndarray]:
    """Stacks the examples at `count` positions.

    Raises:
      DataError: inputs of different shapes or types.
    """
    batch: dict[str, np.ndarray] = {}
    for row, example in enumerate(examples(source, indices)):
        inputs = np.asarray(example["inputs"])
        if not batch:
            batch = {
                "id": np.empty(count, np.int32),
                "inputs": np.empty((count, *inputs.shape), inputs.dtype),
                "label": np.empty(count, np.int32),
            }
        like = batch["inputs"]
        if inputs.shape != like.shape[1:] or inputs.dtype != like.dtype:
            raise DataError(
                f"example {example['id']} has inputs {inputs.dtype} {list(inputs.shape)}, example {batch['id'][0]} has "
                f"{like.dtype} {list(like.shape[1:])}; a data set needs one shape and type: prepare it anew"
            )
        batch["id"][row], batch["inputs"][row], batch["label"][row] = example["id"], inputs, example["label"]
    return batch
