import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from protojax.config import DataSettings, TableSettings, TextSettings
from protojax.data import DataError, load, load_test

LABEL = tfds.features.ClassLabel(names=["cat", "dog"])


def gray(count, size=(4, 6), first=0):
    return [np.full(size, (first + i) % 256, np.uint8) for i in range(count)]


def texts(name, tiny, strings, split="train"):
    features = {"id": np.int64, "text": tfds.features.Text(), "label": LABEL}
    tiny.write(name, features, {split: [{"id": i, "text": s, "label": i % 2} for i, s in enumerate(strings)]})


def settings(tiny, name, **options):
    return DataSettings(name=name, data_dir=tiny.folder, **options)


def test_stored_splits_are_kept(tiny):
    tiny.images("squares", {"train": gray(6), "validation": gray(2, first=6), "test": gray(3, first=8)})
    data = load(settings(tiny, "squares"))
    assert data.info.counts == {"train": 6, "test": 3, "validation": 2}
    assert data.info.kind == "image" and data.info.label_names == ("even", "odd")
    assert (data.info.name, data.info.version, data.info.input_shape) == ("squares", "1.0.0", (4, 6, 1))
    for source, ids in ((data.train, range(6)), (data.validation, (6, 7)), (data.test, (8, 9, 10))):
        assert sorted(source.ids) == list(ids)
        for i in range(len(source)):
            example = source[i]
            np.testing.assert_array_equal(example["inputs"], np.full((4, 6, 1), source.ids[i], np.uint8))
            np.testing.assert_array_equal(source.show(i), example["inputs"])
            assert example["inputs"].dtype == np.uint8


def test_missing_splits_are_taken_from_train_by_id(tiny):
    tiny.images("squares", {"train": gray(60)})
    data = load(settings(tiny, "squares", validation_fraction=0.25, test_fraction=0.25))
    ids = np.concatenate([data.train.ids, data.validation.ids, data.test.ids])
    np.testing.assert_array_equal(np.sort(ids), np.arange(60))
    for source in data[1:]:
        assert all((example["inputs"] == example["id"]).all() for example in source)
    other = load(settings(tiny, "squares", validation_fraction=0.0, test_fraction=0.25))
    np.testing.assert_array_equal(other.test.ids, data.test.ids)


def test_named_splits_and_a_test_split_that_serves_as_validation(tiny):
    tiny.images("squares", {"train": gray(40), "validation": gray(4, first=40), "extra": gray(4, first=44)})
    data = load(settings(tiny, "squares", validation_split="extra", test_split="validation"))
    assert sorted(data.validation.ids) == [44, 45, 46, 47] and sorted(data.test.ids) == [40, 41, 42, 43]
    # Named as test, it is no validation split any more: that one is carved.
    data = load(settings(tiny, "squares", test_split="validation"))
    assert set(data.validation.ids) < set(range(40))
    with pytest.raises(DataError, match="data.validation_split = 'extr', .* did you mean 'extra'"):
        load(settings(tiny, "squares", validation_split="extr"))
    with pytest.raises(DataError, match="different splits, got train, extra, extra"):
        load(settings(tiny, "squares", validation_split="extra", test_split="extra"))


def test_ids_count_over_the_splits_where_none_are_stored(tiny):
    features = {"text": tfds.features.Text(), "label": LABEL, "id": tfds.features.Text()}
    splits = {
        name: [{"text": f"{name} {i}", "label": i % 2, "id": "x"} for i in range(count)]
        for name, count in (("train", 4), ("validation", 3), ("test", 2), ("unlabeled", 5))
    }
    tiny.write("words", features, splits)
    data = load(settings(tiny, "words"))
    assert [source.ids.tolist() for source in data[1:]] == [[0, 1, 2, 3], [4, 5, 6], [7, 8]]
    assert load_test(settings(tiny, "words"), "words", data.info).ids.tolist() == [-2, -3]


def test_fingerprint_covers_contents_labels_and_splits(tiny):
    tiny.images("a", {"train": gray(20), "test": gray(2, first=20)})
    tiny.images("b", {"train": gray(20), "test": gray(2, first=20)})
    tiny.images("c", {"train": gray(20), "test": gray(2, first=21)})
    a, again, c = (load(settings(tiny, name, validation_fraction=0.2)).info.fingerprint for name in "abc")
    assert a == again != c
    assert a != load(settings(tiny, "a", validation_fraction=0.0)).info.fingerprint


def test_sources_pickle_as_paths(tiny, as_png):
    rng = np.random.default_rng(0)
    tiny.images("noise", {"train": list(rng.integers(0, 256, (40, 32, 32), np.uint8))})
    source = load(settings(tiny, "noise")).train
    first = source[0]
    pickled = pickle.dumps(source)
    assert len(pickled) < 20_000 < sum(image["inputs"].size for image in source)
    copy = pickle.loads(pickled)
    np.testing.assert_array_equal(copy[0]["inputs"], first["inputs"])
    np.testing.assert_array_equal(copy.ids, source.ids)


def test_texts(tiny):
    texts("words", tiny, ["Cat sat", "dög", "a" * 20, "b"])
    data = load(settings(tiny, "words", text=TextSettings(length=8), validation_fraction=0.0, test_fraction=0.3))
    assert data.info.kind == "text" and data.info.input_shape == (8,)
    counts = data.info.counts
    assert (counts["truncated"], counts["padded"], counts["unknown"]) == (1, 3, 1)
    shown = {int(s.ids[i]): (s.show(i), s[i]["inputs"]) for s in (data.train, data.test) for i in range(len(s))}
    assert shown[0][0] == "Cat sat"
    np.testing.assert_array_equal(shown[0][1], [3, 1, 20, 69, 19, 1, 20, 0])


@pytest.mark.parametrize("nested", [True, False])
def test_tables(tiny, nested):
    columns = {"age": np.float32, "work": tfds.features.Text(), "sex": tfds.features.ClassLabel(names=["f", "m"])}
    features = {"id": np.int64, "label": LABEL} | ({"row": columns} if nested else columns)

    def example(i):
        row = {"age": float(i), "work": "ab"[i % 2], "sex": i // 2 % 2}
        return {"id": i, "label": i % 2} | ({"row": row} if nested else row)

    tiny.write("people", features, {"train": [example(i) for i in range(8)], "test": [example(8)]})
    data = load(settings(tiny, "people", validation_fraction=0.0))
    assert data.info.kind == "table" and data.info.input_shape == (5,)
    assert "unknown" not in data.info.counts
    assert data.test.show(0) == {"age": 8.0, "work": "a", "sex": "f"}
    by_id = {int(example["id"]): example["inputs"] for example in [*data.train, *data.test]}
    age, rest = np.arange(9), {i: [i % 2 == 0, i % 2 == 1, i // 2 % 2 == 0, i // 2 % 2 == 1] for i in range(9)}
    # By name, whatever the order in which they were described.
    order = list(data.test.show(0))
    assert order == ["age", "sex", "work"]
    for i, vector in by_id.items():
        parts = {"age": [(age[i] - age[:8].mean()) / age[:8].std()], "work": rest[i][:2], "sex": rest[i][2:]}
        np.testing.assert_allclose(vector, np.concatenate([parts[name] for name in order]), rtol=1e-6)


def test_unknown_values_are_counted(tiny):
    features = {"label": LABEL, "row": {"work": tfds.features.Text()}}
    train = [{"label": i % 2, "row": {"work": "a"}} for i in range(4)]
    tiny.write("people", features, {"train": train, "test": [{"label": 0, "row": {"work": "b"}}]})
    with pytest.raises(DataError, match="id 4, column 'work': the training split has no value 'b'"):
        load(settings(tiny, "people", validation_fraction=0.0))
    data = load(settings(tiny, "people", validation_fraction=0.0, table=TableSettings(unknown="bucket")))
    assert data.info.counts["unknown"] == 1
    np.testing.assert_array_equal(data.test[0]["inputs"], [0, 1])


def test_images_of_different_sizes(tiny):
    tiny.images("mixed", {"train": gray(3), "test": gray(1, size=(5, 6), first=3)})
    message = r"images of different sizes: id \d is 4x6, id 3 is 5x6 .*; set data.image_size = \[height, width\]"
    with pytest.raises(DataError, match=message):
        load(settings(tiny, "mixed", validation_fraction=0.0))
    data = load(settings(tiny, "mixed", validation_fraction=0.0, image_size=(8, 8)))
    assert data.info.input_shape == data.test[0]["inputs"].shape == data.train[0]["inputs"].shape == (8, 8, 1)
    np.testing.assert_array_equal(data.test[0]["inputs"], np.full((8, 8, 1), 3))
    assert data.test.show(0).shape == (5, 6, 1)


def test_resizing_is_bilinear(tiny):
    tiny.images("ramp", {"train": [np.array([[0, 100]], np.uint8)] * 3, "test": [np.array([[0, 100]], np.uint8)]})
    data = load(settings(tiny, "ramp", validation_fraction=0.0, image_size=(1, 4)))
    np.testing.assert_allclose(data.test[0]["inputs"].ravel(), [0, 25, 75, 100], atol=1)


def test_empty_class(tiny):
    features = {"text": tfds.features.Text(), "label": LABEL}
    tiny.write("words", features, {"train": [{"text": "a", "label": 0}] * 3, "test": [{"text": "b", "label": 1}]})
    with pytest.raises(DataError, match=r"words: empty class: 'dog' \(label 1\) has no example in the training split"):
        load(settings(tiny, "words", validation_fraction=0.0))


def test_one_example(tiny):
    texts("words", tiny, ["only"])
    with pytest.raises(DataError, match=r"words: 1 training example\(s\); at least 2 are needed"):
        load(settings(tiny, "words", validation_fraction=0.0, test_fraction=0.0))


def test_ids_must_be_unique(tiny):
    features = {"id": np.int64, "text": tfds.features.Text(), "label": LABEL}
    split = [{"id": i, "text": "a", "label": i % 2} for i in range(4)]
    tiny.write("words", features, {"train": split, "test": split[2:3]})
    with pytest.raises(DataError, match="words: id 2 stands for 2 examples; ids must be unique"):
        load(settings(tiny, "words"))


class TestShifted:
    @pytest.fixture
    def colour(self, tiny):
        pixels = {"train": gray(3), "test": [np.full((5, 7, 3), (255, 0, 0), np.uint8)] * 2}
        tiny.images("colour", pixels | {"train": [np.zeros((5, 7, 3), np.uint8)] * 2}, shape=(5, 7, 3))

    def test_images_get_the_size_and_channels_of_the_training_data(self, tiny, colour):
        like = load(DataSettings()).info
        source = load_test(settings(tiny, "digits"), "colour", like)
        assert len(source) == 2 and sorted(source.labels) == [0, 1]
        # Stored ids 2 and 3: none that a training example may have.
        assert sorted(source.ids) == [-5, -4] and source[0]["id"] == source.ids[0]
        # Luminance of pure red: 0.299 * 255.
        np.testing.assert_array_equal(source[0]["inputs"], np.full((8, 8, 1), 76, np.uint8))
        assert source.show(0).shape == (5, 7, 3)

    def test_grey_images_become_colour_ones(self, tiny, colour):
        like = load(settings(tiny, "colour", validation_fraction=0.0)).info
        digits = load(DataSettings())
        source = load_test(settings(tiny, "colour", test_fraction=0.2), "digits", like)
        np.testing.assert_array_equal(source.ids, -2 - digits.test.ids)
        assert source[0]["inputs"].shape == (5, 7, 3)
        assert (np.ptp(source[0]["inputs"], axis=-1) == 0).all()

    def test_only_alike_kinds(self, tiny):
        texts("words", tiny, ["a", "b", "c"])
        like = load(DataSettings()).info
        with pytest.raises(DataError, match="'words' holds texts and cannot stand in for 'digits', which holds images"):
            load_test(settings(tiny, "digits"), "words", like)
        with pytest.raises(DataError, match="'words' cannot stand in for 'digits': rows of another table"):
            load_test(settings(tiny, "digits"), "words", like._replace(kind="table"))

    def test_texts_get_the_length_of_the_training_data(self, tiny):
        texts("words", tiny, ["a", "b", "c"], split="train")
        texts("others", tiny, ["abcdef"], split="test")
        data = load(settings(tiny, "words", validation_fraction=0.0, text=TextSettings(length=4), test_fraction=0.3))
        source = load_test(settings(tiny, "words"), "others", data.info)
        np.testing.assert_array_equal(source[0]["inputs"], [1, 2, 3, 4])
        assert source.show(0) == "abcdef"

    def test_the_split_is_the_one_of_the_settings_where_it_exists(self, tiny):
        tiny.images("squares", {"train": gray(4), "test": gray(2, first=4), "holdout": gray(3, first=6)})
        like = load(settings(tiny, "squares", validation_fraction=0.0)).info
        assert len(load_test(settings(tiny, "digits", test_split="holdout"), "squares", like)) == 3
        assert len(load_test(settings(tiny, "digits", test_split="hold"), "squares", like)) == 2

    def test_without_any_test_split(self, tiny):
        texts("words", tiny, ["a", "b", "c"], split="extra")
        like = load(DataSettings()).info._replace(kind="text", input_shape=(4,))
        with pytest.raises(DataError, match="data.train_split = 'train', but words has the splits extra"):
            load_test(settings(tiny, "digits"), "words", like)
        with pytest.raises(DataError, match="none can be taken from 'extra': raise data.test_fraction"):
            load_test(settings(tiny, "digits", train_split="extra", test_fraction=0.0), "words", like)


def test_every_process_prepares_and_reads_the_same_data(tmp_path):
    # In protocol buffers the order of a map, such as that of the columns, differs from process to process.
    rows = [f"{i % 2}," + ",".join(str(i * k) for k in range(1, 9)) for i in range(12)]
    (tmp_path / "people.csv").write_text("\n".join(["label,h,g,f,e,d,c,b,a", *rows]))
    program = """if True:
        import sys
        from protojax.config import DataSettings
        from protojax.data import load, prepare
        source, folder = sys.argv[1:]
        prepare.table(source, name="people", label="label", data_dir=folder, validation=0.0, test=0.2)
        data = load(DataSettings(name="people", data_dir=folder, validation_fraction=0.0))
        print(data.info.fingerprint, *data.test.show(0), *(f"{x:.4f}" for x in data.test[0]["inputs"]))
        """
    outputs = []
    for folder in ("first", "second"):
        arguments = [sys.executable, "-c", program, str(tmp_path / "people.csv"), str(tmp_path / folder)]
        outputs.append(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split())
    assert outputs[0] == outputs[1]
    assert outputs[0][1:9] == list("abcdefgh")


def test_importing_needs_neither_tensorflow_nor_tfds():
    program = "import sys, protojax.data; print([m for m in ('tensorflow', 'tensorflow_datasets') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
