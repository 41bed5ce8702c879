"""A network tuned on a data set, and its head in ProtoQuant: from `fine_tuning` to codes that learn from the head."""

import json
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image
from safetensors.numpy import load_file, save_file

from protojax import config, experiment, export, layouts, naming, run_commands, tuned, weights
from protojax.data import DataError, frozen, prepare
from protojax.networks import backbones
from protojax.networks.backbones import HALF, IMAGENET, Backbone, Tail, layer_before
from protojax.networks.convnext import ConvNeXt
from protojax.networks.efficientnet_lite import EfficientNetLite, Stage
from protojax.networks.resnet50 import BottleneckResNet
from protojax.networks.vit import ViT

NETWORKS = {
    "resnet50": (partial(BottleneckResNet, depths=(1, 1), filters=4), layouts.RESNET),
    "convnext_tiny": (partial(ConvNeXt, depths=(1, 1), widths=(4, 8)), layouts.CONVNEXT),
    "efficientnet_lite0": (
        partial(EfficientNetLite, stages=(Stage(1, 3, 1, 1, 4), Stage(2, 5, 2, 6, 8)), stem=4, last=16),
        layouts.EFFICIENTNET_LITE,
    ),
}
TRANSFORMER = ViT(patch=4, width=8, depth=1, heads=2, grid=2, classes=3)


@pytest.fixture(scope="module", autouse=True)
def small():
    """Tiny networks under the names of published ones."""
    with pytest.MonkeyPatch.context() as patch:
        for name, (module, _) in NETWORKS.items():
            patch.setitem(backbones.BACKBONES, name, Backbone(module, HALF if "lite" in name else IMAGENET))
        yield


def variables_of(name, classes=3):
    """Drawn numbers, of statistics, too."""
    module = NETWORKS[name][0](classes=classes)
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), jnp.zeros((1, 16, 16, 3)))
    rng = np.random.default_rng(0)

    def drawn(path, x):
        numbers = rng.uniform(0.5, 1.5, x.shape) if path[-1].key in ("var", "scale") else rng.normal(0, 0.3, x.shape)
        return numbers.astype(np.float32)

    return module, jax.tree.map_with_path(drawn, shapes)


def write(path, name, publisher=0):
    """A file of a tiny network in the layout of a publisher."""
    module, variables = variables_of(name)
    flat, tensors = traverse_util.flatten_dict(variables), {}
    for row in naming.wanted(module, NETWORKS[name][1], publisher):
        array = flat[row.path] if row.axes is None else flat[row.path].transpose(np.argsort(row.axes))
        tensors[row.names[0]] = np.ascontiguousarray(array)
    save_file(tensors, path)
    return str(path)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("count", [1, 2])
def test_the_end_continues_what_stands_before_it(name, count):
    module, variables = variables_of(name)
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    logits, made = jax.jit(module.apply)(variables, images)
    done = 2 - count
    tail = Tail(module.clone(done=done), count)
    before = made[layer_before(module, count)]
    wanted = traverse_util.flatten_dict(jax.eval_shape(lambda x: tail.init(jax.random.key(0), x, train=True), before))
    flat = traverse_util.flatten_dict(variables)
    own = traverse_util.unflatten_dict({path: flat[path[0], *path[2:]] for path in wanted})
    found, other = jax.jit(partial(tail.apply, train=True))(own, before)
    np.testing.assert_allclose(found, logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(other["map"], made["map"], rtol=1e-5, atol=1e-5)
    assert not any("stem" in "/".join(path) for path in wanted)
    with pytest.raises(ValueError, match="encoder.tuned_stages = 3, but .* has 2 stages: choose 0 to 2"):
        layer_before(module, 3)


def test_a_transformer_has_no_stages():
    assert layer_before(TRANSFORMER, 0) == "map"
    with pytest.raises(ValueError, match="tuned_stages = 1, but ViT has no stages of convolutions: choose 0 to 0"):
        layer_before(TRANSFORMER, 1)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("publisher", [0, 1])
def test_what_was_tuned_is_written_under_the_names_of_the_file(tmp_path, name, publisher):
    source = write(tmp_path / "source.safetensors", name, publisher)
    settings = config.FrozenSettings(network=name, weights=source, image_size=(16, 16), tuned_stages=1)
    module, variables = tuned.start(settings, 5)
    assert module.backbone.done == 1 and not variables["params"]["backbone"]["head"]["kernel"].any()
    changed = jax.tree.map(lambda x: x + 1, variables)
    tuned.write(tmp_path / "tuned.safetensors", settings, changed)
    before, after = (weights.load(p, name) for p in (source, tmp_path / "tuned.safetensors"))
    assert (before.module.classes, after.module.classes) == (3, 5)
    flat = traverse_util.flatten_dict({name: tree["backbone"] for name, tree in changed.items()})
    kept = traverse_util.flatten_dict(before.variables)
    for path, value in traverse_util.flatten_dict(after.variables).items():
        np.testing.assert_array_equal(value, flat.get(path, kept[path] if path not in flat else None))
    assert not any("stage_0" in "/".join(path) for path in flat) and any("stage_1" in "/".join(p) for p in flat)
    assert set(load_file(source)) == set(load_file(tmp_path / "tuned.safetensors"))


class Files(NamedTuple):
    weights: str
    sets: str


@pytest.fixture(scope="module")
def files(tmp_path_factory, small):
    """Weights of a tiny network, and 60 small photographs of noise, dark and bright."""
    folder = tmp_path_factory.mktemp("tuned")
    for i in range(60):
        pixels = np.random.default_rng(i).integers(0, 128, (16, 16, 3), np.uint8) + 100 * (i % 2)
        (folder / "raw" / ("dark", "bright")[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "raw" / ("dark", "bright")[i % 2] / f"{i}.png")
    prepare.image_folder(folder / "raw", name="photos", data_dir=folder / "sets", validation=0.2)
    return Files(write(folder / "small.safetensors", "resnet50"), str(folder / "sets"))


def settings_of(files, method, encoder=None, steps=20):
    tree = {
        "name": "tiny",
        "data": {"name": "photos", "data_dir": files.sets},
        "encoder": {
            "kind": "frozen",
            "network": "resnet50",
            "weights": files.weights,
            "image_size": [16, 16],
            "crop": 1.0,
            "batch_size": 8,
            **(encoder or {}),
        },
        "method": method,
        "optimizer": {"learning_rate": 0.02, "schedule": "constant"},
        "train": {"steps": steps, "batch_size": 16, "log_every": steps, "checkpoint_every": steps},
        "evaluate": {"batch_size": 16},
        "explain": {"count": 1},
    }
    return config.from_tree(tree, "test")


FINE_TUNING = {"kind": "fine_tuning"}
VIEWS = {"views": 1, "augment": {"crop_scale": [0.5, 1.0], "flip_horizontal": True, "trivial_augment": True}}


@pytest.fixture(scope="module")
def with_head(files, tmp_path_factory, results_of):
    """A run that trained the classifier alone."""
    folder = tmp_path_factory.mktemp("runs") / "head"
    return folder, results_of(settings_of(files, FINE_TUNING, steps=60), folder)


def test_a_classifier_alone_leaves_the_network_as_it_is(files, with_head):
    folder, results = with_head
    assert results["test"]["accuracy"]["encoder"] > 0.9
    before, after = (load_file(path) for path in (files.weights, folder / "weights.safetensors"))
    assert {name for name in before if not np.array_equal(before[name], after[name])} == {"fc.weight", "fc.bias"}
    assert after["fc.weight"].shape == (2, 32)


def test_tuning_starts_from_the_head_that_was_trained(files, with_head):
    head = str(with_head[0] / "weights.safetensors")
    own = settings_of(files, FINE_TUNING, {"tuned_stages": 1, "head": head}).encoder
    module, variables = tuned.start(own, 2)
    test = frozen.load(settings_of(files, FINE_TUNING, {"tuned_stages": 1})).test
    maps = np.stack([test[i]["inputs"] for i in range(len(test))])
    logits, _ = jax.jit(partial(module.apply, train=False))(variables, maps)
    assert (logits.argmax(axis=1) == test.labels).mean() == with_head[1]["test"]["accuracy"]["encoder"]
    with pytest.raises(weights.WeightsError, match="has a classifier of 2 classes, and the data set has 3"):
        tuned.start(own, 3)


def test_the_last_stages_are_tuned_from_images_and_from_a_store_alike(files, tmp_path, results_of):
    encoder = {"tuned_stages": 1, **VIEWS}
    store = str(tmp_path / "store")
    _, shape = frozen.write_store(settings_of(files, FINE_TUNING, encoder), store)
    assert shape == (4, 4, 16)
    results = [
        results_of(settings_of(files, FINE_TUNING, {**encoder, **more}, steps=4), tmp_path / name)
        for name, more in (("images", {}), ("stored", {"features": store}))
    ]
    assert results[0]["parameters_sha256"] == results[1]["parameters_sha256"]
    before, after = (load_file(path) for path in (files.weights, tmp_path / "images" / "weights.safetensors"))
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    # Weights of the last stage, but neither its statistics nor anything before it.
    assert {name for name in before if name.startswith("layer2") and "running" not in name} <= moved
    assert {name.split(".")[0] for name in moved} == {"layer2", "fc"}
    assert not any("running" in name for name in moved)
    # What the tuned file says of an image is what the run says.
    found = weights.load(tmp_path / "stored" / "weights.safetensors", "resnet50")
    test = frozen.load(
        settings_of(files, FINE_TUNING, {"weights": str(tmp_path / "stored" / "weights.safetensors")})
    ).test
    maps = np.stack([test[i]["inputs"] for i in range(len(test))])
    logits = maps.mean((1, 2)) @ found.variables["params"]["head"]["kernel"] + found.variables["params"]["head"]["bias"]
    assert (logits.argmax(axis=1) == test.labels).mean() == pytest.approx(results[1]["test"]["accuracy"]["encoder"])
    with pytest.raises(DataError, match="tuned_stages is 1, not 0"):
        frozen.load(settings_of(files, FINE_TUNING, {"features": store}))


CODES = {"kind": "protoquant", "codes": 12, "codebook_steps": 10, "initializer": "sampled"}


def test_the_frozen_and_the_quantised_head_are_reported(files, with_head, tmp_path, results_of):
    head = str(with_head[0] / "weights.safetensors")
    settings = settings_of(files, {**CODES, "task_weight": 1.0}, {"head": head}, steps=30)
    results = results_of(settings, tmp_path / "codes")
    opened = experiment.open_run(tmp_path / "codes", quiet=True)
    test = opened.dataset.test
    maps = np.stack([test[i]["inputs"] for i in range(len(test))]).astype(np.float64)
    dense = {k: x.astype(np.float64) for k, x in weights.load(head, "resnet50").variables["params"]["head"].items()}
    codes = np.asarray(opened.state.params["codes"], np.float64)
    cosines = maps @ codes.T / np.linalg.norm(codes, axis=1) / np.linalg.norm(maps, axis=-1)[..., None]
    of = {"frozen_head": maps, "quantised_head": codes[cosines.argmax(axis=-1)]}
    expected = {
        name: ((x.mean((1, 2)) @ dense["kernel"] + dense["bias"]).argmax(axis=1) == test.labels).mean()
        for name, x in of.items()
    }
    assert results["test"]["heads"] == pytest.approx(expected)
    # The same network, the same head: what the run that trained it has measured.
    assert results["test"]["accuracy"]["encoder"] == with_head[1]["test"]["accuracy"]["encoder"]
    shown = run_commands.report_lines(results["test"])
    assert f"accuracy of the quantised head   {results['test']['heads']['quantised_head']:.4g}" in shown
    first = json.loads((tmp_path / "codes" / "metrics.jsonl").read_text().splitlines()[0])
    assert "loss_task" in first


def test_without_a_head_the_encoder_has_no_decision(files, tmp_path, results_of):
    results = results_of(settings_of(files, CODES, steps=12), tmp_path / "codes")
    assert results["test"]["accuracy"]["encoder"] is None and "heads" not in results["test"]
    assert results["test"]["accuracy"]["prototypes"] is not None
    assert set(results["test"]["reliability"]) == {"confidence", "prototypes"}
    record = json.loads((tmp_path / "codes" / "figures" / "explanations.json").read_text())
    assert record["decisions"][0]["encoder_predicted"] is None


def test_an_artifact_has_no_scores_of_an_encoder_that_decides_nothing(with_head, tmp_path):
    opened = experiment.open_run(with_head[0], quiet=True)
    predict = opened.method.predict
    mute = opened.method._replace(predict=lambda *asked: predict(*asked)._replace(encoder_scores=None))
    export.write(tmp_path / "artifact", opened._replace(method=mute))
    described = json.loads((tmp_path / "artifact" / "description.json").read_text())["outputs"]
    assert "encoder_scores" not in described and {"class", "scores", "ids"} <= set(described)


def test_another_head_makes_another_run(files, with_head, tmp_path):
    head = str(with_head[0] / "weights.safetensors")
    own, none = (frozen.load(settings_of(files, CODES, e)).info.fingerprint for e in ({"head": head}, {}))
    assert own != none
    with pytest.raises(weights.WeightsError, match="has a classifier of 3 classes, and the data set has 2: train one"):
        tuned.head(files.weights, "resnet50", 2)


@pytest.mark.parametrize(
    ("method", "encoder", "message"),
    [
        (CODES, {"tuned_stages": 1}, "tuned_stages = 1 leaves stages to train, which protoquant does not: set it to 0"),
        (
            {"kind": "encoder"},
            {"head": "x.safetensors"},
            "encoder.head is read by protoquant and fine_tuning, and not by encoder",
        ),
    ],
)
def test_settings_that_do_not_go_together(method, encoder, message):
    with pytest.raises(config.SettingsError, match=message):
        settings_of(Files("x.safetensors", "sets"), method, encoder)
    tree = {"name": "n", "encoder": {"kind": "conv"}, "method": FINE_TUNING}
    with pytest.raises(
        config.SettingsError, match="published network, or trains a vit: encoder.kind = 'conv' is neither"
    ):
        config.from_tree(tree, "test")
