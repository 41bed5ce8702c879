"""FunnyBirds scenes without one background object each, painted where the authors' picture is not at hand.

A part map shows where each object is, and behind all objects is one plain colour. An object is taken away by painting
it with that colour, and its edge, which is mixed with it. Where nothing but plain background lies around the object,
rendering would show the same. Where the object touches the bird or another object, more of those may stand behind it:
the picture is a guess, with a plain hole. A contact that shows in nothing but the mixed colours of edges goes
unnoticed. What an object hides as a whole is not known in either case.
"""

from typing import NamedTuple

import numpy as np

from protojax.data import funnybirds
from protojax.data.funnybirds import Scene
from protojax.data.source import DataError

EDGE = 2
"""Pixels around an object that its colour still reaches."""


_BODY, _PLAIN = (170, 170, 170), (0, 0, 0)
"""The colours in a part map of the body, which is no part, and of where nothing stands."""


class WithoutObjects(NamedTuple):
    """A scene without each background object that is seen in it."""

    masks: np.ndarray
    """bool `[objects, height, width]`: where each is."""
    pictures: np.ndarray
    """uint8 `[objects, height, width, 3]`."""
    certain: np.ndarray
    """bool `[objects]`: rendered by the authors, or painted with nothing but plain background around."""


def without_each(scene: Scene) -> WithoutObjects:
    """Takes the background objects away, one at a time; those that are hidden or out of the frame are left out.

    Raises:
      DataError: the scene has no part map, or one of another size, a file cannot be read, or no plain background is
        seen.
    """
    objects, pieces = funnybirds.object_masks(scene), funnybirds.piece_masks(scene)
    legend, picture = funnybirds.picture(scene.part_map), funnybirds.picture(scene.image)
    if legend.shape != picture.shape:
        raise DataError(f"{scene.part_map} is {legend.shape[:2]} pixels, but {scene.image} {picture.shape[:2]}")
    plain = (legend == _PLAIN).all(axis=-1)
    standing = (legend == _BODY).all(axis=-1) | pieces.any(axis=0) | objects.any(axis=0)
    if not plain.any():
        raise DataError(f"{scene.image}: its part map shows no plain background to paint objects with: leave it out")
    # JPEG changes single pixels.
    colour = np.median(picture[plain], axis=0).round().astype(np.uint8)
    numbers = np.flatnonzero(objects.any(axis=(1, 2)))
    pictures, certain = [], []
    for number in numbers:
        reached, others = _grown(objects[number]), standing & ~objects[number]
        if int(number) in scene.without_object:
            pictures.append(funnybirds.picture(scene.without_object[int(number)]))
            certain.append(True)
        else:
            pictures.append(np.where((reached & ~others)[..., None], colour, picture))
            certain.append(not (reached & others).any())
    shape = (len(numbers), *picture.shape)
    return WithoutObjects(objects[numbers], np.array(pictures, np.uint8).reshape(shape), np.array(certain, bool))


def _grown(mask: np.ndarray) -> np.ndarray:
    """A mask and `EDGE` pixels around it."""
    height, width = mask.shape
    wide = np.pad(mask, EDGE)
    shifts = range(2 * EDGE + 1)
    return np.any([wide[row : row + height, column : column + width] for row in shifts for column in shifts], axis=0)
