"""Tables and texts from CSV and TSV files."""

import gzip

import numpy as np
import pytest
import tensorflow_datasets as tfds

from protojax.data import prepare, splits
from protojax.data.source import DataError

HEADER = "age,work,capital-gain,income"


def _rows(count=40):
    # Every third category needs its quotation marks.
    work = ['"State, gov"', "Private", "Private"]
    return [f"{20 + i},{work[i % 3]},{i * 0.5},{'<=50K' if i % 2 else '>50K'}" for i in range(count)]


def _file(folder, lines, name="t.csv"):
    content = "\n".join(lines).encode() + b"\n"
    path = folder / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def _read(found):
    source = tfds.builder_from_directory(found.path)
    return {int(example["id"]): example for split in found.counts for example in source.as_data_source(split)}


def _refused(folder, lines, message, **options):
    source = _file(folder, lines) if isinstance(lines, list) else lines
    with pytest.raises(DataError, match=message):
        prepare.table(source, **{"name": "tiny", "label": "income", "data_dir": folder, **options})
    assert not (folder / "tiny").exists()


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_a_table_loads_in_plain_tfds_with_equal_content(tmp_path, name):
    found = prepare.table(_file(tmp_path, [HEADER, *_rows()], name), name="tiny", label="income", data_dir=tmp_path)
    examples = _read(found)
    assert sorted(examples) == list(range(40))
    for i, example in examples.items():
        row = example["row"]
        assert set(row) == {"age", "work", "capital-gain"}
        assert row["age"] == 20 + i
        assert row["capital-gain"] == i * 0.5
        assert row["work"] == (b"State, gov" if i % 3 == 0 else b"Private")
        assert example["label"] == (0 if i % 2 else 1)
    info = tfds.builder_from_directory(found.path).info
    assert info.features["label"].names == ["<=50K", ">50K"]
    assert info.features["row"]["age"].np_dtype == np.float32
    assert "ids: row numbers from 0" in info.description


def test_columns_can_be_given(tmp_path):
    source = _file(tmp_path, [HEADER, *_rows()])
    found = prepare.table(source, name="tiny", label="income", data_dir=tmp_path, categorical=["age"])
    assert _read(found)[3]["row"]["age"] == b"23"


def test_an_id_column_is_used_where_it_holds_ids(tmp_path):
    lines = ["id," + HEADER, *(f"{1000 - i},{row}" for i, row in enumerate(_rows()))]
    found = prepare.table(_file(tmp_path, lines), name="tiny", label="income", data_dir=tmp_path)
    examples = _read(found)
    assert sorted(examples) == list(range(961, 1001))
    assert examples[1000]["row"]["age"] == 20 and "id" not in examples[1000]["row"]


@pytest.mark.parametrize("bad", ["7", "-1", "2147483648", "x", "1.0", ""])
def test_other_id_columns_give_way_to_row_numbers(tmp_path, bad):
    lines = ["id," + HEADER, *(f"{bad if i == 9 else i},{row}" for i, row in enumerate(_rows()))]
    found = prepare.table(_file(tmp_path, lines), name="tiny", label="income", data_dir=tmp_path)
    examples = _read(found)
    assert sorted(examples) == list(range(40))
    assert "id" not in examples[0]["row"]
    assert "ids: row numbers from 0" in tfds.builder_from_directory(found.path).info.description


@pytest.mark.parametrize("bad", ["old", "", "nan", "inf", "1_0", "1e39"])
def test_a_bad_number_is_named(tmp_path, bad):
    lines = [HEADER, *_rows()]
    lines[7] = lines[7].replace("26,", f"{bad},", 1)
    _refused(tmp_path, lines, f"t.csv, line 8, column 'age': {bad!r} is no finite number; correct it, or give")


def test_a_column_of_few_numbers_is_categorical_unless_given(tmp_path):
    lines = [HEADER, *_rows()]
    for i in range(1, 22):
        lines[i] = "old," + lines[i].split(",", 1)[1]
    found = prepare.table(_file(tmp_path, lines), name="tiny", label="income", data_dir=tmp_path)
    assert _read(found)[39]["row"]["age"] == b"59"
    with pytest.raises(DataError, match="line 2, column 'age': 'old' is no finite number"):
        prepare.table(tmp_path / "t.csv", name="other", label="income", data_dir=tmp_path, numeric=["age"])


def test_missing_columns_name_the_nearest(tmp_path):
    lines = [HEADER, *_rows()]
    _refused(tmp_path, lines, "t.csv: no column 'incom'; did you mean 'income'?.*columns are age, work", label="incom")
    _refused(tmp_path, lines, "no column 'capital gain'; did you mean 'capital-gain'?", numeric=["capital gain"])
    _refused(tmp_path, lines, "'income' is the label column and cannot be an input", numeric=["income"])
    _refused(tmp_path, lines, "'age' cannot be both numeric and categorical", numeric=["age"], categorical=["age"])


def test_rows_of_another_length_are_named(tmp_path):
    lines = [HEADER, *_rows()]
    lines[4] = "1,2,3"
    _refused(tmp_path, lines, "t.csv, line 5: 3 fields where the header has 4")


def test_lines_are_counted_through_fields_that_span_them(tmp_path):
    lines = [HEADER, *_rows()]
    lines[1] = '20,"two\nlines",0,>50K'
    lines[4] = "1,2,3"
    _refused(tmp_path, lines, "t.csv, line 6: 3 fields")


def test_an_open_quotation_is_refused(tmp_path):
    _refused(tmp_path, [HEADER, *_rows(), '1,"open,2,>50K'], "t.csv, line 42: unexpected end of data")


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("\n".join([HEADER, *_rows()]).encode().replace(b"25,", b"2\xe95,", 1))
    _refused(tmp_path, path, "t.csv, line 7: byte 2 of the line, 0xe9, is not UTF-8; save the file as UTF-8")


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path):
    path = _file(tmp_path, [HEADER, *_rows()])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    found = prepare.table(path, name="tiny", label="income", data_dir=tmp_path)
    assert "age" in _read(found)[0]["row"]


def test_files_that_are_damaged_or_no_tables(tmp_path):
    path = _file(tmp_path, [HEADER, *_rows()], "t.csv.gz")
    whole = path.read_bytes()
    path.write_bytes(whole[:150])
    _refused(tmp_path, path, r"t.csv.gz: truncated gzip file: it ends after \d+ unpacked bytes")
    path.write_bytes(b"age,income")
    _refused(tmp_path, path, "t.csv.gz: damaged gzip file: Not a gzipped file")
    _refused(tmp_path, tmp_path / "t.xlsx", "t.xlsx: the name must end with .csv, .tsv, .csv.gz or .tsv.gz")
    _refused(tmp_path, tmp_path / "none.csv", "none.csv: no such file")
    _refused(tmp_path, [HEADER], "t.csv: holds no rows below its header")
    _refused(tmp_path, ["age,age,income", "1,2,a"], "line 1: two columns are named 'age'")
    _refused(tmp_path, ["age,,income", "1,2,a"], "line 1: column 2 has no name")
    _refused(tmp_path, ["income", "a"], "line 1: expected a header naming an input and a label column")
    _refused(tmp_path, ["id,income", "1,a"], "no column is left for the inputs")
    _refused(tmp_path, ["a/b,income", "1,a"], "column 'a/b': TFDS keeps '/' for itself; rename the column")


def test_an_empty_label_is_named(tmp_path):
    lines = [HEADER, *_rows()]
    lines[3] = lines[3].rsplit(",", 1)[0] + ", "
    _refused(tmp_path, lines, "t.csv, line 4: the label column 'income' is empty")
    lines[3] = lines[3].rsplit(",", 1)[0] + ',"a\nb"'
    _refused(tmp_path, lines, r"t.csv, line 5: the label 'a\\nb' spans lines")


def test_equal_numbers_written_otherwise_are_copies(tmp_path):
    place = splits.assign(np.arange(40), {"test": 0.2, "validation": 0.08})
    train, test = (int(np.flatnonzero(place == name)[0]) for name in ("train", "test"))
    lines = _rows()
    lines[train], lines[test] = "1.50,x,-0.0,>50K", "1.5,x,0,<=50K"
    _refused(tmp_path, [HEADER, *lines], rf"1 examples stand in two splits: id {train} \(train\) is id {test} \(test\)")


def test_texts_keep_quotation_marks_and_unicode(tmp_path):
    texts = [f'" it began with {i} “quotes” and a\\tab' for i in range(40)]
    lines = ["id\tkind\tbody", *(f"s-{i}\t{'ab'[i % 2]} \t{text}" for i, text in enumerate(texts))]
    path = _file(tmp_path, lines, "t.tsv.gz")
    found = prepare.text(path, name="tiny", label="kind", text="body", data_dir=tmp_path)
    examples = _read(found)
    assert [examples[i]["text"].decode() for i in range(40)] == texts
    assert tfds.builder_from_directory(found.path).info.features["label"].names == ["a", "b"]


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (["label\ttext", "a\tx", "b\t "], {}, "t.tsv, line 3: the text column 'text' is empty"),
        (["label\ttext", "a\tx", "\ty"], {}, "t.tsv, line 3: the label column 'label' is empty"),
        (["label\ttext", "a\tx"], {"text": "label"}, "'label' cannot be both the label and the text column"),
        (["label\tbody", "a\tx"], {}, "no column 'text'; did you mean"),
        (["label\ttext", "a\tx\ty"], {}, "line 2: 3 fields where the header has 2"),
    ],
)
def test_texts_that_are_refused(tmp_path, lines, options, message):
    path = tmp_path / "t.tsv"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=message):
        prepare.text(path, name="tiny", data_dir=tmp_path, **options)
