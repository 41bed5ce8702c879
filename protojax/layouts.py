"""How publishers name the weights of each backbone: one table an architecture, by which `weights` reads them.

A row is a parameter here, its name in the files of each publisher, and the order of axes that turns the stored array
into ours. `{i}` and `{j}` number blocks, or stages and the blocks of a stage, from 0; `{i+1}` counts from 1, and `{n}`
numbers the blocks of all stages.
"""

import re
from typing import NamedTuple

Names = str | tuple[str, ...]
"""One name, or several whose arrays are joined along their outputs."""

SAME = None
LINEAR = (1, 0)
"""[outputs, inputs] to [inputs, outputs]."""
CONV = (2, 3, 1, 0)
"""[outputs, inputs, height, width] to [height, width, inputs, outputs]."""


class Row(NamedTuple):
    """One parameter."""

    ours: str
    """Its path without the collection, such as `block_{i}/qkv/kernel`."""
    theirs: tuple[Names, ...]
    """By publisher, in the order of the table."""
    axes: tuple[int, ...] | None


class Table(NamedTuple):
    """The parameters of one architecture."""

    publishers: tuple[str, ...]
    prefixes: tuple[str, ...]
    """One of them may stand before every name but those of the classifier."""
    rows: tuple[Row, ...]
    unused: tuple[str, ...]
    """Names that files may have, and that mean nothing for what the network computes here."""


def _each(names: Names, ending: str) -> Names:
    return f"{names}.{ending}" if isinstance(names, str) else tuple(f"{name}.{ending}" for name in names)


def _rows(ours: str, theirs: tuple[Names, ...], *parts: tuple[str, str, tuple[int, ...] | None]) -> list[Row]:
    return [Row(f"{ours}/{own}", tuple(_each(n, name) for n in theirs), axes) for own, name, axes in parts]


def _linear(ours: str, *theirs: Names) -> list[Row]:
    return _rows(ours, theirs, ("kernel", "weight", LINEAR), ("bias", "bias", SAME))


def _conv(ours: str, *theirs: Names) -> list[Row]:
    return _rows(ours, theirs, ("kernel", "weight", CONV), ("bias", "bias", SAME))


def _norm(ours: str, *theirs: Names) -> list[Row]:
    return _rows(ours, theirs, ("scale", "weight", SAME), ("bias", "bias", SAME))


def _conv_norm(ours: str, *theirs: tuple[str, str]) -> list[Row]:
    """A convolution without bias and its batch normalisation; `theirs` are the names of both."""
    conv, norm = zip(*theirs, strict=True)
    statistics = ("mean", "running_mean", SAME), ("var", "running_var", SAME)
    return [
        *_rows(f"{ours}/conv", conv, ("kernel", "weight", CONV)),
        *_norm(f"{ours}/norm", *norm),
        *_rows(f"{ours}/norm", norm, *statistics),
    ]


_ATTENTION = "encoder.layer.{i}.attention.attention"
_QKV = tuple(f"{_ATTENTION}.{part}" for part in ("query", "key", "value"))

_VIT_TRUNK = [
    *_conv("patches", "patch_embed.proj", "embeddings.patch_embeddings.projection"),
    *_linear("block_{i}/qkv", "blocks.{i}.attn.qkv", _QKV),
    *_linear("block_{i}/out", "blocks.{i}.attn.proj", "encoder.layer.{i}.attention.output.dense"),
    *_norm("norm", "norm", "layernorm"),
    Row("class_token", ("cls_token", "embeddings.cls_token"), SAME),
    Row("positions", ("pos_embed", "embeddings.position_embeddings"), SAME),
    *_linear("head", "head", "classifier"),
]

VIT = Table(
    publishers=("timm", "transformers"),
    prefixes=("vit.",),
    rows=(
        *_VIT_TRUNK,
        *_norm("block_{i}/norm_1", "blocks.{i}.norm1", "encoder.layer.{i}.layernorm_before"),
        *_norm("block_{i}/norm_2", "blocks.{i}.norm2", "encoder.layer.{i}.layernorm_after"),
        *_linear("block_{i}/mlp_1", "blocks.{i}.mlp.fc1", "encoder.layer.{i}.intermediate.dense"),
        *_linear("block_{i}/mlp_2", "blocks.{i}.mlp.fc2", "encoder.layer.{i}.output.dense"),
    ),
    unused=("pooler.dense.weight", "pooler.dense.bias"),
)

DINOV2 = Table(
    publishers=("timm", "transformers"),
    prefixes=("dinov2.", "dinov2_with_registers."),
    rows=(
        *_VIT_TRUNK,
        *_norm("block_{i}/norm_1", "blocks.{i}.norm1", "encoder.layer.{i}.norm1"),
        *_norm("block_{i}/norm_2", "blocks.{i}.norm2", "encoder.layer.{i}.norm2"),
        *_linear("block_{i}/mlp_1", "blocks.{i}.mlp.fc1", "encoder.layer.{i}.mlp.fc1"),
        *_linear("block_{i}/mlp_2", "blocks.{i}.mlp.fc2", "encoder.layer.{i}.mlp.fc2"),
        Row("block_{i}/scale_1", ("blocks.{i}.ls1.gamma", "encoder.layer.{i}.layer_scale1.lambda1"), SAME),
        Row("block_{i}/scale_2", ("blocks.{i}.ls2.gamma", "encoder.layer.{i}.layer_scale2.lambda1"), SAME),
        Row("registers", ("reg_token", "embeddings.register_tokens"), SAME),
    ),
    unused=("embeddings.mask_token",),
)

_BOTTLENECK = "encoder.stages.{i}.layers.{j}"

RESNET = Table(
    publishers=("timm", "transformers"),
    prefixes=("resnet.",),
    rows=(
        *_conv_norm("stem", ("conv1", "bn1"), ("embedder.embedder.convolution", "embedder.embedder.normalization")),
        *(
            row
            for n in (1, 2, 3)
            for row in _conv_norm(
                f"stage_{{i}}_block_{{j}}/conv_{n}",
                (f"layer{{i+1}}.{{j}}.conv{n}", f"layer{{i+1}}.{{j}}.bn{n}"),
                (f"{_BOTTLENECK}.layer.{n - 1}.convolution", f"{_BOTTLENECK}.layer.{n - 1}.normalization"),
            )
        ),
        *_conv_norm(
            "stage_{i}_block_{j}/shortcut",
            ("layer{i+1}.{j}.downsample.0", "layer{i+1}.{j}.downsample.1"),
            (f"{_BOTTLENECK}.shortcut.convolution", f"{_BOTTLENECK}.shortcut.normalization"),
        ),
        *_linear("head", "fc", "classifier.1"),
    ),
    unused=("{any}.num_batches_tracked",),
)

_LAYER = "encoder.stages.{i}.layers.{j}"

CONVNEXT = Table(
    publishers=("timm", "transformers"),
    prefixes=("convnext.",),
    rows=(
        *_conv("stem", "stem.0", "embeddings.patch_embeddings"),
        *_norm("stem_norm", "stem.1", "embeddings.layernorm"),
        *_norm("stage_{i}_norm", "stages.{i}.downsample.0", "encoder.stages.{i}.downsampling_layer.0"),
        *_conv("stage_{i}_downsample", "stages.{i}.downsample.1", "encoder.stages.{i}.downsampling_layer.1"),
        *_conv("stage_{i}_block_{j}/depthwise", "stages.{i}.blocks.{j}.conv_dw", f"{_LAYER}.dwconv"),
        *_norm("stage_{i}_block_{j}/norm", "stages.{i}.blocks.{j}.norm", f"{_LAYER}.layernorm"),
        *_linear("stage_{i}_block_{j}/mlp_1", "stages.{i}.blocks.{j}.mlp.fc1", f"{_LAYER}.pwconv1"),
        *_linear("stage_{i}_block_{j}/mlp_2", "stages.{i}.blocks.{j}.mlp.fc2", f"{_LAYER}.pwconv2"),
        Row("stage_{i}_block_{j}/scale", ("stages.{i}.blocks.{j}.gamma", f"{_LAYER}.layer_scale_parameter"), SAME),
        *_norm("norm", "head.norm", "layernorm"),
        *_linear("head", "head.fc", "classifier"),
    ),
    unused=(),
)

# timm numbers the blocks of every stage, and calls the parts of the first one, which expands nothing, otherwise.
_FIRST, _BLOCK, _FLAT = "blocks.0.0", "blocks.{i}.{j}", "_blocks.{n}"

EFFICIENTNET_LITE = Table(
    publishers=("timm", "efficientnet-lite-pytorch"),
    prefixes=(),
    rows=(
        *_conv_norm("stem", ("conv_stem", "bn1"), ("_conv_stem", "_bn0")),
        *_conv_norm(
            "stage_0_block_0/depthwise",
            (f"{_FIRST}.conv_dw", f"{_FIRST}.bn1"),
            ("_blocks.0._depthwise_conv", "_blocks.0._bn1"),
        ),
        *_conv_norm(
            "stage_0_block_0/project",
            (f"{_FIRST}.conv_pw", f"{_FIRST}.bn2"),
            ("_blocks.0._project_conv", "_blocks.0._bn2"),
        ),
        *_conv_norm(
            "stage_{i}_block_{j}/expand",
            (f"{_BLOCK}.conv_pw", f"{_BLOCK}.bn1"),
            (f"{_FLAT}._expand_conv", f"{_FLAT}._bn0"),
        ),
        *_conv_norm(
            "stage_{i}_block_{j}/depthwise",
            (f"{_BLOCK}.conv_dw", f"{_BLOCK}.bn2"),
            (f"{_FLAT}._depthwise_conv", f"{_FLAT}._bn1"),
        ),
        *_conv_norm(
            "stage_{i}_block_{j}/project",
            (f"{_BLOCK}.conv_pwl", f"{_BLOCK}.bn3"),
            (f"{_FLAT}._project_conv", f"{_FLAT}._bn2"),
        ),
        *_conv_norm("last", ("conv_head", "bn2"), ("_conv_head", "_bn1")),
        *_linear("head", "classifier", "_fc"),
    ),
    unused=("{any}.num_batches_tracked",),
)


def pattern(name: str) -> re.Pattern[str]:
    """What a name with placeholders matches."""
    text = re.escape(name)
    for place in ("i", "j"):
        text = text.replace(re.escape(f"{{{place}}}"), f"(?P<{place}>\\d+)", 1)
        text = text.replace(re.escape(f"{{{place}}}"), f"(?P={place})")
    text = text.replace(re.escape("{i+1}"), r"\d+").replace(re.escape("{n}"), r"\d+")
    return re.compile(text.replace(re.escape("{any}"), ".+"))


def filled(name: str, numbers: dict[str, int]) -> str:
    """A name with its placeholders replaced."""
    for place, number in numbers.items():
        name = name.replace(f"{{{place}}}", str(number)).replace(f"{{{place}+1}}", str(number + 1))
    return name
