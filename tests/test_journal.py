import json

from protojax.journal import Journal


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def journal(folder, resumed_at=0):
    return Journal(folder, "test", 100, resumed_at, 8, quiet=True)


def test_what_a_killed_run_wrote_after_its_checkpoint_is_dropped(tmp_path):
    with journal(tmp_path) as first:
        for step in (10, 20, 30):
            first.write(step, {"loss": 1.0 / step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')
    with journal(tmp_path, resumed_at=20) as second:
        second.write(30, {"loss": 0.5})
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(10, 0.1), (20, 0.05), (30, 0.5)]


def test_a_value_that_is_not_finite_becomes_null(tmp_path):
    with journal(tmp_path) as writer:
        writer.write(10, {"loss": float("nan"), "accuracy": 0.5})
    assert lines(tmp_path) == [{"step": 10, "loss": None, "accuracy": 0.5}]


def test_the_bar_leaves_out_what_a_stage_does_not_measure_but_not_a_loss_that_is_nan(tmp_path, capsys):
    with Journal(tmp_path, "test", 100, 0, 8) as writer:
        writer.show({"loss": float("nan"), "accuracy_encoder": float("nan"), "accuracy_prototypes": 0.5})
    shown = capsys.readouterr().err
    assert "loss=nan" in shown and "accuracy_prototypes=0.5" in shown and "accuracy_encoder" not in shown


def test_the_speed_counts_steps_after_the_clock_was_started(tmp_path):
    with journal(tmp_path) as writer:
        assert writer.examples_per_second is None
        writer.advance(50)
        writer.start_clock()
        assert writer.examples_per_second is None
        writer.advance(10)
        assert writer.examples_per_second > 0
        with writer.paused():
            before = writer.examples_per_second
    assert writer.examples_per_second <= before
