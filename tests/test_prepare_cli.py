"""From raw files through the command line to explained decisions, for every kind of data."""

import json

import numpy as np
import pytest
from PIL import Image

from protojax import cli

SETTINGS = """
name = "tiny"
[data]
name = "{name}"
data_dir = "{data_dir}"
validation_split = "validation"
{data}
[encoder]
{encoder}
[method]
kind = "protoattend"
key_size = 4
value_size = 4
[train]
steps = 4
batch_size = 8
candidate_count = 8
log_every = 2
checkpoint_every = 4
[evaluate]
batch_size = 64
[explain]
count = 3
width = 8
"""

ENCODERS = {
    "image": 'kind = "conv"\nfilters = [4]\ndense = [8]',
    "text": 'kind = "vdcnn"\nembedding = 4\nstem = 4\nfilters = [4, 4, 4, 4]\nk_max = 2\ndense = [8]',
    "table": 'kind = "lstm"\nsteps = 2\nwidth = 8',
}


def _animal(i: int) -> str:
    return "cat" if i % 2 else "dog"


def _images(folder):
    root = folder / "raw"
    for i in range(60):
        path = root / ("test" if i < 12 else "train") / _animal(i) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    return ["image-folder", str(root), "--validation", "0.2"]


def _texts(folder):
    path = folder / "raw.tsv"
    path.write_text("kind\tbody\n" + "".join(f"{_animal(i)}\tThe {_animal(i)}, number {i}!\n" for i in range(60)))
    return ["text", str(path), "--label", "kind", "--text", "body"]


def _rows(folder):
    path = folder / "raw.csv"
    path.write_text("age,work,kind\n" + "".join(f"{i / 2},{'xyz'[i % 3]},{_animal(i)}\n" for i in range(60)))
    return ["csv", str(path), "--label", "kind"]


def _prepared(folder, kind):
    source = {"image": _images, "text": _texts, "table": _rows}[kind](folder)
    assert cli.main(["prepare", *source, "--name", "tiny", "--data-dir", str(folder / "sets")]) == 0
    return folder / "sets"


def _train(folder, kind, *arguments, data=""):
    experiment, run = folder / "tiny.toml", folder / "run"
    text = SETTINGS.format(name="tiny", data_dir=folder / "sets", data=data, encoder=ENCODERS[kind])
    experiment.write_text(text)
    assert cli.main(["train", str(experiment), "--workdir", str(run), *arguments]) == 0
    return run


def _explained(run, capsys, *arguments):
    capsys.readouterr()
    assert cli.main(["explain", "--workdir", str(run), *arguments]) == 0
    files = capsys.readouterr().out.split()
    decisions = json.loads((run / "figures" / "explanations.json").read_text())["decisions"]
    return decisions, [file.rsplit("/", 1)[1] for file in files]


def test_a_text(tmp_path, capsys):
    _prepared(tmp_path, "text")
    run = _train(tmp_path, "text", data="text = { length = 32 }")
    info = json.loads((run / "run.json").read_text())["data"]
    assert info["label_names"] == ["cat", "dog"]
    assert info["counts"]["padded"] == 60 and info["counts"]["truncated"] == 0
    decisions, files = _explained(run, capsys, "--least-confident", "2")
    assert "explanations.md" in files and len(decisions) == 2
    for decision in decisions:
        assert decision["input"] == f"The {_animal(decision['id'])}, number {decision['id']}!"
        for prototype in decision["prototypes"]:
            assert prototype["input"] == f"The {_animal(prototype['id'])}, number {prototype['id']}!"
            assert prototype["wrong_label"] == (_animal(prototype["id"]) != _animal(decision["id"]))
    assert decisions[0]["input"] in (run / "figures" / "explanations.md").read_text()


def test_a_table_and_the_same_streamed_by_a_worker(tmp_path, capsys):
    _prepared(tmp_path, "table")
    run = _train(tmp_path, "table")
    wanted = [d["id"] for d in json.loads((run / "figures" / "explanations.json").read_text())["decisions"]][::-1]
    decisions, files = _explained(run, capsys, "--ids", ",".join(map(str, wanted)))
    assert [decision["id"] for decision in decisions] == wanted
    assert "explanations.md" in files
    for example in (*decisions, *decisions[0]["prototypes"]):
        assert example["input"] == {"age": example["id"] / 2, "work": "xyz"[example["id"] % 3]}
    resident = json.loads((run / "results.json").read_text())
    run.rename(tmp_path / "resident")
    run = _train(tmp_path, "table", "data.feeding=streamed", "data.workers=1")
    streamed = json.loads((run / "results.json").read_text())
    # The same batches, of which the compiled steps may differ in the order of their sums.
    assert streamed["test"]["accuracy"] == resident["test"]["accuracy"]
    assert streamed["test"]["confidence"]["mean"] == pytest.approx(resident["test"]["confidence"]["mean"], abs=1e-4)


def test_images_without_a_validation_split(tmp_path, capsys):
    _prepared(tmp_path, "image")
    sets = tmp_path / "sets" / "tiny" / "1.0.0"
    assert sets.is_dir()
    assert (
        cli.main(["prepare", *_images(tmp_path / "again"), "--name", "tiny", "--data-dir", str(sets.parents[1])]) == 2
    )
    assert "exists: choose another name, or replace it with --overwrite" in capsys.readouterr().err
    whole = [*_images(tmp_path / "again")[:2], "--validation", "0", "--overwrite"]
    assert cli.main(["prepare", *whole, "--name", "tiny", "--data-dir", str(sets.parents[1])]) == 0
    assert "prepared tiny: train 48, test 12\n" in capsys.readouterr().out
    text = SETTINGS.replace('validation_split = "validation"', "validation_fraction = 0.0")
    experiment, run = tmp_path / "tiny.toml", tmp_path / "run"
    experiment.write_text(text.format(name="tiny", data_dir=tmp_path / "sets", data="", encoder=ENCODERS["image"]))
    assert cli.main(["train", str(experiment), "--workdir", str(run)]) == 0
    decisions, files = _explained(run, capsys, "--split", "train", "--ids", "20,30")
    assert [decision["id"] for decision in decisions] == [20, 30]
    assert "explanations.png" in files
    assert cli.main(["explain", "--workdir", str(run), "--split", "validation"]) == 2
    assert "protojax: error: tiny has no validation split" in capsys.readouterr().err
