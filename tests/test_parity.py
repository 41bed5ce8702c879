"""The backbones beside PyTorch's, on random weights, layer by layer: the published files are read as they are meant.

The references are those of `transformers`, saved in the layout of their hub, and the package from which the weights
of EfficientNet-Lite0 come. Sizes are small; nothing else differs from the published networks.
"""

import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = pytest.importorskip("torch")

from protojax import weights  # noqa: E402
from protojax.networks import backbones  # noqa: E402
from protojax.networks.backbones import IMAGENET, Backbone  # noqa: E402
from protojax.networks.convnext import ConvNeXt  # noqa: E402
from protojax.networks.resnet50 import BottleneckResNet  # noqa: E402
from protojax.networks.vit import ViT  # noqa: E402

VIT = partial(ViT, patch=4, width=16, depth=2, heads=2)
SMALL = {
    "vit_test": VIT,
    "dinov2_test": partial(VIT, layer_scale=True),
    "dinov2_test_registers": partial(VIT, layer_scale=True, registers=4),
    "resnet_test": partial(BottleneckResNet, depths=(2, 1, 1), filters=8),
    "convnext_test": partial(ConvNeXt, depths=(1, 2), widths=(8, 16)),
}


@pytest.fixture(scope="module")
def hub():
    """transformers, and our small architectures under names of their own."""
    transformers = pytest.importorskip("transformers")
    with pytest.MonkeyPatch.context() as patch:
        for name, module in SMALL.items():
            patch.setitem(backbones.BACKBONES, name, Backbone(module, IMAGENET))
        yield transformers


def _randomised(model):
    """The network with all weights and statistics random, so that none is 0 or 1 and hides another."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        values = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim > 1:
            values /= max(1, tensor[0].numel()) ** 0.5
        elif name.endswith(("weight", "running_var")):
            values = 1 + 0.2 * values.clamp(-2, 2)
        else:
            values *= 0.2
        tensor.copy_(values)
    return model.eval()


def _models(t):
    vit = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
    eps = {"layer_norm_eps": 1e-6}
    return {
        "vit_test": lambda: t.ViTForImageClassification(
            t.ViTConfig(**vit, **eps, intermediate_size=64, num_labels=5, attn_implementation="eager")
        ),
        "dinov2_test": lambda: t.Dinov2Model(t.Dinov2Config(**vit, **eps)),
        "dinov2_test_registers": lambda: t.Dinov2WithRegistersModel(
            t.Dinov2WithRegistersConfig(**vit, **eps, num_register_tokens=4)
        ),
        "resnet_test": lambda: t.ResNetForImageClassification(
            t.ResNetConfig(embedding_size=8, hidden_sizes=[32, 64, 128], depths=[2, 1, 1], num_labels=5)
        ),
        "convnext_test": lambda: t.ConvNextForImageClassification(
            t.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 2], num_stages=2, num_labels=5, **eps)
        ),
    }


@pytest.fixture(scope="module")
def saved(hub, tmp_path_factory):
    """(network of transformers, its file) by our name."""
    found = {}
    for name, build in _models(hub).items():
        torch.manual_seed(0)
        model = _randomised(build())
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        found[name] = model, folder / "model.safetensors"
    return found


def _images(height, width):
    return np.random.default_rng(1).standard_normal((2, height, width, 3)).astype(np.float32)


def _theirs(model, images, **options):
    with torch.no_grad():
        return model(torch.from_numpy(images.transpose(0, 3, 1, 2)), output_hidden_states=True, **options)


def _ours(path, name, images):
    found = weights.load(path, name)
    return jax.jit(found.module.apply)(found.variables, images)


def _same(ours, theirs):
    theirs = theirs.detach().numpy()
    assert np.abs(theirs).max() > 1e-2
    np.testing.assert_allclose(np.asarray(ours), theirs, atol=1e-4, rtol=0)


def _maps(tensor):
    return tensor.permute(0, 2, 3, 1)


@pytest.mark.parametrize("size", [(16, 16), (24, 12)], ids=["trained size", "another size"])
def test_vit(saved, size):
    model, path = saved["vit_test"]
    theirs = _theirs(model, _images(*size), interpolate_pos_encoding=True)
    logits, made = _ours(path, "vit_test", _images(*size))
    _same(logits, theirs.logits)
    for name, hidden in zip(("stem", "block_0", "block_1"), theirs.hidden_states, strict=False):
        _same(made[name], hidden)
    last = model.vit.layernorm(theirs.hidden_states[2])
    _same(made["map"], last[:, 1:].reshape(2, size[0] // 4, size[1] // 4, 16))


@pytest.mark.parametrize("size", [(16, 16), (24, 12)], ids=["trained size", "another size"])
@pytest.mark.parametrize(("name", "tokens"), [("dinov2_test", 1), ("dinov2_test_registers", 5)])
def test_dinov2(saved, size, name, tokens):
    model, path = saved[name]
    theirs = _theirs(model, _images(*size))
    features, made = _ours(path, name, _images(*size))
    for i, hidden in enumerate(theirs.hidden_states[:2]):
        _same(made[("stem", "block_0")[i]], hidden)
    _same(features, theirs.last_hidden_state[:, 0])
    _same(made["map"], theirs.last_hidden_state[:, tokens:].reshape(2, size[0] // 4, size[1] // 4, 16))


@pytest.mark.parametrize("size", [(64, 64), (39, 50)])
def test_resnet(saved, size):
    model, path = saved["resnet_test"]
    theirs = _theirs(model, _images(*size))
    logits, made = _ours(path, "resnet_test", _images(*size))
    _same(logits, theirs.logits)
    for name, hidden in zip(("stem", "stage_0", "stage_1", "stage_2"), theirs.hidden_states, strict=True):
        _same(made[name], _maps(hidden))
    _same(made["map"], _maps(theirs.hidden_states[-1]))


def test_convnext(saved):
    model, path = saved["convnext_test"]
    theirs = _theirs(model, _images(24, 16))
    logits, made = _ours(path, "convnext_test", _images(24, 16))
    _same(logits, theirs.logits)
    for name, hidden in zip(("stage_0", "stage_1"), theirs.hidden_states[-2:], strict=True):
        _same(made[name], _maps(hidden))
    _same(made["stem"], _maps(model.convnext.embeddings(torch.from_numpy(_images(24, 16).transpose(0, 3, 1, 2)))))
    _same(made["features"], model.convnext(torch.from_numpy(_images(24, 16).transpose(0, 3, 1, 2))).pooler_output)


def test_efficientnet_lite0(tmp_path):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    from safetensors.torch import save_file

    model = _randomised(package.EfficientNet.from_name("efficientnet-lite0", image_size=64, num_classes=5))
    save_file(dict(model.state_dict()), tmp_path / "lite0.safetensors")
    kept = {}
    for i, block in enumerate(model._blocks):
        block.register_forward_hook(lambda module, inputs, output, i=i: kept.update({i: output}))
    tensor = torch.from_numpy(_images(64, 64).transpose(0, 3, 1, 2))
    with torch.no_grad():
        theirs, last = model(tensor), model.extract_features(tensor)
    logits, made = _ours(tmp_path / "lite0.safetensors", "efficientnet_lite0", _images(64, 64))
    for stage, block in enumerate((0, 2, 4, 7, 10, 14, 15)):
        _same(made[f"stage_{stage}"], _maps(kept[block]))
    _same(made["map"], _maps(last))
    _same(logits, theirs)


def _timm(state, renamed):
    """Weights of transformers under timm's names: `renamed` are (theirs, timm's) parts of names, in order."""
    result = {}
    for name, tensor in state.items():
        for old, new in renamed:
            name = name.replace(old, new)
        result[name] = tensor
    return result


def _joined(state):
    for i in range(2):
        for end in ("weight", "bias"):
            parts = [state.pop(f"blocks.{i}.attn.{part}.{end}") for part in ("query", "key", "value")]
            state[f"blocks.{i}.attn.qkv.{end}"] = torch.cat(parts)
    return state


_TOKENS = [
    ("vit.", ""),
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.register_tokens", "reg_token"),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("encoder.layer.", "blocks."),
    ("attention.attention.", "attn."),
    ("attention.output.dense", "attn.proj"),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("layernorm", "norm"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    ("classifier", "head"),
]
TIMM = {
    "vit_test": _TOKENS,
    "dinov2_test": _TOKENS,
    "dinov2_test_registers": _TOKENS,
    "resnet_test": [
        ("resnet.embedder.embedder.convolution", "conv1"),
        ("resnet.embedder.embedder.normalization", "bn1"),
        *((f"resnet.encoder.stages.{i}.layers.", f"layer{i + 1}.") for i in range(3)),
        ("shortcut.convolution", "downsample.0"),
        ("shortcut.normalization", "downsample.1"),
        *((f"layer.{n}.convolution", f"conv{n + 1}") for n in range(3)),
        *((f"layer.{n}.normalization", f"bn{n + 1}") for n in range(3)),
        ("classifier.1", "fc"),
    ],
    "convnext_test": [
        ("convnext.layernorm", "head.norm"),
        ("convnext.embeddings.patch_embeddings", "stem.0"),
        ("convnext.embeddings.layernorm", "stem.1"),
        ("convnext.encoder.", ""),
        ("downsampling_layer", "downsample"),
        ("layers", "blocks"),
        ("dwconv", "conv_dw"),
        ("layernorm", "norm"),
        ("pwconv", "mlp.fc"),
        ("layer_scale_parameter", "gamma"),
        ("classifier", "head.fc"),
    ],
}


@pytest.mark.parametrize("name", TIMM)
def test_a_file_of_timm_is_the_same_network(saved, tmp_path, name):
    from safetensors.torch import load_file, save_file

    _, path = saved[name]
    state = _timm(load_file(path), TIMM[name])
    state.pop("embeddings.mask_token", None)
    if "patch_embed.proj.weight" in state:
        state = _joined(state)
    if "reg_token" in state:
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:].contiguous()
    save_file(state, tmp_path / "timm.safetensors")
    ours, theirs = (weights.load(file, name) for file in (tmp_path / "timm.safetensors", path))
    if name.startswith(("vit", "dinov2")):
        assert ours.module.antialias
        theirs = theirs._replace(module=theirs.module.clone(antialias=True))
    image = jnp.asarray(_images(32, 32))
    got, wanted = (jax.jit(found.module.apply)(found.variables, image)[1]["map"] for found in (ours, theirs))
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_brain_floats_are_read_as_what_they_are(saved, tmp_path):
    from safetensors.torch import load_file, save_file

    _, path = saved["convnext_test"]
    state = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
    save_file(state, tmp_path / "half.safetensors")
    found = weights.load(tmp_path / "half.safetensors", "convnext_test").variables["params"]["head"]
    assert found["kernel"].dtype == np.float32
    np.testing.assert_array_equal(found["kernel"], state["classifier.weight"].float().numpy().T)
