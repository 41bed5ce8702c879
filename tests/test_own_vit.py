"""A transformer trained from random values: what it leaves is, frozen, the same network."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from protojax import config, networks, step, tuned, weights
from protojax.config import FrozenSettings, ViTSettings
from protojax.data import frozen, prepare
from protojax.methods import fine_tuning

SIZES = {"patch": 4, "width": 8, "depth": 2, "heads": 2}
SMALL = ViTSettings(**SIZES, image_size=(8, 8), crop=0.75, interpolation="linear")


def drawn(settings, images, classes=3):
    """A network with its variables, none of them zero."""
    network = networks.build(settings).clone(classes=classes)
    shapes = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=False), images)
    rng = np.random.default_rng(0)
    return network, jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), shapes)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_frozen_network_says_what_the_trained_one_said(tmp_path, channels):
    pixels = np.random.default_rng(1).integers(0, 256, (5, 14, 12, channels), np.uint8)
    network, variables = drawn(SMALL, jnp.asarray(pixels, jnp.float32))
    logits, made = jax.jit(partial(network.apply, train=True))(variables, pixels / np.float32(255))
    path = tmp_path / "w.safetensors"
    tuned.write(path, SMALL, variables)
    found = weights.load(path, "vit")
    sizes = {name: getattr(found.module, name) for name in SIZES}
    assert (sizes, found.module.grid, found.module.classes) == (SIZES, 2, 3)
    how = FrozenSettings(network="vit", weights=str(path), image_size=(8, 8), crop=0.75, interpolation="linear")
    nothing = np.zeros(5, np.int32)
    maps = frozen.features(found.module, how, found.variables, pixels, nothing, nothing)
    np.testing.assert_allclose(maps, made["map"], atol=2e-5)
    module, own = tuned.head(path, "vit", 3)
    np.testing.assert_allclose(module.apply(own, maps, method="head"), logits, atol=2e-4)
    assert load_file(path)["blocks.1.attn.qkv.weight"].shape == (24, 8)
    head = {"kernel": np.ones((8, 4), np.float32), "bias": np.zeros(4, np.float32)}
    weights.save(tmp_path / "another.safetensors", path, "vit", {"params": {"head": head}})
    again = weights.load(tmp_path / "another.safetensors", "vit").module
    assert (again.heads, again.classes) == (2, 4)


def test_features_are_the_mean_of_the_map_without_a_classifier():
    images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 1))
    network = networks.build(ViTSettings(**SIZES))
    (features, made), _ = jax.jit(partial(network.init_with_output, train=True))(jax.random.key(1), images)
    assert made["map"].shape == (2, 2, 2, 8)
    np.testing.assert_allclose(features, made["map"].mean((1, 2)), atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 8, 8, 4), "a ViT reads images of 1 or 3 channels, got 4"),
        ((1, 8, 12, 1), "these images are 8x12 pixels: set encoder.image_size to a square"),
        ((1, 10, 10, 1), "images of 10x10 pixels do not divide into patches of 4x4"),
        ((1, 8, 8), r"ViT reads \[batch, height, width, channels\], got an array of shape \(1, 8, 8\)"),
    ],
)
def test_images_that_it_does_not_see(shape, message):
    with pytest.raises(ValueError, match=message):
        networks.build(ViTSettings(**SIZES)).init(jax.random.key(0), jnp.zeros(shape), train=False)


@pytest.mark.parametrize("said", [None, {"heads": "3"}, {"heads": "two"}, {"heads": "0"}])
def test_a_file_that_does_not_say_how_many_heads(tmp_path, said):
    _, variables = drawn(SMALL, jnp.zeros((1, 8, 8, 3)))
    tuned.write(tmp_path / "whole.safetensors", SMALL, variables)
    save_file(load_file(tmp_path / "whole.safetensors"), tmp_path / "w.safetensors", said)
    of = "nothing" if said is None else said["heads"]
    with pytest.raises(weights.WeightsError, match=f"its metadata say heads = '{of}', which has to divide the width"):
        weights.load(tmp_path / "w.safetensors", "vit")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """60 small grey images of noise, dark and bright."""
    folder = tmp_path_factory.mktemp("grey")
    for i in range(60):
        pixels = np.random.default_rng(i).integers(0, 128, (8, 8), np.uint8) + 100 * (i % 2)
        (folder / "raw" / ("dark", "bright")[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "raw" / ("dark", "bright")[i % 2] / f"{i}.png")
    prepare.image_folder(folder / "raw", name="grey", data_dir=folder / "sets", validation=0.2)
    return str(folder / "sets")


def settings_of(sets, encoder, method, steps):
    own = {"augment": {"standardize": False, "flip_horizontal": True}} if encoder["kind"] == "vit" else {}
    tree = {
        "name": "tiny",
        "data": {"name": "grey", "data_dir": sets, **own},
        "encoder": encoder,
        "method": method,
        "optimizer": {"learning_rate": 0.02, "schedule": "constant"},
        "train": {"steps": steps, "batch_size": 16, "log_every": steps, "checkpoint_every": steps},
        "evaluate": {"batch_size": 16},
        "explain": {"count": 1},
    }
    return config.from_tree(tree, "test")


def test_from_random_values_to_codes_on_what_was_learnt(sets, tmp_path, results_of):
    settings = settings_of(sets, {"kind": "vit", **SIZES, "depth": 1}, {"kind": "fine_tuning"}, 40)
    results = results_of(settings, tmp_path / "vit")
    assert results["test"]["accuracy"]["encoder"] > 0.9
    path = str(tmp_path / "vit" / "weights.safetensors")
    fresh = step.fresh(settings, frozen.load(settings))
    tuned.write(tmp_path / "fresh.safetensors", settings.encoder, fresh.variables)
    before, after = load_file(tmp_path / "fresh.safetensors"), load_file(path)
    assert before.keys() == after.keys()
    assert not [name for name in before if np.array_equal(before[name], after[name])]
    still = {"kind": "frozen", "network": "vit", "weights": path, "head": path, "image_size": [8, 8], "crop": 1.0}
    codes = {"kind": "protoquant", "codes": 6, "codebook_steps": 10, "initializer": "sampled", "task_weight": 1.0}
    quantised = results_of(settings_of(sets, still, codes, 30), tmp_path / "codes")["test"]
    assert quantised["heads"]["frozen_head"] == results["test"]["accuracy"]["encoder"]
    assert quantised["accuracy"]["prototypes"] > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"augment": {"standardize": True}}}, "data.augment.standardize must be false with encoder.kind = 'v"),
        ({"method": {"kind": "protoquant", "codebook_steps": 1}}, "protoquant freezes its network, and encoder.kind"),
        ({"encoder": {"kind": "vit", "width": 8, "heads": 3}}, "heads = 3 does not divide width = 8"),
    ],
)
def test_settings_that_do_not_go_together(change, message):
    tree = {
        "name": "n",
        "data": {"augment": {"standardize": False}},
        "encoder": {"kind": "vit"},
        "method": {"kind": "fine_tuning"},
        **change,
    }
    with pytest.raises(config.SettingsError, match=message):
        config.from_tree(tree, "test")


def test_a_network_that_starts_from_values_draws_none():
    start = {"params": {"kernel": np.ones((2, 2), np.float32)}}
    method = fine_tuning.build(networks.build(ViTSettings(**SIZES)), start)
    np.testing.assert_array_equal(method.init(jax.random.key(0), {})["params"]["kernel"], 1)
