"""A published network made a classifier of another data set: a new linear layer, and its last stages tuned with it.
Or a network of one's own, trained as a whole from random values.

This is no system with prototypes, but where ProtoQuant starts: its authors train a backbone with its head h on the data
set first, and freeze both (Janusz et al. 2026, section 3.1). Statistics of batch normalisation stay those of the
weights, because the batches of a small data set are few.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from protojax import ops
from protojax.candidates import CandidateDatabase
from protojax.methods.encoder import without_support
from protojax.methods.method import Batch, Method, Prediction, Variables, target_of


def build(network: nn.Module, start: dict[str, Any] | None = None) -> Method:
    """Fine-tuning as a method; its predictions have an empty support.

    Args:
      network: what is trained, `(inputs, train) -> (logits, {"map": [batch, height, width, features], ...})`: the end
        of a backbone, whose inputs are maps, or a whole one.
      start: its variables at step 0; None draws them.
    """

    def init(key: jax.Array, batch: Batch) -> Variables:
        if start is None:
            return network.init(key, batch["inputs"], train=False)
        return jax.tree.map(jnp.asarray, start)

    def loss(variables: Variables, batch: Batch, key: jax.Array, step: jax.Array):
        logits, _ = network.apply(variables, batch["inputs"], train=True)
        correct = jnp.argmax(logits, axis=-1) == batch["label"]
        metrics = {"accuracy_encoder": correct.mean(dtype=jnp.float32)}
        return ops.cross_entropy(logits, target_of(batch)).mean(), ({}, metrics)

    def encode(variables: Variables, inputs: jax.Array) -> dict[str, jax.Array]:
        _, made = network.apply(variables, inputs, train=False)
        return {"features": made["map"].mean((1, 2))}

    def predict(variables: Variables, memory: CandidateDatabase, batch: Batch, width: int) -> Prediction:
        logits, _ = network.apply(variables, batch["inputs"], train=False)
        return without_support(logits, width)

    return Method(init, loss, encode, predict, soft_labels=True, leaves_weights=True)
