"""Support back-propagation: encoding many candidates at the memory of a few, with the exact gradient.

A loss that reads candidates through sparsemax attention does not change with a candidate that gets no weight: its
gradient with respect to that candidate's embeddings is exactly 0, and so is what the candidate adds to the gradient of
the encoder. So all candidates are encoded without keeping anything, and those whose embeddings got a gradient are
encoded once more, to be differentiated. Attention itself is not known here: softmax is exact too, it only saves no
second pass.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

First = Callable[[Any, Any], tuple[Any, Any]]
"""`first(params, inputs)`: the embeddings of the first chunk, and what the encoding of all others holds fixed."""
Rest = Callable[[Any, Any, Any], Any]
"""`rest(params, held, inputs)`: the embeddings of any chunk, each row's from its own input alone."""


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 4, 5))
def encode_sparsely(first: First, rest: Rest, params: Any, inputs: Any, chunk: int, parts: int) -> tuple[Any, Any]:
    """Encodes examples chunk by chunk; differentiates, in rounds of a chunk, those rows alone that got a gradient.

    Beyond the inputs and the embeddings, memory is that of one chunk, whatever the number of examples: a round holds
    `chunk` rows, and where more of them got a gradient there are more rounds. Nothing is differentiated but the
    embeddings with respect to `params`; what is held counts as a constant.

    Chunks take every n-th row, and so do the shards of a batch that is split over devices: on any number of devices
    that divides the chunks evenly, the first chunk has the same rows.

    Args:
      first: encodes the first chunk, as `rest` does with what it returns to be held.
      rest: encodes any chunk.
      params: what is differentiated.
      inputs: a tree of arrays `[examples, ...]`.
      chunk: rows encoded together, at most.
      parts: equal parts in which the examples lie on as many devices; every chunk and round takes its share of each.

    Returns:
      The embeddings `[examples, ...]`, and what was held.
    """
    return _forward(first, rest, params, inputs, chunk, parts)[0]


def _forward(first: First, rest: Rest, params: Any, inputs: Any, chunk: int, parts: int) -> tuple[Any, Any]:
    split = _split(inputs, parts)
    examples = _examples(split)
    chunks = -(-examples // min(_share(chunk, parts), examples))
    rows = -(-examples // chunks)

    def grid(x: jax.Array) -> jax.Array:
        missing = chunks * rows - examples
        if missing:
            x = jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(parts, rows, chunks, *x.shape[2:])

    grids = jax.tree.map(grid, split)

    def at(i: Any) -> Any:
        return jax.tree.map(lambda x: _join(lax.dynamic_index_in_dim(x, i, axis=2, keepdims=False)), grids)

    def whole(head: jax.Array, tail: jax.Array) -> jax.Array:
        stacked = jnp.concatenate([head[None], tail]).reshape(chunks, parts, rows, *head.shape[1:])
        ordered = jnp.moveaxis(stacked, 0, 2).reshape(parts, rows * chunks, *head.shape[1:])
        return _join(ordered[:, :examples])

    embeddings, held = first(params, at(0))
    if chunks > 1:
        tails = lax.map(lambda i: rest(params, held, at(i)), jnp.arange(1, chunks))
        embeddings = jax.tree.map(whole, embeddings, tails)
    return (embeddings, held), (params, held, inputs)


def _backward(first: First, rest: Rest, chunk: int, parts: int, residuals: Any, cotangents: Any) -> tuple[Any, None]:
    params, held, inputs = residuals
    split, gradient = _split(inputs, parts), _split(cotangents[0], parts)
    examples = _examples(split)
    rows = min(_share(chunk, parts), examples)
    # Not a number is not 0 either, so that it is not lost.
    used = sum((x != 0).reshape(parts, examples, -1).any(axis=-1) for x in jax.tree.leaves(gradient)) > 0
    rounds = (-(-used.sum(axis=1) // rows)).max()
    order = jnp.argsort(~used, axis=1, stable=True)
    order = jnp.pad(order, [(0, 0), (0, -examples % rows)], constant_values=examples)

    def add(i: jax.Array, total: Any) -> Any:
        places = lax.dynamic_slice_in_dim(order, i * rows, rows, axis=1)
        # Beyond the last example stand copies of it, whose gradient is filled with 0.
        again, wanted = _take(split, places, "clip"), _take(gradient, places, "fill")
        _, pull = jax.vjp(lambda params: rest(params, held, again), params)
        return jax.tree.map(jnp.add, total, pull(wanted)[0])

    return lax.fori_loop(0, rounds, add, jax.tree.map(jnp.zeros_like, params)), None


encode_sparsely.defvjp(_forward, _backward)


def _take(tree: Any, places: jax.Array, mode: str) -> Any:
    """Rows `[parts * rows, ...]` of arrays `[parts, examples, ...]` at places `[parts, rows]`."""
    one_part = partial(jnp.take, axis=0, mode=mode, fill_value=0 if mode == "fill" else None)
    return jax.tree.map(lambda x: _join(jax.vmap(one_part)(x, places)), tree)


def _split(tree: Any, parts: int) -> Any:
    """`[examples, ...]` as `[parts, examples of a part, ...]`."""
    return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), tree)


def _join(x: jax.Array) -> jax.Array:
    """`[parts, rows, ...]` as `[parts * rows, ...]`."""
    return x.reshape(-1, *x.shape[2:])


def _examples(split: Any) -> int:
    return jax.tree.leaves(split)[0].shape[1]


def _share(chunk: int, parts: int) -> int:
    return max(chunk // parts, 1)
