"""A prototype that looks where it says loses nothing; one that looks elsewhere does; the measures by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax import metrics
from protojax.data import shapes
from protojax.metrics import Observed

ANIMALS = [shapes.draw(0, seed) for seed in range(4)]
IMAGES = jnp.asarray(np.stack([a.image for a in ANIMALS]) / 127.5 - 1, jnp.float32)
PART = np.stack([a.masks[0] for a in ANIMALS])
REST = ~np.stack([a.masks.any(axis=0) for a in ANIMALS])


def honest(images):
    """Activation maps that see the colour of a part and nothing else."""
    return jnp.where(PART, 1 + images[..., 0], 0.0)


def misaligned(images):
    """Maps that are high at the part, but by what stands in the corner."""
    corner = images[:, :4, :4].mean(axis=(1, 2, 3))
    return jnp.where(PART, 2 + corner[:, None, None], 0.0)


def observed(maps, images):
    found = np.asarray(maps(images))
    scores = np.stack([found.max(axis=(1, 2)), np.full(4, 1.8)], axis=1)
    return Observed(found, scores, np.zeros(4, int))


def measured(maps, mode):
    # Of 1024 pixels a part has 16: the box is that of the highest hundredth, with a margin that leaves the corner free.
    shown = metrics.important_box(np.asarray(maps(IMAGES)), percentile=99, margin=2)
    changed = metrics.attack(lambda x: maps(x).max(axis=(1, 2)), IMAGES, shown, mode, jax.random.key(0))
    kept = np.asarray(changed) == np.asarray(IMAGES)
    assert kept[shown].all() and not kept[~shown].all()
    assert np.abs(changed - IMAGES).max() <= 0.4 + 1e-6
    owners = np.array([[True, False], [False, True]])
    targets = np.zeros(4, int)
    before, after = observed(maps, IMAGES), observed(maps, changed)
    return metrics.misalignment(before, after, targets, np.zeros(4, int), owners)


@pytest.mark.parametrize("mode", ["noise", "pgd"])
def test_an_honest_prototype_loses_nothing(mode):
    found = measured(honest, mode)
    assert found == (0, 0, 0, 0, 100, 100)


def test_only_the_gradient_finds_what_a_misaligned_prototype_leans_on():
    noise, pgd = measured(misaligned, "noise"), measured(misaligned, "pgd")
    # From 2 + (40 / 127.5 - 1) down: 40 steps of 0.01 take a random start to -0.4 or, where it was above 0, to -0.2 on
    # average. Noise alone cancels out over 48 values.
    assert pgd.pac == pytest.approx(100 * 0.3 / (1 + 40 / 127.5), rel=0.05)
    assert abs(noise.pac) < 8
    assert pgd.plc == noise.plc == 0


def test_the_box_is_that_of_the_highest_and_a_margin():
    maps = np.zeros((2, 40, 50))
    maps[0, 20, 30] = maps[0, 22, 27] = 1
    maps[1, 0:3, 48:50] = 2
    shown = metrics.important_box(maps, percentile=99.9, margin=4)
    assert shown[0].sum() == 11 * 12 and shown[0, 16:27, 23:35].all()
    assert shown[1].sum() == 7 * 6 and shown[1, :7, 44:].all()


def test_the_measures_by_hand():
    maps = np.zeros((2, 10, 10))
    maps[:, 0] = 1.0
    moved = np.zeros((2, 10, 10))
    # The first loses half and stays, the second keeps all and moves half of its place.
    moved[0, 0], moved[1, 0, 5:], moved[1, 1, :5] = 0.5, 1.0, 1.0
    before = Observed(maps, np.array([[1.0, 0.9, 0.2, 1.1]] * 2), np.array([0, 0]))
    after = Observed(moved, np.array([[0.5, 0.9, 0.6, 1.1], [1.0, 1.2, 0.2, 0.3]]), np.array([1, 0]))
    owners = np.array([[True, True, False, False], [False, True, True, True]])
    found = metrics.misalignment(before, after, [0, 0], [0, 0], owners)
    assert found.pac == pytest.approx(100 * (0.5 + 0) / 2)
    assert found.plc == pytest.approx(100 * (0 + (1 - 5 / 15)) / 2)
    # Prototype 2 rises above the target in the first; 1 is of the same class, 3 was above before.
    assert found.prc == 0.5
    assert (found.accuracy_before, found.accuracy_after, found.ac) == (100, 50, 50)


def test_bad_input():
    with pytest.raises(ValueError, match="mode must be 'noise' or 'pgd', got 'fgsm'"):
        metrics.attack(lambda x: x, IMAGES, PART, "fgsm", jax.random.key(0))
    with pytest.raises(ValueError, match="do not fit each other"):
        metrics.attack(lambda x: x, IMAGES, PART[:2], "pgd", jax.random.key(0))
    nothing = Observed(np.zeros((1, 3, 3)), np.zeros((1, 2)), np.zeros(1, int))
    with pytest.raises(ValueError, match="the target of image 0 has an activation of 0; it must be positive"):
        metrics.misalignment(nothing, nothing, [0], [0], np.ones((2, 2), bool))
    other = nothing._replace(scores=np.zeros((1, 3)))
    with pytest.raises(ValueError, match=r"scores of 1 images differ in shape: \(1, 2\) before, \(1, 3\) after"):
        metrics.misalignment(nothing, other, [0], [0], np.ones((2, 2), bool))
