"""Purity of prototypes whose part is known."""

import numpy as np
import pytest

from protojax import metrics
from protojax.data import shapes

IMAGES = 12
ANIMALS = [shapes.draw(seed % 6, seed) for seed in range(IMAGES)]
POINTS = np.stack([animal.points for animal in ANIMALS])
SEEN = np.ones((IMAGES, shapes.PARTS), bool)


def looking_at(*parts):
    """A patch of 4 pixels around these parts, one after the other from image to image."""
    middle = POINTS[np.arange(IMAGES), np.resize(parts, IMAGES)]
    return np.concatenate([middle - 2, middle + 2], axis=1)


def measured(boxes, visible=SEEN, scores=None, weights=None, **options):
    boxes = np.stack(boxes, axis=1)
    scores = np.ones(boxes.shape[:2]) if scores is None else scores
    weights = np.ones((2, boxes.shape[1])) if weights is None else weights
    return metrics.purity(scores, boxes, POINTS, visible, weights, **options)


def test_one_part_is_pure_and_two_are_half_as_pure():
    nowhere = np.zeros((IMAGES, 4))
    found = measured([looking_at(3), looking_at(0, 1), nowhere])
    np.testing.assert_allclose(found.values, [1, 0.5, 0])
    assert found.parts[0] == 3 and found.parts[1] in (0, 1)
    assert found.mean == pytest.approx(0.5) and found.spread == pytest.approx(np.std([1, 0.5, 0]))


def test_left_and_right_are_one_part():
    found = measured([looking_at(0, 1), looking_at(2, 0)], pairs=[(0, 1)])
    np.testing.assert_allclose(found.values, [1, 0.5])


def test_only_images_where_a_part_is_visible_count_for_it():
    # A prototype that shows part 0, which is hidden in every second image, and something else there.
    visible = SEEN.copy()
    visible[1::2, 0] = False
    found = measured([looking_at(0, 4)], visible)
    assert found.values[0] == 1 and found.parts[0] == 0
    hidden = measured([looking_at(0)], np.zeros_like(SEEN))
    assert hidden.values[0] == 0


def test_only_the_highest_images_count():
    boxes = looking_at(2)
    boxes[10:] = 0
    scores = np.arange(IMAGES, 0, -1.0)[:, None]
    assert measured([boxes], scores=scores).values[0] == 1
    assert measured([boxes], scores=scores[::-1]).values[0] == pytest.approx(0.8)
    assert measured([boxes], scores=scores[::-1], images=4).values[0] == pytest.approx(0.5)


def test_prototypes_without_weight_are_left_out():
    weights = np.array([[0, 1e-6, 0.5], [1e-4, 1e-6, 0]])
    found = measured([looking_at(0), looking_at(0, 1), looking_at(1)], weights=weights)
    np.testing.assert_array_equal(found.prototypes, [0, 2])
    assert found.mean == 1
    assert np.isnan(measured([looking_at(0)], weights=np.zeros((2, 1))).mean)


def test_bad_input():
    with pytest.raises(ValueError, match=r"weights \(2, 3\) are not \[classes, 1\]"):
        measured([looking_at(0)], weights=np.ones((2, 3)))
    with pytest.raises(ValueError, match="visible must be bool"):
        measured([looking_at(0)], SEEN.astype(int))
    with pytest.raises(ValueError, match="images must be at least 1, got 0"):
        measured([looking_at(0)], images=0)
