"""Key-points of CUB, from files as its authors write them and records as TFDS gives them."""

import numpy as np
import pytest

from protojax.data import cub
from protojax.data.source import DataError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "images.txt").write_text("1 001.Gull/Gull_1.jpg\n2 002.Wren/Wren_7.jpg\n")
    (tmp_path / "parts" / "parts.txt").write_text("1 back\n2 left eye\n3 beak\n4 right eye\n")
    lines = ["1 1 10.0 20.0 1", "1 2 0.0 0.0 0", "1 3 30.5 40.0 1", "1 4 5.0 6.0 1", "2 1 1.0 2.0 1"]
    (tmp_path / "parts" / "part_locs.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def record(name):
    return {"image": np.zeros((80, 40, 3), np.uint8), "image/filename": name, "label": 0}


def test_key_points_follow_the_picture(folder):
    parts = cub.read(folder)
    assert parts.names == ("back", "left eye", "beak", "right eye") and parts.pairs == ((3, 1),)
    found = cub.keypoints(record(b"Gull_1.jpg"), parts, (160, 40))
    np.testing.assert_array_equal(found.visible, [True, False, True, True])
    # x and y in the files, row and column here; twice as high.
    np.testing.assert_allclose(found.points[[0, 2]], [[40, 10], [80, 30.5]])
    assert cub.keypoints(record("002.Wren/Wren_7.jpg"), parts, (80, 40)).visible.sum() == 1


def test_bad_files_are_named(folder):
    parts = cub.read(folder)
    with pytest.raises(DataError, match="'Owl.jpg' has no parts: the part files are of another data set"):
        cub.keypoints(record("Owl.jpg"), parts, (80, 40))
    places = folder / "parts" / "part_locs.txt"
    for line, message in (
        ("9 1 1.0 2.0 1", "line 1: picture '9' is not in images.txt"),
        ("1 5 1.0 2.0 1", "line 1: part 5 is none of 1 to 4"),
        ("1 1 one 2.0 1", "line 1: could not convert"),
        ("1 1 1.0", "line 1: 5 fields were expected, got '1 1 1.0'"),
    ):
        places.write_text(line + "\n")
        with pytest.raises(DataError, match=message):
            cub.read(folder)
    places.unlink()
    with pytest.raises(DataError, match="part_locs.txt: missing; give the folder CUB_200_2011"):
        cub.read(folder)
