"""Weights on the simplex: sparsemax (Martins and Astudillo 2016, arXiv 1602.02068) and softmax, with one interface.

    sparsemax(z)_j = max(z_j - tau, 0)      tau such that the weights sum to 1
    softmax(z)_j   = exp(z_j - tau)         tau = log sum_j exp(z_j)

Neither sorts; `threshold.py` finds the tau of sparsemax.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from protojax.ops import threshold


class Parts(NamedTuple):
    """Weights and what they were made of; `axis` of the scores is reduced in `threshold` and `size`."""

    weights: jax.Array
    """float32, the shape of the scores; at least 0, each row sums to 1."""
    threshold: jax.Array
    """float32, tau above. It is rounded to the scale of the scores: weights recomputed from it are less precise."""
    size: jax.Array
    """int32, the number of positive weights: the support."""


def sparsemax(scores: jax.Array, axis: int = -1, where: jax.Array | None = None) -> jax.Array:
    """The Euclidean projection of scores onto the simplex: weights most of which are exactly 0.

    Computed in float32 (in float64 for float64 scores) and exact to its rounding. Differentiable any number of times,
    in both directions. At a score that equals the threshold, the derivative is that of a candidate outside the support.

    Args:
      scores: floating `[..., candidates, ...]`; -inf gets weight 0.
      axis: the axis of the candidates.
      where: bool, broadcast to the scores; candidates where it is False get weight exactly 0, and no derivative.

    Returns:
      float32 weights of the shape of the scores. A row with NaN or +inf among its unmasked scores is NaN. A row without
      any candidate (all masked or -inf) is all 0, with derivative 0, under a transformation such as `jax.jit`; outside,
      it raises.

    Raises:
      ValueError: scores are not floating, `axis` is not one of theirs or is empty, `where` is not boolean or does not
        broadcast to them, or, where values are known, a row has no candidate.
    """
    return sparsemax_parts(scores, axis, where).weights


def softmax(scores: jax.Array, axis: int = -1, where: jax.Array | None = None) -> jax.Array:
    """exp(scores), normalised to sum to 1: the same contract as `sparsemax`, with every unmasked weight positive."""
    return softmax_parts(scores, axis, where).weights


def sparsemax_parts(scores: jax.Array, axis: int = -1, where: jax.Array | None = None) -> Parts:
    """`sparsemax` with its threshold (+inf for a row without candidates) and support size."""
    z = _prepare(scores, axis, where)
    weights, tau, size = _project(z)
    _check_rows(tau == jnp.inf, scores, axis)
    return Parts(_restore(weights, axis, where), tau[..., 0], size[..., 0])


def softmax_parts(scores: jax.Array, axis: int = -1, where: jax.Array | None = None) -> Parts:
    """`softmax` with its log-sum-exp (-inf for a row without candidates) and the count of weights that are not 0."""
    z = _prepare(scores, axis, where)
    weights, tau = _normalise(z)
    _check_rows(tau == -jnp.inf, scores, axis)
    weights = _restore(weights, axis, where)
    return Parts(weights, tau[..., 0], (weights > 0).sum(axis=axis, dtype=jnp.int32))


def sparsemax_threshold(
    scores: jax.Array, axis: int = -1, where: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """The threshold and the support size of `sparsemax_parts`, without the weights: nothing of their size is written.

    Returns:
      float32 threshold, differentiable, and int32 size, both without `axis`.

    Raises:
      ValueError: as `sparsemax`.
    """
    tau, size = _threshold(_prepare(scores, axis, where))
    _check_rows(tau == jnp.inf, scores, axis)
    return tau[..., 0], size[..., 0]


def _prepare(scores: jax.Array, axis: int, where: jax.Array | None) -> jax.Array:
    """Checked scores in float32 or float64, with the candidates last and -inf where they are masked."""
    scores = jnp.asarray(scores)
    _check_scores(scores, axis)
    z = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    if where is not None:
        where = jnp.asarray(where)
        _check_mask(where, scores)
        z = jnp.where(where, z, -jnp.inf)
    return _move(z, axis, -1)


def _restore(weights: jax.Array, axis: int, where: jax.Array | None) -> jax.Array:
    weights = _move(weights, -1, axis)
    # Only a row of NaN has anything to clear here.
    return weights if where is None else jnp.where(where, weights, 0)


def _move(x: jax.Array, source: int, destination: int) -> jax.Array:
    # Outside jit, moving an axis to where it is would copy.
    return x if (source - destination) % x.ndim == 0 else jnp.moveaxis(x, source, destination)


def _check_scores(scores: jax.Array, axis: int) -> None:
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        raise ValueError(f"scores must be floating, got {scores.dtype}; convert them first")
    if not -scores.ndim <= axis < scores.ndim:
        raise ValueError(f"axis {axis} is not an axis of scores of shape {scores.shape}")
    if scores.shape[axis] == 0:
        raise ValueError(f"scores of shape {scores.shape} have no candidates along axis {axis}")


def _check_mask(where: jax.Array, scores: jax.Array) -> None:
    if where.dtype != jnp.bool_:
        raise ValueError(f"where must be boolean, got {where.dtype}")
    fits = where.ndim == scores.ndim and all(w in (1, s) for w, s in zip(where.shape, scores.shape, strict=True))
    if not fits:
        raise ValueError(f"where of shape {where.shape} does not broadcast to scores of shape {scores.shape}")


def _check_rows(empty: jax.Array, scores: jax.Array, axis: int) -> None:
    if isinstance(empty, jax.core.Tracer):
        return
    if empty.any():
        row = tuple(int(i[0]) for i in jnp.nonzero(empty))[:-1] or (0,)
        name = row[0] if len(row) == 1 else row
        shape = jnp.shape(scores)
        raise ValueError(
            f"row {name} of scores of shape {shape} has no candidate: all {shape[axis]} along axis {axis} are "
            f"masked or -inf ({int(empty.sum())} such rows); leave at least one unmasked"
        )


@jax.custom_jvp
@jax.jit
def _project(z: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sparsemax weights along the last axis, the threshold `[..., 1]` and the support size `[..., 1]`."""
    root = threshold.solve(z)
    return threshold.weights(z, root), _tau(root), root.size


def _tau(root: threshold.Root) -> jax.Array:
    # An empty row has no threshold; one of NaN has no size either, but stays NaN.
    return jnp.where((root.size == 0) & ~jnp.isnan(root.rest), jnp.inf, root.top + (root.low + root.rest))


@_project.defjvp
def _project_jvp(primals: tuple, tangents: tuple) -> tuple:
    """d weights_j = dz_j - d tau inside the support, 0 outside; d tau is the mean of dz over the support."""
    (z,), (dz,) = primals, tangents
    weights, tau, size = _project(z)
    # The sign, not a comparison: a row of NaN keeps derivatives of NaN.
    support = jnp.sign(weights)
    d_tau = (support * dz).sum(axis=-1, keepdims=True) / jnp.maximum(size, 1)
    return (weights, tau, size), (support * (dz - d_tau), d_tau, np.zeros(size.shape, jax.dtypes.float0))


@jax.custom_jvp
@jax.jit
def _threshold(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The threshold `[..., 1]` and the support size `[..., 1]` of sparsemax along the last axis."""
    root = threshold.solve(z)
    return _tau(root), root.size


@_threshold.defjvp
def _threshold_jvp(primals: tuple, tangents: tuple) -> tuple:
    (_, *parts), (_, *slopes) = jax.jvp(_project, primals, tangents)
    return tuple(parts), tuple(slopes)


@jax.custom_jvp
@jax.jit
def _normalise(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Softmax weights along the last axis, and the log-sum-exp `[..., 1]`."""
    top = z.max(axis=-1, keepdims=True)
    top = jnp.where(top == -jnp.inf, 0, top)
    terms = jnp.exp(z - top)
    total = terms.sum(axis=-1, keepdims=True)
    # Not by the maximum: that of XLA on CPU may be -inf for a row of NaN.
    empty = total == 0
    return terms / jnp.where(empty, 1, total), jnp.where(empty, -jnp.inf, top + jnp.log(total))


@_normalise.defjvp
def _normalise_jvp(primals: tuple, tangents: tuple) -> tuple:
    """d weights_j = weights_j (dz_j - d tau); d tau is the mean of dz under the weights."""
    (z,), (dz,) = primals, tangents
    weights, tau = _normalise(z)
    d_tau = (weights * dz).sum(axis=-1, keepdims=True)
    return (weights, tau), (weights * (dz - d_tau), d_tau)
