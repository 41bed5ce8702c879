"""Weights on the simplex: sparsemax (Martins and Astudillo 2016, arXiv 1602.02068) and softmax, with one interface.

    sparsemax(z)_j = max(z_j - tau, 0)      tau such that the weights sum to 1
    softmax(z)_j   = exp(z_j - tau)         tau = log sum_j exp(z_j)

Neither sorts. With u = z - max z, the threshold of sparsemax is the root t of the convex, decreasing, piecewise linear
sum_j max(u_j - t, 0) - 1, and lies in [-1, 0). Newton's step from the left, with S = {j: u_j > t}, is

    t <- (sum_S u_j - 1) / |S|

a sum of terms of one sign, so t keeps full relative precision, even where a million equal scores have weights of 1e-6.
Every step drops members from S and none comes back; a step that drops none has found t. The residual times the slope
falls at least fourfold a step, so that log2(candidates) + 13 steps exhaust float32; a million take up to 16.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_BLOCK = 1024
"""Scores summed in one go; sums of blocks are then summed, which keeps the rounding of a million terms near 1e-7."""


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
    return _parts(_project, scores, axis, where)


def softmax_parts(scores: jax.Array, axis: int = -1, where: jax.Array | None = None) -> Parts:
    """`softmax` with its log-sum-exp (-inf for a row without candidates) and the count of weights that are not 0."""
    return _parts(_normalise, scores, axis, where)


def _parts(solve: Callable, scores: jax.Array, axis: int, where: jax.Array | None) -> Parts:
    scores = jnp.asarray(scores)
    _check_scores(scores, axis)
    if where is not None:
        where = jnp.asarray(where)
        _check_mask(where, scores)
    z = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    if where is not None:
        z = jnp.where(where, z, -jnp.inf)
    _check_rows(z, axis)
    weights, threshold = solve(jnp.moveaxis(z, axis, -1))
    weights = jnp.moveaxis(weights, -1, axis)
    if where is not None:
        # Only a row of NaN has anything to clear here.
        weights = jnp.where(where, weights, 0)
    return Parts(weights, threshold[..., 0], (weights > 0).sum(axis=axis, dtype=jnp.int32))


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


def _check_rows(z: jax.Array, axis: int) -> None:
    empty = jnp.all(z == -jnp.inf, axis=axis)
    if isinstance(empty, jax.core.Tracer):
        return
    if empty.any():
        row = tuple(int(i[0]) for i in jnp.nonzero(jnp.atleast_1d(empty)))
        name = row[0] if len(row) == 1 else row
        raise ValueError(
            f"row {name} of scores of shape {z.shape} has no candidate: all {z.shape[axis]} along axis {axis} are "
            f"masked or -inf ({int(empty.sum())} such rows); leave at least one unmasked"
        )


def _shifted(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Scores relative to their row's maximum, and that maximum `[..., 1]`; a row of -inf stays as it is."""
    top = z.max(axis=-1, keepdims=True)
    return z - jnp.where(top == -jnp.inf, 0, top), top


@jax.custom_jvp
@jax.jit
def _project(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sparsemax weights along the last axis, and the threshold `[..., 1]`."""
    u, top = _shifted(z)

    def step(state: tuple) -> tuple:
        t, size, falling = state
        total, now = _sum_and_count(u, t)
        t_next = (total - 1) / jnp.maximum(now, 1)
        falling = now < size
        return jnp.where(falling, t_next, t), now, falling

    row = top.shape
    start = jnp.full(row, -1, z.dtype), jnp.full(row, z.shape[-1] + 1, jnp.int32), jnp.full(row, True)
    t, size, _ = lax.while_loop(lambda state: state[2].any(), step, start)
    over = u - t
    # Rounding t alone would move the sum of a large support by its size; the rest of the threshold repairs that.
    rest = (jnp.maximum(over, 0).sum(axis=-1, keepdims=True) - 1) / jnp.maximum(size, 1)
    weights = jnp.maximum(over - rest, 0)
    return weights, jnp.where(top == -jnp.inf, jnp.inf, top + (t + rest))


def _sum_and_count(u: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sum and the number of the entries of `u` `[..., n]` above `t` `[..., 1]`, each `[..., 1]`, in one read."""
    above = u > t
    kept = jnp.where(above, u, 0)
    whole = u.shape[-1] // _BLOCK * _BLOCK
    blocks = (*u.shape[:-1], -1, _BLOCK)
    total, count = _reduce(kept[..., whole:], above[..., whole:])
    if whole:
        totals, counts = _reduce(kept[..., :whole].reshape(blocks), above[..., :whole].reshape(blocks))
        total, count = total + totals.sum(axis=-1), count + counts.sum(axis=-1, dtype=jnp.int32)
    return total[..., None], count[..., None]


def _reduce(kept: jax.Array, above: jax.Array) -> tuple[jax.Array, jax.Array]:
    # XLA on CPU makes two sums over one array two reads and a copy, 60 times slower than this one reduction of pairs.
    return lax.reduce(
        (kept, above.astype(jnp.int32)),
        (jnp.zeros((), kept.dtype), jnp.int32(0)),
        lambda a, b: (a[0] + b[0], a[1] + b[1]),
        (kept.ndim - 1,),
    )


@_project.defjvp
def _project_jvp(primals: tuple, tangents: tuple) -> tuple:
    """d weights_j = dz_j - d tau inside the support, 0 outside; d tau is the mean of dz over the support."""
    (z,), (dz,) = primals, tangents
    weights, threshold = _project(z)
    # The sign, not a comparison: a row of NaN keeps derivatives of NaN.
    support = jnp.sign(weights)
    size = jnp.maximum((weights > 0).sum(axis=-1, keepdims=True, dtype=jnp.int32), 1)
    d_threshold = (support * dz).sum(axis=-1, keepdims=True) / size
    return (weights, threshold), (support * (dz - d_threshold), d_threshold)


@jax.custom_jvp
@jax.jit
def _normalise(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Softmax weights along the last axis, and the log-sum-exp `[..., 1]`."""
    u, top = _shifted(z)
    terms = jnp.exp(u)
    total = terms.sum(axis=-1, keepdims=True)
    empty = top == -jnp.inf
    return terms / jnp.where(empty, 1, total), jnp.where(empty, -jnp.inf, top + jnp.log(total))


@_normalise.defjvp
def _normalise_jvp(primals: tuple, tangents: tuple) -> tuple:
    """d weights_j = weights_j (dz_j - d tau); d tau is the mean of dz under the weights."""
    (z,), (dz,) = primals, tangents
    weights, threshold = _normalise(z)
    d_threshold = (weights * dz).sum(axis=-1, keepdims=True)
    return (weights, threshold), (weights * (dz - d_threshold), d_threshold)
