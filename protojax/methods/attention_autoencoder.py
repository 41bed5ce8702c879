"""The attention autoencoder: self-attention between the tokens of a latent map, before the decision.

Rebello et al., "Prototype Learning With Attention Mechanisms: An MNIST Case Study", sections III and IV.A, with
z = f(x) as 16 tokens of 10 features:

    alpha = softmax(Q K^T / sqrt(d_k)),  z' = alpha V                Q, K, V linear in z
    logits = W d,  d_j = |z' - p_j|^2        (head "distances", section IV.A)
    logits = W z' + b                        (head "linear", figures 3 and 4)
    L = 20 CE + BCE(g(z'), x) + 0.1 KL(alpha || uniform)

The paper leaves open what the decoder g reads. Here it reads the attended tokens: then prototypes and attention can be
decoded into pictures, and the reconstruction error is of the size that the paper reports (0.15 to 0.16 a pixel).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax

from protojax import ops
from protojax.candidates import CandidateDatabase
from protojax.config import AttentionAutoencoderSettings
from protojax.methods.encoder import without_support
from protojax.methods.method import Batch, Method, Prediction, Variables, target_of
from protojax.methods.prototype_autoencoder import PrototypeLayer, decided, nearest_examples, views_of_prototypes

PROTOTYPE_SCALE, WEIGHT_SCALE = 0.5, 0.1
"""Where the head "distances" starts, which the paper does not say. With [0, 1) of Li et al., made for 40 dimensions,
distances in 160 are so large that the first cross-entropies are in the hundreds, and training goes into undoing them.
Prototypes of half the size are as long in 160 dimensions as those are in 40."""


class TokenAttention(nn.Module):
    """Scaled dot-product attention of tokens among themselves, in one or several heads."""

    heads: int = 1

    @nn.compact
    def __call__(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Attended tokens `[batch, tokens, features]` and alpha `[batch, heads, tokens, tokens]` (query, key)."""
        features = tokens.shape[-1]
        if features % self.heads:
            raise ValueError(
                f"method.heads = {self.heads} does not divide the {features} features of a token "
                "(the last of encoder.filters)"
            )
        size = features // self.heads

        def project(name: str) -> jax.Array:
            return nn.DenseGeneral((self.heads, size), name=name)(tokens)

        query, key, value = project("query"), project("key"), project("value")
        highest = lax.Precision.HIGHEST
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, precision=highest) / size**0.5
        alpha = ops.softmax(scores)
        attended = jnp.einsum("bhqk,bkhd->bqhd", alpha, value, precision=highest).reshape(tokens.shape)
        if self.heads > 1:
            attended = nn.Dense(features, name="join")(attended)
        return attended, alpha


class Network(nn.Module):
    """Autoencoder with attention between its halves, and the head that decides."""

    autoencoder: nn.Module
    heads: int
    head: str
    count: int
    classes: int

    def setup(self) -> None:
        self.attention = TokenAttention(self.heads)
        if self.head == "linear":
            self.layer = nn.Dense(self.classes)
        else:
            self.layer = PrototypeLayer(self.count, self.classes, PROTOTYPE_SCALE, WEIGHT_SCALE)

    def decode(self, latent: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
        """Images `[n, *shape]` in [0, 1] of attended latents `[n, size]`."""
        maps = latent.reshape(len(latent), *self.autoencoder.latent_shape(shape))
        return nn.sigmoid(self.autoencoder(maps, shape))

    def __call__(self, inputs: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        """Logits `[batch, classes]` of images; the attended latents `[batch, size]`, alpha, logits of pixels, and with
        the head "distances" the squared distances `[batch, prototypes]`."""
        maps = self.autoencoder(inputs)
        attended, alpha = self.attention(maps.reshape(len(maps), -1, maps.shape[-1]))
        latent = attended.reshape(len(maps), -1)
        made = {
            "latent": latent,
            "attention": alpha,
            "reconstruction": self.autoencoder(attended.reshape(maps.shape), inputs.shape[1:]),
        }
        if self.head == "linear":
            return self.layer(latent), made
        logits, distances = self.layer(latent)
        return logits, {**made, "distances": distances}


def build(autoencoder: nn.Module, classes: int, settings: AttentionAutoencoderSettings) -> Method:
    """The attention autoencoder as a method; with the head "linear" its predictions have an empty support.

    Args:
      autoencoder: module `inputs -> maps` and `(maps, shape) -> logits of pixels`.
      classes: number of classes.
      settings: the method's settings.
    """
    network = Network(autoencoder, settings.heads, settings.head, settings.prototypes, classes)

    def init(key: jax.Array, batch: Batch) -> Variables:
        return network.init(key, batch["inputs"])

    def loss(variables: Variables, batch: Batch, key: jax.Array, step: jax.Array):
        logits, made = network.apply(variables, batch["inputs"])
        terms = {
            "loss_class": ops.cross_entropy(logits, target_of(batch)).mean(),
            "loss_reconstruction": optax.sigmoid_binary_cross_entropy(made["reconstruction"], batch["inputs"]).mean(),
            "loss_attention": from_uniform(made["attention"]).mean(),
        }
        weights = (settings.class_weight, settings.reconstruction_weight, settings.attention_weight)
        total = sum(weight * term for weight, term in zip(weights, terms.values(), strict=True))
        correct = (jnp.argmax(logits, axis=-1) == batch["label"]).mean(dtype=jnp.float32)
        return total, ({}, {**terms, f"accuracy_{'encoder' if settings.head == 'linear' else 'prototypes'}": correct})

    def encode(variables: Variables, inputs: jax.Array) -> dict[str, jax.Array]:
        return {"latent": network.apply(variables, inputs)[1]["latent"]}

    def memory(variables: Variables, database: CandidateDatabase) -> CandidateDatabase:
        if settings.head == "linear":
            return database
        return nearest_examples(variables["params"]["layer"]["prototypes"], database)

    def predict(variables: Variables, memory: CandidateDatabase, batch: Batch, width: int) -> Prediction:
        logits, made = network.apply(variables, batch["inputs"])
        if settings.head == "linear":
            return without_support(logits, width)
        return decided(logits, made["distances"], memory, width)

    def views(variables: Variables, memory: CandidateDatabase, batch: Batch) -> dict[str, jax.Array]:
        logits, made = network.apply(variables, batch["inputs"])
        shape = batch["inputs"].shape[1:]
        height, width, features = autoencoder.latent_shape(shape)
        footprints = autoencoder.footprints(shape)
        equal = footprints.mean(axis=0)
        relative = np.where(equal > 0, footprints / np.where(equal > 0, equal, 1), 1)
        # What a token gets from all heads and all tokens that look at it, on average. In the image it is 1 where equal
        # attention would be as high: footprints crowd in the middle, which says nothing of attention.
        received = made["attention"].mean(axis=(1, 2))
        shown = {
            "reconstructions": nn.sigmoid(made["reconstruction"]),
            "image_to_class": logits,
            "feature_to_image": made["latent"].reshape(len(logits), -1, features).sum(axis=1).T,
            "attention": received.reshape(-1, height, width),
            "attention_in_image": jnp.einsum("bt,tyx->byx", received, relative),
        }
        if settings.head == "distances":
            shown |= views_of_prototypes(network, variables, memory, shape)
        return shown

    return Method(init, loss, encode, predict, memory, views, soft_labels=True)


def from_uniform(alpha: jax.Array) -> jax.Array:
    """KL(alpha || uniform) = sum_k alpha_k log(n alpha_k) of each row `[..., n]`, in nats: 0 for equal weights."""
    n = alpha.shape[-1]
    return jnp.log(n) - ops.weight_entropy(alpha.reshape(-1, n), 1e-9).reshape(alpha.shape[:-1])
