"""Which concepts of a codebook are present in a feature map (ProtoQuant, section 3.3).

    p_ij(m) = softmax over codes of cos(z_ij, c_m) / temperature        (equation 6)
    s_m     = max_ij p_ij(m)                                            (equation 8)

The paper writes the temperature as a factor alpha = 0.1, which would make the softmax flat; it divides, as in the code.

A code that is not active takes no part in the softmax. Taking it out of the codebook then leaves every bit of the other
shares as it is: products are computed in panels of `PANEL` codes, so that each is rounded in the same way wherever its
code stands, and what is summed over codes is summed by `order_free_sum`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import export, lax

PANEL = 384
"""Codes of a panel: a multiple of the rows and lanes that matrix products of any kind go by, or the last codes would be
rounded in another way than the first."""

_SHARES_AT_ONCE = 1 << 22
"""Shares `[positions, codes]` that `presence` holds at once."""

_BITS = 13
"""Bits of each of the two parts in which `order_free_sum` counts."""


def concept_shares(vectors: jax.Array, codes: jax.Array, temperature: float, active: jax.Array) -> jax.Array:
    """p of equation 6, float32 `[..., codes]`, 0 for codes that are not active.

    Args:
      vectors: floating `[..., d]`, the features of positions.
      codes: floating `[codes, d]`.
      temperature: positive.
      active: bool `[codes]`, at least one of them.

    Raises:
      ValueError: shapes that do not fit each other, or a temperature that is not positive.
    """
    _check(vectors, codes, temperature, active)
    flat = vectors.reshape(-1, vectors.shape[-1])
    shares = _shares(flat, *_panels(codes, active), temperature)
    return jnp.moveaxis(shares, 0, 1).reshape(len(flat), -1)[:, : len(codes)].reshape(*vectors.shape[:-1], len(codes))


def presence(
    vectors: jax.Array, codes: jax.Array, temperature: float, active: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """s of equation 8 and the positions where it is reached, without all shares at once.

    Differentiable; shares are then computed a second time rather than kept.

    Args:
      vectors: floating `[batch, positions, d]`.
      codes: floating `[codes, d]`.
      temperature: positive.
      active: bool `[codes]`, at least one of them.

    Returns:
      scores float32 `[batch, codes]`, and the first position of each maximum, int32 `[batch, codes]`.

    Raises:
      ValueError: as `concept_shares`.
    """
    _check(vectors, codes, temperature, active)
    if vectors.ndim != 3:
        raise ValueError(f"vectors must be [batch, positions, d], got shape {vectors.shape}")
    panels, taking_part = _panels(codes, active)

    def shares(flat: jax.Array) -> jax.Array:
        return _shares(flat, panels, taking_part, temperature)

    return _highest(vectors, shares, len(codes), len(panels))


def most_similar(vectors: jax.Array, codes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """max_ij cos(z_ij, c_m) of every example and code, and the position where it is reached.

    Args:
      vectors: floating `[batch, positions, d]`.
      codes: floating `[codes, d]`.

    Returns:
      cosines float32 `[batch, codes]`, and the first position of each maximum, int32 `[batch, codes]`.

    Raises:
      ValueError: shapes that do not fit each other.
    """
    active = jnp.ones(codes.shape[:1], bool)
    _check(vectors, codes, 1.0, active)
    panels, _ = _panels(codes, active)
    return _highest(vectors, lambda flat: _cosines(_directions(flat), panels), len(codes), len(panels))


def _highest(
    vectors: jax.Array, values: Callable[[jax.Array], jax.Array], codes: int, panels: int
) -> tuple[jax.Array, jax.Array]:
    """The maxima over positions of `values` `[panels, vectors, PANEL]`, a few examples at a time, and their places."""
    batch, positions, _ = vectors.shape
    # Of a function that is exported for any batch, one example at a time.
    is_open = export.is_symbolic_dim(batch)
    together = 1 if is_open else max(1, min(batch, _SHARES_AT_ONCE // (positions * panels * PANEL)))

    @jax.checkpoint
    def of_examples(some: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = values(some.reshape(-1, some.shape[-1])).reshape(panels, len(some), positions, PANEL)
        highest = found.max(axis=2)
        numbers = lax.broadcasted_iota(jnp.int32, found.shape, 2)
        places = jnp.where(found == highest[:, :, None], numbers, positions - 1).min(axis=2)
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(len(some), -1), (highest, places))

    if is_open:
        alone = lax.map(of_examples, vectors[:, None])
        return jax.tree.map(lambda x: x[:, 0, :codes], alone)
    whole = batch // together * together
    parts = []
    if whole:
        blocks = vectors[:whole].reshape(-1, together, *vectors.shape[1:])
        parts.append(jax.tree.map(lambda x: x.reshape(whole, -1), lax.map(of_examples, blocks)))
    if batch > whole:
        parts.append(of_examples(vectors[whole:]))
    return jax.tree.map(lambda *x: jnp.concatenate(x)[:, :codes], *parts)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def order_free_sum(x: jax.Array, axis: int | tuple[int, ...] = -1) -> jax.Array:
    """The sum of numbers that are at least 0, the same to the last bit in any order and with any zeros between them.

    Every number is counted in units of 2^-26 of (at most twice) the largest one, in two integers, whose sums are exact.
    The largest relative error is that of a float32 sum, about 1e-7 times the root of how many there are.

    Args:
      x: float32, at least 0, at most 2^18 along the axes.
      axis: what is summed over.

    Raises:
      ValueError: there are more numbers than the integers hold.
    """
    axes = (axis,) if isinstance(axis, int) else axis
    count = 1
    for each in axes:
        count *= x.shape[each]
    if count > 1 << 31 - _BITS:
        raise ValueError(f"{count} numbers are too many for an exact sum; at most {1 << 31 - _BITS}")
    _, exponent = jnp.frexp(x.max(axis=axes, keepdims=True))
    one = jnp.float32(1)
    scaled = x * jnp.ldexp(one, _BITS - exponent)
    upper = jnp.floor(scaled)
    lower = jnp.round((scaled - upper) * 2**_BITS)
    upper, lower = (part.astype(jnp.int32).sum(axis=axes).astype(jnp.float32) for part in (upper, lower))
    return (upper + lower / 2**_BITS) * jnp.ldexp(one, exponent - _BITS).reshape(upper.shape)


@order_free_sum.defjvp
def _order_free_sum_jvp(axis, primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    return order_free_sum(primals[0], axis), tangents[0].sum(axis=axis)


def _panels(codes: jax.Array, active: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The directions of the codes `[panels, PANEL, d]` and which take part `[panels, PANEL]`; zeros fill up."""
    missing = -len(codes) % PANEL
    padded = jnp.pad(codes, [(0, missing), (0, 0)]).reshape(-1, PANEL, codes.shape[1])
    # Panel by panel: lengths of all codes at once would be rounded in a way that depends on how many there are.
    return lax.map(_directions, padded), jnp.pad(active, (0, missing)).reshape(-1, PANEL)


def _shares(vectors: jax.Array, panels: jax.Array, active: jax.Array, temperature: float) -> jax.Array:
    """float32 `[panels, vectors, PANEL]`."""
    scores = jnp.where(active[:, None, :], _cosines(_directions(vectors), panels) / temperature, -jnp.inf)
    top = lax.stop_gradient(scores.max(axis=(0, 2), keepdims=True))
    weights = jnp.exp(scores - top)
    return weights / order_free_sum(weights, (0, 2))[None, :, None]


def _cosines(directions: jax.Array, panels: jax.Array) -> jax.Array:
    """float32 `[panels, vectors, PANEL]`."""

    def of_panel(panel: jax.Array) -> jax.Array:
        return jnp.einsum("vd,cd->vc", directions, panel, precision=lax.Precision.HIGHEST)

    return lax.map(of_panel, panels)


def _directions(vectors: jax.Array) -> jax.Array:
    """Vectors of length 1, float32; one of zeros stays, and has no derivative."""
    vectors = vectors.astype(jnp.float32)
    squares = jnp.square(vectors).sum(axis=-1, keepdims=True)
    there = squares > 0
    return jnp.where(there, vectors * lax.rsqrt(jnp.where(there, squares, 1)), 0)


def _check(vectors: jax.Array, codes: jax.Array, temperature: float, active: jax.Array) -> None:
    if codes.ndim != 2 or vectors.shape[-1] != codes.shape[1]:
        raise ValueError(f"vectors [..., d] and codes [codes, d] were expected, got {vectors.shape} and {codes.shape}")
    if active.shape != codes.shape[:1] or active.dtype != jnp.bool_:
        raise ValueError(f"active must be bool [{len(codes)}], got {active.dtype} of shape {active.shape}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
