"""The made-up animals are what they say."""

import numpy as np
import pytest

from protojax.data import shapes


@pytest.mark.parametrize("seed", range(6))
def test_parts_are_where_the_masks_say(seed):
    whole = shapes.draw(2, seed)
    assert (whole.masks.sum(axis=(1, 2)) == 16).all() and whole.masks.sum(axis=0).max() == 1
    assert not (whole.masks.any(axis=0) & whole.object_masks.any(axis=0)).any()
    for part in range(shapes.PARTS):
        row, column = whole.points[part].astype(int)
        assert whole.masks[part, row, column]
        without = shapes.draw(2, seed, without=[part])
        changed = (without.image != whole.image).any(axis=-1)
        np.testing.assert_array_equal(changed, whole.masks[part])
        assert not without.masks[part].any()
    for number in range(shapes.OBJECTS):
        changed = (shapes.draw(2, seed, without_objects=[number]).image != whole.image).any(axis=-1)
        np.testing.assert_array_equal(changed, whole.object_masks[number])


def test_the_same_arguments_draw_the_same_and_classes_differ():
    np.testing.assert_array_equal(shapes.draw(1, 3).image, shapes.draw(1, 3).image)
    assert (shapes.draw(1, 3).image != shapes.draw(1, 4).image).any()
    # Classes 0 and 5 differ in the last part alone.
    changed = (shapes.draw(0, 3).image != shapes.draw(5, 3).image).any(axis=-1)
    np.testing.assert_array_equal(changed, shapes.draw(0, 3).masks[4])
