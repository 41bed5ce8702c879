import numpy as np
import pytest
from sklearn.datasets import load_digits

from protojax.config import DataSettings
from protojax.data import DataError, load


@pytest.fixture(scope="module")
def digits():
    return load(DataSettings())


def test_every_digit_stands_in_exactly_one_split(digits):
    ids = np.concatenate([digits.train.ids, digits.validation.ids, digits.test.ids])
    np.testing.assert_array_equal(np.sort(ids), np.arange(1797))
    assert digits.info.counts == {
        "train": len(digits.train),
        "validation": len(digits.validation),
        "test": len(digits.test),
    }
    assert abs(len(digits.test) / 1797 - 0.2) < 0.03
    assert abs(len(digits.validation) / (1797 - len(digits.test)) - 0.1) < 0.03


def test_examples_are_those_of_scikit_learn(digits):
    reference = load_digits()
    for source in (digits.train, digits.validation, digits.test):
        example = source[7]
        assert example["id"].dtype == example["label"].dtype == np.int32
        assert example["id"] == source.ids[7] and example["label"] == source.labels[7]
        assert example["label"] == reference.target[example["id"]]
        assert example["inputs"].dtype == np.uint8 and example["inputs"].shape == (8, 8, 1)
        expected = reference.images[example["id"]] * 255 / 16
        np.testing.assert_allclose(example["inputs"][..., 0], expected, atol=0.5)
        np.testing.assert_array_equal(source.show(7), example["inputs"])


def test_info(digits):
    assert digits.info.kind == "image"
    assert digits.info.input_shape == (8, 8, 1)
    assert digits.info.label_names == tuple("0123456789")


def test_the_same_settings_give_the_same_data_and_others_another_fingerprint(digits):
    again = load(DataSettings())
    assert again.info == digits.info
    np.testing.assert_array_equal(again.train.ids, digits.train.ids)
    other = load(DataSettings(validation_fraction=0.2))
    assert other.info.fingerprint != digits.info.fingerprint
    # The test split does not move when the validation split does.
    np.testing.assert_array_equal(other.test.ids, digits.test.ids)


def test_no_validation(digits):
    whole = load(DataSettings(validation_fraction=0.0))
    assert whole.validation is None
    assert "validation" not in whole.info.counts
    assert set(whole.train.ids) == set(digits.train.ids) | set(digits.validation.ids)


def test_images_are_resized(digits):
    large = load(DataSettings(image_size=(16, 12)))
    assert large.info.input_shape == (16, 12, 1)
    assert large.train[0]["inputs"].shape == (16, 12, 1)
    assert large.train.show(0).shape == (8, 8, 1)
    assert abs(large.train[0]["inputs"].mean() - digits.train[0]["inputs"].mean()) < 8


def test_iteration_ends(digits):
    assert len(list(digits.validation)) == len(digits.validation)
    with pytest.raises(IndexError):
        digits.validation[len(digits.validation)]


def test_unknown_splits_are_named():
    with pytest.raises(DataError, match="data.train_split = 'training', but digits has the splits train; did you mean"):
        load(DataSettings(train_split="training"))
    with pytest.raises(DataError, match="data.test_split = 'tset'"):
        load(DataSettings(test_split="tset"))
    with pytest.raises(DataError, match="data.validation_split = 'valid'"):
        load(DataSettings(validation_split="valid"))


def test_testing_on_the_training_split_is_refused():
    with pytest.raises(DataError, match="must be different splits, got train, train"):
        load(DataSettings(test_split="train"))


def test_an_empty_test_split_is_refused():
    with pytest.raises(DataError, match="the test split is empty: change data.test_split or data.test_fraction"):
        load(DataSettings(test_fraction=0.0))
