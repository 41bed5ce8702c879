"""The terms of the losses, one number an example."""

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits) at the label, or -sum_m q_m log softmax(logits)_m with soft labels q.

    Args:
      logits: floating `[batch, classes]`.
      labels: integer `[batch]`, or floating `[batch, classes]`, rows that sum to 1.

    Returns:
      float32 `[batch]`. Under a transformation such as `jax.jit`, NaN for a label that is not a class.

    Raises:
      ValueError: shapes that do not fit each other, labels that are not integers, or, where values are known, a label
        that is not a class.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    soft = jnp.issubdtype(labels.dtype, jnp.floating) and labels.ndim == 2
    if logits.ndim != 2 or labels.shape != (logits.shape if soft else logits.shape[:1]):
        raise ValueError(
            "logits [batch, classes] and labels [batch], or soft ones [batch, classes], were expected, got "
            f"{logits.shape}, {labels.shape}"
        )
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if soft:
        return -(labels * jax.nn.log_softmax(logits, axis=1)).sum(axis=1)
    check_labels(labels, logits.shape[1])
    known = (labels >= 0) & (labels < logits.shape[1])
    chosen = jnp.take_along_axis(logits, jnp.where(known, labels, 0)[:, None], axis=1)[:, 0]
    return jnp.where(known, jax.nn.logsumexp(logits, axis=1) - chosen, jnp.nan)


def weight_entropy(weights: jax.Array, eps: float) -> jax.Array:
    """-sum_j p_j log(p_j + eps) (ProtoAttend, equation 2): small where few candidates carry the weight.

    Args:
      weights: floating `[batch, candidates]`, at least 0.
      eps: positive; it keeps the derivative finite, log(eps), where a weight is 0.

    Returns:
      float32 `[batch]`.

    Raises:
      ValueError: weights do not have two axes, or eps is not positive.
    """
    weights = jnp.asarray(weights)
    if weights.ndim != 2:
        raise ValueError(f"weights must be [batch, candidates], got shape {weights.shape}")
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}: the derivative at a weight of 0 would be infinite")
    weights = weights.astype(jnp.promote_types(weights.dtype, jnp.float32))
    return -(weights * jnp.log(weights + eps)).sum(axis=1)


def check_labels(labels: jax.Array, classes: int) -> None:
    """Refuses labels that are not integers or, where their values are known, not in [0, classes).

    Raises:
      ValueError: naming the first such label and its place.
    """
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    wrong = (labels < 0) | (labels >= classes)
    if isinstance(wrong, jax.core.Tracer):
        return
    if wrong.any():
        place = int(wrong.argmax())
        raise ValueError(f"label {int(labels[place])} at position {place} is not one of the {classes} classes from 0")
