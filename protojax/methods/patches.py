"""What ProtoQuant keeps of training examples: the patches that are most like each of its codes."""

import jax
import jax.numpy as jnp

from protojax import ops
from protojax.candidates import CandidateDatabase

NEAREST = 8
"""Training patches kept for every code."""


def most_similar(maps: jax.Array, codes: jax.Array) -> dict[str, jax.Array]:
    """The patch of every example that is most like each code.

    Args:
      maps: float32 `[examples, height, width, features]`.
      codes: float32 `[codes, features]`.

    Returns:
      `similarity` `[examples, codes]` and `place` `[examples, codes]` of that patch, row by row, and the `grid`
      `[examples, 2]`: height and width of the map.
    """
    directions = maps.reshape(len(maps), -1, maps.shape[-1])
    similarity, place = ops.most_similar(directions, codes)
    grid = jnp.broadcast_to(jnp.array(maps.shape[1:3], jnp.int32), (len(maps), 2))
    return {"similarity": similarity, "place": place, "grid": grid}


def nearest(database: CandidateDatabase) -> CandidateDatabase:
    """The codes as what decisions lean on: each stands for the training example with the patch most like it.

    Args:
      database: training examples, encoded by `most_similar`.

    Returns:
      ids and labels `[codes]` of those examples (one may stand for several codes), and of each code its NEAREST
      training patches: `ids`, `labels` and `similarities` `[codes, NEAREST]`, and `boxes` `[codes, NEAREST, 4]`: top,
      left, bottom and right as shares of height and width.
    """
    made = database.embeddings
    similarity = jnp.where(database.ids[:, None] >= 0, made["similarity"], -jnp.inf).T
    similarities, rows = ops.top_k(similarity, min(NEAREST, similarity.shape[1]))
    place = jnp.take_along_axis(made["place"].T, rows, axis=1)
    height, width = (made["grid"][rows, axis].astype(jnp.float32) for axis in (0, 1))
    row, column = place // made["grid"][rows, 1], place % made["grid"][rows, 1]
    boxes = jnp.stack([row / height, column / width, (row + 1) / height, (column + 1) / width], axis=-1)
    kept = {"ids": database.ids[rows], "labels": database.labels[rows], "boxes": boxes, "similarities": similarities}
    return CandidateDatabase(kept["ids"][:, 0], kept["labels"][:, 0], kept, encoder=database.encoder)
