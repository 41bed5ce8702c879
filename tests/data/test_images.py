import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from protojax.config import AugmentSettings
from protojax.data import images

RNG = np.random.default_rng(0)
BATCH = RNG.integers(1, 256, (64, 6, 9, 3), np.uint8)
IDS = np.arange(500, 564, dtype=np.int32)
RAW = {"standardize": False}


def _pixels(transformed):
    return np.asarray(jnp.round(transformed * 255)).astype(np.uint8)


def test_scaling_alone():
    scaled = images.transform(jnp.asarray(BATCH), AugmentSettings(**RAW))
    assert scaled.dtype == jnp.float32
    np.testing.assert_allclose(scaled, BATCH / 255.0, rtol=1e-6)


def test_standardisation_is_that_of_tensorflow():
    pictures = np.concatenate([BATCH[:4], np.full((1, 6, 9, 3), 7, np.uint8), BATCH[4:5]])
    # Nearly uniform: its standard deviation is below the floor.
    pictures[5] = 100
    pictures[5, 0, 0] = 101
    x = pictures.astype(np.float64) / 255
    floor = 1 / np.sqrt(x[0].size)
    expected = (x - x.mean((1, 2, 3), keepdims=True)) / np.maximum(x.std((1, 2, 3), keepdims=True), floor)
    got = images.transform(jnp.asarray(pictures), AugmentSettings())
    np.testing.assert_allclose(got, expected, atol=2e-5)
    assert x[5].std() < floor
    assert np.isfinite(got).all() and np.abs(got[4]).max() < 1e-5


@pytest.mark.parametrize("vertical, horizontal", [(False, False), (True, False), (False, True), (True, True)])
def test_every_output_is_a_crop_of_the_padded_image(vertical, horizontal):
    settings = AugmentSettings(pad_crop=2, flip_vertical=vertical, flip_horizontal=horizontal, **RAW)
    transform = jax.jit(lambda x, key, ids: images.transform(x, settings, key, ids))
    got = _pixels(transform(BATCH, jax.random.key(1), IDS))
    padded = np.pad(BATCH, ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = set()
    for picture, source in zip(got, padded, strict=True):
        found = [
            (y, x, v, h)
            for y in range(5)
            for x in range(5)
            for v in ((False, True) if vertical else (False,))
            for h in ((False, True) if horizontal else (False,))
            if (picture == source[y : y + 6, x : x + 9][:: -1 if v else 1, :: -1 if h else 1]).all()
        ]
        assert len(found) == 1
        seen.add(found[0])
    # All shifts and mirrorings occur.
    for values, count in zip(zip(*seen, strict=True), (5, 5, 1 + vertical, 1 + horizontal), strict=True):
        assert len(set(values)) == count


def test_randomness_follows_key_and_id():
    settings = AugmentSettings(pad_crop=2, flip_horizontal=True)
    transform = jax.jit(lambda x, key, ids: images.transform(x, settings, key, ids))
    whole = np.asarray(transform(BATCH, jax.random.key(1), IDS))
    order = RNG.permutation(64)
    np.testing.assert_array_equal(transform(BATCH[order], jax.random.key(1), IDS[order]), whole[order])
    for other in (transform(BATCH, jax.random.key(2), IDS), transform(BATCH, jax.random.key(1), IDS + 64)):
        assert (np.asarray(other) != whole).reshape(64, -1).any(axis=1).mean() > 0.8


def test_without_a_key_nothing_is_random():
    augmented = AugmentSettings(pad_crop=2, flip_horizontal=True, flip_vertical=True)
    plain = images.transform(jnp.asarray(BATCH), AugmentSettings())
    np.testing.assert_array_equal(images.transform(jnp.asarray(BATCH), augmented), plain)


def test_rotation_by_quarter_turns_is_exact():
    square = RNG.integers(0, 256, (3, 7, 7, 2), np.uint8)
    for turns in range(5):
        rotated = images.rotate(jnp.asarray(square), 90 * turns)
        assert rotated.dtype == jnp.uint8
        np.testing.assert_array_equal(rotated, np.rot90(square, turns, axes=(1, 2)))


@pytest.mark.parametrize("degrees", [30, 45, -20])
def test_rotation_is_that_of_pillow(degrees):
    # Smooth, because Pillow rounds its positions; without the rim, where Pillow does not blend with the outside.
    y, x = np.mgrid[:28, :28]
    picture = (127 + 60 * np.sin(x / 5) + 60 * np.cos(y / 4)).astype(np.uint8)
    expected = np.asarray(Image.fromarray(picture).rotate(degrees, Image.Resampling.BILINEAR)).astype(int)
    got = np.asarray(images.rotate(jnp.asarray(picture)[None, :, :, None], degrees))[0, :, :, 0].astype(int)
    inner = (x - 13.5) ** 2 + (y - 13.5) ** 2 < 13**2
    assert np.abs(got - expected)[inner].max() <= 1
    assert got[0, 0] == expected[0, 0] == 0


def test_rotation_of_oblong_images_keeps_the_shape():
    rotated = images.rotate(jnp.asarray(BATCH), 180)
    np.testing.assert_array_equal(rotated, BATCH[:, ::-1, ::-1])


def test_bad_input():
    flip = AugmentSettings(flip_horizontal=True)
    with pytest.raises(ValueError, match=r"\[batch, height, width, channels\], got \[6, 9, 3\]"):
        images.transform(jnp.asarray(BATCH[0]), flip)
    with pytest.raises(ValueError, match=r"an id for each of the 64 images, got ids of shape \(3,\)"):
        images.transform(jnp.asarray(BATCH), flip, jax.random.key(0), IDS[:3])
    with pytest.raises(ValueError, match="got ids of shape None"):
        images.transform(jnp.asarray(BATCH), flip, jax.random.key(0))
    with pytest.raises(ValueError, match=r"got \[6, 9, 3\]"):
        images.rotate(jnp.asarray(BATCH[0]), 90)
