"""IDX folders."""

import gzip
import struct

import numpy as np
import pytest
import tensorflow_datasets as tfds

from protojax.data import prepare, splits
from protojax.data.source import DataError


def _bytes(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def _images(count, seed, size=(5, 4)):
    return np.random.default_rng(seed).integers(0, 256, (count, *size), np.uint8)


@pytest.fixture
def parts():
    return {
        "train-images-idx3": _images(60, 0),
        "train-labels-idx1": np.arange(60, dtype=np.uint8) % 3,
        "t10k-images-idx3": _images(9, 1),
        "t10k-labels-idx1": np.arange(9, dtype=np.uint8) % 3,
    }


def _write(folder, parts, zipped=True):
    folder.mkdir(exist_ok=True)
    for stem, array in parts.items():
        name = f"{stem}-ubyte" + (".gz" if zipped else "")
        (folder / name).write_bytes(gzip.compress(_bytes(array), 1) if zipped else _bytes(array))
    return folder


def _read(path, split):
    return list(tfds.builder_from_directory(path).as_data_source(split))


@pytest.mark.parametrize("zipped", [True, False])
def test_loads_in_plain_tfds_with_equal_content(tmp_path, parts, zipped):
    source = _write(tmp_path / "raw", parts, zipped)
    found = prepare.idx(source, name="tiny", data_dir=tmp_path, label_names=["cat", "dog", "cow"])
    images = np.concatenate([parts["train-images-idx3"], parts["t10k-images-idx3"]])
    carved = splits.assign(np.arange(60), {"validation": 0.1})
    assert found.counts == {"train": (carved == "train").sum(), "validation": (carved == "validation").sum(), "test": 9}
    for split in found.counts:
        examples = _read(found.path, split)
        ids = [int(example["id"]) for example in examples]
        expected = np.arange(60, 69) if split == "test" else np.flatnonzero(carved == split)
        assert sorted(ids) == expected.tolist()
        for i, example in zip(ids, examples, strict=True):
            np.testing.assert_array_equal(example["image"], images[i][..., None])
            assert example["label"] == (i % 60) % 3
    assert tfds.builder_from_directory(found.path).info.features["label"].names == ["cat", "dog", "cow"]


def test_without_test_files_a_test_split_is_carved(tmp_path, parts):
    kept = {stem: array for stem, array in parts.items() if stem.startswith("train")}
    found = prepare.idx(_write(tmp_path / "raw", kept), name="tiny", data_dir=tmp_path, test=0.3)
    assert found.counts["test"] == (splits.assign(np.arange(60), {"test": 0.3}) == "test").sum()
    assert sum(found.counts.values()) == 60
    assert tfds.builder_from_directory(found.path).info.features["label"].names == ["0", "1", "2"]


def test_copies_between_train_and_test(tmp_path, parts):
    parts["train-images-idx3"][7] = parts["t10k-images-idx3"][2]
    source = _write(tmp_path / "raw", parts)
    with pytest.raises(DataError, match=r"1 examples stand in two splits: id 7 \(train\) is id 62 \(test\)"):
        prepare.idx(source, name="tiny", data_dir=tmp_path)
    assert prepare.idx(source, name="tiny", data_dir=tmp_path, duplicates="drop").dropped == {"train": (7,)}


def _refused(tmp_path, message, **options):
    with pytest.raises(DataError, match=message):
        prepare.idx(tmp_path / "raw", name="tiny", data_dir=tmp_path, **options)
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_named_with_its_sizes(tmp_path, parts, zipped):
    folder = _write(tmp_path / "raw", parts, zipped)
    content = _bytes(parts["train-images-idx3"])[:-100]
    path = next(folder.glob("train-images*"))
    path.write_bytes(gzip.compress(content) if zipped else content)
    _refused(tmp_path, f"{path}: truncated: expected 1200 bytes of data of shape .60, 5, 4., found 1100")


def test_a_truncated_header(tmp_path, parts):
    (_write(tmp_path / "raw", parts, False) / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08")
    _refused(tmp_path, "t10k-labels-idx1-ubyte: truncated: expected 8 bytes of header, found 3")


def test_a_gzip_file_without_its_end(tmp_path, parts):
    folder = _write(tmp_path / "raw", parts)
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:700])
    _refused(tmp_path, r"train-images-idx3-ubyte.gz: truncated: expected 1200 bytes of data.*, found [1-9]\d+; get")


def test_a_damaged_gzip_file(tmp_path, parts):
    folder = _write(tmp_path / "raw", parts)
    path = folder / "train-labels-idx1-ubyte.gz"
    path.write_bytes(_bytes(parts["train-labels-idx1"]))
    _refused(tmp_path, "train-labels-idx1-ubyte.gz: damaged gzip file: Not a gzipped file")
    good = bytearray(gzip.compress(_bytes(parts["train-labels-idx1"])))
    good[-6] ^= 0xFF  # the checksum
    path.write_bytes(good)
    _refused(tmp_path, "train-labels-idx1-ubyte.gz: damaged gzip file: CRC check failed")


def test_a_header_that_promises_too_much_takes_no_memory(tmp_path, parts):
    folder = _write(tmp_path / "raw", parts, False)
    (folder / "train-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + b"\xff" * 12 + b"abc")
    _refused(tmp_path, r"expected 79228162458924105385300197375 bytes .*, found 3")


def test_bytes_after_the_end(tmp_path, parts):
    folder = _write(tmp_path / "raw", parts, False)
    with (folder / "train-labels-idx1-ubyte").open("ab") as file:
        file.write(b"x")
    _refused(tmp_path, r"train-labels-idx1-ubyte: goes on after the 60 bytes of shape \[60\]")


def test_a_wrong_magic_number(tmp_path, parts):
    folder = _write(tmp_path / "raw", parts, False)
    (folder / "train-images-idx3-ubyte").write_bytes(_bytes(parts["train-labels-idx1"]))
    _refused(tmp_path, r"train-images-idx3-ubyte: starts with 00000801 where .* starts with 00000803")


def test_counts_that_do_not_match(tmp_path, parts):
    parts["train-labels-idx1"] = parts["train-labels-idx1"][:-1]
    _write(tmp_path / "raw", parts)
    _refused(tmp_path, "train-images-idx3-ubyte.gz holds 60 images but .*train-labels-idx1-ubyte.gz 59 labels")


def test_images_of_different_sizes(tmp_path, parts):
    parts["t10k-images-idx3"] = _images(9, 1, (6, 4))
    _write(tmp_path / "raw", parts)
    _refused(tmp_path, r"images of different sizes in train \(5, 4\) and test \(6, 4\)")


def test_missing_files(tmp_path, parts):
    _refused(tmp_path, "raw: no such folder")
    del parts["t10k-labels-idx1"]
    _write(tmp_path / "raw", parts)
    _refused(tmp_path, "no file t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz; the folder holds t10k-images")


def test_labels_outside_of_the_names(tmp_path, parts):
    _write(tmp_path / "raw", parts)
    _refused(tmp_path, "label 2 of example 2 has no name: 2 label_names were given", label_names=["a", "b"])
    _refused(tmp_path, "class 'd' of .* has no example", label_names=["a", "b", "c", "d"])
    _refused(tmp_path, "two classes of .* are named 'a'", label_names=["a", "b", "a"])
    _refused(tmp_path, "' b' cannot name a class", label_names=["a", " b", "c"])
