import numpy as np
import pytest

from protojax.config import NumericColumn, TableSettings
from protojax.data import DataError, table

IDS = np.array([10, 11, 12, 13], np.int32)


def columns(**changes):
    rows = {
        "age": np.array([20.0, 40.0, 60.0, 30.0], np.float32),
        "gain": np.array([0.0, 9.0, 99.0, 0.0], np.float32),
        "work": np.array(["private", "state", "private", "none"], object),
    }
    return table.Columns(rows | changes)


def fit(rows, places=(0, 1, 2), **settings):
    return table.fit(rows, IDS, np.array(places), TableSettings(**settings))


def test_vectors_of_standardised_numbers_formulas_and_categories():
    rows = columns()
    numeric = {"gain": NumericColumn(log="log1p", shift=1.0, scale=2.0)}
    how = fit(rows, places=(0, 1, 2, 3), numeric=numeric)
    vectors, unknown = how.apply(rows, IDS)
    assert vectors.dtype == np.float32 and how.width == 5 and unknown == 0
    age = np.array([20.0, 40.0, 60.0, 30.0])
    np.testing.assert_allclose(vectors[:, 0], (age - age.mean()) / age.std(), rtol=1e-6)
    np.testing.assert_allclose(vectors[:, 1], (np.log([1.0, 10.0, 100.0, 1.0]) - 1) / 2, rtol=1e-6)
    # Sorted: none, private, state.
    np.testing.assert_array_equal(vectors[:, 2:], [[0, 1, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]])


def test_statistics_are_those_of_the_training_places_alone():
    rows = columns(work=np.array(["private"] * 4, object))
    vectors, _ = fit(rows).apply(rows, IDS)
    assert abs(vectors[:3, 0].mean()) < 1e-6 and abs(vectors[:3, 0].std() - 1) < 1e-6


def test_unknown_category_is_an_error_that_names_it():
    rows = columns()
    message = r"id 13, column 'work': the training split has no value 'none'; set data.table.unknown = \"bucket\""
    with pytest.raises(DataError, match=message):
        fit(rows).apply(rows, IDS)


def test_unknown_category_has_a_bucket_by_setting():
    rows = columns()
    how = fit(rows, unknown="bucket")
    vectors, unknown = how.apply(rows, IDS)
    assert unknown == 1
    np.testing.assert_array_equal(vectors[:, 2:], [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("numeric", [{}, {"age": NumericColumn()}])
@pytest.mark.parametrize("place", [1, 3])
def test_numbers_must_be_finite(value, numeric, place):
    rows = columns(work=np.array(["private"] * 4, object))
    rows.columns["age"][place] = value
    with pytest.raises(DataError, match=f"id 1{place}, column 'age': -?(nan|inf) is not a finite number"):
        fit(rows, numeric=numeric).apply(rows, IDS)


def test_logarithm_of_zero_suggests_log1p():
    rows = columns()
    with pytest.raises(DataError, match="id 10, column 'gain': log of 0 does not exist: use log1p"):
        fit(rows, places=range(4), numeric={"gain": NumericColumn(log="log")}).apply(rows, IDS)


@pytest.mark.parametrize("log", ["log", "log1p"])
def test_logarithm_of_a_negative_number(log):
    rows = columns(gain=np.array([1.0, -1.0, 2.0, 3.0], np.float32))
    with pytest.raises(DataError, match=f"id 11, column 'gain': {log} of -1 does not exist: use log = \"none\""):
        fit(rows, places=range(4), numeric={"gain": NumericColumn(log=log)}).apply(rows, IDS)


def test_formulas_must_name_numeric_columns():
    with pytest.raises(DataError, match="data.table.numeric names column 'agee'; .* did you mean 'age'"):
        fit(columns(), numeric={"agee": NumericColumn()})
    with pytest.raises(DataError, match="names column 'work', which holds categories"):
        fit(columns(), numeric={"work": NumericColumn()})


def test_constant_columns_need_a_formula():
    rows = columns(age=np.array([5.0, 5.0, 5.0, 6.0], np.float32), work=np.array(["a"] * 4, object))
    with pytest.raises(DataError, match="column 'age' is 5 in the whole training split and cannot be standardised"):
        fit(rows)
    vectors, _ = fit(rows, numeric={"age": NumericColumn(shift=5.0)}).apply(rows, IDS)
    np.testing.assert_array_equal(vectors[:, 0], [0, 0, 0, 1])


def test_numbers_too_large_for_float32():
    rows = columns(work=np.array(["a"] * 4, object))
    with pytest.raises(DataError, match="id 10, column 'age': 20 becomes 2e\\+41, too large for float32"):
        fit(rows, numeric={"age": NumericColumn(scale=1e-40)}).apply(rows, IDS)


def test_rows_read_like_the_file_they_came_from():
    rows = table.Columns(
        {
            "rate": np.array([0.1, 2.5], np.float32),
            "count": np.array([3, 2**40], np.int64),
            "work": np.array(["a", "b"], object),
        }
    )
    assert rows[0] == {"rate": 0.1, "count": 3, "work": "a"}
    assert rows[1] == {"rate": 2.5, "count": 2**40, "work": "b"}
    assert [type(value) for value in rows[0].values()] == [float, int, str]
