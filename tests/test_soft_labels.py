"""Soft labels in the step: MixUp, CutMix and smoothing against NumPy, by every method, resumed, and where refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax import checkpoint, config, data, methods, opened, step, train
from protojax.data import augment, images

MIX = {"mixup": 0.8, "cutmix": 1.0}
TREE = {
    "name": "tiny",
    "data": {"augment": {"standardize": False}},
    "encoder": {"kind": "conv", "filters": [2], "dense": [8]},
    "method": {"kind": "encoder", "value_size": 4},
    "train": {"steps": 4, "batch_size": 16, "log_every": 2, "checkpoint_every": 2},
}
AUTOENCODER = {"kind": "autoencoder", "filters": [4, 4, 4, 4], "strides": [2, 2, 1, 1]}


def settings_with(mix=None, smoothing=0.0, **sections):
    tree = {**TREE, **sections}
    tree["data"] = {**tree["data"], "mix": mix or {}}
    tree["train"] = {**tree["train"], "label_smoothing": smoothing}
    return config.from_tree(tree, "test")


@pytest.fixture(scope="module")
def digits():
    return data.load(config.DataSettings())


@pytest.fixture(scope="module")
def batch(digits):
    part = {name: np.stack([digits.train[i][name] for i in range(16)]) for name in ("id", "inputs", "label")}
    return jax.tree.map(jnp.asarray, part)


def prepared(batch, settings, seed=0):
    prepare = jax.jit(lambda batch, key: step.prepare(batch, key, settings=settings, classes=10, kind="image"))
    return prepare(batch, jax.random.key(seed))


def test_labels_are_smoothed(batch):
    made = prepared(batch, settings_with(smoothing=0.1))
    expected = np.eye(10)[np.asarray(batch["label"])] * 0.9 + 0.01
    np.testing.assert_allclose(made["target"], expected, atol=1e-6)
    np.testing.assert_array_equal(made["label"], batch["label"])
    assert "target" not in prepared(batch, settings_with())


@pytest.mark.parametrize("mix", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_inputs_and_labels_are_mixed_alike(batch, mix):
    made = prepared(batch, settings_with(mix, smoothing=0.2))
    plain = np.asarray(images.transform(batch["inputs"], settings_with().data.augment), np.float64)
    before = np.roll(plain, 1, axis=0)
    smooth = np.eye(10)[np.asarray(batch["label"])] * 0.8 + 0.02
    inputs, target = np.asarray(made["inputs"]), np.asarray(made["target"])
    np.testing.assert_allclose(target.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(made["label"], target.argmax(axis=1))
    shares = []
    for row in range(16):
        difference = plain[row] - before[row]
        if "mixup" in mix:
            # The share by least squares.
            own = ((inputs[row] - before[row]) * difference).sum() / (difference**2).sum()
            np.testing.assert_allclose(inputs[row], own * plain[row] + (1 - own) * before[row], atol=1e-5)
            np.testing.assert_allclose(target[row], own * smooth[row] + (1 - own) * smooth[row - 1], atol=1e-4)
        else:
            taken = (inputs[row] != plain[row]).any(axis=-1)
            np.testing.assert_allclose(inputs[row][taken], before[row][taken], atol=1e-6)
            other = (target[row] - smooth[row]).sum() if not taken.any() else None
            assert other is None or abs(other) < 1e-6
            # Pixels that are equal in both are no proof of either.
            least, most = taken.mean(), (taken | (difference == 0).all(axis=-1)).mean()
            if (batch["label"][row] != batch["label"][row - 1]).item():
                own = (target[row][batch["label"][row]] - 0.02) / 0.8
                assert least - 1e-5 <= 1 - own <= most + 1e-5
        shares.append(own if "mixup" in mix else taken.mean())
    assert np.std(shares) > 0.05


def test_one_of_the_two_is_drawn_for_a_step(batch):
    made = [np.asarray(prepared(batch, settings_with(MIX), seed)["inputs"]) for seed in range(8)]
    whole = np.asarray(images.transform(batch["inputs"], settings_with().data.augment))
    both = np.stack([whole, np.roll(whole, 1, axis=0)])
    pasted = [bool((x == both).any(axis=0).all()) for x in made]
    assert 0 < sum(pasted) < 8


def test_the_rest_of_the_randomness_is_untouched(batch):
    moved = {"data": {"augment": {"pad_crop": 2, "standardize": False}}}
    plain, smooth = (prepared(batch, settings_with(smoothing=s, **moved)) for s in (0.0, 0.1))
    np.testing.assert_array_equal(plain["inputs"], smooth["inputs"])
    mixed = prepared(batch, settings_with({"mixup": 1e-4}, **moved))
    # Shares of Beta(a, a) with a tiny a are 0 or 1, so that every example is one of two.
    both = np.stack([plain["inputs"], np.roll(plain["inputs"], 1, axis=0)])
    assert np.abs(np.asarray(mixed["inputs"]) - both).max(axis=(2, 3, 4)).min(axis=0).max() < 1e-3


SYSTEMS = {
    "encoder": {},
    "protoattend": {
        "method": {"kind": "protoattend", "key_size": 4, "value_size": 4},
        "train": {**TREE["train"], "candidate_count": 16},
    },
    "prototype_autoencoder": {"encoder": AUTOENCODER, "method": {"kind": "prototype_autoencoder"}},
    "attention_autoencoder": {"encoder": AUTOENCODER, "method": {"kind": "attention_autoencoder"}},
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_losses_read_soft_labels(digits, batch, system):
    settings = settings_with(smoothing=0.3, **SYSTEMS[system])
    method = methods.build(settings, 10)
    whole = prepared({**batch, "candidates": batch} if system == "protoattend" else batch, settings)
    variables = jax.jit(method.init)(jax.random.key(0), whole)
    of = jax.jit(lambda target: method.loss(variables, {**whole, "target": target}, jax.random.key(0), 0)[0])
    uniform = jnp.full((16, 10), 0.1)
    ends = [float(of(t)) for t in (jax.nn.one_hot(whole["label"], 10), uniform)]
    # Cross-entropy is linear in the labels.
    assert float(of(whole["target"])) == pytest.approx(0.7 * ends[0] + 0.3 * ends[1], rel=1e-4)
    assert ends[0] != pytest.approx(ends[1], rel=1e-3)


def fit(settings, dataset, folder):
    folder.mkdir(exist_ok=True)
    return train.fit(settings, dataset, folder, lambda *_: {"score": 0.0}, quiet=True)


def test_resumed_runs_are_bitwise_equal(digits, tmp_path):
    settings = settings_with(MIX, 0.1)
    whole = fit(settings, digits, tmp_path / "whole")
    first = settings.model_copy(update={"train": settings.train.model_copy(update={"steps": 2})})
    fit(first, digits, tmp_path / "parts")
    resumed = fit(settings, digits, tmp_path / "parts")
    assert resumed.steps_run == 2
    assert checkpoint.digest(resumed.state) == checkpoint.digest(whole.state)
    assert checkpoint.digest(fit(settings_with(), digits, tmp_path / "plain").state) != checkpoint.digest(whole.state)


def test_what_cannot_be_mixed_is_refused(digits, monkeypatch, tmp_path):
    with pytest.raises(config.SettingsError, match="data.mix makes one example of two, and protoattend keeps"):
        settings_with(MIX, **SYSTEMS["protoattend"])
    with pytest.raises(config.SettingsError, match="cutmix_share = 0.9 chooses between MixUp and CutMix: give both"):
        settings_with({"mixup": 0.8, "cutmix_share": 0.9})
    rows = digits._replace(info=digits.info._replace(kind="table", input_shape=(6,)))
    lstm = settings_with(MIX, encoder={"kind": "lstm"})
    with pytest.raises(ValueError, match="data.mix mixes images or maps of features, but digits holds rows of a table"):
        opened.check(lstm, rows)
    pooled = digits._replace(info=digits.info._replace(kind="features", input_shape=(6,)))
    with pytest.raises(ValueError, match="digits holds features without places: leave data.mix out"):
        opened.check(settings_with(MIX, encoder={"kind": "features"}), pooled)
    build = methods.build
    monkeypatch.setattr(step.methods, "build", lambda *a: build(*a)._replace(soft_labels=False))
    with pytest.raises(ValueError, match="make soft labels, which the loss of encoder does not read: leave them out"):
        fit(settings_with(smoothing=0.1), digits, tmp_path / "run")


def test_maps_of_features_are_mixed_as_images_are():
    maps = jax.random.normal(jax.random.key(3), (4, 7, 7, 5))
    batch = {"id": jnp.arange(4), "inputs": maps, "label": jnp.arange(4)}
    settings = settings_with({"cutmix": 1.0}, encoder={"kind": "features"})
    made = step.prepare(batch, jax.random.key(0), settings=settings, classes=4, kind="features")
    key = jax.random.fold_in(jax.random.key(0), 2)
    expected = augment.mix(key, maps, jnp.eye(4), batch["id"], 0.0, 1.0)
    np.testing.assert_array_equal(made["inputs"], expected[0])
    np.testing.assert_array_equal(made["target"], expected[1])
