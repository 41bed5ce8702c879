import jax.numpy as jnp
import numpy as np
import pytest

from protojax.networks import positions


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("size", "wanted"), [(4, 7), (7, 4), (5, 5), (2, 9)])
def test_rows_sum_to_1_and_straight_lines_stay_straight_inside(size, wanted, antialias):
    matrix = positions.bicubic(size, wanted, antialias)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
    centers = (np.arange(wanted) + 0.5) * size / wanted - 0.5
    reach = 2 * max(size / wanted, 1)
    inside = (centers - reach >= -1) & (centers + reach <= size)
    np.testing.assert_allclose((matrix @ np.arange(size))[inside], centers[inside], atol=1e-5)


def test_the_same_size_changes_nothing():
    grid = jnp.arange(18.0).reshape(3, 3, 2)
    assert positions.resize(grid, 3, 3, False) is grid
    np.testing.assert_allclose(positions.bicubic(3, 3, True), np.eye(3), atol=1e-7)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(5, 3), (2, 8), (9, 9)])
def test_as_pytorch(size, antialias):
    torch = pytest.importorskip("torch")
    grid = np.random.default_rng(0).standard_normal((4, 4, 3)).astype(np.float32)
    tensor = torch.from_numpy(grid.transpose(2, 0, 1)[None])
    wanted = torch.nn.functional.interpolate(
        tensor, size=size, mode="bicubic", align_corners=False, antialias=antialias
    )
    got = positions.resize(jnp.asarray(grid), *size, antialias)
    np.testing.assert_allclose(got, wanted[0].permute(1, 2, 0).numpy(), atol=1e-5)
