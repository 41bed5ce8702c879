import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from protojax.data import augment, trivial
from protojax.ops import crops

IDS = np.array([7, 3, 11, 5], np.int32)


def _images(seed=0, size=(12, 10), channels=3):
    return np.random.default_rng(seed).integers(0, 256, (4, *size, channels)).astype(np.float32)


def _keys(seed=0, ids=IDS):
    return augment.keys_of(jax.random.key(seed), ids)


@pytest.mark.parametrize(
    "function",
    [
        augment.flip,
        lambda keys, x: augment.erase(keys, x, 0.9),
        trivial.trivial_augment,
        lambda keys, x: crops.resample(x, crops.random_boxes(keys, 12, 10, (0.2, 1.0)), (6, 5), "linear"),
    ],
)
def test_what_happens_depends_on_the_key_and_the_id_alone(function):
    images, order = _images(), np.array([2, 0, 3])
    whole, part = (np.asarray(jax.jit(function)(_keys(ids=IDS[o]), images[o])) for o in (np.arange(4), order))
    np.testing.assert_allclose(part, whole[order], atol=1e-4)
    assert not np.allclose(whole, np.asarray(jax.jit(function)(_keys(1), images)))


def test_flip_mirrors_about_half():
    images = _images()[:1].repeat(200, axis=0)
    flipped = np.asarray(augment.flip(augment.keys_of(jax.random.key(0), np.arange(200)), images))
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    assert ((flipped == images).all((1, 2, 3)) ^ mirrored).all()
    assert 70 < mirrored.sum() < 130


def test_erasing_takes_one_rectangle_of_a_share_of_the_images():
    images = jnp.full((300, 20, 20, 3), 9.0)
    erased = np.asarray(augment.erase(augment.keys_of(jax.random.key(0), np.arange(300)), images, 0.25)) != 9
    changed = erased.any((1, 2, 3))
    assert 45 < changed.sum() < 105
    for mask in erased[changed][..., 0]:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert mask.sum() <= 400 / 3 + 40
    assert not (np.asarray(augment.erase(_keys(), images[:4], 0.0)) != 9).any()


def test_random_boxes_are_inside_and_of_the_asked_for_shares():
    keys = augment.keys_of(jax.random.key(0), np.arange(500))
    top, left, rows, columns = np.asarray(crops.random_boxes(keys, 30, 40, (0.2, 0.8))).T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + rows <= 30 + 1e-3).all() and (left + columns <= 40 + 1e-3).all()
    share, ratio = rows * columns / 1200, columns / rows
    assert 0.2 - 1e-4 <= share.min() < 0.25 and 0.7 < share.max() <= 0.8 + 1e-4
    assert 0.75 - 1e-4 <= ratio.min() and ratio.max() <= 4 / 3 + 1e-4
    narrow = np.asarray(crops.random_boxes(keys[:3], 4, 100, (1.0, 1.0)))
    np.testing.assert_allclose(narrow, [[0, 40, 4, 20]] * 3, atol=1e-4)


def test_a_crop_of_whole_pixels_is_cut_out():
    images = _images()
    boxes = np.array([[2, 3, 6, 4]] * 4, np.float32)
    np.testing.assert_allclose(crops.resample(images, boxes, (6, 4), "linear"), images[:, 2:8, 3:7], atol=1e-3)
    halved = crops.resample(images, np.array([[0, 0, 12, 10]] * 4, np.float32), (12, 5), "linear")
    # A triangle of two pixels on either side: weights 1, 3, 3, 1.
    wanted = (images[:, :, 1:5] * np.array([1, 3, 3, 1]).reshape(1, 1, 4, 1)).sum(axis=2) / 8
    np.testing.assert_allclose(halved[:, :, 1], wanted, atol=1e-2)


def test_centre_boxes_keep_the_proportions_of_what_is_wanted():
    np.testing.assert_allclose(crops.centre_boxes(2, 60, 100, (30, 30), 0.5), [[15, 35, 30, 30]] * 2)
    np.testing.assert_allclose(crops.centre_boxes(1, 60, 100, (20, 40), 1.0), [[5, 0, 50, 100]])


def _pillow(image, change):
    return np.asarray(change(Image.fromarray(image.astype(np.uint8)))).astype(np.float32)


@pytest.mark.parametrize(
    ("function", "strength", "signed", "change"),
    [
        (trivial._brightness, 0.5, 0.5, lambda x: ImageEnhance.Brightness(x).enhance(1 + 0.99 * 0.5)),
        (trivial._saturation, 0.5, -0.5, lambda x: ImageEnhance.Color(x).enhance(1 - 0.99 * 0.5)),
        (trivial._contrast, 0.5, 0.5, lambda x: ImageEnhance.Contrast(x).enhance(1 + 0.99 * 0.5)),
        (trivial._posterized, 0.5, 0.5, lambda x: ImageOps.posterize(x, 5)),
        (trivial._solarized, 0.5, 0.5, lambda x: ImageOps.solarize(x, 128)),
        (trivial._stretched, 0.5, 0.5, lambda x: ImageOps.autocontrast(x)),
        (trivial._equalized, 0.5, 0.5, lambda x: ImageOps.equalize(x)),
    ],
)
def test_colours_are_changed_as_pillow_does(function, strength, signed, change):
    image = np.clip(_images(3, (40, 50))[0] * 0.5 + 40, 0, 255).round()
    got = np.clip(np.asarray(function(jnp.asarray(image), jnp.float32(strength), jnp.float32(signed))), 0, 255)
    # Pillow cuts off fractions, of the gray image and once more of the result.
    np.testing.assert_allclose(got, _pillow(image, change), atol=2)


def test_sharpness_moves_away_from_the_smoothed_image():
    image = _images(3)[0]
    got = np.asarray(trivial._sharpness(jnp.asarray(image), jnp.float32(1), jnp.float32(-1)))
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    inside = sum(kernel[r, c] * image[r : r + 10, c : c + 8] for r in range(3) for c in range(3))
    np.testing.assert_allclose(got[1:-1, 1:-1], 0.99 * inside + 0.01 * image[1:-1, 1:-1], atol=1e-3)


def test_moves_stay_about_the_centre():
    image = jnp.asarray(_images(0, (9, 9))[0])
    np.testing.assert_array_equal(trivial._moved(image, trivial._stay(jnp.float32(1))), image)
    quarter = trivial._moved(image, trivial._turned(jnp.float32(90 / 135)))
    assert any(np.array_equal(quarter, np.rot90(image, k)) for k in (1, 3))
    shifted = np.asarray(trivial._moved(image, trivial._MOVES[2](jnp.float32(2 / 32))))
    np.testing.assert_array_equal(shifted[:, :7], np.asarray(image)[:, 2:])
    assert not shifted[:, 7:].any()
    assert np.array_equal(np.asarray(trivial._moved(image, trivial._MOVES[0](jnp.float32(1))))[4], image[4])


def test_all_of_the_fourteen_occur():
    image = np.clip(_images(1, (9, 9))[:1] * 0.5 + 30, 0, 255).round().repeat(400, axis=0)
    made = np.asarray(jax.jit(trivial.trivial_augment)(augment.keys_of(jax.random.key(0), np.arange(400)), image))
    assert made.min() >= 0 and made.max() <= 255 and (made == made.round()).all()
    # Identity, and the thirty-first of the others that has no strength.
    assert 15 < (made == image).all((1, 2, 3)).sum() < 90


def test_labels_are_smoothed():
    got = augment.smooth_labels(jnp.array([1, 0]), 4, 0.1)
    np.testing.assert_allclose(got, [[0.025, 0.925, 0.025, 0.025], [0.925, 0.025, 0.025, 0.025]], atol=1e-6)


def _targets():
    return jnp.eye(4)


def test_mixup_blends_with_the_example_before():
    images = jnp.asarray(_images())
    mixed, targets = augment.mix(jax.random.key(0), images, _targets(), IDS, mixup=0.8, cutmix=0)
    own = np.diag(targets)
    np.testing.assert_allclose(np.asarray(targets).sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(targets[np.arange(4), np.arange(4) - 1], 1 - own, atol=1e-6)
    share = own.reshape(4, 1, 1, 1)
    np.testing.assert_allclose(mixed, images * share + np.roll(images, 1, axis=0) * (1 - share), atol=1e-3)
    assert len(set(own.round(4).tolist())) == 4


def test_cutmix_pastes_a_rectangle_and_weighs_the_labels_by_it():
    images = jnp.asarray(_images(size=(30, 30)))
    mixed, targets = augment.mix(jax.random.key(1), images, _targets(), IDS, mixup=0, cutmix=1.0)
    pasted = np.asarray(mixed != images).any(axis=-1)
    np.testing.assert_array_equal(
        np.asarray(mixed)[pasted],
        np.roll(np.asarray(images), 1, axis=0)[pasted],
        err_msg="pixels of the example before",
    )
    np.testing.assert_allclose(np.diag(targets), 1 - pasted.mean((1, 2)), atol=2e-2)
    assert 0 < pasted.mean() < 1


def test_one_of_the_two_is_drawn_for_a_batch():
    images = jnp.asarray(_images(size=(30, 30)))
    both = jax.jit(lambda key: augment.mix(key, images, _targets(), IDS)[0])
    blended = [not np.isin(np.asarray(both(jax.random.key(s))), images).all() for s in range(20)]
    assert 3 < sum(blended) < 17
    with pytest.raises(ValueError, match="mix needs MixUp or CutMix"):
        augment.mix(jax.random.key(0), images, _targets(), IDS, mixup=0, cutmix=0)
