"""Deep k-nearest neighbours: the comparison of the ProtoAttend paper's figure 7.

Papernot and McDaniel 2018, arXiv 1803.04765. The k training examples nearest in each representation of the network
vote; the nonconformity of an example with a class is the number of votes for other classes; held-out calibration
examples, which took no part in training, turn it into an empirical p-value of each class:

    a(x, j) = sum over representations of |{i among the k nearest: y_i != j}|
    p_j(x) = |{calibration examples c: a(c, y_c) >= a(x, j)}| / |calibration|
    prediction = argmax_j p_j,  credibility = max_j p_j,  confidence = 1 - the largest p_j of another class
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from protojax import database, evaluate
from protojax.candidates import CandidateDatabase
from protojax.evaluate import Scored


class Judged(NamedTuple):
    """What deep k-nearest neighbours say of each example."""

    predicted: np.ndarray
    """int32 `[n]`."""
    credibility: np.ndarray
    """float32 `[n]`: how well the training data support the prediction."""
    confidence: np.ndarray
    """float32 `[n]`: how far they rule out every other class."""


def split(examples: CandidateDatabase, count: int, seed: int) -> tuple[CandidateDatabase, CandidateDatabase]:
    """Sets `count` held-out examples aside for calibration, for data sets without a validation split.

    Returns:
      The calibration examples and the others, each in their old order.

    Raises:
      ValueError: none or all of the examples would be set aside.
    """
    n = len(examples.ids)
    if not 1 <= count < n:
        raise ValueError(f"{count} of {n} held-out examples were asked for calibration: choose 1 to {n - 1}")
    chosen = np.isin(np.arange(n), database.choose(n, count, seed))
    ids = np.asarray(examples.ids)
    return examples.remove(ids[~chosen]).compact(), examples.remove(ids[chosen]).compact()


def judge(
    training: CandidateDatabase,
    calibration: CandidateDatabase,
    test: CandidateDatabase,
    k: int,
    classes: int,
    batch_size: int = 256,
) -> Judged:
    """Predicts test examples from the k nearest training examples in every representation.

    Representations are the leaves of the embeddings; nearness is the cosine, found exactly. An example is never its
    own neighbour. Of classes with equal p-values the one with more votes is predicted, then the lower one.

    Args:
      training: encoded training examples.
      calibration: encoded examples that were held out of training and of the test.
      test: encoded test examples.
      k: neighbours in each representation.
      classes: number of classes.
      batch_size: examples compared with the whole of `training` at once.

    Raises:
      ValueError: `training` has fewer than k examples, there is nothing to calibrate or judge with, or a test example
        is among the calibration examples.
    """
    n = int(training.count)
    if not 1 <= k <= n:
        raise ValueError(f"evaluate.neighbours = {k}, but the database holds {n} candidates: choose 1 to {n}")
    if calibration.count == 0 or len(test.ids) == 0:
        raise ValueError(f"got {calibration.count} calibration and {len(test.ids)} test examples: give both")
    training, calibration = _examples(training), _examples(calibration)
    shared = np.intersect1d(calibration.ids, test.ids)
    if len(shared):
        raise ValueError(f"{len(shared)} test examples are also calibration examples, first ids {shared[:10].tolist()}")
    calibration_votes = _votes(training, calibration, k, classes, batch_size)
    test_votes = _votes(training, test, k, classes, batch_size)
    all_votes = k * len(jax.tree.leaves(training.embeddings))
    own_votes = np.take_along_axis(calibration_votes, np.asarray(calibration.labels)[:, None], axis=1)[:, 0]
    nonconformity = np.sort(all_votes - own_votes)
    # Entries below a(x, j) are those that a search from the left passes.
    below = np.searchsorted(nonconformity, all_votes - test_votes, side="left")
    p = (len(nonconformity) - below) / len(nonconformity)
    predicted = test_votes.argmax(axis=1)
    others = np.where(np.arange(classes)[None, :] == predicted[:, None], 0, p)
    return Judged(
        predicted.astype(np.int32),
        np.take_along_axis(p, predicted[:, None], axis=1)[:, 0].astype(np.float32),
        (1 - others.max(axis=1)).astype(np.float32),
    )


def results(judged: Judged, test: CandidateDatabase, k: int, scored: Scored) -> dict[str, Any]:
    """Accuracy and coverage of deep k-nearest neighbours beside those of the method, on the same examples.

    Args:
      judged: what `judge` said.
      test: the examples it judged.
      k: its neighbours.
      scored: the method's predictions for at least these examples.

    Raises:
      ValueError: an example that was judged was not scored.
    """
    ids = np.asarray(test.ids)
    order = np.argsort(scored.ids)
    places = order[np.clip(np.searchsorted(scored.ids, ids, sorter=order), 0, len(order) - 1)]
    unknown = scored.ids[places] != ids
    if unknown.any():
        raise ValueError(f"example {ids[unknown][0]} was judged by its neighbours but not scored by the method")
    correct = judged.predicted == np.asarray(test.labels)
    method_correct = scored.correct[places]
    return {
        "k": k,
        "examples": len(ids),
        "accuracy": {"neighbours": evaluate.number(correct.mean()), "method": evaluate.number(method_correct.mean())},
        "coverage_curve": {
            "method": evaluate.coverage(scored.confidence[places], method_correct),
            "neighbours_confidence": evaluate.coverage(judged.confidence, correct),
            "neighbours_credibility": evaluate.coverage(judged.credibility, correct),
        },
    }


def _examples(encoded: CandidateDatabase) -> CandidateDatabase:
    """Without empty places, which are nobody's neighbours; whole devices and blocks of an index would keep some."""
    return encoded.whole().replace(clusters=None).compact()


def _votes(
    training: CandidateDatabase, queries: CandidateDatabase, k: int, classes: int, batch_size: int
) -> np.ndarray:
    """Votes `[n, classes]` of the neighbours, summed over representations."""
    n = len(queries.ids)
    batch_size = min(batch_size, n)
    parts = []
    for start in range(0, n, batch_size):
        # The last batch repeats its last example, so that nothing compiles twice.
        rows = np.minimum(np.arange(start, start + batch_size), n - 1)
        parts.append(
            _votes_of_batch(
                training, queries.ids[rows], jax.tree.map(lambda x, r=rows: x[r], queries.embeddings), k, classes
            )
        )
    return np.concatenate([np.asarray(part) for part in parts])[:n]


@partial(jax.jit, static_argnames=("k", "classes"))
def _votes_of_batch(training: CandidateDatabase, ids: jax.Array, embeddings: Any, k: int, classes: int) -> jax.Array:
    own = ids[:, None] == training.ids[None, :]

    def votes(candidates: jax.Array, queries: jax.Array) -> jax.Array:
        cosine = jnp.matmul(_directions(queries), _directions(candidates).T, precision=lax.Precision.HIGHEST)
        nearness, nearest = lax.top_k(jnp.where(own, -jnp.inf, cosine), k)
        vote = jax.nn.one_hot(training.labels[nearest], classes, dtype=jnp.int32)
        # Only where k is the whole database can the example itself be among the k; it does not vote then.
        return jnp.where(jnp.isfinite(nearness)[:, :, None], vote, 0).sum(axis=1)

    return sum(jax.tree.leaves(jax.tree.map(votes, training.embeddings, embeddings)))


def _directions(x: jax.Array) -> jax.Array:
    flat = x.reshape(x.shape[0], -1)
    length = jnp.linalg.norm(flat, axis=1, keepdims=True)
    return flat / jnp.where(length > 0, length, 1)
