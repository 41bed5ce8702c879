"""The benchmarks run, agree with their references, and report; no peer is needed."""

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """The package of the repository, without any peer."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import measure

    def missing(name):
        raise measure.Skipped(f"{name} is not installed")

    monkeypatch.setattr(measure, "peer", missing)


def main(*arguments):
    from benchmarks import __main__

    return __main__.main([str(argument) for argument in arguments])


def test_quick_benchmarks_are_exact_and_write_rows_and_plots(tmp_path, capsys):
    file = tmp_path / "out" / "rows.json"
    assert main("sparsemax", "attention", "quantize", "database", "feeding", "--quick", "--json", file) == 0
    result = json.loads(file.read_text())
    assert result["machine"]["threads"] >= 1 and result["machine"]["versions"]["jax"]
    rows = result["rows"]
    assert {row["benchmark"] for row in rows} == {"sparsemax", "attention", "quantize", "database", "feeding"}
    for row in rows:
        assert row["seconds"] >= row["fastest_seconds"] > 0
        assert row["ratio_to_ours"] > 0 and row["memory_bytes"] >= 0
        assert row["exact"] or row["implementation"] == "jax max"
    assert {row["implementation"] for row in rows} >= {"protojax", "protojax, skipping", "protojax, resident"}
    assert {path.name for path in (file.parent / "figures").iterdir()} == {
        "sparsemax.png",
        "database.png",
        "feeding.png",
    }
    printed = capsys.readouterr().out
    assert "skipped: torch is not installed" in printed
    assert "| sparsemax | forward, D = 256 | protojax |" in printed


def test_the_dense_and_the_support_step_agree():
    from benchmarks import floor, measure, training_step

    options = argparse.Namespace(quick=True, run=None, peaks=floor.Floor(1e9, 1e9))
    # The first case alone: every further one compiles two steps more.
    dense, support = measure.measure(next(training_step.cases(options)), measure.QUICK)
    assert (dense["implementation"], support["implementation"]) == ("protojax, dense", "protojax, support")
    assert dense["exact"] and support["exact"] and dense["ratio_to_floor"] > 0
    assert dense["memory_bytes"] > 0 and support["memory_bytes"] > 0


def test_the_training_step_says_what_it_needs(capsys, monkeypatch):
    from benchmarks import floor

    monkeypatch.setattr(floor, "measure", lambda quick: floor.Floor(1e9, 1e9))
    assert main("training_step") == 0
    assert "give --run FOLDER" in capsys.readouterr().out


@pytest.fixture
def codes_run(tmp_path, monkeypatch):
    """The run folder of a tiny ProtoQuant on a feature store of the digits; it was never trained."""
    import jax
    from flax import traverse_util
    from safetensors.numpy import save_file

    from protojax import config, layouts, naming, run
    from protojax.data import frozen
    from protojax.networks import backbones
    from protojax.networks.efficientnet_lite import EfficientNetLite, Stage

    stages = Stage(1, 3, 1, 1, 4), Stage(2, 5, 2, 6, 8)
    network = partial(EfficientNetLite, stages=stages, stem=4, last=16)
    monkeypatch.setitem(backbones.BACKBONES, "efficientnet_lite0", backbones.Backbone(network, backbones.HALF))
    module = network(classes=10)
    flat = traverse_util.flatten_dict(jax.jit(module.init)(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32)))
    tensors = {}
    for row in naming.wanted(module, layouts.EFFICIENTNET_LITE, 0):
        array = np.asarray(flat[row.path])
        tensors[row.names[0]] = np.ascontiguousarray(
            array if row.axes is None else array.transpose(np.argsort(row.axes))
        )
    file = str(tmp_path / "weights.safetensors")
    save_file(tensors, file)
    frozen_network = {"kind": "frozen", "network": "efficientnet_lite0", "weights": file, "image_size": [16, 16]}
    tree = {
        "name": "tiny",
        "encoder": frozen_network,
        "method": {"kind": "protoquant", "codes": 6, "codebook_steps": 1},
        "train": {"batch_size": 8, "steps": 2},
    }
    frozen.write_store(config.from_tree(tree, "test"), str(tmp_path / "store"))
    tree["encoder"]["features"] = str(tmp_path / "store")
    folder = tmp_path / "run"
    folder.mkdir()
    run.write(folder, config.from_tree(tree, "test"), {})
    return folder


def test_an_epoch_from_the_store_has_the_losses_of_one_from_images(codes_run, tmp_path):
    file = tmp_path / "rows.json"
    assert main("epoch", "--quick", "--run", codes_run, "--json", file) == 0
    rows = json.loads(file.read_text())["rows"]
    ways = "images, classifier", "store on disk, classifier", "store, classifier", "store, codebook"
    assert [row["implementation"] for row in rows] == [f"protojax, {name}" for name in ("backbone trained", *ways)]
    assert rows[0]["case"].startswith("efficientnet_lite0, 8 of ") and rows[0]["goal"] is None
    for row in rows:
        assert row["exact"] and row["compile_seconds"] > 0 and row["seconds"] > 0


def test_an_epoch_says_what_it_needs(capsys, codes_run, tmp_path, monkeypatch):
    from benchmarks import floor
    from protojax import config, run

    monkeypatch.setattr(floor, "measure", lambda quick: floor.Floor(1e9, 1e9))
    assert main("epoch") == 0
    assert "skipped: it needs the data and the weights of a run: give --run FOLDER" in capsys.readouterr().out
    settings = config.override(run.read(codes_run), ["encoder.features=null"], "test")
    run.write(tmp_path, settings, {})
    assert main("epoch", "--run", tmp_path) == 0
    assert "is no run of protoquant on a feature store (encoder.features)" in capsys.readouterr().out


def test_a_wrong_loss_from_the_store_is_found_out():
    from benchmarks import epoch

    losses = []
    assert epoch._note(losses, {"loss": [2.0]}) and epoch._same(losses, {"loss": [2.00001]})
    assert not epoch._same(losses, {"loss": [2.01]}) and not epoch._note(losses, {"loss": [float("nan")]})


def test_unknown_names_are_refused(capsys):
    with pytest.raises(SystemExit):
        main("sparsmax")
    assert "unknown benchmark 'sparsmax': choose from sparsemax, attention" in capsys.readouterr().err


def row(implementation, seconds, **other):
    return {
        "benchmark": "sparsemax",
        "case": "forward, D = 8",
        "size": 8,
        "implementation": implementation,
        "seconds": seconds,
        "fastest_seconds": seconds / 2,
        "spread": 0.1,
        "compile_seconds": None,
        "memory_bytes": 2_000_000,
        "floor_seconds": 0.5,
        "ratio_to_ours": None,
        "ratio_to_floor": None,
        "exact": True,
        "goal": None,
        "memory_goal": None,
        **other,
    }


MACHINE = {
    "cpu": "a chip",
    "device": "cpu",
    "backend": "cpu",
    "threads": 2,
    "versions": {"jax": "1"},
    "bytes_per_second": 1e9,
    "flops_per_second": 1e9,
}


def test_several_runs_are_reported_with_their_best_medians(tmp_path):
    from benchmarks import report

    files = []
    for ours, peer in ((1.0, 5.0), (2.0, 3.5)):
        rows = [
            row("protojax", ours, floor_seconds=ours / 4),
            row("protojax, otherwise", 3 * ours, goal=1.5, floor_seconds=ours / 4),
            row("peer", peer, goal=4.0, memory_goal=3e6),
        ]
        files.append(tmp_path / f"{ours}.json")
        files[-1].write_text(json.dumps({"machine": MACHINE, "rows": rows}))
    machine, rows = report.combine(files)
    assert [r["ratio_to_ours"] for r in rows] == [1.0, 3.0, 3.5]
    assert [r["ratio_to_floor"] for r in rows] == [4.0, 12.0, 14.0]
    text = report.table(machine, rows)
    assert "at most 1.5x: MISSED" in text
    assert "at least 4x: MISSED; at most 3 MB: met" in text
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write_readme(readme, text)
    written = readme.read_text()
    assert text in written and "old" not in written
    assert written.startswith("before\n") and written.endswith("after\n")
    readme.write_text("nothing")
    with pytest.raises(ValueError, match="has no place for results"):
        report.write_readme(readme, text)
    files[0].write_text("{}")
    with pytest.raises(ValueError, match="1.0.json is not a result"):
        report.combine(files)


def test_a_wrong_result_of_ours_fails_the_run(monkeypatch, capsys):
    from benchmarks import sparsemax

    monkeypatch.setattr(sparsemax, "_close", lambda expected, found: False)
    assert main("sparsemax", "--quick") == 1
    assert "not exact: protojax" in capsys.readouterr().err


def test_memory_of_others_is_the_growth_of_the_peak():
    from benchmarks import measure

    peak = measure._peak(lambda: np.ones(8_000_000, np.float32).sum())
    if peak is None:
        pytest.skip("this system does not count peak memory")
    assert 28e6 < peak < 60e6


def test_the_readme_has_a_place_for_results():
    from benchmarks import report

    text = (ROOT / "benchmarks" / "README.md").read_text()
    assert report.BEGIN in text and report.END in text


def causes(*arguments):
    from benchmarks.causes import __main__

    return __main__.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("name", ["blocks", "pages", "layers", "step"])
def test_quick_causes_are_measured_without_peers(name, tmp_path, monkeypatch, capsys):
    from benchmarks import training_step
    from benchmarks.causes import pages
    from benchmarks.measure import Implementation

    def in_this_process(command, env, **_):
        with monkeypatch.context() as patch:
            patch.setattr("os.environ", env)
            assert causes(*command[3:]) == 0

    def compiled(name, start, arrays, size, candidates):
        return Implementation(name, start.state.step.block_until_ready)

    monkeypatch.setattr(pages.subprocess, "run", in_this_process)
    # The step itself is compiled by `test_the_dense_and_the_support_step_agree`, which takes seconds.
    monkeypatch.setattr(training_step, "ours", compiled)
    file = tmp_path / "out" / "rows.json"
    assert causes(name, "--quick", "--json", file) == 0
    result = json.loads(file.read_text())
    assert result["machine"]["threads"] >= 1 and result["rows"]
    printed = capsys.readouterr().out
    for key in result["rows"][0]:
        assert key in printed
    for row in result["rows"]:
        if name == "blocks":
            # No block with support may be left unopened, and no threshold is below the best score less 1.
            assert 1 <= row["blocks with support"] <= row["bounds above threshold"] <= row["bounds above best - 1"]
            assert row["support"] >= row["blocks with support"] and 0 < row["best - threshold"] < 1.0001
        elif name == "layers":
            assert row["protojax ms, all"] > 0
        else:
            assert row["ms"] >= row["fastest ms"] > 0 and row["page faults"] >= 0
    if name == "pages":
        assert [row["allocator"] for row in result["rows"]] == ["as it is", "keeps its pages"]


def test_a_cause_says_what_it_needs(capsys):
    assert causes("step") == 1
    assert "step cannot run here: the step goes on from a trained state: give --run FOLDER" in capsys.readouterr().err


def test_the_layers_are_those_of_the_network():
    from benchmarks import trained
    from benchmarks.causes import layers

    found = {
        str(layer): count for layer, count in layers.layers(trained.paper(None, "digits", 1).encoder, 28, 1).items()
    }
    assert found == {
        "28x28x1 to 16, 3x3": 1,
        "28x28x16 to 16, 3x3": 10,
        "28x28x16 to 32, 3x3, stride 2": 1,
        "28x28x16 to 32, 1x1, stride 2": 1,
        "14x14x32 to 32, 3x3": 9,
        "14x14x32 to 64, 3x3, stride 2": 1,
        "14x14x32 to 64, 1x1, stride 2": 1,
        "7x7x64 to 64, 3x3": 9,
    }


def test_fresh_pages_are_counted():
    from benchmarks.causes import usage

    # More than glibc ever keeps for the next one; pages may be of 2 MB.
    (one,) = usage.of_calls(lambda: np.ones(16_000_000, np.float32), 1)
    assert one.faults >= 30 and one.seconds > 0
