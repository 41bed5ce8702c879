"""ProtoQuant from settings to explained and edited decisions, on digits and a small frozen network."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from protojax import cli, codes, concepts, config, experiment, methods, portraits, run, self_portrait

TREE = {
    "name": "codes",
    "data": {"augment": {"standardize": False}},
    "encoder": {"kind": "conv"},
    "method": {"kind": "protoquant", "codes": 60, "codebook_steps": 40, "prune_at": 160, "top_k": 8},
    "optimizer": {"learning_rate": 0.05, "schedule": "constant"},
    "train": {"steps": 200, "batch_size": 64, "log_every": 20},
}


class Patches(nn.Module):
    """Windows of 2x2 pixels, and where they stand."""

    @nn.compact
    def __call__(self, inputs, train):
        batch = len(inputs)
        windows = inputs.reshape(batch, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(batch, 4, 4, 4)
        places = jnp.broadcast_to(jnp.eye(16).reshape(1, 4, 4, 16), (batch, 4, 4, 16))
        return None, {"map": jnp.concatenate([2 * windows, places], axis=-1)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codes") / "run"
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(methods.networks, "build", lambda *_: Patches())
        results = experiment.train_run(config.from_tree(TREE, "test"), folder, quiet=True)
        yield folder, results


def test_it_learns_and_says_what_it_measured(trained):
    folder, results = trained
    assert results["test"]["accuracy"]["prototypes"] > 0.6
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    # Of 16 places and 60 orthogonal codes, more than a few are used, and each measure stands in its stage.
    assert lines[0]["perplexity"] > 5 and lines[0]["loss_class"] is None
    assert lines[1]["loss_codebook"] < lines[0]["loss_codebook"]
    assert lines[-1]["loss_codebook"] is None and lines[-1]["accuracy_prototypes"] > 0.5
    opened = experiment.open_run(folder, quiet=True)
    kept = np.asarray(opened.state.variables["codebook"]["kept"])
    assert (kept.sum(axis=1) <= 8).all() and not kept.all()


def test_concepts_are_shown_with_their_training_patches(trained):
    folder, _ = trained
    record = json.loads((folder / "figures" / "concepts.json").read_text())
    decision = record["decisions"][0]
    shares = [concept["share"] for concept in decision["concepts"]]
    assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1 + 1e-5
    for concept in decision["concepts"]:
        heat = np.array(concept["map"])
        assert heat.shape == (4, 4) and heat.max() == pytest.approx(concept["highest"])
        top, left, bottom, right = concept["box"]
        assert heat[int(top * 4), int(left * 4)] == heat.max() and bottom - top == right - left == 0.25
        patches = record["patches"][str(concept["code"])]
        assert len(patches) == 8 and patches[0]["similarity"] >= patches[1]["similarity"]
    for own in record["classes"]:
        assert len(own["codes"]) <= 8 and own["active"] <= 8
    for name in ("concepts", "code_to_class"):
        with Image.open(folder / "figures" / f"{name}.png") as picture:
            assert min(picture.size) > 100


def test_the_decisions_asked_for_are_shown(trained, capsys):
    folder, _ = trained
    wanted = [int(i) for i in experiment.open_run(folder, quiet=True).dataset.test.ids[[5, 2]]]
    assert cli.main(["explain", "--workdir", str(folder), "--ids", ",".join(map(str, wanted))]) == 0
    assert "concepts.json" in capsys.readouterr().out
    record = json.loads((folder / "figures" / "concepts.json").read_text())
    assert [decision["id"] for decision in record["decisions"]] == wanted
    explained = json.loads((folder / "figures" / "explanations.json").read_text())["decisions"]
    for decision, own in zip(explained, record["decisions"], strict=True):
        assert decision["predicted"] == own["predicted"]
        # The training example of the heaviest code is the first prototype.
        heaviest = own["concepts"][0]
        assert decision["prototypes"][0]["weight"] == pytest.approx(heaviest["share"], abs=1e-5)
        assert decision["prototypes"][0]["id"] == record["patches"][str(heaviest["code"])][0]["id"]


def test_boxes_are_shares_of_the_image_where_the_network_saw_a_crop_of_it():
    maps = np.zeros((1, 1, 2, 2))
    maps[0, 0, 1, 0] = 0.5
    views = {
        "code_numbers": np.array([7]),
        "code_to_class": np.ones((1, 1)),
        "code_active": np.array([True]),
        "concept_numbers": np.array([[7]]),
        "concept_shares": np.array([[1.0]]),
        "concept_maps": maps,
        "image_to_class": np.ones((1, 1)),
        "patch_ids": np.array([[0]]),
        "patch_labels": np.array([[0]]),
        "patch_similarities": np.array([[0.9]]),
        "patch_boxes": np.array([[[0.5, 0.5, 1.0, 1.0]]]),
    }
    frozen = config.FrozenSettings(network="efficientnet_lite0", weights="w", image_size=(32, 32), crop=0.5)
    settings = config.Settings(name="n", encoder=frozen, method={"kind": "encoder"})
    region = self_portrait.seen(settings, np.zeros((40, 80, 3), np.uint8))
    assert region == pytest.approx((0.25, 0.375, 0.75, 0.625))
    subject = portraits.Subject(0, 0, np.zeros((40, 80, 3), np.uint8))
    record = concepts.records(views, [subject], ["a"], region)
    assert record["decisions"][0]["concepts"][0]["box"] == pytest.approx([0.5, 0.375, 0.75, 0.5])
    assert record["patches"]["7"][0]["box"] == pytest.approx([0.5, 0.5, 0.75, 0.625])


def test_maps_are_upsampled_smoothly():
    maps = np.zeros((2, 4, 4))
    maps[0, 1, 2] = 1
    large = concepts.upsampled(maps, (32, 64))
    assert large.shape == (2, 32, 64) and not large[1].any()
    row, column = np.unravel_index(large[0].argmax(), (32, 64))
    assert 8 <= row < 16 and 32 <= column < 48 and 0.8 < large[0].max() <= 1


def test_codes_are_taken_out_and_the_run_says_what_changes(trained, capsys):
    folder, results = trained
    opened = experiment.open_run(folder, quiet=True)
    weights = np.asarray(methods.pruning.classifier(opened.state.variables))
    heavy = np.argsort(-weights.max(axis=0))[:3].tolist()
    command = ["edit", "--workdir", str(folder), "--drop", ",".join(map(str, heavy))]
    assert cli.main(command) == 0
    answer = json.loads((folder / "figures" / "edit.json").read_text())
    assert f"{len(answer['changed'])} change their class" in capsys.readouterr().out
    assert [code["code"] for code in answer["codes"]] == sorted(heavy)
    assert answer["codes"][0]["classes"][0]["weight"] == pytest.approx(weights[:, min(heavy)].max(), rel=1e-5)
    assert answer["accuracy"]["before"] == results["test"]["accuracy"]["prototypes"]
    assert sum(c["changed"] for c in answer["classes"]) == len(answer["changed"]) > 0
    assert not (folder / codes.NAME).exists()

    assert cli.main([*command, "--keep"]) == 0
    left = experiment.open_run(folder, quiet=True)
    numbers = np.asarray(left.state.variables["codebook"]["number"])
    assert not np.isin(heavy, numbers).any() and left.state.variables["codebook"]["active"].all()
    again = experiment.evaluate_run(left, quiet=True)
    # Removed physically, and decided as if they only did not count.
    assert again["test"]["accuracy"]["prototypes"] == answer["accuracy"]["after"]
    assert cli.main(command) == 2
    assert f"code {heavy[0]} does not exist" in capsys.readouterr().err
    (folder / codes.NAME).unlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to edit: name codes with --drop NUMBER"),
        (["--drop", "a"], "--drop 'a': give whole numbers"),
        (["--top-k", "0"], "--top-k 0: every class keeps at least 1 code"),
        (["--drop", "1", "--count", "0"], "--count 0: show at least 1"),
    ],
)
def test_bad_edits(trained, capsys, arguments, message):
    assert cli.main(["edit", "--workdir", str(trained[0]), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="method.kind = 'encoder' has no codes to edit, as protoquant has"):
        codes.check(codes.Edit((1,)), methods.Method(None, None, None, None), "encoder")
    (tmp_path / codes.NAME).write_text("{}")
    with pytest.raises(ValueError, match=r"codes.json: damaged: .*; delete it to have all codes back"):
        codes.read(tmp_path)
    for changes, message in (
        ({"top_k": None}, "prune_at and top_k belong together"),
        ({"prune_at": 40}, "prune_at = 40 must come after codebook_steps = 40"),
        ({"prune_at": 200}, "train.steps = 200 ends before the last stage of protoquant, which starts at 200"),
    ):
        tree = {**TREE, "method": {**TREE["method"], **changes}}
        with pytest.raises(config.SettingsError, match=message):
            config.from_tree(tree, "test")


def test_edits_add_up(tmp_path):
    codes.keep(tmp_path, codes.Edit((3,), 5))
    codes.keep(tmp_path, codes.Edit((1, 3)))
    assert codes.read(tmp_path) == codes.Edit((1, 3), 5)
    assert run.json.loads((tmp_path / codes.NAME).read_text())["schema"] == codes.SCHEMA
    assert jax.tree.leaves(codes.read(tmp_path / "nowhere")) == []
