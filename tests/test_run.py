import json

import pytest

from protojax import config, run

SETTINGS = config.from_tree(
    {
        "name": "first",
        "encoder": {"kind": "conv"},
        "method": {"kind": "protoattend"},
        "train": {"candidate_count": 8},
    },
    "test",
)


def changed(section, **values):
    return SETTINGS.model_copy(update={section: getattr(SETTINGS, section).model_copy(update=values)})


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "run"
    assert not run.claim(folder, SETTINGS)
    run.write(folder, SETTINGS, {"name": "digits"})
    return folder


def test_the_record_says_settings_versions_and_device(folder):
    record = json.loads((folder / "run.json").read_text())
    assert record["settings"] == config.to_tree(SETTINGS)
    assert record["packages"]["jax"][0].isdigit()
    assert record["device"]["platform"] == "cpu"
    assert "git_revision" in record
    assert run.read(folder) == SETTINGS


def test_the_same_experiment_is_resumed(folder):
    assert run.claim(folder, SETTINGS)
    assert run.claim(folder, changed("evaluate", neighbours=5))
    assert run.claim(folder, changed("train", checkpoint_every=7))


def test_another_experiment_is_refused_unless_overwritten(folder):
    other = changed("optimizer", learning_rate=0.5)
    with pytest.raises(
        run.RunError, match=r"holds another experiment \(different: optimizer.learning_rate\).*--overwrite"
    ):
        run.claim(folder, other)
    assert not run.claim(folder, other, overwrite=True)
    assert list(folder.iterdir()) == []


def test_more_steps_continue_unless_the_schedule_depends_on_them(folder, tmp_path):
    assert run.claim(folder, changed("train", steps=5000))
    cosine = changed("optimizer", schedule="cosine")
    run.write(folder, cosine, {})
    longer = cosine.model_copy(update={"train": cosine.train.model_copy(update={"steps": 5000})})
    with pytest.raises(run.RunError, match="different: train.steps"):
        run.claim(folder, longer)


def test_a_folder_of_something_else_is_refused_even_to_overwrite(tmp_path):
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(run.RunError, match="is not empty and holds no run.json"):
        run.claim(tmp_path, SETTINGS, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_reading_no_run_or_a_damaged_one(folder, tmp_path):
    with pytest.raises(run.RunError, match="is no run folder: it has no run.json"):
        run.read(tmp_path / "absent")
    (folder / "run.json").write_text('{"settings": ')
    with pytest.raises(run.RunError, match="run.json: damaged"):
        run.read(folder)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results.json"
    run.write_json(path, {"accuracy": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.write_json(path, {"accuracy": float("nan")})
    assert json.loads(path.read_text()) == {"accuracy": 1.0}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
