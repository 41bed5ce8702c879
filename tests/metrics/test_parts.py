"""Key-points in patches, left and right as one, larger masks."""

import numpy as np
import pytest
from scipy import ndimage

from protojax import metrics


def test_patches_cover_the_image_from_edge_to_edge():
    # 7 cells on 224 pixels, patches of 32: side by side.
    boxes = metrics.patch_boxes(np.arange(49), (7, 7), (224, 224))
    np.testing.assert_array_equal(
        boxes[[0, 6, 8, 48]], [[0, 0, 32, 32], [0, 192, 32, 224], [32, 32, 64, 64], [192, 192, 224, 224]]
    )
    # 26 cells: 7.68 pixels apart, which the protocol rounds to 8; the last patches end with the image.
    boxes = metrics.patch_boxes([[1, 25]], (26, 26), (224, 224))
    np.testing.assert_array_equal(boxes, [[[0, 8, 32, 40], [0, 192, 32, 224]]])
    np.testing.assert_array_equal(metrics.patch_boxes([0], (1, 1), (8, 8)), [[0, 0, 8, 8]])
    with pytest.raises(ValueError, match="cells of a 2x3 map are 0 to 5, got 6"):
        metrics.patch_boxes([6], (2, 3), (64, 64))


def test_inside_counts_the_edges():
    boxes = np.array([[[0, 0, 4, 4], [4, 4, 8, 8]]])
    points = np.array([[[4, 4], [0, 5], [8.1, 6]]])
    np.testing.assert_array_equal(metrics.inside(boxes, points), [[[True, False, False], [True, False, False]]])
    with pytest.raises(ValueError, match=r"got \(1, 2, 4\) and \(2, 3, 2\)"):
        metrics.inside(boxes, np.repeat(points, 2, axis=0))


def test_left_and_right_count_as_one():
    values = np.array([[True, False, False, True], [False, False, False, False]])
    np.testing.assert_array_equal(metrics.merged(values, [(0, 2), (1, 3)]), [[True, True], [False, False]])
    np.testing.assert_array_equal(metrics.merged([[1, 5, 7]], [(2, 0)]), [[5, 7]])
    with pytest.raises(ValueError, match="a part can be in one pair only"):
        metrics.merged(values, [(0, 1), (1, 2)])


@pytest.mark.parametrize("size", [1, 3, 5])
def test_dilation_is_that_of_a_square(size):
    masks = np.random.default_rng(size).random((2, 3, 9, 12)) < 0.05
    square = np.ones((1, 1, size, size), bool)
    np.testing.assert_array_equal(metrics.dilated(masks, size), ndimage.binary_dilation(masks, square))
    with pytest.raises(ValueError, match="has an odd side, got 4"):
        metrics.dilated(masks, 4)
