"""The baseline: an encoder with a value and a decision layer, trained by cross-entropy alone.

ProtoAttend adds two small matrices to exactly this network (Arik and Pfister 2020, section 5.1), so `Classifier` is
also the trunk of `protoattend.py`. With dropout in the encoder this is the dropout baseline of the paper's table 3.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from protojax import ops
from protojax.candidates import CandidateDatabase
from protojax.methods.method import SHARES, Batch, Method, Prediction, Support, Variables, target_of


class Classifier(nn.Module):
    """Encoder, value layer v = LayerNorm(ReLU(W f(x) + b)) and linear decision g(v) without bias."""

    encoder: nn.Module
    classes: int
    value_size: int

    def setup(self) -> None:
        self.value = nn.Dense(self.value_size)
        self.value_norm = nn.LayerNorm()
        self.decision = nn.Dense(self.classes, use_bias=False)

    def __call__(self, inputs: jax.Array, train: bool) -> tuple[jax.Array, dict[str, Any]]:
        """Logits `[batch, classes]` of `inputs` `[batch, ...]`, and the intermediates."""
        values, intermediates = self.values(inputs, train)
        return self.decide(values), intermediates

    def values(self, inputs: jax.Array, train: bool) -> tuple[jax.Array, dict[str, Any]]:
        """Values `[batch, value_size]`, and the intermediates with `features` `[batch, f]`."""
        features, intermediates = self.encoder(inputs, train)
        return self.value_norm(nn.relu(self.value(features))), {**intermediates, "features": features}

    def decide(self, values: jax.Array) -> jax.Array:
        """g: logits `[batch, classes]` of values `[batch, value_size]`."""
        return self.decision(values)


def build(encoder: nn.Module, classes: int, value_size: int) -> Method:
    """The encoder baseline as a method; its predictions have an empty support."""
    network = Classifier(encoder, classes, value_size)

    def init(key: jax.Array, batch: Batch) -> Variables:
        return network.init(key, batch["inputs"], train=False)

    def loss(variables: Variables, batch: Batch, key: jax.Array, step: jax.Array):
        (logits, _), updates = network.apply(
            variables, batch["inputs"], train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        value = ops.cross_entropy(logits, target_of(batch)).mean()
        correct = jnp.argmax(logits, axis=-1) == batch["label"]
        return value, (updates, {"accuracy_encoder": correct.mean(dtype=jnp.float32)})

    def encode(variables: Variables, inputs: jax.Array) -> dict[str, jax.Array]:
        values, _ = network.apply(variables, inputs, train=False, method="values")
        return {"values": values}

    def predict(variables: Variables, memory: CandidateDatabase, batch: Batch, width: int) -> Prediction:
        logits, _ = network.apply(variables, batch["inputs"], train=False)
        return without_support(logits, width)

    return Method(init, loss, encode, predict, soft_labels=True)


def without_support(logits: jax.Array, width: int) -> Prediction:
    """The prediction of a network that leans on no example; its confidence is its largest class score.

    Args:
      logits: `[batch, classes]`.
      width: places of the support, all of them empty.
    """
    scores = nn.softmax(logits)
    size = logits.shape[0]
    nothing = jnp.full((size, width), -1, jnp.int32)
    return Prediction(
        scores=scores,
        encoder_scores=scores,
        support=Support(nothing, jnp.zeros((size, width)), nothing, jnp.zeros(size, jnp.int32)),
        confidence=scores.max(axis=-1),
        prototypes_for=jnp.zeros((size, len(SHARES)), jnp.int32),
    )
