"""The division by id hash and the proof that splits are disjoint."""

import numpy as np
import pytest

from protojax.data import splits
from protojax.data.source import DataError


def test_the_division_never_changes():
    # Written down once: data sets prepared before stay as they are.
    found = splits.assign(np.arange(12), {"test": 0.3, "validation": 0.2})
    assert " ".join(found) == ("test train train test train validation test train validation validation test test")


def test_every_split_gets_its_share_and_train_the_rest():
    found = splits.assign(np.arange(200_000), {"test": 1 / 3, "validation": 0.05})
    shares = {name: float(np.mean(found == name)) for name in ("test", "validation", "train")}
    # Four standard deviations of a binomial share.
    assert shares == pytest.approx({"test": 1 / 3, "validation": 0.05, "train": 1 - 1 / 3 - 0.05}, abs=0.0045)


def test_the_split_of_an_example_depends_on_nothing_but_its_id():
    ids = np.arange(1000)
    whole = splits.assign(ids, {"test": 0.2, "validation": 0.1})
    some = np.array([917, 3, 44])
    np.testing.assert_array_equal(splits.assign(some, {"test": 0.2, "validation": 0.1}), whole[some])
    np.testing.assert_array_equal(splits.assign(ids.astype(np.int32), {"test": 0.2, "validation": 0.1}), whole)


def test_the_rest_of_one_division_can_be_divided_again():
    ids = np.arange(50_000)
    rest = ids[splits.assign(ids, {"test": 0.3}) == "train"]
    assert np.mean(splits.assign(rest, {"validation": 0.1}) == "validation") == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({"test": 1.0}, r"share of the test split must be in \[0, 1\), got 1"),
        ({"test": -0.1}, "share of the test split"),
        ({"test": float("nan")}, "share of the test split"),
        ({"test": 0.6, "validation": 0.4}, "sum to 1 and leave nothing for train"),
        ({"train": 0.5}, "train takes what the other splits leave"),
    ],
)
def test_impossible_shares_are_refused(fractions, message):
    with pytest.raises(DataError, match=message):
        splits.assign(np.arange(3), fractions)


def test_ids_must_be_integers():
    with pytest.raises(DataError, match=r"vector of integers, got float64 of shape \(3,\)"):
        splits.assign(np.zeros(3), {"test": 0.5})


def test_shuffled_is_a_fixed_permutation():
    order = splits.shuffled(np.arange(1000))
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1
    np.testing.assert_array_equal(order, splits.shuffled(np.arange(1000)))


def test_content_hash_tells_where_parts_end():
    assert splits.content_hash([b"ab", b"c"]) == splits.content_hash([b"ab", b"c"])
    assert splits.content_hash([b"ab", b"c"]) != splits.content_hash([b"a", b"bc"])
    assert splits.content_hash([b""]) != splits.content_hash([])


def test_copies_leave_the_test_split_whole():
    hashes = {
        "train": {1: b"a", 2: b"b", 3: b"c", 4: b"d", 5: b"d"},
        "validation": {6: b"b", 7: b"e"},
        "test": {8: b"a", 9: b"e", 10: b"f", 11: b"f"},
    }
    # 4 and 5, 10 and 11 are equal within a split, which is allowed.
    assert splits.copies(hashes) == {
        "train": {1: ("test", 8), 2: ("validation", 6)},
        "validation": {7: ("test", 9)},
        "test": {},
    }
    with pytest.raises(DataError, match=r"3 examples .* id 1 \(train\) is id 8 \(test\), .*; drop them") as caught:
        splits.check_disjoint(hashes, "drop them")
    assert "id 7 (validation) is id 9 (test)" in str(caught.value)


def test_disjoint_splits_pass():
    splits.check_disjoint({"train": {1: b"a", 2: b"a"}, "test": {3: b"b"}})
