"""What a method is, and what it answers: the contract between the five systems and everything around them."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from protojax import ops
from protojax.candidates import CandidateDatabase
from protojax.methods.retrieval import Retrieval

Batch = dict[str, Any]
"""`id` int32 `[batch]`, `inputs` `[batch, ...]`, `label` int32 `[batch]`; in training also
`candidates`, a batch, and where labels are soft (MixUp, CutMix, smoothing) `target` float32 `[batch, classes]`; then
`label` is the class that has most of it."""

Variables = dict[str, Any]
"""Flax variable collections: `params` and, where the network keeps statistics, `batch_stats`."""

SHARES = (0.5, 0.9, 0.95)
"""Shares of the total weight for which the needed number of prototypes is reported."""


class Support(NamedTuple):
    """The training examples that decided, heaviest first, padded to a fixed width."""

    ids: jax.Array
    """int32 `[batch, width]`, -1 where padded."""
    weights: jax.Array
    """float32 `[batch, width]`, descending, 0 where padded."""
    labels: jax.Array
    """int32 `[batch, width]`, -1 where padded."""
    size: jax.Array
    """int32 `[batch]`: candidates with a positive weight, which may be more than the width."""
    prototypes: jax.Array | None = None
    """int32 `[batch, width]`, -1 where padded: which of the method's own prototypes these are, the examples being those
    nearest to them; None where the examples themselves decided."""


class Prediction(NamedTuple):
    """The answer of every method: a class, what decided it, and how far to trust it."""

    scores: jax.Array
    """float32 `[batch, classes]`: class probabilities from the support."""
    encoder_scores: jax.Array | None
    """float32 `[batch, classes]`: class probabilities of the network alone; None where it decides nothing."""
    support: Support
    confidence: jax.Array
    """float32 `[batch]` in [0, 1]: where decisions lean on training examples, how far these agree (ProtoAttend, section
    3.3); where they do not, the probability of the class."""
    prototypes_for: jax.Array
    """int32 `[batch, len(SHARES)]`: the fewest largest weights whose sum reaches each share."""


class Stage(NamedTuple):
    """A part of training with an optimiser of its own, up to the first step of the next one."""

    name: str
    start: int
    """Its first step."""
    trains: tuple[str, ...]
    """Names in `params` that it changes; everything else stays bitwise as it is."""


class Method(NamedTuple):
    """A prototype-learning system as four pure functions.

    A user writes a new system by writing these four; training, evaluation and explanation need nothing else, but for
    training on retrieved candidates, which asks how much an example matters to a query.
    """

    init: Callable[[jax.Array, Batch], Variables]
    """`init(key, batch)`: fresh variables."""
    loss: Callable[[Variables, Batch, jax.Array, jax.Array], tuple[jax.Array, tuple[Variables, dict[str, jax.Array]]]]
    """`loss(variables, batch, key, step)`: the scalar to minimise, the updated non-parameter collections, metrics."""
    encode: Callable[[Variables, Any], Any]
    """`encode(variables, inputs)`: the embeddings that memory keeps, a pytree of arrays `[batch, ...]`."""
    predict: Callable[..., Prediction]
    """`predict(variables, memory, batch, width)`: the prediction for `batch["inputs"]`, with `width` (static) places in
    its support. Where memory holds the training examples themselves, the one with the id of its query gets no weight,
    so that training examples are judged by others.
    """
    memory: Callable[[Variables, CandidateDatabase], CandidateDatabase] = lambda variables, database: database
    """`memory(variables, database)`: what predictions lean on, made of encoded training examples; they themselves where
    a method says nothing else.
    """
    views: Callable[[Variables, CandidateDatabase, Batch], dict[str, jax.Array]] | None = None
    """`views(variables, memory, batch)`: what can be looked at beside decisions, by names that `protojax.portraits`
    draws; None where a method has nothing of the kind.
    """
    retrieval: Retrieval | None = None
    """What `train.candidates = "retrieved"` needs; None where there is nothing to retrieve."""
    stages: tuple[Stage, ...] = ()
    """The stages of training, in order, the first from step 0; none where every step trains everything."""
    heads: Callable[[Variables, Any], dict[str, jax.Array]] | None = None
    """`heads(variables, inputs)`: class scores `[batch, classes]` of heads beside the one that decides, by name, whose
    accuracies are reported; None where there are none."""
    revise: Callable[[Variables, Batch, jax.Array, jax.Array], Variables] | None = None
    """`revise(variables, batch, key, step)`: the variables as they go into the next step, after `step` has changed them
    by its gradient; for what is no gradient descent. The same on all devices. None where there is nothing of the kind.
    """
    soft_labels: bool = False
    """Whether `loss` reads the `target` of a batch (see `target_of`); where it does not, soft labels are refused."""
    leans_on: Literal["support", "all"] | None = None
    """Where decisions lean on the training examples of memory themselves: whether one changes with an example that has
    no weight in it (`all`, as with softmax) or cannot (`support`, as with sparsemax). None where they do not."""
    has_codes: bool = False
    """Whether decisions lean on codes, some of which can be taken out (`methods.pruning`, `protojax.codes`), and
    `views` shows where a decision sees them (`protojax.concepts`)."""
    leaves_weights: bool = False
    """Whether what was trained is the end of a published network, or a whole one, which a run leaves as a file of
    weights for others (`protojax.tuned`)."""


def target_of(batch: Batch) -> jax.Array:
    """What `ops.cross_entropy` compares logits with: soft labels where the experiment has them, otherwise labels."""
    return batch.get("target", batch["label"])


def support_of(
    weights: jax.Array, ids: jax.Array, labels: jax.Array, width: int, numbers: jax.Array | None = None
) -> Support:
    """The `width` heaviest of a method's own prototypes in each row.

    Args:
      weights: float32 `[batch, prototypes]`, at least 0.
      ids: int32 `[prototypes]`, of the training example nearest to each.
      labels: int32 `[prototypes]`, of these examples.
      width: places, at most the number of prototypes.
      numbers: int32 `[prototypes]`, what they are called; from 0 where absent.

    Raises:
      ValueError: the width exceeds the number of prototypes.
    """
    if width > weights.shape[-1]:
        raise ValueError(f"a support of width {width} was asked for, but there are {weights.shape[-1]} prototypes")
    heaviest, places = ops.top_k(weights, width)
    used = heaviest > 0
    return Support(
        ids=jnp.where(used, ids[places], -1),
        weights=heaviest,
        labels=jnp.where(used, labels[places], -1),
        size=(weights > 0).sum(axis=-1, dtype=jnp.int32),
        prototypes=jnp.where(used, places if numbers is None else numbers[places], -1),
    )
