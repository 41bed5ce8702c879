"""Folders of images by class."""

import os

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from protojax.data import prepare, splits
from protojax.data.prepare.image_folder import read_image
from protojax.data.source import DataError


def _pixels(seed, shape=(6, 5, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def _save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "raw"
    for i in range(30):
        _save(folder / ("cat" if i < 15 else "dog") / f"{i:02}.png", _pixels(i))
    return folder


def _read(path, split):
    return list(tfds.builder_from_directory(path).as_data_source(split))


def _refused(root, message, **options):
    with pytest.raises(DataError, match=message):
        prepare.image_folder(root, name="tiny", data_dir=root.parent, **options)
    assert not (root.parent / "tiny").exists()


def test_loads_in_plain_tfds_with_equal_content(tmp_path, root):
    found = prepare.image_folder(root, name="tiny", data_dir=tmp_path, test=0.3)
    expected = splits.assign(np.arange(30), {"test": 0.3, "validation": 0.1 * 0.7})
    for split, count in found.counts.items():
        examples = _read(found.path, split)
        assert sorted(int(example["id"]) for example in examples) == np.flatnonzero(expected == split).tolist()
        assert len(examples) == count
        for example in examples:
            np.testing.assert_array_equal(example["image"], _pixels(int(example["id"])))
            assert example["label"] == (example["id"] >= 15)
    assert tfds.builder_from_directory(found.path).info.features["label"].names == ["cat", "dog"]


@pytest.mark.parametrize("validation_folder", [None, "validation", "val"])
def test_split_folders_are_kept(tmp_path, validation_folder):
    root = tmp_path / "raw"
    for i in range(40):
        split = "test" if i < 8 else "train" if i < 32 or not validation_folder else validation_folder
        _save(root / split / "ab"[i % 2] / f"{i}.png", _pixels(i, (4, 4)))
    found = prepare.image_folder(root, name="tiny", data_dir=tmp_path)
    files = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.png"))
    assert found.counts["test"] == 8
    if validation_folder:
        assert found.counts == {"train": 24, "validation": 8, "test": 8}
    for split in found.counts:
        for example in _read(found.path, split):
            file = files[int(example["id"])]
            np.testing.assert_array_equal(example["image"], np.asarray(Image.open(root / file))[..., None])
            if split == "test" or validation_folder:
                assert file.startswith("val" if split == "validation" else split)


def test_a_copy_in_the_test_folder_is_named(tmp_path):
    root = tmp_path / "raw"
    for i in range(20):
        _save(root / ("test" if i < 4 else "train") / "ab"[i % 2] / f"{i:02}.png", _pixels(i, (4, 4)))
    _save(root / "train" / "a" / "copy.bmp", _pixels(0, (4, 4)))  # another format, the same picture
    _refused(root, r"1 examples stand in two splits: id \d+ \(train\) is id 0 \(test\)")


def test_images_of_different_sizes_are_refused_or_resized(tmp_path, root):
    odd = root / "dog" / "99.png"
    _save(odd, _pixels(99, (12, 10, 3)))
    _refused(root, r"00.png is 6x5 but .*99.png is 12x10 \(height x width\): give --image-size")
    found = prepare.image_folder(root, name="tiny", data_dir=tmp_path, image_size=(6, 5))
    stored = {int(example["id"]): example["image"] for split in found.counts for example in _read(found.path, split)}
    np.testing.assert_array_equal(stored[3], _pixels(3))
    # Halving: the mean colour of the picture stays.
    np.testing.assert_allclose(stored[30].mean((0, 1)), _pixels(99, (12, 10, 3)).mean((0, 1)), atol=8)
    assert stored[30].shape == (6, 5, 3)


def test_an_impossible_size(root):
    _refused(root, r"image_size is a height and a width in pixels, got \(0, 3\)", image_size=(0, 3))


def test_gray_among_coloured(root):
    _save(root / "cat" / "zz.png", _pixels(50, (6, 5)))
    _refused(root, r"00.png is coloured but .*zz.png is gray: convert one kind")


@pytest.mark.parametrize("damage", ["cut", "text", "flipped"])
def test_a_corrupt_file_is_named(root, damage):
    path = root / "dog" / "20.png"
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[60] ^= 0xFF
    path.write_bytes({"cut": content[:60], "text": b"not an image", "flipped": content}[damage])
    _refused(root, "dog/20.png: cannot be read as an image: .*; repair or remove it")


def test_a_cut_jpeg_is_named(root):
    path = root / "dog" / "20.jpg"
    _save(path, _pixels(3, (60, 50, 3)))
    path.write_bytes(path.read_bytes()[:-300])
    _refused(root, "dog/20.jpg: cannot be read as an image: .*truncated", image_size=(6, 5))


@pytest.mark.parametrize("target", ["outside", "inside"])
def test_links_are_refused(root, target):
    outside = root.parent / "secret.png"
    _save(outside, _pixels(1))
    link = root / "cat" / "link.png"
    os.symlink(outside if target == "outside" else root / "cat" / "00.png", link)
    _refused(root, "link.png: leads out of .*secret.png" if target == "outside" else "link.png: a link")


def test_linked_folders_are_refused(root):
    (root.parent / "elsewhere").mkdir()
    os.symlink(root.parent / "elsewhere", root / "cow")
    _refused(root, "raw/cow: leads out of .*elsewhere")


def test_an_empty_class(root):
    (root / "cow").mkdir()
    (root / "cow" / ".hidden").touch()
    _refused(root, "cow: class 'cow' is empty: remove the folder, or give it images")


def test_folders_that_are_laid_out_otherwise(root, tmp_path):
    (root / "readme.txt").write_text("hello")
    _refused(root, "readme.txt: a file outside of the class folders")
    (root / "readme.txt").unlink()
    (root / "cat" / "deeper").mkdir()
    _refused(root, "cat/deeper: no file; class 'cat' must hold image files only")
    (root / "cat" / "deeper").rmdir()
    (root / "train").mkdir()
    _refused(root, "cat: stands beside .*train but is no split")
    (root / "train").rename(root / "test")
    _refused(root, "has a folder for a split but none named train")
    _refused(tmp_path / "nowhere", "nowhere: no such folder")
    (tmp_path / "empty").mkdir()
    _refused(tmp_path / "empty", "empty: has no class folders; expected")


def test_read_image_turns_palettes_and_orientation(tmp_path):
    pixels = _pixels(1, (4, 3, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), np.rot90(pixels, -1))
    Image.fromarray(pixels // 128 * 255).quantize(8).save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), pixels // 128 * 255)
    Image.fromarray(np.dstack([pixels, np.full((4, 3), 255, np.uint8)])).save(tmp_path / "opaque.png")
    np.testing.assert_array_equal(read_image(tmp_path / "opaque.png"), pixels)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("RGBA", (3, 3), (1, 2, 3, 4)), "x.png: is transparent in places"),
        (Image.new("I;16", (3, 3)), "x.png: has pixels of mode I;16; save it with 8 bits"),
    ],
)
def test_pixels_that_would_lose_something_are_refused(tmp_path, image, message):
    image.save(tmp_path / "x.png")
    with pytest.raises(DataError, match=message):
        read_image(tmp_path / "x.png")


def test_an_animation_is_refused(tmp_path):
    frames = [Image.fromarray(_pixels(i)) for i in range(2)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="x.gif: has 2 frames"):
        read_image(tmp_path / "x.gif")
