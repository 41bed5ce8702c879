import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from protojax.config import AugmentSettings
from protojax.data import elastic, images

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("size", [(28, 28), (9, 40)])
@pytest.mark.parametrize("sigma", [0.7, 4.0])
def test_smoothing_is_that_of_scipy(size, sigma):
    fields = RNG.uniform(-1, 1, (3, 2, *size))
    expected = np.array([[ndimage.gaussian_filter(f, sigma, mode="constant") for f in pair] for pair in fields])
    np.testing.assert_allclose(elastic.smooth(jnp.asarray(fields, jnp.float32), sigma), expected, atol=1e-6)


@pytest.mark.parametrize("amplitude", [1.0, 20.0, 200.0])
def test_a_deformed_image_is_that_of_scipy_on_the_same_field(amplitude):
    pictures = RNG.uniform(0, 255, (4, 28, 20, 2))
    fields = np.asarray(elastic.displacements(jax.random.split(jax.random.key(0), 4), 28, 20, 4.0, amplitude))
    got = jax.jit(elastic.warp)(jnp.asarray(pictures, jnp.float32), fields)
    y, x = np.meshgrid(np.arange(28), np.arange(20), indexing="ij")
    for picture, field, result in zip(pictures, fields.astype(np.float64), got, strict=True):
        for channel in range(2):
            expected = ndimage.map_coordinates(picture[..., channel], [y + field[0], x + field[1]], order=1)
            # A coordinate that rounding puts on the other side of the border changes its pixel altogether.
            near = np.minimum.reduce([np.abs(y + field[0]), np.abs(y + field[0] - 27)])
            near = np.minimum.reduce([near, np.abs(x + field[1]), np.abs(x + field[1] - 19)])
            clear = near > 1e-4
            assert clear.mean() > 0.95
            np.testing.assert_allclose(result[..., channel][clear], expected[clear], atol=1e-4 * 255)


def test_no_displacement_changes_nothing():
    pictures = RNG.uniform(0, 255, (2, 7, 5, 3)).astype(np.float32)
    np.testing.assert_array_equal(elastic.warp(pictures, np.zeros((2, 2, 7, 5), np.float32)), pictures)


def test_fields_are_as_large_as_theory_says():
    fields = elastic.displacements(jax.random.split(jax.random.key(1), 50), 64, 64, 4.0, 20.0)
    inner = np.asarray(fields)[:, :, 16:-16, 16:-16]
    # A uniform variable in [-1, 1] has the variance 1 / 3; a Gaussian filter multiplies it by 1 / (4 pi sigma^2).
    assert inner.std() == pytest.approx(20 * np.sqrt(1 / 3 / (4 * np.pi * 16)), rel=0.03)
    # Neighbours move together: the mean of 100 fields deviates by 20 / sqrt(3 * 32 * 32 * 100) = 0.036.
    assert abs(inner.mean()) < 4 * 0.036


def test_the_deformation_of_an_example_depends_on_step_and_id_alone():
    settings = AugmentSettings(elastic_amplitude=20.0, standardize=False)
    pictures, ids = jnp.asarray(RNG.integers(0, 256, (6, 12, 12, 1), np.uint8)), np.arange(6, dtype=np.int32)
    deform = jax.jit(lambda x, key, ids: images.transform(x, settings, key, ids))
    first = deform(pictures, jax.random.key(1), ids)
    order = np.array([3, 0, 5, 1, 2, 4])
    np.testing.assert_array_equal(deform(pictures[order], jax.random.key(1), ids[order]), first[order])
    assert (np.abs(deform(pictures, jax.random.key(2), ids) - first).max((1, 2, 3)) > 0.1).all()
    assert first.min() >= 0 and first.max() <= 1
    # Without a key nothing is random.
    np.testing.assert_allclose(images.transform(pictures, settings), np.asarray(pictures) / 255.0, rtol=1e-6)
