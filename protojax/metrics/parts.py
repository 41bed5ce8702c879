"""Parts of objects: which key-points lie in a patch, left and right as one, masks that are a little larger."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def patch_boxes(places: Any, grid: tuple[int, int], image: tuple[int, int], patch: int = 32) -> np.ndarray:
    """The patches of an image that cells of a feature map stand for (PIP-Net).

    The first cell stands for the first `patch` pixels, the last for the last; those between are spread evenly.

    Args:
      places: integers of any shape, cells of the map, row by row.
      grid: height and width of the map.
      image: height and width of the image in pixels.
      patch: side of a patch in pixels; of an image that is smaller, all of it.

    Returns:
      int64 `[..., 4]`: top, left, bottom and right, in pixels; the last two are the first pixels outside.

    Raises:
      ValueError: a cell that is not in the grid.
    """
    places = np.asarray(places)
    height, width = grid
    if ((places < 0) | (places >= height * width)).any():
        raise ValueError(f"cells of a {height}x{width} map are 0 to {height * width - 1}, got {places.max()}")
    starts = []
    for cell, cells, pixels in ((places // width, height, image[0]), (places % width, width, image[1])):
        step = round((pixels - patch) / (cells - 1)) if cells > 1 else 0
        starts.append(np.clip(cell * max(step, 0), 0, max(pixels - patch, 0)))
    top, left = starts
    bottom, right = np.minimum(top + patch, image[0]), np.minimum(left + patch, image[1])
    return np.stack([top, left, bottom, right], axis=-1).astype(np.int64)


def inside(boxes: Any, points: Any) -> np.ndarray:
    """Which points lie in which boxes, edges included.

    Args:
      boxes: `[images, prototypes, 4]`: top, left, bottom, right in pixels.
      points: `[images, parts, 2]`: row and column in pixels.

    Returns:
      bool `[images, prototypes, parts]`.

    Raises:
      ValueError: shapes that do not fit each other.
    """
    boxes, points = np.asarray(boxes, np.float64), np.asarray(points, np.float64)
    if boxes.ndim != 3 or boxes.shape[2] != 4 or points.ndim != 3 or points.shape[::2] != (len(boxes), 2):
        raise ValueError(
            f"boxes [images, prototypes, 4] and points [images, parts, 2] were expected, got {boxes.shape} and "
            f"{points.shape}"
        )
    top, left, bottom, right = (boxes[:, :, None, side] for side in range(4))
    row, column = points[:, None, :, 0], points[:, None, :, 1]
    return (row >= top) & (row <= bottom) & (column >= left) & (column <= right)


def merged(values: Any, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Parts that come in twos as one: the first of each pair takes the larger value, the second goes.

    Args:
      values: bool or numbers `[..., parts]`.
      pairs: places of the two, such as left and right eye; no part in two pairs.

    Raises:
      ValueError: a part stands in two pairs.
    """
    values = np.array(values)
    places = [place for pair in pairs for place in pair]
    if len(set(places)) < len(places):
        raise ValueError(f"a part can be in one pair only, got {list(pairs)}")
    for first, second in pairs:
        values[..., first] = np.maximum(values[..., first], values[..., second])
    return np.delete(values, [second for _, second in pairs], axis=-1)


def dilated(masks: Any, size: int = 5) -> np.ndarray:
    """Masks `[..., height, width]` grown to every pixel whose `size` x `size` neighbourhood touches them.

    Raises:
      ValueError: the size is not odd.
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"the neighbourhood of a pixel has an odd side, got {size}")
    masks, margin = np.asarray(masks, bool), size // 2
    edges = [(0, 0)] * (masks.ndim - 2)
    for axis in (-2, -1):
        widths = [*edges, (margin, margin), (0, 0)] if axis == -2 else [*edges, (0, 0), (margin, margin)]
        padded, length = np.pad(masks, widths), masks.shape[axis]
        # Down, then across: a square is the product of two lines.
        masks = np.logical_or.reduce([padded.take(range(start, start + length), axis=axis) for start in range(size)])
    return masks
