"""Spatial misalignment (Sacha et al. 2024): what becomes of a prototype when only what it does not show is changed.

A prototype claims to look at one place. Everything outside of that place is changed, and measured is

    PAC   how much of its activation is lost, in percent
    PLC   how far its place moves, 100 (1 - IoU) of where it is highest
    PRC   how many prototypes of other classes come to exceed it
    AC    how many percentage points of accuracy are lost

The attack is projected gradient descent on the activation. As released its gradient is exactly 0, so that what is
reported there is the effect of its random start: the mode `noise` is that, the mode `pgd` is what was meant.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Mode = Literal["noise", "pgd"]


class Observed(NamedTuple):
    """What a model makes of images, before or after the change."""

    maps: Any
    """`[images, height, width]`: the activation of the target prototype of each, at the size of the image."""
    scores: Any
    """`[images, prototypes]`: the presence of all prototypes."""
    predicted: Any
    """int `[images]`: the classes decided."""


class Misalignment(NamedTuple):
    """Means over images."""

    pac: float
    plc: float
    prc: float
    ac: float
    accuracy_before: float
    """In percent."""
    accuracy_after: float


def important_box(maps: Any, percentile: float = 95.0, margin: int = 10) -> np.ndarray:
    """The place that a prototype shows: the box around its highest activations, and a margin.

    Args:
      maps: `[images, height, width]`.
      percentile: activations from this percentile of the image on are the highest.
      margin: pixels on each side.

    Returns:
      bool `[images, height, width]`: True inside. What is False may be changed.
    """
    maps = np.asarray(maps)
    levels = np.percentile(maps, percentile, axis=(1, 2), keepdims=True)
    high = maps >= levels
    sides = []
    for axis in (2, 1):
        there = high.any(axis=axis)
        length = there.shape[1]
        first = np.maximum(there.argmax(axis=1) - margin, 0)
        last = np.minimum(length - 1 - there[:, ::-1].argmax(axis=1) + margin, length - 1)
        steps = np.arange(length)[None]
        sides.append((steps >= first[:, None]) & (steps <= last[:, None]))
    rows, columns = sides
    return rows[:, :, None] & columns[:, None, :]


def attack(
    activation: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    shown: Any,
    mode: Mode,
    key: jax.Array,
    limit: float = 0.4,
    step: float = 0.01,
    steps: int = 40,
) -> jax.Array:
    """Images changed outside of the shown place, so that the activation falls.

    Args:
      activation: images `[images, height, width, channels]`, standardised -> the target activation of each, `[images]`.
      images: float32, standardised: limits are in units of their standard deviation.
      shown: bool `[images, height, width]`: pixels that stay exactly as they are.
      mode: `noise` adds uniform noise; `pgd` goes on from there by steps against the sign of the gradient.
      key: of the noise.
      limit: the largest change of a value.
      step: of one step.
      steps: how many.

    Raises:
      ValueError: an unknown mode, or shapes that do not fit each other.
    """
    if mode not in ("noise", "pgd"):
        raise ValueError(f"mode must be 'noise' or 'pgd', got {mode!r}")
    free = ~jnp.asarray(shown)[..., None]
    if images.ndim != 4 or free.shape[:3] != images.shape[:3]:
        raise ValueError(f"images {images.shape} and the shown pixels {free.shape[:3]} do not fit each other")
    start = jnp.where(free, jax.random.uniform(key, images.shape, jnp.float32, -limit, limit), 0)
    if mode == "noise":
        return images + start
    slope = jax.grad(lambda change: activation(images + change).sum())

    def descend(_: int, change: jax.Array) -> jax.Array:
        moved = change - step * jnp.sign(slope(change))
        return jnp.where(free, jnp.clip(moved, -limit, limit), 0)

    return images + lax.fori_loop(0, steps, descend, start)


def misalignment(before: Observed, after: Observed, targets: Any, labels: Any, owners: Any) -> Misalignment:
    """The four measures.

    Args:
      before: of the images as they are.
      after: of the changed ones.
      targets: int `[images]`: the prototype that was attacked in each, one of its class.
      labels: int `[images]`: true classes.
      owners: bool `[classes, prototypes]`: which prototypes speak for a class.

    Raises:
      ValueError: shapes that do not fit each other, or a target without any activation before.
    """
    targets, labels, owners = np.asarray(targets), np.asarray(labels), np.asarray(owners, bool)
    first, second = (Observed(*map(np.asarray, observed)) for observed in (before, after))
    for name, a, b in zip(Observed._fields, first, second, strict=True):
        if a.shape != b.shape or a.shape[0] != len(labels):
            raise ValueError(f"{name} of {len(labels)} images differ in shape: {a.shape} before, {b.shape} after")
    rows = np.arange(len(labels))
    highest, left = first.maps.max(axis=(1, 2)), second.maps.max(axis=(1, 2))
    if (highest <= 0).any():
        place = int((highest <= 0).argmax())
        raise ValueError(f"the target of image {place} has an activation of {highest[place]:g}; it must be positive")
    others = ~owners[labels]
    above = [other.scores > other.scores[rows, targets][:, None] for other in (first, second)]
    masks = [x.maps > np.percentile(x.maps, 90, axis=(1, 2), keepdims=True) for x in (first, second)]
    union = np.logical_or(*masks).sum(axis=(1, 2))
    overlap = np.logical_and(*masks).sum(axis=(1, 2)) / np.maximum(union, 1)
    # Two maps that are the same everywhere have no highest place, and none that moved.
    overlap = np.where(union > 0, overlap, 1.0)
    accuracy = [100 * float((x.predicted == labels).mean()) for x in (first, second)]
    return Misalignment(
        pac=100 * float((1 - left / highest).mean()),
        plc=100 * float((1 - overlap).mean()),
        prc=float((others & above[1] & ~above[0]).sum(axis=1).mean()),
        ac=accuracy[0] - accuracy[1],
        accuracy_before=accuracy[0],
        accuracy_after=accuracy[1],
    )
