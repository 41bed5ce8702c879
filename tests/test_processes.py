"""Two processes of 4 devices go the whole road together, and give the numbers of one process of 8."""

import json
import os
import socket
import subprocess
import sys
import textwrap

import jax
import numpy as np
import optax
import pytest

from protojax import cli, config, data, optimizer, train

EXPERIMENT = """
name = "tiny"
data.augment.pad_crop = 1
[encoder]
kind = "conv"
filters = [4]
dense = [16]
dropout = 0.1
[method]
kind = "protoattend"
key_size = 8
value_size = 8
[train]
steps = 6
batch_size = 16
candidate_count = 32
log_every = 2
checkpoint_every = 4
[evaluate]
candidate_count = 203
batch_size = 100
[explain]
count = 2
width = 8
"""

# Adam turns the rounding of a gradient that is zero (of a bias that sparsemax or a norm removes) into whole steps.
PROGRAM = """
    import os, signal, sys, threading, time
    from pathlib import Path

    processes, index, root = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[4])
    experiment, joining = str(root / "tiny.toml"), []
    if processes > 1:
        joining = ["--coordinator", sys.argv[3], "--processes", str(processes), "--process-index", str(index)]

    import optax
    from protojax import cli, optimizer

    optimizer.build = lambda *_: optax.sgd(0.05)

    def train(folder, *more):
        return cli.main(["train", experiment, "--workdir", str(root / folder), *more])

    def end(folder):  # asks this process to stop, once it has trained a little
        metrics = root / folder / "metrics.jsonl"
        while not (metrics.exists() and metrics.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    status = [train(f"{processes}-resident", *joining)]
    if processes > 1:
        status.append(train("2-streamed", "data.feeding=streamed"))
        status.append(train("2-resident", "optimizer.learning_rate=0.5"))
        status.append(train("new", "train.parallel=pmap"))
        if index == 1:
            threading.Thread(target=end, args=["2-stopped"], daemon=True).start()
        status.append(train("2-stopped", "train.steps=100000", "train.checkpoint_every=100000"))
    print("status", *status)
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    root = tmp_path_factory.mktemp("processes")
    (root / "tiny.toml").write_text(EXPERIMENT)
    (root / "program.py").write_text(textwrap.dedent(PROGRAM))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"

    def start(processes, index):
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={8 // processes}",
            "JAX_PLATFORMS": "cpu",
        }
        command = [sys.executable, str(root / "program.py"), str(processes), str(index), address, str(root)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    running = [start(2, 0), start(2, 1), start(1, 0)]
    try:
        outputs = [process.communicate(timeout=600) for process in running]
    finally:
        for process in running:
            process.kill()
            process.communicate()
    for process, (out, err) in zip(running, outputs, strict=True):
        assert process.returncode == 0 and "\nstatus " in out, out + err
    return root, outputs


def test_all_processes_end_alike(ran):
    _, ((first, first_errors), (second, second_errors), (alone, _)) = ran
    assert alone.endswith("status 0\n")
    assert first.endswith(f"status 0 0 2 2 {cli.INTERRUPTED}\n"), first_errors
    assert second.endswith(f"status 0 0 1 2 {cli.INTERRUPTED}\n"), second_errors
    assert "holds another experiment (different: optimizer.learning_rate)" in first_errors
    assert "another process of this run failed; its message says why" in second_errors
    for errors in (first_errors, second_errors):
        assert "train.parallel = 'pmap' is for one process, and this run has 2; choose 'jit'" in errors
        assert "Traceback" not in errors


def test_one_process_tells_and_writes(ran):
    root, ((first, _), (second, second_errors), _) = ran
    assert "test accuracy" in first and "test accuracy" not in second
    assert "step/s" not in second_errors
    assert not (root / "new").exists()
    for name in ("2-resident", "2-streamed"):
        files = {path.name for path in (root / name / "figures").iterdir()}
        assert {"coverage_curve.png", "explanations.json", "explanations.png"} <= files
        assert len(list((root / name / "tensorboard").iterdir())) == 1
        steps = [json.loads(line)["step"] for line in (root / name / "metrics.jsonl").read_text().splitlines()]
        assert steps == [2, 4, 6, 6]
    assert [path for path in (root / "2-stopped" / "checkpoints").iterdir() if path.name.isdigit()]


@pytest.fixture(scope="module")
def alone(ran):
    return parameters(ran[0], "1-resident"), results(ran[0], "1-resident")


@pytest.mark.parametrize("folder", ["2-resident", "2-streamed"])
def test_the_numbers_are_those_of_one_process(ran, alone, folder):
    expected_parameters, expected = alone
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), parameters(ran[0], folder), expected_parameters
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), results(ran[0], folder), expected)


def parameters(root, folder):
    settings = config.load(root / "tiny.toml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizer, "build", lambda *_: optax.sgd(0.05))
        return jax.device_get(train.restore(settings, data.load(settings.data), root / folder).variables)


def results(root, folder):
    tree = json.loads((root / folder / "results.json").read_text())
    return tree["test"], tree["train"]["steps"]
