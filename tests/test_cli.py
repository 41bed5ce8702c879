"""A run through the command line: trained, evaluated, explained, edited, exported; killed, stopped, out of disk."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from protojax import cli, shards, storage

EXPERIMENT = """
name = "tiny"
[encoder]
kind = "conv"
filters = [8]
dense = [32]
[method]
kind = "protoattend"
[optimizer]
learning_rate = 0.003
[train]
steps = 40
batch_size = 32
candidate_count = 64
log_every = 10
checkpoint_every = 10
[evaluate]
candidate_count = 300
[explain]
count = 3
width = 16
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    path = tmp_path_factory.mktemp("experiments") / "tiny.toml"
    path.write_text(EXPERIMENT)
    return str(path)


@pytest.fixture(scope="module")
def trained(experiment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert cli.main(["train", experiment, "--workdir", str(folder)]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy, to be edited."""
    return shutil.copytree(trained, tmp_path / "run")


def protojax(run, command, *more):
    words = command.split()
    return cli.main([*words, "--workdir", str(run), *more])


def results(run):
    return json.loads((run / "results.json").read_text())


def explained(run):
    return json.loads((run / "figures" / "explanations.json").read_text())["decisions"]


def prototypes(run):
    """Candidates by how many decisions of the test split list them, most first."""
    decisions = explained(run)
    ids, counts = np.unique([p["id"] for d in decisions for p in d["prototypes"]], return_counts=True)
    return ids[np.argsort(-counts)].tolist(), decisions


def start(experiment, folder, *overrides, before=()):
    command = [*before, sys.executable, "-m", "protojax.cli", "train", experiment, "--workdir", str(folder), *overrides]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for_checkpoint(folder, process, at_least=10):
    for _ in range(600):
        steps = [int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit()]
        if any(s >= at_least for s in steps):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("no checkpoint appeared")


def test_a_run_leaves_results_pictures_and_its_record(trained):
    found = results(trained)
    assert found["experiment"] == "tiny"
    assert found["train"]["steps"] == 40
    assert found["train"]["examples_per_second"] > 0
    assert found["test"]["accuracy"]["prototypes"] > 0.3
    assert set(found["test"]["prototypes_for"]) == {"50", "90", "95"}
    assert found["test"]["support"]["median"] >= 1
    assert len(found["parameters_sha256"]) == 64
    record = json.loads((trained / "run.json").read_text())
    assert record["settings"]["train"]["steps"] == 40
    names = {p.name for p in (trained / "figures").iterdir()}
    assert {"explanations.json", "explanations.png", "coverage_curve.png", "wrong_labels.json"} <= names
    assert len(explained(trained)) == 3
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [10, 20, 30, 40]
    assert list((trained / "tensorboard").glob("events*"))


def test_the_same_command_again_changes_nothing(trained, experiment):
    before = results(trained)
    assert cli.main(["train", experiment, "--workdir", str(trained), "--resume"]) == 0
    after = results(trained)
    assert after["parameters_sha256"] == before["parameters_sha256"]
    assert after["train"] == before["train"]


def test_evaluate_and_explain_anew(run, capsys):
    before = results(run)
    more = ("evaluate.candidate_count=100", "evaluate.rotations=[90]", "evaluate.neighbours=5")
    assert protojax(run, "evaluate", *more) == 0
    smaller = results(run)
    assert smaller["parameters_sha256"] == before["parameters_sha256"]
    assert smaller["test"]["support"]["max"] <= 100
    assert 0 < smaller["test"]["shift"]["rotated by 90 degrees"]["auroc"] < 1
    assert smaller["test"]["neighbours"]["accuracy"]["neighbours"] > 0.3
    assert protojax(run, "evaluate") == 0
    assert results(run)["test"]["accuracy"] == before["test"]["accuracy"]
    capsys.readouterr()
    wanted = [decision["id"] for decision in explained(run)][:2]
    assert protojax(run, "explain", "--ids", ",".join(map(str, wanted))) == 0
    printed = capsys.readouterr().out.split()
    assert any(line.endswith("explanations.json") for line in printed)
    assert [decision["id"] for decision in explained(run)] == wanted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--workdir", "{run}", "train.seed=3"], "train.seed: cannot change after training"),
        (["evaluate", "--workdir", "{run}", "evaluate.candidate_count=99999"], "evaluate.candidate_count = 99999"),
        (["evaluate", "--workdir", "{run}/absent"], "is no run folder"),
        (["train", "{toml}", "--workdir", "{run}", "optimizer.learning_rate=0.5"], "holds another experiment"),
        (["train", "{toml}", "--workdir", "{run}/new", "--resume"], "holds no run to resume"),
        (
            ["train", "{toml}", "--workdir", "{run}/new", "data.name=absent", "data.data_dir={run}"],
            "no data set 'absent'",
        ),
        (["train", "{toml}", "--workdir", "{run}/new", "encoder.kind=lstm"], "encoder"),
        (["train", "{toml}", "--workdir", "{run}/new", "train.candidate_count=9999"], "train.candidate_count = 9999"),
        (["train", "{toml}", "--workdir", "{run}/new", "explain.width=9999"], "explain.width = 9999"),
        (["train", "{toml}", "--workdir", "{run}/new", "trian.steps=5"], "did you mean train"),
    ],
)
def test_bad_input_is_one_line_and_status_2(trained, experiment, capsys, arguments, message):
    filled = [a.replace("{run}", str(trained)).replace("{toml}", experiment) for a in arguments]
    assert cli.main(filled) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (trained / "new").exists()


def test_edits_hold_in_evaluation_and_explanation(run, capsys):
    before = results(run)
    assert before["database"] == {"count": 300, "removed": 0, "edits": []}
    assert protojax(run, "explain", "--count", "12") == 0
    (first, second, *_), _ = prototypes(run)
    stored = shards.read(run / "database")
    label = stored.whole("labels")[stored.whole("ids") == second].item()
    other = (label + 1) % 10

    capsys.readouterr()
    assert protojax(run, "what-if", "--remove", str(first), "--relabel", f"{second}={other}", "--count", "4") == 0
    printed = capsys.readouterr().out
    asked = json.loads((run / "figures" / "what_if.json").read_text())
    assert f"without {first} (" in printed and f"with {second} as {other}, not {label}" in printed
    assert f"{len(asked['changed'])} change" in printed and str(run / "figures" / "what_if.png") in printed
    assert results(run) == before and storage.info(run / "database")["edits"] == []

    assert protojax(run, "database remove", "--ids", str(first)) == 0
    assert "holds 299 candidates" in capsys.readouterr().out
    assert protojax(run, "database relabel", "--ids", str(second), "--label", str(other)) == 0
    assert protojax(run, "evaluate") == 0
    after = results(run)
    assert after["database"]["count"] == 299 and after["database"]["removed"] == 1
    assert [(e["edit"], e["examples"]) for e in after["database"]["edits"]] == [("remove", 1), ("relabel", 1)]
    assert after["test"]["accuracy"]["prototypes"] == asked["accuracy"]["after"]
    assert after["parameters_sha256"] == before["parameters_sha256"]
    assert protojax(run, "explain", "--count", "12") == 0
    ids, decisions = prototypes(run)
    assert first not in ids and second in ids
    assert {p["label"] for d in decisions for p in d["prototypes"] if p["id"] == second} == {other}
    shown = {decision["id"]: decision for decision in decisions}
    both = [decision for decision in asked["changed"] if decision["id"] in shown]
    assert both
    for decision in both:
        assert shown[decision["id"]]["predicted"] == decision["after"]["predicted"]
        assert shown[decision["id"]]["confidence"] == pytest.approx(decision["after"]["confidence"], abs=1e-5)

    capsys.readouterr()
    assert protojax(run, "database info") == 0
    printed = capsys.readouterr().out
    assert "candidates 299, and 1 empty place" in printed
    assert f"remove {first}" in printed and f"relabel {second} as {other}" in printed
    assert "which is that of the run" in printed

    # What was edited is not replaced unasked, neither by a new build nor by other settings.
    assert protojax(run, "evaluate", "evaluate.candidate_count=100") == 2
    assert protojax(run, "database build") == 2
    assert "was edited (remove, relabel); --overwrite builds it anew and loses that" in capsys.readouterr().err
    assert protojax(run, "database build", "--overwrite") == 0
    assert protojax(run, "evaluate") == 0
    assert results(run)["database"] == before["database"]
    assert results(run)["test"]["accuracy"] == before["test"]["accuracy"]


@pytest.mark.parametrize("terminal", [True, False])
def test_in_a_file_bars_are_drawn_every_10_seconds(monkeypatch, terminal):
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    monkeypatch.delenv("TQDM_MININTERVAL")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert cli.main(["database", "info", "--workdir", "absent"]) == 2
    assert os.environ.get("TQDM_MININTERVAL") == (None if terminal else "10")


def test_examples_of_other_splits_become_prototypes(run, capsys):
    assert protojax(run, "database append", "--split", "validation") == 0
    assert protojax(run, "database append", "--split", "validation") == 2
    assert "in the database already" in capsys.readouterr().err
    assert protojax(run, "evaluate") == 0
    database = results(run)["database"]
    validation = database["count"] - 300
    assert validation > 50 and database["edits"][0]["examples"] == validation
    assert protojax(run, "explain", "--count", "12") == 0
    appended = set(shards.read(run / "database").whole("ids")[300:].tolist())
    assert appended & set(prototypes(run)[0])
    assert protojax(run, "database append", "--split", "test", "--ids", "999999") == 2
    assert "id 999999 is not in split test" in capsys.readouterr().err


def test_a_compacted_database_decides_as_before(run):
    ids = shards.read(run / "database").ids
    assert protojax(run, "database remove", "--ids", ",".join(map(str, ids[:7].tolist()))) == 0
    assert protojax(run, "evaluate") == 0
    before = results(run)["test"]["accuracy"], results(run)["test"]["support"]
    assert protojax(run, "database compact") == 0
    assert shards.read(run / "database").ids.tolist() == ids[7:].tolist()
    assert protojax(run, "evaluate") == 0
    assert (results(run)["test"]["accuracy"], results(run)["test"]["support"]) == before


def test_a_missing_file_is_named_and_nothing_changed(run, capsys):
    ids = shards.read(run / "database").ids
    assert protojax(run, "database remove", "--ids", str(ids[0])) == 0
    victim = next((run / "database").glob("00000-02-*.npy"))
    victim.unlink()
    before = (run / "database" / "manifest.json").read_bytes()
    capsys.readouterr()
    for command in (f"database remove --ids {ids[1]}", f"database relabel --ids {ids[1]} --label 3", "database info"):
        assert protojax(run, command) == 2
        error = capsys.readouterr().err
        assert f"{victim}: missing; delete the folder and build the database again; that loses its edits" in error
    assert (run / "database" / "manifest.json").read_bytes() == before


def test_a_database_built_by_hand_stays(run, capsys):
    shutil.rmtree(run / "database")
    assert protojax(run, "database info") == 2
    assert f"has no database; protojax database build --workdir {run} encodes one" in capsys.readouterr().err
    assert protojax(run, "database build", "--split", "validation", "--count", "50") == 0
    assert protojax(run, "evaluate") == 0
    assert results(run)["database"]["count"] == 50
    assert [edit["edit"] for edit in results(run)["database"]["edits"]] == ["build"]
    assert protojax(run, "database build", "--count", "99999", "--overwrite") == 2
    assert "--count 99999: the train split has" in capsys.readouterr().err


def test_an_export_is_made_of_the_edited_database(run, tmp_path, capsys):
    ids = shards.read(run / "database").whole("ids")
    assert protojax(run, "database remove", "--ids", ",".join(map(str, ids[:5].tolist()))) == 0
    capsys.readouterr()
    assert protojax(run, "export", "--output", str(tmp_path / "out")) == 0
    assert capsys.readouterr().out.split()[0] == str(tmp_path / "out" / "prediction.jaxexport")
    about = json.loads((tmp_path / "out" / "description.json").read_text())
    assert (np.load(tmp_path / "out" / about["database"]["ids"]["file"])[:5] == -1).all()
    assert protojax(run, "export", "--output", str(tmp_path / "out")) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("database remove --ids 999999", "ids [999999] are not in the database"),
        ("database relabel --ids 999999 --label 3", "ids [999999] are not in the database"),
        ("database relabel --ids {first} --label {its}", "id {first} has the label {its} already"),
        ("database relabel --ids 3 --label eleven", "--label: no class 'eleven'"),
        ("what-if --relabel 3=11", "--relabel: no class '11'"),
        ("what-if --remove 3 --ids 999999", "id 999999 is not in split test"),
        ("explain --ids 999999", "id 999999 is not in split test"),
        ("explain --least-confident 999999", "999999 least confident were asked for among"),
    ],
)
def test_what_is_wrong_is_named_before_anything_is_read(trained, capsys, monkeypatch, command, message):
    def nothing_may_be_restored(*_):
        raise AssertionError("the checkpoint was read")

    stored = shards.read(trained / "database")
    own = {"first": stored.ids[0], "its": stored.whole("labels")[0]}
    command, message = command.format(**own), message.format(**own)
    monkeypatch.setattr("protojax.train.restore", nothing_may_be_restored)
    before = (trained / "database" / "manifest.json").read_bytes()
    assert protojax(trained, command) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert (trained / "database" / "manifest.json").read_bytes() == before


def test_sigterm_saves_and_says_so(trained, experiment, tmp_path):
    folder = tmp_path / "stopped"
    process = start(experiment, folder, "train.steps=20000", "train.checkpoint_every=20000")
    metrics = folder / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == cli.INTERRUPTED, errors
    assert "run the same command again to resume" in errors
    assert [p for p in (folder / "checkpoints").iterdir() if p.name.isdigit()]


def test_several_seeds_give_mean_and_spread(experiment, tmp_path):
    folder = tmp_path / "seeds"
    assert (
        cli.main(
            [
                "train",
                experiment,
                "--workdir",
                str(folder),
                "--seeds",
                "0,1",
                "train.steps=4",
                "train.log_every=2",
                "train.checkpoint_every=4",
            ]
        )
        == 0
    )
    accuracies = [results(folder / f"seed-{s}")["test"]["accuracy"]["prototypes"] for s in (0, 1)]
    summary = results(folder)["test"]["accuracy"]["prototypes"]
    assert summary["mean"] == pytest.approx(sum(accuracies) / 2)
    assert summary["spread"] == pytest.approx(abs(accuracies[0] - accuracies[1]) / 2**0.5)


def test_a_run_that_was_killed_and_met_a_full_disk_ends_with_the_same_parameters(trained, experiment, tmp_path):
    folder = tmp_path / "killed"
    process = start(experiment, folder)
    wait_for_checkpoint(folder, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    # A limit on the size of files fails a write as a full disk does.
    limited = start(experiment, folder, before=["bash", "-c", 'ulimit -f 8; exec "$@"', "limited"])
    _, errors = limited.communicate()
    assert limited.returncode == 1, errors
    assert f"protojax: error: {folder}/checkpoints: cannot be saved; the checkpoints before are whole" in errors
    assert cli.main(["train", experiment, "--workdir", str(folder)]) == 0
    assert results(folder)["parameters_sha256"] == results(trained)["parameters_sha256"]
