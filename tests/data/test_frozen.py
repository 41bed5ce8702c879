"""A frozen backbone between images and training: from the store or from images, the numbers are the same."""

import json
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tensorflow_datasets as tfds
from flax import traverse_util
from PIL import Image
from safetensors.numpy import save_file

from protojax import cli, config, experiment, layouts, methods, naming, opened, step, weights
from protojax.data import DataError, feature_writer, frozen, loading, prepare, resident, sampling
from protojax.networks import backbones
from protojax.networks.backbones import IMAGENET, Backbone
from protojax.networks.resnet50 import BottleneckResNet


@pytest.fixture(scope="module", autouse=True)
def small():
    """A tiny network under the name of a published one."""
    with pytest.MonkeyPatch.context() as patch:
        module = partial(BottleneckResNet, depths=(1, 1), filters=4)
        patch.setitem(backbones.BACKBONES, "resnet50", Backbone(module, IMAGENET))
        yield module


def _weights(path, module, seed=0):
    variables = jax.jit(module(classes=3).init)(jax.random.key(seed), jnp.zeros((1, 16, 16, 3)))
    flat = traverse_util.flatten_dict(variables)
    tensors = {}
    for row in naming.wanted(module(classes=3), layouts.RESNET, 0):
        array = np.asarray(flat[row.path])
        inverse = None if row.axes is None else np.argsort(row.axes)
        tensors[row.names[0]] = np.ascontiguousarray(array if inverse is None else array.transpose(inverse))
    save_file(tensors, path)
    return str(path)


class Files(NamedTuple):
    weights: str
    sets: str


@pytest.fixture(scope="module")
def file(small, photos, tmp_path_factory):
    return Files(_weights(tmp_path_factory.mktemp("weights") / "small.safetensors", small), photos)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A data set of 30 small photographs of noise, dark and bright."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(30):
        pixels = np.random.default_rng(i).integers(0, 128, (12, 14, 3), np.uint8) + 100 * (i % 2)
        (folder / "raw" / ("dark", "bright")[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "raw" / ("dark", "bright")[i % 2] / f"{i}.png")
    prepare.image_folder(folder / "raw", name="photos", data_dir=folder / "sets", validation=0.2)
    return str(folder / "sets")


VIEWS = {"views": 2, "augment": {"crop_scale": [0.5, 1.0], "flip_horizontal": True, "erasing": 0.5}}


def _settings(file, encoder=None, **sections):
    tree = {
        "name": "tiny",
        "data": {"name": "photos", "data_dir": file.sets, **sections.pop("data", {})},
        "encoder": {
            "kind": "frozen",
            "network": "resnet50",
            "weights": file.weights,
            "image_size": [16, 16],
            "batch_size": 8,
            **(encoder or {}),
        },
        "method": {"kind": "encoder", "value_size": 4},
        "train": {
            "steps": 4,
            "batch_size": 8,
            "log_every": 2,
            "checkpoint_every": 4,
            **sections.pop("train", {}),
        },
        "explain": {"count": 1},
        **sections,
    }
    return config.from_tree(tree, "test")


@pytest.fixture(scope="module")
def store(file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores") / "photos_small"
    counts, shape = frozen.write_store(_settings(file, VIEWS), str(folder))
    return folder, counts, shape


def test_the_network_sees_what_it_was_trained_on(file):
    settings = _settings(file, {"crop": 1.0, "interpolation": "linear"}).encoder
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    see = jax.jit(lambda x, how: frozen.prepared(x, np.zeros(2), np.zeros(2), how), static_argnames="how")
    got = see(images, settings)
    wanted = (images / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    gray = see(images[..., :1], settings)
    np.testing.assert_allclose(gray[..., 2], (images[..., 0] / 255 - 0.406) / 0.225, atol=1e-5)
    own = settings.model_copy(update={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})
    np.testing.assert_allclose(see(images, own), images / 255, atol=1e-5)


def test_maps_are_those_of_the_network(file):
    settings = _settings(file)
    images, dataset = loading.load(settings.data), frozen.load(settings)
    assert (dataset.info.kind, dataset.info.input_shape) == ("features", (2, 2, 32))
    assert dataset.info.fingerprint != images.info.fingerprint
    example = dataset.test[5]
    found = weights.load(file.weights, "resnet50")
    seen = frozen.prepared(images.test[5]["inputs"][None], np.zeros(1), np.zeros(1), settings.encoder)
    wanted = jax.jit(found.module.apply)(found.variables, seen)[1]["map"][0]
    np.testing.assert_allclose(example["inputs"], wanted, atol=1e-5)
    assert example["id"] == images.test.ids[5] and example["label"] == images.test.labels[5]
    np.testing.assert_array_equal(dataset.test.show(5), images.test.show(5))


def test_the_store_has_the_numbers_that_are_computed_from_images(file, store):
    folder, counts, shape = store
    computed, stored = (frozen.load(_settings(file, {**VIEWS, **more})) for more in ({}, {"features": str(folder)}))
    n = len(computed.train)
    assert counts == {"train": 3 * n, "validation": len(computed.validation), "test": len(computed.test)}
    assert computed.info == stored.info
    assert shape == (2, 2, 32)
    positions = [0, 7, n + 7, 2 * n + 7, 3 * n - 1]
    ours, theirs = (resident.read(split, positions, 5) for split in (computed.train, stored.train))
    assert {key: (x.dtype, x.shape) for key, x in ours.items()} == {
        key: (x.dtype, x.shape) for key, x in theirs.items()
    }
    # Some processors round a row by its place in the batch.
    np.testing.assert_allclose(ours["inputs"], theirs["inputs"], atol=1e-5)
    for key in ("id", "label"):
        np.testing.assert_array_equal(ours[key], theirs[key])
    assert not np.allclose(ours["inputs"][1], ours["inputs"][2], atol=1e-3)
    assert not np.allclose(ours["inputs"][2], ours["inputs"][3], atol=1e-3)
    np.testing.assert_allclose(computed.test[3]["inputs"], stored.test[3]["inputs"], atol=1e-5)


def test_plain_tfds_reads_the_store(file, store):
    folder, counts, _ = store
    source = tfds.builder_from_directory(folder / "1.0.0").as_data_source("train")
    assert len(source) == counts["train"]
    dataset = frozen.load(_settings(file, VIEWS))
    record = source[len(dataset.train) + 2]
    assert (record["id"], record["view"]) == (dataset.train.ids[2], 1)
    np.testing.assert_array_equal(record["features"], dataset.train[len(dataset.train) + 2]["inputs"])


def test_half_precision_is_kept_bit_by_bit(file, tmp_path):
    encoder = {"precision": "bfloat16"}
    counts, _ = frozen.write_store(_settings(file, encoder), str(tmp_path / "half"))
    assert counts["train"] == len(frozen.load(_settings(file)).train)
    computed, stored = (
        frozen.load(_settings(file, {**encoder, **more})) for more in ({}, {"features": str(tmp_path / "half")})
    )
    ours, theirs = computed.test[0]["inputs"], stored.test[0]["inputs"]
    assert ours.dtype == theirs.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(ours, theirs)
    full = frozen.load(_settings(file)).test[0]["inputs"]
    np.testing.assert_allclose(ours.astype(np.float32), full, atol=0.05, rtol=0.05)


def _trained(settings, folder):
    experiment.train_run(settings, folder, quiet=True)
    return json.loads((folder / "results.json").read_text())


def _losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    found = [line[name] for line in lines for name in ("loss", "gradient_norm") if name in line]
    assert len(found) == 4
    return found


def test_training_from_images_and_from_the_store_is_the_same_run(file, store, tmp_path):
    folder = str(store[0])
    streamed = _settings(file, {**VIEWS, "features": folder}, data={"feeding": "streamed"})
    _trained(_settings(file, VIEWS), tmp_path / "images")
    _trained(streamed, tmp_path / "store")
    assert _losses(tmp_path / "images") == pytest.approx(_losses(tmp_path / "store"), rel=1e-5)
    # Another store or file of the same weights may serve the same run; nothing of the backbone is in the checkpoint.
    again = _settings(file, {**VIEWS, "features": folder}, train={"steps": 6, "checkpoint_every": 6})
    assert _trained(again, tmp_path / "images")["train"]["steps"] == 6
    size = sum(f.stat().st_size for f in (tmp_path / "store" / "checkpoints").rglob("*") if f.is_file())
    assert size < 200_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": [24, 24]}, r"image_size is \[16, 16\], not \[24, 24\]"),
        ({"crop": 0.5, "precision": "bfloat16"}, "precision is 'float32', not 'bfloat16'; crop is 0.875, not 0.5"),
        ({"seed": 1}, "seed is 0, not 1"),
        ({"views": 3}, "views is 2, fewer than 3"),
        ({"augment": {"flip_horizontal": True}}, "augment is "),
    ],
)
def test_a_store_of_other_features_is_refused(file, store, change, message):
    settings = _settings(file, {**VIEWS, "features": str(store[0]), **change})
    with pytest.raises(DataError, match=f"stamp.json: the store holds other features than .* asks for: .*{message}"):
        frozen.load(settings)


def test_a_store_of_other_weights_or_images_is_refused(small, file, store, tmp_path):
    other = file._replace(weights=_weights(tmp_path / "other.safetensors", small, seed=1))
    with pytest.raises(
        DataError, match="weights_sha256 is '.*', not '.*'; write one with protojax features, or change"
    ):
        frozen.load(_settings(other, {**VIEWS, "features": str(store[0])}))
    with pytest.raises(DataError, match="data_fingerprint is "):
        frozen.load(
            _settings(
                file,
                {**VIEWS, "features": str(store[0])},
                data={"test_split": "validation", "validation_split": "test"},
            )
        )


def test_fewer_views_than_the_store_has_are_fine(file, store):
    dataset = frozen.load(_settings(file, {"features": str(store[0])}))
    np.testing.assert_array_equal(dataset.train[1]["inputs"], frozen.load(_settings(file)).train[1]["inputs"])


def test_a_store_that_is_missing_or_damaged_is_named(file, store, tmp_path):
    with pytest.raises(DataError, match="stamp.json: no feature store here; write one with protojax features"):
        frozen.load(_settings(file, {"features": str(tmp_path)}))
    (tmp_path / "1.0.0").mkdir()
    (tmp_path / "1.0.0" / "stamp.json").write_text('{"schema": "protojax.features/0"}')
    with pytest.raises(DataError, match="stamp.json: schema 'protojax.features/0', but this version reads"):
        frozen.load(_settings(file, {"features": str(tmp_path)}))
    (tmp_path / "1.0.0" / "stamp.json").write_text("{")
    with pytest.raises(DataError, match="stamp.json: damaged: .*; write the store again"):
        frozen.load(_settings(file, {"features": str(tmp_path)}))


def test_a_record_in_the_wrong_place_is_noticed(file, store):
    stored = frozen.load(_settings(file, {**VIEWS, "features": str(store[0])})).train
    stored.ids = np.roll(stored.ids, 1)
    with pytest.raises(DataError, match=r"record 4 is view 0 of id \d+ in 512 bytes, not view 0 of id \d+ in 512"):
        stored[4]


def test_views_are_drawn_alike_on_host_and_device():
    sampler = sampling.sampler(10, 6, 4, 3, views=5)
    for draw in (sampling.batch_indices, sampling.candidate_indices):
        on_device = jax.jit(partial(draw, sampler))
        for at in range(4):
            host = draw(sampler, at)
            np.testing.assert_array_equal(host, on_device(jnp.int32(at)))
            np.testing.assert_array_equal(host % 10, draw(sampling.sampler(10, 6, 4, 3), at))
            assert (host >= 10).all() and (host < 60).all()
    seen = np.concatenate([sampling.batch_indices(sampler, at) // 10 for at in range(50)])
    np.testing.assert_allclose(np.bincount(seen, minlength=6)[1:] / len(seen), 0.2, atol=0.08)
    with pytest.raises(ValueError, match="encoder.views = 1000000000 of 10 examples are more than"):
        sampling.sampler(10, 6, 4, 3, views=1_000_000_000)


@pytest.mark.parametrize(
    ("encoder", "sections", "message"),
    [
        ({"views": 2}, {}, "views = 2 views without augment would all be alike"),
        ({"augment": {"erasing": 0.5}}, {}, "augment transforms views, and views = 0 asks for none"),
        ({"views": 1, "augment": {"crop_scale": [0.9, 0.5]}}, {}, "crop_scale goes from the smallest share"),
        ({}, {"data": {"augment": {"flip_horizontal": True}}}, "data.augment is for encoders that are trained"),
        ({}, {"data": {"feeding": "streamed", "workers": 2}}, "data.workers must be 0 where a frozen encoder"),
        ({}, {"evaluate": {"rotations": [15]}}, "evaluate.rotations and evaluate.shift_names shift images"),
        (
            VIEWS,
            {"method": {"kind": "protoattend"}, "train": {"candidates": "retrieved", "candidate_count": 8}},
            "keeps one key an example: set encoder.views = 0",
        ),
        ({"network": "resnet18"}, {}, "encoder.network: "),
    ],
)
def test_settings_that_do_not_go_together(encoder, sections, message):
    with pytest.raises(config.SettingsError, match=message):
        _settings(Files("x.safetensors", "sets"), encoder, **sections)


def test_only_images_are_read(file, tiny, as_png):
    tiny.images("alpha", {"train": [as_png(np.full((8, 8, 4), i, np.uint8)) for i in range(12)]}, shape=(8, 8, 4))
    data = {"name": "alpha", "data_dir": tiny.folder, "test_fraction": 0.4, "validation_fraction": 0}
    with pytest.raises(
        DataError, match="alpha holds images of 4 channels, but a frozen backbone reads images of 1 or 3"
    ):
        frozen.load(_settings(file, data=data))


def _write(folder, file):
    (folder / "tiny.toml").write_text(
        f'name = "tiny"\n[data]\nname = "photos"\ndata_dir = "{file.sets}"\n[encoder]\nkind = "frozen"\n'
        f'network = "resnet50"\nweights = "{file.weights}"\nimage_size = [16, 16]\nbatch_size = 8\n'
        '[method]\nkind = "encoder"\nvalue_size = 4\n'
    )
    return str(folder / "tiny.toml")


def test_the_command(file, tmp_path, capsys):
    path = _write(tmp_path, file)
    command = ["features", path, "--output", str(tmp_path / "store")]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert out.startswith("features [2, 2, 32]: train ")
    assert f"train from it with encoder.features={tmp_path}/store" in out
    assert cli.main(command) == 2
    assert "store exists: choose another name, or replace it with --overwrite" in capsys.readouterr().err
    assert cli.main([*command, "--overwrite", "encoder.crop=1.0"]) == 0
    assert json.loads((tmp_path / "store" / "1.0.0" / "stamp.json").read_text())["crop"] == 1.0
    wrong = [*command, "--overwrite", 'encoder={kind="conv"}']
    assert cli.main(wrong) == 2
    assert "encoder.kind = 'conv': features are those of a frozen encoder" in capsys.readouterr().err


def test_the_command_goes_on_and_fills_up_few_batches(file, tmp_path, capsys, monkeypatch):
    command = ["features", _write(tmp_path, file), "--output", str(tmp_path / "store")]
    compute, sizes = frozen.features, []

    def counted(module, settings, variables, images, *more, **options):
        # Shapes are asked for by tracing it.
        if not isinstance(images, jax.core.Tracer):
            if len(sizes) == stops_at:
                raise KeyboardInterrupt
            sizes.append(len(images))
        return compute(module, settings, variables, images, *more, **options)

    monkeypatch.setattr(frozen, "features", counted)
    # Shards of one batch; at about 10 records every second batch would be filled up.
    monkeypatch.setattr(feature_writer, "SHARD_BYTES", 10 * 512)
    stops_at = 2
    assert cli.main(command) == 130
    assert len(list((tmp_path / "store.partial" / "1.0.0").glob("*-of-00003"))) == 2
    assert cli.main(["train", command[1], "--workdir", str(tmp_path / "run"), f"encoder.features={command[-1]}"]) == 2
    assert f"finish it with protojax features EXPERIMENT.toml --output {command[-1]}" in capsys.readouterr().err
    stops_at = None
    assert cli.main(command) == 0
    stored = frozen.load(_settings(file, {"features": command[-1]}))
    lengths = [len(split) for split in stored[1:]]
    assert sum(sizes) == 8 * sum(-(-length // 8) for length in lengths)


def test_features_that_were_made_elsewhere(tmp_path, capsys):
    rng = np.random.default_rng(0)
    labels = np.array(["finch", "crow"])[np.arange(60) % 2]
    arrays = rng.standard_normal((60, 2, 3, 4)) + (np.arange(60) % 2).reshape(60, 1, 1, 1)
    np.save(tmp_path / "maps.npy", arrays)
    np.save(tmp_path / "labels.npy", labels)
    command = [
        "prepare",
        "features",
        str(tmp_path / "maps.npy"),
        "--name",
        "maps",
        "--data-dir",
        str(tmp_path / "sets"),
    ]
    assert cli.main(command) == 2
    assert "prepare features needs --labels FILE" in capsys.readouterr().err
    assert cli.main([*command, "--labels", str(tmp_path / "labels.npy")]) == 0
    data = config.DataSettings(name="maps", data_dir=str(tmp_path / "sets"))
    dataset = loading.load(data)
    assert (dataset.info.kind, dataset.info.input_shape) == ("features", (2, 3, 4))
    assert dataset.info.label_names == ("crow", "finch")
    example = dataset.train[3]
    np.testing.assert_allclose(example["inputs"], arrays[example["id"]], atol=1e-6)
    assert dataset.info.label_names[example["label"]] == labels[example["id"]]
    assert dataset.train.show(3).startswith("features [2, 3, 4] of length ")
    tree = {
        "name": "elsewhere",
        "data": data.model_dump(),
        "encoder": {"kind": "features"},
        "method": {"kind": "encoder", "value_size": 4},
    }
    settings = config.from_tree(json.loads(json.dumps(tree)), "test")
    state = step.fresh(settings, dataset)
    method = methods.build(settings, 2)
    batch = {"inputs": opened.preparation(settings, dataset)(jnp.asarray(example["inputs"])[None], None)}
    assert method.predict(state.variables, None, batch, 1).scores.shape == (1, 2)


@pytest.mark.parametrize(
    ("arrays", "labels", "message"),
    [
        (np.zeros((4, 2), np.int32), np.zeros(4, int), r"maps.npy: holds int32 \[4, 2\], not floating point"),
        (np.zeros((4, 2, 2)), np.zeros(4, int), r"maps.npy: holds float64 \[4, 2, 2\], not floating point"),
        (np.zeros((4, 2)), np.zeros(3, int), "labels.npy: 3 labels for the 4 examples of"),
        (np.zeros((4, 2)), np.zeros(4), r"labels.npy: holds float64 \[4\], not one whole number or text an example"),
        (np.zeros((4, 2)), np.array([0, 1, -2, 1]), "labels.npy: label -2 of example 2 is negative"),
        (np.full((4, 2), np.nan), np.zeros(4, int), "maps.npy: example 0 has a number that is not finite"),
    ],
)
def test_features_that_cannot_be_prepared(tmp_path, arrays, labels, message):
    np.save(tmp_path / "maps.npy", arrays)
    np.save(tmp_path / "labels.npy", labels)
    with pytest.raises(DataError, match=message):
        prepare.features(tmp_path / "maps.npy", name="maps", labels=tmp_path / "labels.npy", data_dir=tmp_path / "sets")
    (tmp_path / "maps.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match="maps.npy: cannot be read as an npy file of numbers"):
        prepare.features(tmp_path / "maps.npy", name="maps", labels=tmp_path / "labels.npy", data_dir=tmp_path / "sets")
