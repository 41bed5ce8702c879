"""Background objects taken away: painted as rendering would have it, guesses told apart, judged by a score."""

import numpy as np
import pytest
from PIL import Image

from protojax import metrics
from protojax.data import background_objects, shapes
from protojax.data.funnybirds import PIECES, Scene
from protojax.data.source import DataError

PLAIN = (40, 40, 40)
BODY, OBJECT = (170, 170, 170), (204, 204, 204)


def scene(folder, image, part_map, without_object=None):
    """A scene of files; PNG, so that pixels are what they were."""
    Image.fromarray(image).save(folder / "image.png")
    Image.fromarray(part_map).save(folder / "map.png")
    return Scene("test", 0, 0, folder / "image.png", (), folder / "map.png", {}, without_object or {}, 3)


def drawn(folder, label=1, seed=0, hidden=()):
    """An animal of `shapes` with its part map; some objects are only described."""
    animal = shapes.draw(label, seed, without_objects=hidden)
    part_map = np.zeros_like(animal.image)
    for part in range(shapes.PARTS):
        part_map[animal.masks[part]] = PIECES[part].rgb
    for number, mask in enumerate(animal.object_masks):
        part_map[mask] = (*OBJECT[:2], OBJECT[2] + number)
    return scene(folder, animal.image, part_map)


@pytest.mark.parametrize("seed", range(3))
def test_a_painted_picture_is_the_rendered_one(tmp_path, seed):
    found = background_objects.without_each(drawn(tmp_path, seed=seed))
    assert found.certain.tolist() == [True, True]
    for number, picture in enumerate(found.pictures):
        rendered = shapes.draw(1, seed, without_objects=[number])
        np.testing.assert_array_equal(picture, rendered.image)
        np.testing.assert_array_equal(found.masks[number], shapes.draw(1, seed).object_masks[number])


def test_hidden_objects_are_left_out_and_rendered_ones_taken(tmp_path):
    second = background_objects.without_each(drawn(tmp_path, hidden=[0]))
    np.testing.assert_array_equal(second.pictures, shapes.draw(1, 0, without_objects=[0, 1]).image[None])
    nothing = background_objects.without_each(drawn(tmp_path, hidden=[0, 1]))
    assert nothing.pictures.shape == (0, 32, 32, 3) and nothing.masks.shape == (0, 32, 32) and not len(nothing.certain)
    rendered = tmp_path / "1.png"
    Image.fromarray(np.full((32, 32, 3), 7, np.uint8)).save(rendered)
    made = background_objects.without_each(drawn(tmp_path)._replace(without_object={1: rendered}))
    np.testing.assert_array_equal(made.pictures[0], shapes.draw(1, 0, without_objects=[0]).image)
    assert (made.pictures[1] == 7).all()


def test_edges_go_too_and_neighbours_stay(tmp_path):
    image, part_map = np.full((20, 20, 3), PLAIN, np.uint8), np.zeros((20, 20, 3), np.uint8)
    # An object of 4 x 4 pixels with an edge of mixed colour, which its map has in part; the body 2 pixels to the right.
    image[5:11, 5:11] = 90
    image[6:10, 6:10] = 200
    part_map[5, 5:11] = 100
    part_map[6:10, 6:10] = OBJECT
    image[6:10, 12:16], part_map[6:10, 12:16] = 170, BODY
    found = background_objects.without_each(scene(tmp_path, image, part_map))
    expected = np.full((20, 20, 3), PLAIN, np.uint8)
    expected[6:10, 12:16] = 170
    np.testing.assert_array_equal(found.pictures[0], expected)
    assert found.certain.tolist() == [True]
    # One pixel nearer, and the bird may go on behind the object.
    image[6:10, 11:15], part_map[6:10, 11:15] = 170, BODY
    near = background_objects.without_each(scene(tmp_path, image, part_map))
    assert near.certain.tolist() == [False]
    np.testing.assert_array_equal(near.pictures[0][6:10, 11:16], np.full((4, 5, 3), 170))


def test_the_independence_of_a_model_that_leans_on_one_object(tmp_path):
    # The score is the red of the bird, and that of the left half of the background.
    scores, without = [], np.full((3, shapes.OBJECTS), np.nan)
    for seed in range(3):
        own = drawn(tmp_path, label=0, seed=seed)
        found = background_objects.without_each(own)
        score = [int(x[..., 0][:, :4].sum()) for x in [np.asarray(Image.open(own.image)), *found.pictures]]
        scores.append(score[0])
        without[seed] = score[1:]
    # Of the two objects the left one counts: 30 pixels of 128 become 40 in 5,120 + 30 * 88.
    assert scores == [128 * 40 + 30 * 88] * 3
    np.testing.assert_array_equal(without, [[5120, 7760]] * 3)
    assert metrics.background_independence(scores, without) == 0.5


def test_a_scene_without_plain_background(tmp_path):
    full = np.full((4, 4, 3), 204, np.uint8)
    with pytest.raises(DataError, match=r"image.png: its part map shows no plain background to paint objects with"):
        background_objects.without_each(scene(tmp_path, full, full))
    with pytest.raises(DataError, match="has no part map; only test scenes have one"):
        background_objects.without_each(scene(tmp_path, full, full)._replace(part_map=None))
