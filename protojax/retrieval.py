"""Retrieved candidates: of the whole training split, the examples that matter most to a batch.

What matters is found by keys that are encoded again every `train.refresh_every` steps, and are stale in between; what
is found is encoded afresh, so that the loss and its gradient know nothing of stale keys but the choice.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from protojax import ops, sharding
from protojax.config import Settings
from protojax.data import resident
from protojax.methods import Batch, Method, Variables
from protojax.methods.retrieval import Relevance


class Retriever(NamedTuple):
    """The functions that keep keys `[examples, key_size]` of the training split and choose by them."""

    choose: Callable[[Variables, jax.Array, Any, Batch], jax.Array]
    """`choose(variables, keys, arrays, batch)`: int32 `[candidates]`, different positions in the resident `arrays`, for
    a prepared batch; the best first. For use inside a compiled function."""
    refresh: Callable[[Variables, Any], jax.Array]
    """`refresh(variables, arrays)`: fresh keys, by compiled chunks that the host drives."""
    recall: Callable[[Variables, jax.Array, jax.Array, Any, Batch], jax.Array]
    """`recall(variables, stale, fresh, arrays, batch)`: the share of the attention weight, by fresh keys, of a prepared
    batch that lies on the examples that stale keys choose for it. For use inside a compiled function."""


def check(settings: Settings) -> None:
    """Refuses settings with which candidates cannot be retrieved.

    Raises:
      ValueError: says which setting, and what would do.
    """
    train = settings.train
    if train.refresh_every % train.steps_per_dispatch:
        raise ValueError(
            f"train.refresh_every = {train.refresh_every} is not a multiple of train.steps_per_dispatch = "
            f"{train.steps_per_dispatch}: keys are refreshed between two dispatches"
        )
    if train.parallel == "pmap":
        raise ValueError("train.candidates = 'retrieved' needs train.parallel = 'jit': all devices search all keys")
    if settings.data.class_shares is not None:
        raise ValueError(
            "data.class_shares prescribes the classes of the candidates, which train.candidates = 'retrieved' chooses "
            "by their scores: leave one of them out"
        )


def warning(settings: Settings, examples: int) -> str | None:
    """What to say of a database of fewer than all training examples, if anything."""
    count = settings.evaluate.candidate_count
    if settings.train.candidates != "retrieved" or count is None or count >= examples:
        return None
    return (
        f"evaluate.candidate_count = {count} of {examples}: with train.candidates = 'retrieved' decisions lean on few "
        "of all training examples, most of which such a database lacks; leave evaluate.candidate_count out"
    )


def blank_keys(examples: int, settings: Settings) -> jax.Array:
    """What stands for keys before the first refresh."""
    return jnp.zeros((examples, settings.method.key_size))


def build(
    method: Method, settings: Settings, examples: int, transform: Callable[[jax.Array], jax.Array], mesh: Mesh
) -> Retriever:
    """The retriever of an experiment.

    Args:
      method: the method that is trained.
      settings: the experiment.
      examples: examples of the training split; what lies behind them in resident arrays is padding.
      transform: preparation of inputs on the device, without augmentation.
      mesh: the devices.

    Raises:
      ValueError: as `check`.
    """
    check(settings)
    functions, count = method.retrieval, settings.train.candidate_count
    rows = -(-min(settings.train.candidate_chunk, examples) // mesh.size) * mesh.size

    whole = partial(lax.with_sharding_constraint, shardings=sharding.replicated(mesh))

    def relevance(variables: Variables, keys: jax.Array, arrays: Any, batch: Batch) -> Relevance:
        # Every device searches all keys: that costs little beside the encoder, and nothing crosses devices meanwhile.
        queries, own, ids = whole((functions.queries(variables, batch["inputs"]), batch["id"], arrays["id"][:examples]))
        return functions.relevance(queries, own, keys, ids)

    def choose(variables: Variables, keys: jax.Array, arrays: Any, batch: Batch) -> jax.Array:
        margin = relevance(variables, keys, arrays, batch).margin
        return ops.top_k(margin[None], count)[1][0]

    @partial(jax.jit, donate_argnums=0, out_shardings=sharding.replicated(mesh))
    def encode_chunk(keys: jax.Array, variables: Variables, arrays: Any, start: Any) -> jax.Array:
        # The last chunk ends with copies of the last example.
        places = jnp.minimum(start + jnp.arange(rows), examples - 1)
        inputs = lax.with_sharding_constraint(resident.take(arrays["inputs"], places), sharding.along_data(mesh))
        return keys.at[places].set(functions.keys(variables, transform(inputs)))

    def refresh(variables: Variables, arrays: Any) -> jax.Array:
        keys = jax.device_put(blank_keys(examples, settings), sharding.replicated(mesh))
        for start in range(0, examples, rows):
            # Waited for, because simulated devices with several computations under way can wait for one another.
            keys = jax.block_until_ready(encode_chunk(keys, variables, arrays, np.int32(start)))
        return keys

    def recall(variables: Variables, stale: jax.Array, fresh: jax.Array, arrays: Any, batch: Batch) -> jax.Array:
        chosen = choose(variables, stale, arrays, batch)
        weight = relevance(variables, fresh, arrays, batch).weight
        return weight[chosen].sum() / weight.sum()

    return Retriever(choose, refresh, recall)
