"""Label noise: wrong labels that stay with their examples."""

import jax
import jax.numpy as jnp

# Separates the noise from everything else that is drawn from the same seed.
_STREAM = 0x4E6F6973


def noisy_labels(labels: jax.Array, ids: jax.Array, rate: float, classes: int, seed: int) -> jax.Array:
    """Replaces a share of the labels, each by one of the wrong classes with equal probability (ProtoAttend, table 3).

    Whether and how a label changes depends on (seed, id) and the label alone, so it is the same at every step, in every
    batch and on every device.

    Args:
      labels: int32 `[examples]`, in `[0, classes)`.
      ids: int32 `[examples]`.
      rate: probability that a label is replaced, in `[0, 1]`.
      classes: number of classes, at least 2.
      seed: seed of the noise.

    Returns:
      int32 `[examples]`.

    Raises:
      ValueError: an impossible rate, a single class, or labels and ids of different shapes.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"data.label_noise = {rate} is not a share between 0 and 1")
    if classes < 2:
        raise ValueError(f"data.label_noise needs a wrong class to choose, but there are {classes} classes")
    if labels.shape != ids.shape or labels.ndim != 1:
        raise ValueError(f"labels and ids must be two vectors of one length, got {labels.shape} and {ids.shape}")
    key = jax.random.fold_in(jax.random.key(seed), _STREAM)

    def draw(example: jax.Array) -> tuple[jax.Array, jax.Array]:
        rate_key, class_key = jax.random.split(jax.random.fold_in(key, example))
        return jax.random.bernoulli(rate_key, rate), jax.random.randint(class_key, (), 1, classes)

    replaced, offset = jax.vmap(draw)(jnp.asarray(ids))
    labels = jnp.asarray(labels, jnp.int32)
    return jnp.where(replaced, (labels + offset) % classes, labels)
