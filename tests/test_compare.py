import json

import numpy as np
import pytest
from PIL import Image

from protojax import cli

NAMES = ["cat", "dog", "owl"]
FIRST = [[8, 1, 1], [0, 10, 0], [2, 0, 3]]
SECOND = [[10, 0, 0], [5, 5, 0], [0, 0, 5]]


def run_folder(folder, confusion, names=NAMES, data="pets", count=25):
    folder.mkdir(parents=True)
    about = {"label_names": names, "name": data, "version": "1.0.0", "counts": {"test": count}}
    (folder / "run.json").write_text(json.dumps({"data": about, "settings": {"data": {"test_split": "test"}}}))
    if confusion is not None:
        results = {"experiment": f"of {folder.name}", "test": {"confusion": confusion}}
        (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture
def runs(tmp_path):
    return run_folder(tmp_path / "a", FIRST), run_folder(tmp_path / "b", SECOND)


def compare(*words):
    return cli.main(["evaluate", "--compare", *map(str, words)])


def test_two_runs_side_by_side(runs, tmp_path, capsys):
    assert compare(*runs) == 0
    printed = capsys.readouterr().out
    assert f"test accuracy 0.84  {runs[0]}\n" in printed and f"test accuracy 0.8  {runs[1]}\n" in printed
    assert printed.endswith(f"\n{runs[0]}/figures/confusions.json\n{runs[0]}/figures/confusions.png\n")
    record = json.loads((runs[0] / "figures" / "confusions.json").read_text())
    assert record["label_names"] == NAMES
    assert [r["run"] for r in record["runs"]] == [str(r) for r in runs]
    assert [r["experiment"] for r in record["runs"]] == ["of a", "of b"]
    assert [(r["examples"], r["accuracy"]) for r in record["runs"]] == [(25, 21 / 25), (25, 20 / 25)]
    assert [r["confusion"] for r in record["runs"]] == [FIRST, SECOND]
    with Image.open(runs[0] / "figures" / "confusions.png") as picture:
        width, height = picture.size
        blue = np.asarray(picture.convert("RGB"), np.int32)
    assert width > 1.5 * height
    # What differs is seen: each half has its own cells, and the second a darker first one.
    left, right = np.split(blue[:, : width // 2 * 2], 2, axis=1)
    assert (left != right).any(axis=-1).sum() > 1000
    assert compare(*runs, "--output", tmp_path / "new" / "folder") == 0
    assert (tmp_path / "new" / "folder" / "confusions.png").exists()


def test_a_relative_folder_beside_an_absolute_one(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert compare("a", runs[1]) == 0
    record = json.loads((tmp_path / "a" / "figures" / "confusions.json").read_text())
    assert [r["run"] for r in record["runs"]] == ["a", str(runs[1])]


def test_what_cannot_be_compared_is_named(runs, tmp_path, capsys):
    first = runs[0]
    others = run_folder(tmp_path / "others", FIRST, ["cat", "dog", "fox"])
    fewer = run_folder(tmp_path / "fewer", [[1, 2], [3, 4]])
    fresh = run_folder(tmp_path / "fresh", None)
    elsewhere = run_folder(tmp_path / "elsewhere", FIRST, data="zoo")
    smaller = run_folder(tmp_path / "smaller", FIRST, count=20)
    damaged = run_folder(tmp_path / "damaged", FIRST)
    (damaged / "results.json").write_text("{")
    run_folder(tmp_path / "seeds" / "seed-3", FIRST)
    for second, message in (
        (tmp_path / "absent", f"{tmp_path}/absent is no run folder: it has no run.json"),
        (
            tmp_path / "seeds",
            f"holds one run for each of several seeds; give one of them, such as {tmp_path}/seeds/seed-3",
        ),
        (fresh, f"{fresh} has no results yet; protojax evaluate --workdir {fresh} writes them"),
        (fewer, f"{fewer}/results.json has no confusion matrix of its 3 classes"),
        (damaged, f"{damaged}/results.json: damaged: "),
        (others, f"{first} has the classes cat, dog, owl, but {others} has cat, dog, fox; only runs with the same"),
        (
            elsewhere,
            f"{first} was scored on 25 examples of pets:1.0.0, split test, but {elsewhere} on 25 examples of zoo:1.0.0",
        ),
        (smaller, f"but {smaller} on 20 examples of pets:1.0.0, split test; only runs scored on the same split"),
        (first, f"{first} would be compared with itself; give two different run folders"),
    ):
        assert compare(first, second) == 2
        assert message in capsys.readouterr().err
    assert not (first / "figures").exists()
    assert compare(*runs, "--output", first / "run.json") == 2
    assert f"--output {first}/run.json: {first}/run.json is a file; give a folder" in capsys.readouterr().err
