"""Runs of the prototype autoencoder and of the attention autoencoder, from training to pictures."""

import json
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from protojax import checkpoint, cli, config, data, experiment, train

SYSTEMS = ["prototype_autoencoder", "attention_autoencoder"]
STEPS = 100


def settings_of(method: str, filters: tuple[int, ...] = (32, 32, 32, 10), **training) -> config.Settings:
    return config.from_tree(
        {
            "name": method,
            "data": {"augment": {"standardize": False, "elastic_amplitude": 4.0, "elastic_sigma": 2.0}},
            "encoder": {
                "kind": "autoencoder",
                "filters": list(filters),
                "strides": [2, 1, 1, 1][: len(filters)],
                "initializer": "he",
            },
            "method": {"kind": method},
            "optimizer": {"learning_rate": 0.005, "schedule": "constant"},
            "train": {"batch_size": 128, "log_every": 10, **training},
        },
        "test",
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder and results of a short run, by method."""
    done = {}
    with warnings.catch_warnings():
        # After so few steps prototypes are not healthy yet, and the run says so.
        warnings.simplefilter("ignore")
        for method in SYSTEMS:
            folder = tmp_path_factory.mktemp("runs") / method
            done[method] = folder, experiment.train_run(settings_of(method, steps=STEPS), folder, quiet=True)
    return done


@pytest.mark.parametrize("method", SYSTEMS)
def test_a_run_measures_and_draws_itself(runs, method):
    folder, results = runs[method]
    assert results["test"]["accuracy"]["prototypes"] > 0.4
    assert np.sum(results["test"]["confusion"]) == results["test"]["examples"]
    assert results["health"]["prototypes"] == 15
    record = json.loads((folder / "figures" / "portraits.json").read_text())
    assert np.shape(record["views"]["prototype_pictures"]) == (15, 8, 8, 1)
    drawn = ["reconstructions", "deformed", "prototypes", "prototype_to_class", "image_to_class"]
    for name in drawn + (["attention", "feature_to_image"] if method == "attention_autoencoder" else []):
        with Image.open(folder / "figures" / f"{name}.png") as picture:
            assert min(picture.size) > 100


@pytest.mark.parametrize("method", SYSTEMS)
def test_evaluation_anew_finds_the_same_and_what_the_decoder_loses(runs, method):
    folder, results = runs[method]
    opened = experiment.open_run(folder, quiet=True)
    examples = [opened.dataset.test[i] for i in range(results["test"]["examples"])]
    pixels = np.stack([example["inputs"] for example in examples]) / 255.0
    views = opened.method.views(opened.state.variables, opened.memory, {"inputs": jnp.asarray(pixels, jnp.float32)})
    decoded = np.asarray(views["reconstructions"], np.float64)
    lost = results["test"]["reconstruction"]
    assert lost["mean_squared_error"] == pytest.approx(np.square(decoded - pixels).mean(), rel=1e-4)
    entropy = -(pixels * np.log(decoded) + (1 - pixels) * np.log(1 - decoded))
    assert lost["binary_cross_entropy"] == pytest.approx(entropy.mean(), rel=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = experiment.evaluate_run(opened, quiet=True)
    assert again["test"] == results["test"]


def test_the_two_systems_are_compared(runs, tmp_path):
    folders = [str(folder) for folder, _ in runs.values()]
    assert cli.main(["evaluate", "--compare", *folders, "--output", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "confusions.json").read_text())
    for found, (_, results) in zip(record["runs"], runs.values(), strict=True):
        assert found["accuracy"] == pytest.approx(results["test"]["accuracy"]["prototypes"], abs=1e-6)
    assert (tmp_path / "confusions.png").exists()


@pytest.mark.parametrize("method", SYSTEMS)
def test_a_run_that_was_stopped_ends_with_the_same_bits(method, tmp_path):
    dataset = data.load(settings_of(method).data)

    def fit(folder, steps):
        folder.mkdir(exist_ok=True)
        return train.fit(
            settings_of(method, (4, 3), steps=steps), dataset, folder, lambda *_: {"score": 0.0}, quiet=True
        )

    whole = fit(tmp_path / "whole", 5)
    fit(tmp_path / "parts", 2)
    resumed = fit(tmp_path / "parts", 5)
    assert resumed.steps_run == 3
    assert checkpoint.digest(resumed.state) == checkpoint.digest(whole.state)
