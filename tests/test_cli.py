import json
import os
import signal
import subprocess
import sys
import time

import pytest

from protojax import cli

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
[explain]
count = 3
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    path = tmp_path_factory.mktemp("experiments") / "tiny.toml"
    path.write_text(EXPERIMENT)
    return str(path)


@pytest.fixture(scope="module")
def trained(experiment, compile_fast, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "trained"
    assert (
        cli.main(["train", experiment, "--workdir", str(folder), "evaluate.rotations=[90]", "evaluate.neighbours=5"])
        == 0
    )
    return folder


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def start(experiment, folder, *overrides, before=()):
    command = [*before, sys.executable, "-m", "protojax.cli", "train", experiment, "--workdir", str(folder), *overrides]
    # Compiled as here, because what is compiled otherwise rounds otherwise.
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
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
    results = results_of(trained)
    assert results["experiment"] == "tiny"
    assert results["train"]["steps"] == 40
    assert results["train"]["examples_per_second"] > 0
    assert results["test"]["accuracy"]["prototypes"] > 0.3
    assert set(results["test"]["prototypes_for"]) == {"50", "90", "95"}
    assert results["test"]["support"]["median"] >= 1
    assert 0 < results["test"]["shift"]["rotated by 90 degrees"]["auroc"] < 1
    assert results["test"]["neighbours"]["accuracy"]["neighbours"] > 0.3
    assert len(results["parameters_sha256"]) == 64
    record = json.loads((trained / "run.json").read_text())
    assert record["settings"]["train"]["steps"] == 40
    names = {p.name for p in (trained / "figures").iterdir()}
    assert {"explanations.json", "explanations.png", "coverage_curve.png", "wrong_labels.json"} <= names
    explained = json.loads((trained / "figures" / "explanations.json").read_text())
    assert len(explained["decisions"]) == 3
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [10, 20, 30, 40]
    assert list((trained / "tensorboard").glob("events*"))


def test_the_same_command_again_changes_nothing(trained, experiment):
    before = results_of(trained)
    assert cli.main(["train", experiment, "--workdir", str(trained), "--resume"]) == 0
    after = results_of(trained)
    assert after["parameters_sha256"] == before["parameters_sha256"]
    assert after["train"] == before["train"]


def test_evaluate_and_explain_anew(trained, capsys):
    before = results_of(trained)
    assert cli.main(["evaluate", "--workdir", str(trained), "evaluate.candidate_count=100"]) == 0
    smaller = results_of(trained)
    assert smaller["parameters_sha256"] == before["parameters_sha256"]
    assert smaller["test"]["support"]["max"] <= 100
    assert cli.main(["evaluate", "--workdir", str(trained)]) == 0
    assert results_of(trained)["test"]["accuracy"] == before["test"]["accuracy"]
    capsys.readouterr()
    wanted = [d["id"] for d in json.loads((trained / "figures" / "explanations.json").read_text())["decisions"]][:2]
    assert cli.main(["explain", "--workdir", str(trained), "--ids", ",".join(map(str, wanted))]) == 0
    printed = capsys.readouterr().out.split()
    assert any(line.endswith("explanations.json") for line in printed)
    explained = json.loads((trained / "figures" / "explanations.json").read_text())
    assert [d["id"] for d in explained["decisions"]] == wanted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "--workdir", "{run}", "--ids", "999999"], "id 999999 is not in"),
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


def test_every_command_has_help_with_an_example(capsys):
    for command in ("prepare", "train", "evaluate", "explain"):
        with pytest.raises(SystemExit) as stopped:
            cli.main([command, "--help"])
        assert stopped.value.code == 0
        assert "example:\n  protojax " + command in capsys.readouterr().out


@pytest.mark.parametrize("terminal", [True, False])
def test_in_a_file_bars_are_drawn_every_10_seconds(monkeypatch, terminal):
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    monkeypatch.delenv("TQDM_MININTERVAL")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert cli.main(["database", "info", "--workdir", "absent"]) == 2
    assert os.environ.get("TQDM_MININTERVAL") == (None if terminal else "10")


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
    accuracies = [results_of(folder / f"seed-{s}")["test"]["accuracy"]["prototypes"] for s in (0, 1)]
    summary = results_of(folder)["test"]["accuracy"]["prototypes"]
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
    again = start(experiment, folder)
    _, errors = again.communicate()
    assert again.returncode == 0, errors
    assert results_of(folder)["parameters_sha256"] == results_of(trained)["parameters_sha256"]
