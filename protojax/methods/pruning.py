"""Codes and weights that take part in ProtoQuant's decisions, and how to have fewer of them.

Beside the parameters stands which weights are kept and which codes are active. All functions here leave the parameters
as they are, but for `shrunk`, which takes out what no longer takes part.

A code that no class weighs leaves the softmax over codes. Else it would still take its share at every position, and
removing it would change what all others get: the paper's physical pruning keeps predictions because of this alone.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from protojax import ops
from protojax.methods.method import Variables

BOOK = "codebook"
"""The collection of variables that says what takes part."""


def everything(classes: int, codes: int) -> dict[str, jax.Array]:
    """The collection of a fresh model: `kept` bool `[classes, codes]` and `active` bool `[codes]`, all of them; `used`
    int32 `[codes]`, how often each was assigned since it was last set; `number` int32 `[codes]`, its name for life."""
    return {
        "kept": jnp.ones((classes, codes), bool),
        "active": jnp.ones((codes,), bool),
        "used": jnp.zeros((codes,), jnp.int32),
        "number": jnp.arange(codes, dtype=jnp.int32),
    }


def classifier(variables: Variables) -> jax.Array:
    """relu(W) of equation 10, 0 where a weight is not kept: float32 `[classes, codes]`."""
    return jnp.where(variables[BOOK]["kept"], jax.nn.relu(variables["params"]["weights"]), 0)


def class_logits(scores: jax.Array, weights: jax.Array) -> jax.Array:
    """y = W s, whose bits do not depend on codes that no class weighs being there: float32 `[batch, classes]`.

    Args:
      scores: `[batch, codes]`, at least 0.
      weights: `[classes, codes]`, at least 0.
    """
    return lax.map(lambda own: ops.order_free_sum(scores * own[None]), weights).T


def pruned(variables: Variables, top_k: int | None) -> Variables:
    """Keeps the `top_k` heaviest weights of every class, of equal ones the first; None keeps all that are positive.

    Codes without any weight left are no longer active.
    """
    weights = classifier(variables)
    kept = weights > 0
    if top_k is not None and top_k < weights.shape[1]:
        _, places = ops.top_k(weights, top_k)
        rows = jnp.arange(len(weights))[:, None]
        kept &= jnp.zeros_like(kept).at[rows, places].set(True)
    return _with_kept(variables, kept)


def neutralised(variables: Variables, numbers: Sequence[int]) -> Variables:
    """Takes codes out of all decisions, and out of the softmax.

    Args:
      variables: of the model.
      numbers: of the codes, as `number` has them.

    Raises:
      ValueError: a code does not exist, is named twice, or none that counts would be left.
    """
    own = np.asarray(variables[BOOK]["number"])
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"a code is named twice among {', '.join(map(str, numbers))}")
    for number in numbers:
        if number not in own:
            raise ValueError(
                f"code {number} does not exist: there are {len(own)} codes, with numbers {own.min()} to {own.max()}"
            )
    kept = variables[BOOK]["kept"] & ~jnp.isin(variables[BOOK]["number"], jnp.asarray(numbers, jnp.int32))[None]
    left = _with_kept(variables, kept & (classifier(variables) > 0))
    if not bool(left[BOOK]["active"].any()):
        raise ValueError("no code with a positive weight would be left; decisions need at least one")
    return left


def shrunk(variables: Variables) -> Variables:
    """The model without the codes that are not active: smaller, with logits that are the same to the last bit.

    Shapes change, so this stands outside `jax.jit`. Codes keep their `number`.

    Raises:
      ValueError: no code is active.
    """
    places = np.flatnonzero(np.asarray(variables[BOOK]["active"]))
    if not len(places):
        raise ValueError("no code is active; decisions need at least one")
    params, book = variables["params"], variables[BOOK]
    return {
        **variables,
        "params": {**params, "codes": params["codes"][places], "weights": params["weights"][:, places]},
        BOOK: {name: x[..., places] for name, x in book.items()},
    }


def _with_kept(variables: Variables, kept: Any) -> Variables:
    return {**variables, BOOK: {**variables[BOOK], "kept": kept, "active": kept.any(axis=0)}}
