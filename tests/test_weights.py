import numpy as np
import pytest
from safetensors.numpy import save_file

from protojax import cli, convert, layouts, naming, weights
from protojax.networks.backbones import BACKBONES


def _stored(network, publisher=0, **more):
    """The tensors of a file in the layout of one publisher, all zeros: names and shapes by the table itself."""
    table = weights.table_of(network)
    rows = naming.wanted(BACKBONES[network].module(**more), table, publisher)
    return {name: np.zeros(row.shape_of_each(), np.float32) for row in rows for name in row.names}


@pytest.fixture(scope="module")
def lite0():
    return _stored("efficientnet_lite0", classes=10)


def _refused(tmp_path, tensors, network="efficientnet_lite0"):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(weights.WeightsError) as caught:
        weights.load(tmp_path / "x.safetensors", network)
    return str(caught.value)


def test_all_that_differs_is_one_error(tmp_path, lite0):
    tensors = dict(lite0)
    del tensors["blocks.1.0.conv_pw.weight"], tensors["bn1.running_var"]
    tensors["blocks.1.0.se.conv_reduce.weight"] = np.zeros((4, 96, 1, 1), np.float32)
    tensors["conv_stem.weight"] = np.zeros((32, 3, 5, 5), np.float32)
    assert sorted(_refused(tmp_path, tensors).splitlines()) == sorted(
        [
            f"{tmp_path}/x.safetensors: not the weights of efficientnet_lite0 (4 names differ):",
            "  missing: bn1.running_var [32]",
            "  missing: blocks.1.0.conv_pw.weight [96, 16, 1, 1]",
            "  unexpected: blocks.1.0.se.conv_reduce.weight [4, 96, 1, 1]",
            "  misshapen: conv_stem.weight is [32, 3, 5, 5], not [32, 3, 3, 3]",
        ]
    )


def test_the_file_of_another_network_is_named_by_what_it_holds(tmp_path, lite0):
    assert _refused(tmp_path, lite0, "resnet50").startswith(f"{tmp_path}/x.safetensors: not the weights of resnet50")
    message = _refused(tmp_path, {"encoder.weight": np.zeros(1, np.float32)}, "convnext_tiny")
    assert message.endswith(
        "x.safetensors: no weights of convnext_tiny: it has none of the names that timm or transformers give them, but "
        "encoder.weight"
    )


def test_statistics_that_pytorch_counts_are_left_aside(tmp_path, lite0):
    tensors = {**lite0, "bn1.num_batches_tracked": np.zeros((), np.int64)}
    save_file(tensors, tmp_path / "x.safetensors")
    found = weights.load(tmp_path / "x.safetensors", "efficientnet_lite0")
    assert found.module.classes == 10
    assert found.sha256 == weights.sha256_of(tmp_path / "x.safetensors")
    assert found.variables["params"]["stem"]["conv"]["kernel"].shape == (3, 3, 3, 32)


def test_a_file_without_classifier_makes_a_network_without_one(tmp_path, lite0):
    tensors = {name: x for name, x in lite0.items() if not name.startswith("classifier")}
    save_file(tensors, tmp_path / "x.safetensors")
    assert weights.load(tmp_path / "x.safetensors", "efficientnet_lite0").module.classes == 0


def test_axes_are_turned(tmp_path, lite0):
    tensors = {**lite0, "classifier.weight": np.arange(12800, dtype=np.float32).reshape(10, 1280)}
    stored = np.random.default_rng(0).standard_normal((32, 3, 3, 3)).astype(np.float32)
    save_file({**tensors, "conv_stem.weight": stored}, tmp_path / "x.safetensors")
    params = weights.load(tmp_path / "x.safetensors", "efficientnet_lite0").variables["params"]
    assert params["head"]["kernel"][3, 2] == 2 * 1280 + 3
    assert params["stem"]["conv"]["kernel"][1, 2, 0, 5] == stored[5, 0, 1, 2]


def test_position_embeddings_tell_the_size(tmp_path):
    tensors = _stored("deit_small", grid=3)
    save_file(tensors, tmp_path / "x.safetensors")
    assert weights.load(tmp_path / "x.safetensors", "deit_small").module.grid == 3
    tensors["pos_embed"] = np.zeros((1, 12, 384), np.float32)
    assert _refused(tmp_path, tensors, "deit_small").endswith(
        "pos_embed has 11 places of patches, which make no square"
    )


@pytest.mark.parametrize("network", BACKBONES)
@pytest.mark.parametrize("publisher", [0, 1])
def test_every_parameter_has_a_row(network, publisher):
    more = {"grid": 2} if "positions" in {row.ours for row in weights.table_of(network).rows} else {}
    more |= {"patch": 4, "width": 8, "depth": 4, "heads": 2} if network == "vit" else {}
    tensors = _stored(network, publisher, classes=7, **more)
    table = weights.table_of(network)
    known = [layouts.pattern(name) for row in table.rows for name in naming.listed(row.theirs[publisher])]
    assert all(any(p.fullmatch(name) for p in known) for name in tensors)
    assert len(tensors) > 50


PUBLISHED = {
    ("deit_small", 0): ["blocks.11.attn.qkv.weight", "blocks.0.norm1.bias", "patch_embed.proj.weight", "head.bias"],
    ("deit_small", 1): [
        "encoder.layer.11.attention.attention.key.bias",
        "encoder.layer.0.intermediate.dense.weight",
        "embeddings.patch_embeddings.projection.weight",
    ],
    ("dinov2_base_registers", 0): ["blocks.3.ls2.gamma", "reg_token", "pos_embed"],
    ("dinov2_base_registers", 1): ["encoder.layer.3.layer_scale2.lambda1", "embeddings.register_tokens"],
    ("resnet50", 0): ["layer4.2.conv3.weight", "layer1.0.downsample.1.running_mean", "fc.weight"],
    ("resnet50", 1): [
        "embedder.embedder.convolution.weight",
        "encoder.stages.3.layers.2.layer.2.convolution.weight",
        "encoder.stages.0.layers.0.shortcut.normalization.running_mean",
    ],
    ("convnext_tiny", 0): ["stages.2.blocks.8.conv_dw.weight", "stages.1.downsample.1.bias", "head.norm.weight"],
    ("convnext_tiny", 1): [
        "encoder.stages.2.layers.8.layer_scale_parameter",
        "encoder.stages.1.downsampling_layer.1.bias",
    ],
    ("efficientnet_lite0", 0): [
        "blocks.0.0.conv_pw.weight",
        "blocks.6.0.bn3.running_var",
        "blocks.5.3.conv_pwl.weight",
    ],
    ("efficientnet_lite0", 1): ["_blocks.15._project_conv.weight", "_blocks.0._bn1.running_var", "_conv_head.weight"],
}


@pytest.mark.parametrize(("network", "publisher"), PUBLISHED)
def test_names_are_those_that_publishers_use(network, publisher):
    more = {"grid": 2} if network.startswith(("deit", "dino")) else {}
    more |= {"patch": 4, "width": 8, "depth": 4, "heads": 2} if network == "vit" else {}
    tensors = _stored(network, publisher, classes=7, **more)
    assert not set(PUBLISHED[network, publisher]) - set(tensors)


@pytest.mark.parametrize("name", ["model.pth", "model.pt", "pytorch_model.bin", "x.pkl"])
def test_pickles_are_refused_with_the_command_that_converts_them(tmp_path, name):
    with pytest.raises(weights.WeightsError) as caught:
        weights.load(tmp_path / name, "resnet50")
    target = tmp_path / f"{name.rsplit('.', 1)[0]}.safetensors"
    assert str(caught.value) == (
        f"{tmp_path}/{name}: a pickle, which could run any code when it is read; convert it once with "
        f"`pip install 'protojax[torch]'` and `protojax convert-weights {tmp_path}/{name} {target}`"
    )


def test_what_is_no_safetensors_file(tmp_path):
    with pytest.raises(weights.WeightsError, match="missing.safetensors: no such file of weights; give a safetensors"):
        weights.load(tmp_path / "missing.safetensors", "resnet50")
    (tmp_path / "x.safetensors").write_bytes(b"\x80\x04\x95 a pickle by another name")
    with pytest.raises(
        weights.WeightsError, match=r"x.safetensors: not a safetensors file \(.*protojax convert-weights"
    ):
        weights.load(tmp_path / "x.safetensors", "resnet50")
    with pytest.raises(weights.WeightsError, match="gone.safetensors: cannot be read: No such file"):
        weights.sha256_of(tmp_path / "gone.safetensors")


def test_a_file_of_pytorch_is_converted(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    shared = torch.arange(6.0).reshape(2, 3)
    tensors = {"a": shared, "b": shared.T, "c": torch.ones(2, dtype=torch.bfloat16)}
    torch.save({"model": tensors, "epoch": 3}, tmp_path / "x.pth")
    source, target = str(tmp_path / "x.pth"), str(tmp_path / "x.safetensors")
    assert cli.main(["convert-weights", source, target]) == 0
    assert capsys.readouterr().out == f"{target} holds 3 tensors\n"
    from safetensors.torch import load_file as load_torch

    found = load_torch(target)
    assert {name: (x.dtype, x.tolist()) for name, x in found.items()} == {
        name: (x.dtype, x.tolist()) for name, x in tensors.items()
    }
    assert cli.main(["convert-weights", source, target]) == 2
    assert "x.safetensors exists: choose another name, or replace it with --overwrite" in capsys.readouterr().err
    assert cli.main(["convert-weights", source, target, "--overwrite"]) == 0


class _Harm:
    def __reduce__(self):
        return print, ("code of the file ran",)


def test_code_in_a_pickle_does_not_run(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    torch.save({"a": _Harm()}, tmp_path / "x.pth")
    with pytest.raises(weights.WeightsError, match="x.pth: cannot be read as weights alone: "):
        convert.convert(tmp_path / "x.pth", tmp_path / "x.safetensors")
    assert "code of the file ran" not in capsys.readouterr().out
    torch.save([1, 2], tmp_path / "y.pth")
    with pytest.raises(weights.WeightsError, match="y.pth: holds no tensors by name, but list; give a state dict"):
        convert.convert(tmp_path / "y.pth", tmp_path / "y.safetensors")
    with pytest.raises(weights.WeightsError, match="y.npz: the name of a safetensors file ends in .safetensors"):
        convert.convert(tmp_path / "y.pth", tmp_path / "y.npz")
    with pytest.raises(weights.WeightsError, match="z.pth: no such file"):
        convert.convert(tmp_path / "z.pth", tmp_path / "z.safetensors")


def test_without_pytorch_converting_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(weights.WeightsError, match=r"needs PyTorch: pip install 'protojax\[torch\]'"):
        convert.convert(tmp_path / "x.pth", tmp_path / "x.safetensors")
