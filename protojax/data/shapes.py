"""Tiny pictures of made-up animals with known parts: what a right metric says of them can be worked out by hand.

Every animal has five parts, squares of 4 pixels at places that shift a little from animal to animal; the variant of a
part is its colour. On the sides stand gray background objects. A picture can be drawn without any part or object.
"""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

SIDE = 32
PARTS = 5
OBJECTS = 2
VARIANTS = 4

CLASSES = np.array(
    [[0, 0, 0, 0, 0], [0, 0, 1, 1, 1], [1, 1, 0, 0, 1], [2, 2, 2, 2, 0], [3, 0, 3, 3, 3], [0, 0, 0, 0, 1]], np.int32
)
"""int32 `[classes, parts]`: the variant of every part."""

_CORNERS = np.array([[4, 8], [4, 20], [14, 8], [14, 20], [24, 14]])
"""Row and column of the upper left corner of every part, before it is shifted."""

_EDGE = 4
_COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], np.uint8)
_BACKGROUND, _OBJECT = np.uint8(40), np.uint8(128)


class Animal(NamedTuple):
    """A picture and its truth."""

    image: np.ndarray
    """uint8 `[32, 32, 3]`."""
    masks: np.ndarray
    """bool `[parts, 32, 32]`; empty for a part that was left out."""
    object_masks: np.ndarray
    """bool `[objects, 32, 32]`."""
    points: np.ndarray
    """float64 `[parts, 2]`: row and column of the middle of every part."""


def draw(label: int, seed: int, without: Collection[int] = (), without_objects: Collection[int] = ()) -> Animal:
    """Draws an animal; the same arguments give the same picture, and only what is left out differs.

    Args:
      label: its class, a row of `CLASSES`.
      seed: shifts the animal by up to 2 pixels each way.
      without: parts that are left out.
      without_objects: background objects that are left out.
    """
    # The raw stream of a bit generator never changes between NumPy releases.
    shift = (np.random.Philox(seed).random_raw(2) % 5).astype(int) - 2
    image = np.full((SIDE, SIDE, 3), _BACKGROUND)
    masks, objects = np.zeros((PARTS, SIDE, SIDE), bool), np.zeros((OBJECTS, SIDE, SIDE), bool)
    for number, column in enumerate((0, SIDE - _EDGE + 1)):
        objects[number, 10:20, column : column + _EDGE - 1] = number not in without_objects
    for part, (row, column) in enumerate(_CORNERS + shift):
        masks[part, row : row + _EDGE, column : column + _EDGE] = part not in without
        image[masks[part]] = _COLOURS[CLASSES[label, part]]
    image[objects.any(axis=0)] = _OBJECT
    return Animal(image, masks, objects, _CORNERS + shift + (_EDGE - 1) / 2)
