"""The prototype autoencoder: decisions from the distances to a few learned prototypes, which can be looked at.

Li et al. 2018, "Deep Learning for Case-Based Reasoning through Prototypes", with z = f(x), g the decoder:

    d_j = |z - p_j|^2,  logits = W d                                                       (section 3.1)
    L = l CE + l_ae E + l_1 R1 + l_2 R2                                                    (section 3.2)
    E  = mean_b sum_pixels (g(f(x_b)) - x_b)^2
    R1 = mean_j min_b |p_j - z_b|^2      every prototype is near some example of the batch
    R2 = mean_b min_j |z_b - p_j|^2      every example is near some prototype

A prototype is no training example. What is shown of it beside its decoded picture is the training example nearest to
it, with its label; how much it counts in a decision is its share of exp(-d), and C = max_m sum_j share_j [label_j = m].
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from protojax import ops
from protojax.candidates import CandidateDatabase
from protojax.config import PrototypeAutoencoderSettings
from protojax.methods.method import SHARES, Batch, Method, Prediction, Variables, support_of, target_of

NEAREST = 8
"""Training examples kept for every prototype."""


class PrototypeLayer(nn.Module):
    """Squared distances to learned prototypes, and logits as linear functions of them, without bias."""

    count: int
    classes: int
    prototype_scale: float = 1.0
    """Prototypes start uniform in [0, scale), and so do the weights in theirs."""
    weight_scale: float = 1.0

    @nn.compact
    def __call__(self, latent: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits `[batch, classes]` and distances `[batch, prototypes]` of `latent` `[batch, size]`."""
        uniform = nn.initializers.uniform
        shape = (self.count, latent.shape[-1])
        prototypes = self.param("prototypes", uniform(self.prototype_scale), shape, jnp.float32)
        weights = self.param("weights", uniform(self.weight_scale), (self.count, self.classes), jnp.float32)
        distances = ops.squared_euclidean(latent, prototypes)
        return jnp.dot(distances, weights, precision=lax.Precision.HIGHEST), distances


class Network(nn.Module):
    """Autoencoder and prototype layer."""

    autoencoder: nn.Module
    count: int
    classes: int

    def setup(self) -> None:
        self.layer = PrototypeLayer(self.count, self.classes)

    def decode(self, latent: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
        """Images `[n, *shape]` in [0, 1] of latents `[n, size]`."""
        maps = latent.reshape(len(latent), *self.autoencoder.latent_shape(shape))
        return nn.sigmoid(self.autoencoder(maps, shape))

    def __call__(self, inputs: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        """Logits `[batch, classes]` of images; and the latents `[batch, size]`, distances, and pixels decoded."""
        maps = self.autoencoder(inputs)
        latent = maps.reshape(len(maps), -1)
        logits, distances = self.layer(latent)
        return logits, {
            "latent": latent,
            "distances": distances,
            "reconstruction": self.decode(latent, inputs.shape[1:]),
        }


def build(
    autoencoder: nn.Module, classes: int, settings: PrototypeAutoencoderSettings, axis_name: str | None = None
) -> Method:
    """The prototype autoencoder as a method.

    Args:
      autoencoder: module `inputs -> maps` and `(maps, shape) -> logits of pixels`.
      classes: number of classes.
      settings: the method's settings.
      axis_name: mapped axis over which examples are split under `pmap`; None where arrays are global.
    """
    network = Network(autoencoder, settings.prototypes, classes)

    def init(key: jax.Array, batch: Batch) -> Variables:
        return network.init(key, batch["inputs"])

    def loss(variables: Variables, batch: Batch, key: jax.Array, step: jax.Array):
        logits, made = network.apply(variables, batch["inputs"])
        # The nearest example of a prototype may be on another device.
        latents = made["latent"] if axis_name is None else lax.all_gather(made["latent"], axis_name, tiled=True)
        prototypes = variables["params"]["layer"]["prototypes"]
        terms = {
            "loss_class": ops.cross_entropy(logits, target_of(batch)).mean(),
            "loss_reconstruction": jnp.square(made["reconstruction"] - batch["inputs"]).sum(axis=(1, 2, 3)).mean(),
            "loss_prototypes_near_examples": ops.squared_euclidean(latents, prototypes).min(axis=0).mean(),
            "loss_examples_near_prototypes": made["distances"].min(axis=1).mean(),
        }
        weights = (settings.class_weight, settings.reconstruction_weight, settings.r1_weight, settings.r2_weight)
        total = sum(weight * term for weight, term in zip(weights, terms.values(), strict=True))
        correct = jnp.argmax(logits, axis=-1) == batch["label"]
        return total, ({}, {**terms, "accuracy_prototypes": correct.mean(dtype=jnp.float32)})

    def encode(variables: Variables, inputs: jax.Array) -> dict[str, jax.Array]:
        return {"latent": network.apply(variables, inputs)[1]["latent"]}

    def memory(variables: Variables, database: CandidateDatabase) -> CandidateDatabase:
        return nearest_examples(variables["params"]["layer"]["prototypes"], database)

    def predict(variables: Variables, memory: CandidateDatabase, batch: Batch, width: int) -> Prediction:
        logits, made = network.apply(variables, batch["inputs"])
        return decided(logits, made["distances"], memory, width)

    def views(variables: Variables, memory: CandidateDatabase, batch: Batch) -> dict[str, jax.Array]:
        logits, made = network.apply(variables, batch["inputs"])
        return {
            "reconstructions": made["reconstruction"],
            "image_to_class": logits,
            **views_of_prototypes(network, variables, memory, batch["inputs"].shape[1:]),
        }

    return Method(init, loss, encode, predict, memory, views, soft_labels=True)


def views_of_prototypes(
    network: nn.Module, variables: Variables, memory: CandidateDatabase, shape: tuple[int, int, int]
) -> dict[str, jax.Array]:
    """The prototypes themselves, their pictures, their nearest examples and what they say of the classes.

    Args:
      network: a module with `decode`.
      variables: its variables.
      memory: from `nearest_examples`.
      shape: (height, width, channels) of the images.
    """
    layer = variables["params"]["layer"]
    nearest = memory.embeddings
    return {
        "prototypes": layer["prototypes"],
        "prototype_pictures": network.apply(variables, layer["prototypes"], shape, method="decode"),
        "prototype_to_class": layer["weights"],
        "nearest_ids": nearest["ids"],
        "nearest_labels": nearest["labels"],
        "nearest_distances": nearest["distances"],
        "typical_distance": nearest["typical"],
    }


@jax.jit
def nearest_examples(prototypes: jax.Array, database: CandidateDatabase) -> CandidateDatabase:
    """The prototypes as what decisions lean on: each stands for the training example nearest to it.

    Args:
      prototypes: float32 `[prototypes, size]`.
      database: encoded training examples, with the embedding `latent` `[examples, size]`.

    Returns:
      ids and labels `[prototypes]` of the nearest examples (an example may be nearest to several prototypes), and of
      each prototype its NEAREST examples: `ids`, `labels` and squared `distances`, `[prototypes, NEAREST]`; and
      `typical` `[prototypes]`, the same for all: the median over examples of the distance to their nearest prototype.
    """
    distances = ops.squared_euclidean(prototypes, database.embeddings["latent"])
    distances = jnp.where(database.ids[None] >= 0, distances, jnp.inf)
    negative, places = ops.top_k(-distances, min(NEAREST, distances.shape[1]))
    nearest = {"ids": database.ids[places], "labels": database.labels[places], "distances": -negative}
    own = jnp.where(database.ids >= 0, distances.min(axis=0), jnp.nan)
    nearest["typical"] = jnp.full(len(prototypes), jnp.nanmedian(own))
    return CandidateDatabase(nearest["ids"][:, 0], nearest["labels"][:, 0], nearest, encoder=database.encoder)


def decided(logits: jax.Array, distances: jax.Array, memory: CandidateDatabase, width: int) -> Prediction:
    """The prediction of a head that reads distances to prototypes.

    Its support says how near each prototype is, by softmax(-distance). The linear layer decides, and prototypes may
    speak for other classes than that of their nearest example, so the confidence is the probability of the class.

    Args:
      logits: `[batch, classes]`.
      distances: `[batch, prototypes]`, squared.
      memory: from `nearest_examples`.
      width: places of the support, at most the number of prototypes.
    """
    scores, weights = nn.softmax(logits), ops.softmax(-distances)
    return Prediction(
        scores=scores,
        encoder_scores=scores,
        support=support_of(weights, memory.ids, memory.labels, width),
        confidence=scores.max(axis=-1),
        prototypes_for=ops.fewest_for(weights, SHARES),
    )
