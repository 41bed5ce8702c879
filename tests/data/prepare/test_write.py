"""What all prepared data sets have in common, shown on small texts."""

import os
import resource
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from protojax.data import prepare, splits
from protojax.data.source import DataError


def _texts(folder, rows, header="label\ttext"):
    path = folder / "texts.tsv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def _many(count=60):
    return [f"{'ab'[i % 2]}\ttext number {i}" for i in range(count)]


def _read(path, split):
    return list(tfds.builder_from_directory(path).as_data_source(split))


def test_splits_follow_the_id_hash_and_hold_every_example_once(tmp_path):
    found = prepare.text(_texts(tmp_path, _many()), name="some_texts", data_dir=tmp_path / "sets", test=0.3)
    assert found.path == tmp_path / "sets" / "some_texts" / "1.0.0"
    assert sum(found.counts.values()) == 60
    assert found.dropped == {}
    # 0.1 of the training part.
    expected = splits.assign(np.arange(60), {"test": 0.3, "validation": 0.1 * 0.7})
    seen = {}
    for split, count in found.counts.items():
        examples = _read(found.path, split)
        assert len(examples) == count
        for example in examples:
            i = int(example["id"])
            seen[i] = split
            assert example["text"] == f"text number {i}".encode()
            assert example["label"] == i % 2
    assert [seen[i] for i in range(60)] == expected.tolist()


def test_no_validation_split_when_none_is_wanted(tmp_path):
    found = prepare.text(_texts(tmp_path, _many()), name="texts", data_dir=tmp_path, validation=0.0)
    assert set(found.counts) == {"train", "test"}


def test_large_splits_are_written_in_several_files_and_mixed(tmp_path):
    found = prepare.text(_texts(tmp_path, _many(3000)), name="texts", data_dir=tmp_path, validation=0.0, test=0.1)
    assert len(list(found.path.glob("texts-train.array_record-*"))) == 2
    ids = np.array([int(example["id"]) for example in _read(found.path, "train")])
    assert len(set(ids.tolist())) == found.counts["train"]
    assert abs(np.corrcoef(ids, np.arange(len(ids)))[0, 1]) < 0.1


def test_two_sets_in_one_process(tmp_path):
    source = _texts(tmp_path, _many())
    for name in ("first", "second", "first_again"):
        found = prepare.text(source, name=name, data_dir=tmp_path)
        assert tfds.builder_from_directory(found.path).info.name == name


def test_copies_in_two_splits_are_refused_or_dropped(tmp_path):
    rows = _many()
    chosen = splits.assign(np.arange(60), {"test": 0.3, "validation": 0.1 * 0.7})
    place = {name: np.flatnonzero(chosen == name) for name in ("train", "validation", "test")}
    train, validation, test = (int(place[name][0]) for name in ("train", "validation", "test"))
    rows[train] = "a\t" + rows[test].split("\t")[1]  # another label does not make it another text
    rows[validation] = "b\t" + rows[int(place["test"][1])].split("\t")[1]
    rows[int(place["train"][1])] = rows[int(place["train"][2])]  # twice in one split: allowed
    source = _texts(tmp_path, rows)
    with pytest.raises(DataError, match='2 examples stand in two splits.*duplicates="drop"') as caught:
        prepare.text(source, name="texts", data_dir=tmp_path, test=0.3)
    assert f"id {train} (train) is id {test} (test)" in str(caught.value)
    assert not (tmp_path / "texts").exists()
    found = prepare.text(source, name="texts", data_dir=tmp_path, test=0.3, duplicates="drop")
    assert found.dropped == {"train": (train,), "validation": (validation,)}
    assert found.counts == {
        "train": len(place["train"]) - 1,
        "validation": len(place["validation"]) - 1,
        "test": len(place["test"]),
    }
    assert train not in {int(example["id"]) for example in _read(found.path, "train")}
    assert (
        "Left out as copies of examples in other splits: 2" in tfds.builder_from_directory(found.path).info.description
    )


def test_a_set_is_replaced_only_when_told(tmp_path):
    prepare.text(_texts(tmp_path, _many(60)), name="texts", data_dir=tmp_path)
    source = _texts(tmp_path, _many(70))
    with pytest.raises(DataError, match="texts exists: choose another name, or replace it with --overwrite"):
        prepare.text(source, name="texts", data_dir=tmp_path)
    found = prepare.text(source, name="texts", data_dir=tmp_path, overwrite=True)
    assert sum(len(_read(found.path, split)) for split in found.counts) == 70
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["texts", "texts.tsv"]


def test_what_is_no_prepared_set_is_never_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("years of work")
    with pytest.raises(DataError, match="thesis holds something else than one prepared data set"):
        prepare.text(_texts(tmp_path, _many()), name="thesis", data_dir=tmp_path, overwrite=True)
    assert (tmp_path / "thesis" / "chapter").read_text() == "years of work"


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("cause", [KeyboardInterrupt, OSError("unplugged")])
def test_an_interrupted_run_leaves_what_was_there(tmp_path, monkeypatch, cause, old):
    source = _texts(tmp_path, _many())
    before = prepare.text(source, name="texts", data_dir=tmp_path).counts if old else None

    def fail(*args, **kwargs):
        raise cause

    monkeypatch.setattr(tfds.core.DatasetInfo, "write_to_directory", fail)
    with pytest.raises(KeyboardInterrupt if cause is KeyboardInterrupt else DataError):
        prepare.text(_texts(tmp_path, _many(70)), name="texts", data_dir=tmp_path, overwrite=True)
    monkeypatch.undo()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == (["texts"] if old else []) + ["texts.tsv"]
    if old:
        assert {split: len(_read(tmp_path / "texts" / "1.0.0", split)) for split in before} == before


def test_the_old_set_comes_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    prepare.text(_texts(tmp_path, _many()), name="texts", data_dir=tmp_path, validation=0.0)
    rename = Path.rename

    def fail(self, to):
        if self.name == "texts" and self.parent != tmp_path:
            raise OSError("no permission")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(DataError, match="no permission"):
        prepare.text(_texts(tmp_path, _many(70)), name="texts", data_dir=tmp_path, overwrite=True)
    path = tmp_path / "texts" / "1.0.0"
    assert sum(len(_read(path, split)) for split in ("train", "test")) == 60
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["texts", "texts.tsv"]


def test_a_full_disk_leaves_nothing(tmp_path):
    rows = [f"{'ab'[i % 2]}\t{i} {'x' * 1000}" for i in range(300)]
    source = _texts(tmp_path, [row + os.urandom(500).hex() for row in rows])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(DataError, match="texts could not be written, and nothing of it was kept: .*too large"):
            prepare.text(source, name="texts", data_dir=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [entry.name for entry in tmp_path.iterdir()] == ["texts.tsv"]


@pytest.mark.parametrize("name", ["", "../up", "a/b", "1st", "Texts", "te xts", "texts\n", "a-b", "tëxt"])
def test_names_that_are_no_names(tmp_path, name):
    with pytest.raises(DataError, match="cannot name a data set: use lower-case letters"):
        prepare.text(_texts(tmp_path, _many()), name=name, data_dir=tmp_path / "sets")
    assert not (tmp_path / "sets").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "digits"}, "'digits' is the data set embedded in protojax"),
        ({"duplicates": "keep"}, 'duplicates must be "refuse" or "drop", got \'keep\''),
        ({"validation": 1.0}, r"validation is a share of the examples, in \[0, 1\), got 1"),
        ({"test": -0.5}, "test is a share of the examples"),
    ],
)
def test_impossible_options(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        prepare.text(_texts(tmp_path, _many()), **{"name": "texts", "data_dir": tmp_path, **options})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a\tone"], r"holds 1 example\(s\): training and testing need different ones"),
        (["a\tone", "b\ttwo"], "none of the 2 examples of .*texts.tsv.* is left for the .* split"),
        (["a\tx" + str(i) for i in range(50)], "has the one class 'a'"),
    ],
)
def test_too_little(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        prepare.text(_texts(tmp_path, rows), name="texts", data_dir=tmp_path)


def test_a_class_without_training_examples(tmp_path):
    rows = _many()
    held_out = int(np.flatnonzero(splits.assign(np.arange(60), {"test": 0.2, "validation": 0.08}) == "test")[0])
    rows[held_out] = "rare\ttext"
    with pytest.raises(DataError, match=r"class 'rare' of .* has no training example \(1 in all\)"):
        prepare.text(_texts(tmp_path, rows), name="texts", data_dir=tmp_path)
