"""ProtoAttend: decisions from the few training examples that attention selects.

Arik and Pfister 2020, "ProtoAttend: Attention-Based Prototypical Learning".

    v = f(x), q, k             values, queries and keys of one shared encoder          (section 3.2)
    p = n(q K^T / sqrt(d))     weights of the candidates, n = sparsemax or softmax     (section 3.2)
    L = CE(g(v)) + CE(g(p V)) + CE(g((1 - a) v + a p V)) + lambda H(p)                 (equations 1 and 2)
    C = max_m sum_j p_j [y_j = m]                                                      (equation 3)

Where paper and released code disagree, this file follows the text for the random share a ~ U[0.45, 0.5] and the code
for its meaning: a is the share of the prototypes, so that the input itself contributes most.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from protojax import ops
from protojax.candidates import CandidateDatabase
from protojax.config import ProtoAttendSettings
from protojax.methods import retrieval
from protojax.methods.encoder import Classifier
from protojax.methods.method import SHARES, Batch, Method, Prediction, Support, Variables, target_of
from protojax.methods.rematerialise import encode_sparsely
from protojax.methods.retrieval import Relevance, Retrieval
from protojax.networks.layers import MOMENTUM

ENTROPY_EPSILON = 1e-6
"""epsilon of equation 2."""


class Embeddings(NamedTuple):
    """What the encoder makes of an example, each `[batch, size]`, float32."""

    queries: jax.Array
    keys: jax.Array
    values: jax.Array


Embedded = tuple[Embeddings, tuple[jax.Array, jax.Array], Variables]
"""The queries' embeddings, keys and values of the candidates, and the updated statistics."""


class Network(nn.Module):
    """The baseline classifier and two further dense layers with ReLU: queries and keys.

    Without `candidate_dropout`, candidates are encoded in training as they are in a database.
    """

    encoder: nn.Module
    classes: int
    key_size: int
    value_size: int
    candidate_dropout: bool = True

    def setup(self) -> None:
        self.classifier = Classifier(self.encoder, self.classes, self.value_size)
        self.query = nn.Dense(self.key_size)
        self.key = nn.Dense(self.key_size)

    def __call__(self, inputs: jax.Array, train: bool) -> tuple[Embeddings, dict[str, Any]]:
        """Embeddings of `inputs` `[batch, ...]`, and the intermediates."""
        values, intermediates = self.classifier.values(inputs, train)
        features = intermediates["features"]
        return Embeddings(nn.relu(self.query(features)), nn.relu(self.key(features)), values), intermediates

    def with_candidates(self, inputs: jax.Array, candidates: jax.Array) -> tuple[Embeddings, Embeddings]:
        """Embeddings of a training batch and of its candidates; each normalises by its own batch statistics."""
        return self(inputs, train=True)[0], self(candidates, train=self.candidate_dropout)[0]

    def decide(self, values: jax.Array) -> jax.Array:
        """g: logits `[batch, classes]`."""
        return self.classifier.decide(values)

    def initialise(self, inputs: jax.Array) -> jax.Array:
        """Touches every layer once."""
        return self.decide(self(inputs, train=False)[0].values)


def build(
    encoder: nn.Module,
    classes: int,
    settings: ProtoAttendSettings,
    axis_name: str | None = None,
    devices: int = 1,
    chunk: int | None = None,
) -> Method:
    """ProtoAttend as a method.

    With a `chunk`, `loss` encodes the candidates by support back-propagation (`rematerialise.py`): the same loss and
    gradient at the memory of `chunk` candidates, where the encoder treats every example on its own. Batch normalisation
    does not: there the statistics of the first chunk are held, that is, all candidates are normalised by them, no
    gradient goes through them, and they are what updates the running averages after those of the queries.

    Args:
      encoder: module `(inputs, train) -> (features, intermediates)`.
      classes: number of classes.
      settings: the method's settings.
      axis_name: mapped axis over which examples are split under `pmap`; None where arrays are global.
      devices: how many devices examples are split over.
      chunk: candidates, of all devices together, that are encoded at once; None encodes all of them at once.
    """
    network = Network(encoder, classes, settings.key_size, settings.value_size, settings.candidate_dropout)

    def init(key: jax.Array, batch: Batch) -> Variables:
        return network.init(key, batch["inputs"], method="initialise")

    def from_all_devices(x: jax.Array) -> jax.Array:
        return x if axis_name is None else lax.all_gather(x, axis_name, tiled=True)

    if chunk is None:
        embed = partial(_embed_at_once, network)
    elif axis_name is None:
        embed = partial(_embed_by_chunks, network, chunk=chunk, parts=devices)
    else:
        embed = partial(_embed_by_chunks, network, chunk=max(chunk // devices, 1), parts=1)

    def loss(variables: Variables, batch: Batch, key: jax.Array, step: jax.Array):
        dropout_key, alpha_key = jax.random.split(key)
        query, (keys, values), updates = embed(variables, batch, rngs={"dropout": dropout_key})
        ids = from_all_devices(batch["candidates"]["id"])
        others = batch["id"][:, None] != ids[None, :] if settings.exclude_own else None
        mixture, weights = ops.dense_attend(
            query.queries,
            from_all_devices(keys),
            from_all_devices(values),
            normalizer=settings.normalizer,
            where=others,
        )

        def decide(values: jax.Array) -> jax.Array:
            return network.apply(variables, values, method="decide")

        alpha = jax.random.uniform(alpha_key, minval=settings.alpha[0], maxval=settings.alpha[1])
        from_input, from_prototypes = decide(query.values), decide(mixture)
        from_both = decide((1 - alpha) * query.values + alpha * mixture)
        label, target = batch["label"], target_of(batch)
        terms = {
            "loss_encoder": ops.cross_entropy(from_input, target).mean(),
            "loss_prototypes": ops.cross_entropy(from_prototypes, target).mean(),
            "loss_joint": ops.cross_entropy(from_both, target).mean(),
        }
        entropy = ops.weight_entropy(weights, ENTROPY_EPSILON).mean()
        total = sum(terms.values()) + settings.sparsity * entropy
        metrics = {
            **terms,
            "entropy": entropy,
            "accuracy_encoder": _accuracy(from_input, label),
            "accuracy_prototypes": _accuracy(from_prototypes, label),
            "support_size": (weights > 0).sum(axis=-1).mean(dtype=jnp.float32),
        }
        return total, (updates, metrics)

    def encode(variables: Variables, inputs: jax.Array) -> dict[str, jax.Array]:
        embeddings, _ = network.apply(variables, inputs, train=False)
        return {"keys": embeddings.keys, "values": embeddings.values}

    def predict(variables: Variables, memory: CandidateDatabase, batch: Batch, width: int) -> Prediction:
        query, _ = network.apply(variables, batch["inputs"], train=False)
        attended = ops.attend(
            query.queries,
            memory.embeddings["keys"],
            memory.embeddings["values"],
            normalizer=settings.normalizer,
            width=width,
            ids=memory.ids,
            labels=memory.labels,
            classes=classes,
            exclude=batch["id"],
            shares=SHARES,
            index=memory.clusters,
            mesh=memory.mesh,
        )
        return Prediction(
            scores=nn.softmax(network.apply(variables, attended.outputs, method="decide")),
            encoder_scores=nn.softmax(network.apply(variables, query.values, method="decide")),
            support=Support(attended.ids, attended.weights, attended.labels, attended.size),
            confidence=attended.class_mass.max(axis=-1),
            prototypes_for=attended.fewest,
        )

    def keys(variables: Variables, inputs: jax.Array) -> jax.Array:
        return network.apply(variables, inputs, train=False)[0].keys

    def queries(variables: Variables, inputs: jax.Array) -> jax.Array:
        return network.apply(variables, inputs, train=False)[0].queries

    def relevance(queries: jax.Array, own: jax.Array, keys: jax.Array, ids: jax.Array) -> Relevance:
        return retrieval.relevance(queries, own if settings.exclude_own else None, keys, ids, settings.normalizer)

    leans_on = "support" if settings.normalizer == "sparsemax" else "all"
    found = Retrieval(keys, queries, relevance)
    return Method(init, loss, encode, predict, retrieval=found, soft_labels=True, leans_on=leans_on)


def _embed_at_once(network: Network, variables: Variables, batch: Batch, rngs: dict[str, jax.Array]) -> Embedded:
    (query, candidate), updates = network.apply(
        variables,
        batch["inputs"],
        batch["candidates"]["inputs"],
        method="with_candidates",
        rngs=rngs,
        mutable=["batch_stats"],
    )
    return query, (candidate.keys, candidate.values), updates


def _embed_by_chunks(
    network: Network, variables: Variables, batch: Batch, rngs: dict[str, jax.Array], *, chunk: int, parts: int
) -> Embedded:
    statistics = dict(variables)
    params = statistics.pop("params")
    (query, _), updates = network.apply(variables, batch["inputs"], train=True, rngs=rngs, mutable=["batch_stats"])
    # Running averages that start from 0 show what they are updated with.
    shapes = jax.tree.map(jax.typeof, statistics)

    def first(params: Any, inputs: jax.Array) -> tuple[tuple[jax.Array, jax.Array], Variables]:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (candidate, _), updates = network.apply(
            {"params": params, **zeros}, inputs, train=network.candidate_dropout, mutable=["batch_stats"]
        )
        return (candidate.keys, candidate.values), jax.tree.map(lambda x: x / (1 - MOMENTUM), updates)

    def rest(params: Any, held: Variables, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        candidate, _ = network.apply({"params": params, **held}, inputs, train=False)
        return candidate.keys, candidate.values

    embeddings, held = encode_sparsely(first, rest, params, batch["candidates"]["inputs"], chunk, parts)
    return query, embeddings, jax.tree.map(lambda old, new: MOMENTUM * old + (1 - MOMENTUM) * new, updates, held)


def _accuracy(logits: jax.Array, label: jax.Array) -> jax.Array:
    return (jnp.argmax(logits, axis=-1) == label).mean(dtype=jnp.float32)
