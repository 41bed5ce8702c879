"""Position embeddings of a vision transformer for images of another size than it was trained on."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def resize(grid: jax.Array, height: int, width: int, antialias: bool) -> jax.Array:
    """Resizes embeddings of a grid by bicubic interpolation along both axes.

    Args:
      grid: float32 `[rows, columns, features]`.
      height: rows wanted.
      width: columns wanted.
      antialias: see `bicubic`.

    Returns:
      float32 `[height, width, features]`; the grid itself where it has this size.
    """
    rows, columns = grid.shape[:2]
    if (rows, columns) == (height, width):
        return grid
    down, across = bicubic(rows, height, antialias), bicubic(columns, width, antialias)
    return jnp.einsum("ir,jc,rcf->ijf", down, across, grid, precision=lax.Precision.HIGHEST)


def bicubic(size: int, wanted: int, antialias: bool) -> np.ndarray:
    """Cubic interpolation along one axis as a matrix (Keys 1981, "Cubic convolution interpolation").

    PyTorch has two, which differ where sizes grow too. Without antialiasing a = -0.75, and beyond the border stands
    the border. With it a = -0.5, the kernel is stretched where sizes shrink, and what is beyond the border is left out.

    Args:
      size: places there are.
      wanted: places wanted.
      antialias: which of the two.

    Returns:
      float32 `[wanted, size]`, rows summing to 1.
    """
    scale = size / wanted
    centers = (np.arange(wanted) + 0.5) * scale - 0.5
    if antialias:
        matrix = _cubic((np.arange(size)[None] - centers[:, None]) / max(scale, 1.0), -0.5)
        return (matrix / matrix.sum(axis=1, keepdims=True)).astype(np.float32)
    matrix = np.zeros((wanted, size))
    for tap in range(-1, 3):
        places = np.floor(centers).astype(int) + tap
        np.add.at(matrix, (np.arange(wanted), places.clip(0, size - 1)), _cubic(places - centers, -0.75))
    return matrix.astype(np.float32)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
