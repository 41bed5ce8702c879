"""Exported predictions: loaded without protojax and flax, they are those of the library."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from protojax import config, data, database, export, methods, step
from protojax.data import DataSet, Info
from protojax.data.source import Examples
from protojax.opened import Opened, preparation, score

WIDTH = 6
BATCHES = (1, 3, 17)

LOAD = """
import importlib.abc, json, runpy, sys
from pathlib import Path

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("protojax", "flax", "optax", "orbax", "grain", "pydantic"):
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocked())
import jax
import numpy as np
from jax import export

for folder in map(Path, sys.argv[1:]):
    loaded = runpy.run_path(str(folder / "example.py"))
    predict, variables, database = loaded["predict"], loaded["variables"], loaded["database"]
    asked = np.load(folder.with_suffix(".npz"))
    inputs, ids, answers = asked["inputs"], asked["ids"], {}
    for n in (1, 3, 17):
        answer = predict(variables, database, inputs[:n], ids[:n])
        answers |= {f"{n}.{name}": np.asarray(x) for name, x in answer.items()}
    edited = database | {"ids": np.where(np.isin(database["ids"], asked["removed"]), -1, database["ids"])}
    answer = predict(variables, edited, inputs, ids)
    answers |= {f"edited.{name}": np.asarray(x) for name, x in answer.items()}
    np.savez(folder.with_suffix(".answers.npz"), **answers)
    try:
        predict(variables, database, inputs[:, :-1], ids)
    except ValueError as error:
        print(folder.name, "refused:", error)
assert not any(name.split(".")[0] in ("protojax", "flax") for name in sys.modules)
"""


def opened_of(dataset, encoder):
    tree = {
        "name": "tiny",
        "encoder": encoder,
        "method": {"kind": "protoattend", "key_size": 8, "value_size": 8},
        "train": {"candidate_count": 8, "batch_size": 8},
        "evaluate": {"batch_size": 32},
        "explain": {"width": WIDTH},
    }
    settings = config.from_tree(tree, "test")
    state = step.fresh(settings, dataset)
    # Sharp enough for supports of a few candidates.
    state.params["query"]["kernel"] *= 25
    built = methods.build(settings, len(dataset.info.label_names))
    transform = preparation(settings, dataset)
    chosen = np.arange(min(200, len(dataset.train)))
    memory = database.build(built, state.variables, dataset.train, chosen, transform, 64, progress=False)
    return Opened(None, settings, dataset, built, state, memory, transform)


def a_table():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(80, 5)).astype(np.float32)
    labels = (rows[:, 0] > 0).astype(np.int32)
    ids = np.arange(100, 180, dtype=np.int32)
    splits = [Examples(ids, labels, np.arange(*part), rows, rows) for part in ((0, 60), (60, 80))]
    info = Info("rows", "1.0.0", "table", ("no", "yes"), (5,), "f", {"train": 60, "test": 20})
    return DataSet(info, splits[0], None, splits[1])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Two runs by name, exported, and what a process without protojax gets from them."""
    folder = tmp_path_factory.mktemp("exported")
    digits = data.load(config.DataSettings())
    runs = {
        "images": opened_of(digits, {"kind": "conv", "filters": (8,), "dense": (16,)}),
        "table": opened_of(a_table(), {"kind": "lstm", "steps": 2, "width": 8}),
    }
    answers = {}
    for name, opened in runs.items():
        export.write(folder / name, opened)
        test = [opened.dataset.test[i] for i in range(max(BATCHES))]
        # A training example that is asked, too, must not be its own prototype.
        test[0] = opened.dataset.train[5]
        inputs, ids = (np.stack([example[key] for example in test]) for key in ("inputs", "id"))
        removed = score(opened, opened.dataset.test, quiet=True).support.ids[:, 0]
        np.savez(folder / f"{name}.npz", inputs=inputs, ids=ids, removed=removed[:4])
        answers[name] = opened, test, removed[:4]
    command = [sys.executable, "-c", LOAD, *(str(folder / name) for name in runs)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, answers, done.stdout


class Asked:
    """Examples as a source."""

    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, i):
        return self.examples[i]


def compare(answers, part, scored):
    np.testing.assert_array_equal(answers[f"{part}.class"], scored.predicted)
    np.testing.assert_array_equal(answers[f"{part}.ids"], scored.support.ids)
    np.testing.assert_array_equal(answers[f"{part}.labels"], scored.support.labels)
    np.testing.assert_array_equal(answers[f"{part}.support_size"], scored.support.size)
    np.testing.assert_allclose(answers[f"{part}.weights"], scored.support.weights, atol=1e-5)
    np.testing.assert_allclose(answers[f"{part}.confidence"], scored.confidence, atol=1e-5)
    np.testing.assert_allclose(answers[f"{part}.scores"], scored.scores, atol=1e-5)
    np.testing.assert_allclose(answers[f"{part}.encoder_scores"], scored.encoder_scores, atol=1e-5)


@pytest.mark.parametrize("name", ["images", "table"])
def test_the_answers_are_those_of_the_library(exported, name):
    folder, asked, _ = exported
    opened, examples, removed = asked[name]
    answers = np.load(folder / f"{name}.answers.npz")
    for n in BATCHES:
        compare(answers, n, score(opened, Asked(examples[:n]), quiet=True))
    assert (answers["17.ids"][0] != examples[0]["id"]).all()
    # Taken out by their ids, as the description says, candidates are removed.
    memory = opened.memory.remove(np.unique(removed).tolist())
    compare(answers, "edited", score(opened._replace(memory=memory), Asked(examples), quiet=True))
    assert not np.isin(answers["edited.ids"], removed).any()


def test_a_wrong_shape_is_named(exported):
    _, _, printed = exported
    refused = [line for line in printed.splitlines() if "refused" in line]
    assert len(refused) == 2
    assert all("inputs" in line or "args[2]" in line for line in refused)


def test_the_example_prints_answers(exported):
    _, asked, printed = exported
    names = {name for opened, *_ in asked.values() for name in opened.dataset.info.label_names}
    answers = [line for line in printed.splitlines() if line.split()[0] in names]
    assert len(answers) == 6


@pytest.mark.parametrize("name", ["images", "table"])
def test_the_description_says_what_there_is(exported, name):
    folder, asked, _ = exported
    opened, *_ = asked[name]
    about = json.loads((folder / name / "description.json").read_text())
    assert about["schema"] == "protojax.export/1"
    assert about["artifact"]["platforms"] == ["cpu", "cuda"]
    assert about["inputs"]["shape"] == ["batch", *opened.dataset.info.input_shape]
    assert about["inputs"]["dtype"] == opened.dataset.test[0]["inputs"].dtype
    assert about["class_names"] == list(opened.dataset.info.label_names)
    assert about["width"] == WIDTH
    assert about["encoder_sha256"] == opened.memory.encoder_sha256
    assert set(about["database"]) == {"ids", "labels", "embeddings.keys", "embeddings.values"}
    for entry in [about["artifact"], *about["variables"].values(), *about["database"].values()]:
        content = (folder / name / entry["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    for entry in [*about["variables"].values(), *about["database"].values()]:
        array = np.load(folder / name / entry["file"], allow_pickle=False)
        assert (list(array.shape), array.dtype.name) == (entry["shape"], entry["dtype"])


def test_nothing_is_overwritten_unasked(exported, tmp_path):
    folder, asked, _ = exported
    opened, *_ = asked["table"]
    with pytest.raises(export.ExportError, match="holds an export; choose another folder, or .* --overwrite"):
        export.write(folder / "table", opened)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(export.ExportError, match="holds files but no export"):
        export.write(tmp_path, opened, overwrite=True)
    with pytest.raises(export.ExportError, match="is a file; give a folder"):
        export.check(tmp_path / "notes.txt", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt"]


def with_notes(folder):
    """An export in which somebody keeps files, and their contents by name."""
    (folder / "database" / "old").mkdir()
    notes = {"notes.txt": "mine", "database/old/ids.npy": "mine, too", "variables/about.md": "more"}
    for name, text in notes.items():
        (folder / name).write_text(text)
    return notes


def names_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_files_of_others_stay_in_the_folder(exported, tmp_path):
    _, asked, _ = exported
    opened, *_ = asked["table"]
    export.write(tmp_path / "out", opened)
    own = names_in(tmp_path / "out")
    notes = with_notes(tmp_path / "out")
    # Of an export with more arrays than the next.
    (tmp_path / "out" / "variables" / "99.npy").write_text("old")
    export.write(tmp_path / "out", opened, overwrite=True)
    assert names_in(tmp_path / "out") == sorted([*own, *notes])
    assert {name: (tmp_path / "out" / name).read_text() for name in notes} == notes
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("moves", range(2, 6))
def test_files_of_others_outlive_a_kill(exported, tmp_path, monkeypatch, moves):
    """The process dies at the rename of this number; the first puts the export before aside."""
    folder, *_ = exported
    out, aside, fresh = tmp_path / "out", tmp_path / ".out.old", tmp_path / ".out.new"
    shutil.copytree(folder / "table", out)
    own, notes, kept, done = names_in(out), with_notes(out), Path.rename, []

    def dying(source, target):
        done.append(target)
        if len(done) == moves:
            raise KeyboardInterrupt
        return kept(source, target)

    shutil.copytree(folder / "table", fresh)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", dying)
        out.rename(aside)
        fresh.rename(out)
        export._finish(aside, out)
    export._finish(aside, out)
    assert names_in(out) == sorted([*own, *notes]) and not aside.exists()


def test_a_failure_leaves_the_export_before(exported, tmp_path, monkeypatch):
    _, asked, _ = exported
    opened, *_ = asked["table"]
    export.write(tmp_path / "out", opened)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export.np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        export.write(tmp_path / "out", opened, overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
