import pathlib

import pytest

from protojax import config

ROOT = pathlib.Path(__file__).parent.parent
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.toml"))

MINIMAL = """
name = "minimal"
[encoder]
kind = "conv"
[method]
kind = "protoattend"
[train]
candidate_count = 8
"""


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "minimal.toml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_every_experiment_is_valid(path):
    settings = config.load(path)
    assert settings.name in (path.stem, f"{path.parent.name}_{path.stem}")
    header = path.read_text(encoding="utf-8")
    assert f"protojax train {path.relative_to(ROOT)} " in header and "\n# Measured:" in header


def test_overrides_and_round_trip(experiment):
    settings = config.load(experiment, ["train.steps=500", "data.name=adult", "encoder.filters=[8, 16]"])
    assert settings.train.steps == 500
    assert settings.data.name == "adult"
    assert settings.encoder.filters == (8, 16)
    assert config.from_tree(config.to_tree(settings), "again") == settings


def test_an_optional_setting_is_unset(experiment):
    experiment.write_text(
        MINIMAL + '[evaluate]\ncandidate_count = 50\n[data]\ndata_dir = "sets"\nimage_size = [8, 8]\n'
    )
    assert config.load(experiment).evaluate.candidate_count == 50
    settings = config.load(experiment, ["evaluate.candidate_count=null", "data.data_dir= null", "data.image_size=null"])
    assert (settings.evaluate.candidate_count, settings.data.data_dir, settings.data.image_size) == (None, None, None)
    assert config.override(settings, ["data.data_dir='null'"], "again").data.data_dir == "null"


def test_settings_are_immutable(experiment):
    settings = config.load(experiment)
    with pytest.raises(ValueError, match="frozen"):
        settings.train.steps = 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=5", r"minimal.toml: unknown key train.stepz; did you mean train.steps\?"),
        ("trian.steps=5", r"minimal.toml: unknown key trian; did you mean train\?"),
        ("encoder.filter=[8]", r"unknown key encoder.filter; did you mean encoder.filters\?"),
        ("method.normaliser='softmax'", r"unknown key method.normaliser; did you mean method.normalizer\?"),
        ("data.augment.padcrop=2", r"unknown key data.augment.padcrop; did you mean data.augment.pad_crop\?"),
        ("data.table.numeric.age.shfit=2.0", r"unknown key data.table.numeric.age.shfit; did you mean .*age.shift\?"),
        ("train.steps='many'", r"minimal.toml: train.steps: .*valid integer.*'many'"),
        ("train.steps=0", r"minimal.toml: train.steps: .*greater than 0.*0"),
        ("optimizer.decay_rate=1.5", r"optimizer.decay_rate: .*less than or equal to 1"),
        ("encoder.kind='resnett'", r"encoder: .*'resnett'.*'resnet'"),
        ("method.kind='encoder'", r"train.candidate_count must be 0"),
        ("train.candidate_count=0", r"train.candidate_count must be at least 1"),
        ("train.steps_per_dispatch=7", r"train: steps = 1000 is not a multiple of steps_per_dispatch = 7"),
        ("method.alpha=[0.5, 0.4]", r"method: alpha must be a range \[low, high\]"),
        ("data.class_shares=[0.5, 0.4]", r"class_shares must sum to 1, got 0.9"),
        ("train.steps=null", r"minimal.toml: train.steps cannot be null: only optional settings can be unset"),
        ("name=null", r"minimal.toml: name cannot be null"),
        ("data.augment=null", r"minimal.toml: data.augment cannot be null"),
        ("encoder=null", r"minimal.toml: encoder cannot be null"),
        ("train.precision=null", r"minimal.toml: train.precision cannot be null"),
        ("method.candidate_dropout=false", r"method.candidate_dropout = false .* set encoder.norm = 'group'"),
        ("train", r"'train': an override has the form section.key=value"),
        ("name.first=1", r"name is a setting, not a section"),
    ],
)
def test_bad_settings_are_named(experiment, override, message):
    with pytest.raises(config.SettingsError, match=message):
        config.load(experiment, [override])


def test_support_back_propagation_with_dropout(experiment):
    support = ["train.candidates='support'", "encoder.norm='group'", "encoder.dropout=0.5"]
    with pytest.raises(config.SettingsError, match="two different masks: set method.candidate_dropout = false or"):
        config.load(experiment, support)
    assert not config.load(experiment, [*support, "method.candidate_dropout=false"]).method.candidate_dropout


def test_missing_file_and_bad_toml(tmp_path):
    with pytest.raises(config.SettingsError, match="absent.toml: no such experiment file"):
        config.load(tmp_path / "absent.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("name = \n")
    with pytest.raises(config.SettingsError, match="broken.toml: not valid TOML"):
        config.load(broken)


def test_missing_section(tmp_path):
    path = tmp_path / "empty.toml"
    path.write_text('name = "x"\n')
    with pytest.raises(config.SettingsError, match="encoder is required"):
        config.load(path)
