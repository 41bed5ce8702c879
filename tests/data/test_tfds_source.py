import io
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from protojax.config import DataSettings
from protojax.data import DataError, load

LABEL = tfds.features.ClassLabel(names=["cat", "dog"])
WORDS = {"id": np.int64, "text": tfds.features.Text(), "label": LABEL}


def words(count, **changes):
    return [{"id": i, "text": f"word {i}", "label": i % 2} | changes for i in range(count)]


def open_set(tiny, name="words", **options):
    options = {"validation_fraction": 0.0} | options
    return load(DataSettings(name=name, data_dir=tiny.folder, **options))


def edit(path: Path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class TestFinding:
    def test_newest_version_unless_one_is_named(self, tiny):
        for version, count in (("1.0.0", 3), ("1.10.0", 4), ("1.9.0", 5)):
            tiny.write("words", WORDS, {"train": words(count), "test": words(1, id=9)}, version=version)
        assert len(open_set(tiny).train) == 4
        data = open_set(tiny, "words:1.9.0")
        assert len(data.train) == 5 and (data.info.name, data.info.version) == ("words", "1.9.0")
        with pytest.raises(DataError, match="words is not prepared in version 2.0.0 in .* is 1.0.0, 1.9.0, 1.10.0"):
            open_set(tiny, "words:2.0.0")

    def test_configurations(self, tiny):
        path = tiny.write("words", WORDS, {"train": words(3), "test": words(1, id=9)})
        (path.parents[1] / "big").mkdir()
        path.parent.rename(path.parents[1] / "big" / "english")
        assert open_set(tiny, "big/english").info.name == "big/english"
        with pytest.raises(DataError, match="no data set 'big' is prepared in .*prepared there: big/english"):
            open_set(tiny, "big")

    def test_a_missing_set_lists_what_is_there_and_how_to_prepare(self, tiny):
        tiny.write("words", WORDS, {"train": words(3)})
        message = (
            r"no data set 'wordz' is prepared in .*sets \(prepared there: words\), the nearest is 'words'\. "
            "Prepare it from raw files with `protojax prepare .* --name wordz --data-dir .*sets`"
        )
        with pytest.raises(DataError, match=message):
            open_set(tiny, "wordz")

    def test_a_missing_folder(self, tiny):
        with pytest.raises(DataError, match=r"no data set 'words' is prepared in .*sets \(prepared there: none\)"):
            open_set(tiny)

    def test_a_missing_official_set_says_how_to_build_it(self, tiny):
        message = (
            r"official TFDS data set: build it once with `pip install 'protojax\[tensorflow\]'` and "
            "`protojax prepare tfds fashion_mnist --data-dir .*sets`"
        )
        with pytest.raises(DataError, match=message):
            open_set(tiny, "fashion_mnist")

    @pytest.mark.parametrize("name", ["../words", "/words", "a/b/c", "words:new", "", "a/../b", "words:1.0"])
    def test_names_stay_inside_the_folder(self, tiny, name):
        with pytest.raises(DataError, match="is no name of a data set"):
            open_set(tiny, name)

    def test_default_folder_is_that_of_tfds(self, tiny, monkeypatch):
        tiny.write("words", WORDS, {"train": words(3), "test": words(1, id=9)})
        monkeypatch.setattr(tfds.core.constants, "DATA_DIR", tiny.folder)
        assert len(load(DataSettings(name="words", validation_fraction=0.0)).train) == 3


class TestDescription:
    def test_tfrecord_needs_tensorflow(self, tiny):
        path = tiny.write("words", WORDS, {"train": words(3)})
        edit(path / "dataset_info.json", fileFormat="tfrecord")
        with pytest.raises(DataError, match="stored as tfrecord, which .* build it with file_format='array_record'"):
            open_set(tiny)

    @pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
    @pytest.mark.parametrize("content", ["{", "[]", '{"pythonClassName": "no.such.Feature"}'])
    def test_damaged(self, tiny, file, content):
        path = tiny.write("words", WORDS, {"train": words(3)})
        (path / file).write_text(content)
        with pytest.raises(DataError, match=r"words/1.0.0: (its description cannot be read|stored as )"):
            open_set(tiny)

    def test_without_a_label(self, tiny):
        tiny.write("words", {"text": tfds.features.Text()}, {"train": [{"text": "a"}]})
        with pytest.raises(DataError, match=r"there is no feature 'label' \(but text\)"):
            open_set(tiny)

    def test_label_of_another_kind(self, tiny):
        features = {"text": tfds.features.Text(), "label": np.float32}
        tiny.write("words", features, {"train": [{"text": "a", "label": 0.5}]})
        with pytest.raises(DataError, match="the label is .*float32.*, not a class"):
            open_set(tiny)

    def test_columns_must_be_scalars(self, tiny):
        features = {"label": LABEL, "row": {"point": tfds.features.Tensor(shape=(2,), dtype=np.float32)}}
        tiny.write("points", features, {"train": [{"label": 0, "row": {"point": np.zeros(2, np.float32)}}]})
        with pytest.raises(DataError, match="column 'point' is .* but columns must be numbers or texts"):
            open_set(tiny, "points")

    def test_a_label_alone_is_no_table(self, tiny):
        tiny.write("nothing", {"label": LABEL}, {"train": [{"label": 0}]})
        with pytest.raises(DataError, match="no feature 'image', 'text' or 'row', and no column"):
            open_set(tiny, "nothing")

    def test_images_of_16_bits(self, tiny):
        path = tiny.images("deep", {"train": [np.zeros((2, 2), np.uint8)]})
        features = (path / "features.json").read_text()
        assert '"dtype": "uint8"' in features
        (path / "features.json").write_text(features.replace('"dtype": "uint8"', '"dtype": "uint16"'))
        with pytest.raises(DataError, match="only 8-bit images can be read"):
            open_set(tiny, "deep")

    def test_numbered_labels_without_names(self, tiny):
        features = {"text": tfds.features.Text(), "label": np.int64}
        splits = {name: [{"text": "a", "label": i} for i in range(n)] for name, n in (("train", 3), ("test", 2))}
        tiny.write("words", features, splits)
        assert open_set(tiny).info.label_names == ("0", "1", "2")


class TestReading:
    def test_label_out_of_range(self, tiny):
        path = tiny.write("words", WORDS, {"train": words(4, label=1)[:2] + words(4)[2:]})
        edit_names = path / "label.labels.txt"
        assert edit_names.read_text().split() == ["cat", "dog"]
        edit_names.write_text("cat\n")
        message = r"words/1.0.0, split 'train': label 1 of id \d is out of range: there are 1 names, for 0 to 0"
        with pytest.raises(DataError, match=message):
            open_set(tiny)

    def test_negative_labels(self, tiny):
        features = {"id": np.int64, "text": tfds.features.Text(), "label": np.int64}
        tiny.write("words", features, {"train": words(3), "test": words(1, id=9, label=-1)})
        with pytest.raises(DataError, match="split 'test': label -1 of id 9 is out of range"):
            open_set(tiny)

    @pytest.mark.parametrize("bad", [-1, 2**31 - 1, 2**40])
    def test_ids_must_fit(self, tiny, bad):
        tiny.write("words", WORDS, {"train": words(3), "test": words(1, id=bad)})
        with pytest.raises(DataError, match=f"split 'test': id {bad} is outside 0 to 2147483646"):
            open_set(tiny)

    def test_corrupt_png_is_named(self, tiny, as_png):
        whole = as_png(np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)).getvalue()
        flat = np.zeros((32, 32), np.uint8)
        contents = {
            "cut": whole[:200],
            "header": whole[:20],
            "none": b"",
            "other": b"GIF9 no image at all",
            "bits": whole[:100] + bytes(200) + whole[300:],
        }
        for name, content in contents.items():
            tiny.images(name, {"train": [flat, flat], "test": [io.BytesIO(content)]}, shape=(32, 32, 1))
            data = open_set(tiny, name)
            with pytest.raises(DataError, match="the image with id 2 cannot be decoded: .*; replace it"):
                data.test[0]

    def test_corrupt_png_of_unknown_size_is_named_while_loading(self, tiny):
        tiny.images("bad", {"train": [np.zeros((2, 2), np.uint8)] * 2, "test": [io.BytesIO(b"no image")]})
        with pytest.raises(DataError, match="the image with id 2 cannot be decoded: not an image; replace it"):
            open_set(tiny, "bad")

    def test_an_image_of_another_size_than_described(self, tiny):
        tiny.images(
            "odd", {"train": [np.zeros((2, 2), np.uint8)] * 2, "test": [np.zeros((3, 2), np.uint8)]}, shape=(2, 2, 1)
        )
        data = open_set(tiny, "odd")
        with pytest.raises(DataError, match=r"the image with id 2 is \[3, 2, 1\], the data set says \[2, 2, 1\]"):
            data.test[0]

    def test_other_pixel_modes_are_converted_to_the_described_channels(self, tiny):
        file = io.BytesIO()
        Image.fromarray(np.full((2, 2), 7, np.uint8)).save(file, "PNG")
        file.seek(0)
        tiny.images("mixed", {"train": [np.zeros((2, 2, 3), np.uint8)] * 2, "test": [file]}, shape=(2, 2, 3))
        np.testing.assert_array_equal(open_set(tiny, "mixed").test[0]["inputs"], np.full((2, 2, 3), 7))

    def test_16_bit_png_is_refused(self, tiny):
        file = io.BytesIO()
        Image.fromarray(np.full((2, 2), 700, np.uint16)).save(file, "PNG")
        file.seek(0)
        tiny.images("deep", {"train": [np.zeros((2, 2), np.uint8)] * 2, "test": [file]})
        with pytest.raises(DataError, match="the image with id 2 cannot be decoded: pixels of mode I;16 are not 8-bit"):
            open_set(tiny, "deep").test[0]

    def test_text_that_is_not_utf_8(self, tiny):
        tiny.write("words", WORDS, {"train": words(3), "test": words(1, id=9, text=b"a\xff")})
        with pytest.raises(DataError, match="the text with id 9 is not UTF-8: invalid start byte at byte 1"):
            open_set(tiny)

    def test_a_category_that_is_not_utf_8(self, tiny):
        rows = [{"label": i % 2, "row": {"work": b"\xe4"}} for i in range(2)]
        tiny.write("people", {"label": LABEL, "row": {"work": tfds.features.Text()}}, {"train": rows})
        with pytest.raises(DataError, match="column 'work' of id 0 is not UTF-8"):
            open_set(tiny, "people")

    def test_damaged_and_missing_files(self, tiny):
        path = tiny.write("words", WORDS, {"train": words(3), "test": words(1, id=9)})
        (file,) = path.glob("*train*")
        data = open_set(tiny)
        content = file.read_bytes()
        for broken in (content[:100], b"\xff" * len(content)):
            file.write_bytes(broken)
            with pytest.raises(
                DataError, match="words/1.0.0: split 'train' cannot be read, prepare the data set again"
            ):
                open_set(tiny)
        file.unlink()
        with pytest.raises(DataError, match="split 'train' cannot be read"):
            data.train[0] and open_set(tiny)

    def test_a_feature_that_records_lack(self, tiny):
        path = tiny.write("words", WORDS, {"train": words(3), "test": words(1, id=9)})
        features = json.loads((path / "features.json").read_text())
        inner = features["featuresDict"]["features"]
        inner["txt"] = inner.pop("text")
        (path / "features.json").write_text(json.dumps(features))
        with pytest.raises(DataError, match="example 0 of split 'train' is damaged or lacks one of .* label, id, txt"):
            open_set(tiny)
