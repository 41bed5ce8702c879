"""The benchmarks run, agree with their references, and report; no peer is needed."""

import argparse
import json
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
            row("protojax", ours),
            row("protojax, otherwise", 3 * ours, goal=1.5),
            row("peer", peer, goal=4.0, memory_goal=3e6),
        ]
        files.append(tmp_path / f"{ours}.json")
        files[-1].write_text(json.dumps({"machine": MACHINE, "rows": rows}))
    machine, rows = report.combine(files)
    assert [r["ratio_to_ours"] for r in rows] == [1.0, 3.0, 3.5]
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
