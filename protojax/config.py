"""Typed, validated, immutable settings of an experiment, read from TOML.

One file describes one experiment: what data, which encoder, which method, how it is trained, evaluated and
explained. Unknown keys, wrong types and impossible values are refused before anything is compiled, with one
line that names the file, the key and, for a misspelt key, the nearest valid one.
"""

import difflib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class SettingsError(ValueError):
    """A setting is unknown, of the wrong type or impossible."""


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class AugmentSettings(_Section):
    """Transformations of images, drawn anew for every example of every step, on the device."""

    pad_crop: NonNegativeInt = 0
    """Pixels of zero padding on each side before a random crop back to the original size; 0 does not crop."""
    flip_horizontal: bool = False
    flip_vertical: bool = False
    standardize: bool = True
    """Per-image standardisation to mean 0, standard deviation 1; also applied outside training."""


class NumericColumn(_Section):
    """The fixed transformation of one numeric column: (f(x) - shift) / scale."""

    log: Literal["none", "log", "log1p"] = "none"
    """f: the identity, log(x), or log(1 + x) where zeros occur."""
    shift: float = 0.0
    scale: PositiveFloat = 1.0


class TableSettings(_Section):
    """How rows become feature vectors."""

    numeric: dict[str, NumericColumn] = {}
    """Transformation by column name; a numeric column without one is standardised with training statistics."""
    unknown: Literal["error", "bucket"] = "error"
    """A category that the training split lacks: an error, or a bucket of its own."""


class TextSettings(_Section):
    """How texts become character sequences."""

    length: PositiveInt = 448
    """Characters kept; longer texts are truncated, shorter ones padded, and both are counted."""


class DataSettings(_Section):
    """Where examples come from and how they reach the step."""

    name: str = "digits"
    """`digits` (embedded) or the name of a TFDS data set, `name` or `name:version`."""
    data_dir: str | None = None
    """Folder of prepared data sets; the TFDS default when absent."""
    train_split: str = "train"
    test_split: str = "test"
    validation_split: str | None = None
    """Name of the validation split; when absent, `validation_fraction` of the training split by hash of the id."""
    validation_fraction: Fraction = 0.1
    test_fraction: Fraction = 0.2
    """Share of examples held out by hash of the id where the data set has no split named `test_split`."""
    image_size: tuple[PositiveInt, PositiveInt] | None = None
    """Height and width in pixels to which images are resized (bilinear); absent: as they are, all of one size."""
    feeding: Literal["resident", "streamed"] = "resident"
    """`resident` keeps the training split on the devices; `streamed` reads it with Grain, batch by batch."""
    workers: NonNegativeInt = 0
    """Worker processes of streamed feeding; 0 reads in threads of this process."""
    prefetch: PositiveInt = 2
    """Batches that streamed feeding keeps ready."""
    class_shares: tuple[PositiveFloat, ...] | None = None
    """Share of each class in every batch and candidate set, summing to 1; absent: as in the training split."""
    label_noise: Fraction = 0.0
    """Share of training labels replaced by a uniformly drawn wrong one, in the training loss only."""
    augment: AugmentSettings = AugmentSettings()
    table: TableSettings = TableSettings()
    text: TextSettings = TextSettings()

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.class_shares is not None and abs(sum(self.class_shares) - 1.0) > 1e-6:
            raise ValueError(f"class_shares must sum to 1, got {sum(self.class_shares):g}")
        return self


class ConvSettings(_Section):
    """A small convolution network: 3x3 convolutions of stride 1, each with 2x2 max-pooling, then dense layers."""

    kind: Literal["conv"] = "conv"
    filters: tuple[PositiveInt, ...] = (32, 64)
    dense: tuple[PositiveInt, ...] = (128,)
    norm: Literal["batch", "group"] = "batch"
    dropout: Fraction = 0.0


class ResNetSettings(_Section):
    """The paper's residual networks (ProtoAttend, appendix A.1)."""

    kind: Literal["resnet"] = "resnet"
    blocks: tuple[PositiveInt, ...] = (5, 5, 5)
    """Residual blocks of each stage; stages after the first halve the resolution."""
    filters: tuple[PositiveInt, ...] = (16, 32, 64)
    stem: Literal["plain", "downsample"] = "plain"
    """`downsample` puts a stride-2 convolution and a stride-2 max-pooling in front (Fruits, ISIC)."""
    dense: tuple[PositiveInt, ...] = (256,)
    """Dense + ReLU + layer normalisation after the average pooling."""
    norm: Literal["batch", "group"] = "batch"
    dropout: Fraction = 0.0
    """Dropout after every dense layer (the dropout baseline of the label-noise table)."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.blocks) != len(self.filters):
            raise ValueError(f"blocks has {len(self.blocks)} stages but filters has {len(self.filters)}")
        return self


class VDCNNSettings(_Section):
    """Very deep convolutional network over characters (Conneau et al. 2016; ProtoAttend, appendix A.2)."""

    kind: Literal["vdcnn"] = "vdcnn"
    embedding: PositiveInt = 16
    stem: PositiveInt = 64
    """Filters of the first convolution, of stride 2."""
    filters: tuple[PositiveInt, ...] = (64, 64, 128, 128, 256, 256, 512, 512)
    """Filters of the 8 convolution blocks; max-pooling of stride 2 after every second one but the last."""
    k_max: PositiveInt = 8
    dense: tuple[PositiveInt, ...] = (1024, 1024)
    norm: Literal["batch", "group"] = "batch"
    dropout: Fraction = 0.0


class LSTMSettings(_Section):
    """An LSTM that reads one embedding of the row at every step (ProtoAttend, appendix A.3)."""

    kind: Literal["lstm"] = "lstm"
    steps: PositiveInt = 4
    width: PositiveInt = 64
    dropout: Fraction = 0.5


EncoderSettings = Annotated[ConvSettings | ResNetSettings | VDCNNSettings | LSTMSettings, Field(discriminator="kind")]


class ProtoAttendSettings(_Section):
    """ProtoAttend (Arik and Pfister 2020)."""

    kind: Literal["protoattend"] = "protoattend"
    normalizer: Literal["sparsemax", "softmax"] = "sparsemax"
    key_size: PositiveInt = 16
    value_size: PositiveInt = 64
    alpha: tuple[Fraction, Fraction] = (0.45, 0.5)
    """Range of the share that the prototypes have in the joint term of the loss; drawn once a step."""
    sparsity: NonNegativeFloat = 0.0
    """Weight of the entropy of the attention weights (lambda_sparse)."""
    exclude_own: bool = True
    """An example that is its own candidate gets no weight in training (the released code lets it)."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.alpha[0] > self.alpha[1]:
            raise ValueError(f"alpha must be a range [low, high], got {list(self.alpha)}")
        return self


class EncoderBaselineSettings(_Section):
    """The encoder with its value and decision layers alone, trained by cross-entropy: the paper's baseline."""

    kind: Literal["encoder"] = "encoder"
    value_size: PositiveInt = 64


MethodSettings = Annotated[ProtoAttendSettings | EncoderBaselineSettings, Field(discriminator="kind")]


class OptimizerSettings(_Section):
    """Adam with the schedules of the papers."""

    learning_rate: PositiveFloat = 1e-3
    schedule: Literal["constant", "exponential", "cosine"] = "exponential"
    decay_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Exponential schedule: factor applied, continuously, every `decay_every` steps."""
    decay_every: PositiveInt = 6000
    warmup_steps: NonNegativeInt = 0
    """Steps of linear warm-up from 0."""
    clip: Literal["none", "value", "norm"] = "value"
    clip_at: PositiveFloat = 20.0
    conv_weight_decay: NonNegativeFloat = 0.0
    """L2 penalty on convolution filters."""


class TrainSettings(_Section):
    """The training loop."""

    steps: PositiveInt = 1000
    batch_size: PositiveInt = 128
    candidate_count: NonNegativeInt = 0
    """Candidates drawn from the training split for every step (D of the paper's table 1)."""
    seed: NonNegativeInt = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the encoder; parameters, attention and losses stay float32."""
    parallel: Literal["jit", "pmap"] = "jit"
    steps_per_dispatch: PositiveInt = 1
    """Steps of one compiled call on an accelerator; checkpoints, evaluations and the end fall on multiples of it."""
    log_every: PositiveInt = 50
    checkpoint_every: PositiveInt = 1000
    keep: PositiveInt = 2
    """Newest checkpoints kept, beside the best one on the validation split."""
    evaluate_every: NonNegativeInt = 0
    """Steps between evaluations on the validation split; 0 evaluates only at the end."""
    max_bad_steps: PositiveInt = 5
    """Steps in a row with a non-finite loss or gradient after which the run ends."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        for key in ("steps", "log_every", "checkpoint_every", "evaluate_every"):
            if getattr(self, key) % self.steps_per_dispatch:
                raise ValueError(
                    f"{key} = {getattr(self, key)} is not a multiple of steps_per_dispatch = {self.steps_per_dispatch}"
                )
        return self


class EvaluateSettings(_Section):
    """What is measured at the end."""

    candidate_count: PositiveInt | None = None
    """Candidates in the database, drawn from the training split; absent: the whole training split."""
    batch_size: PositiveInt = 256
    checkpoint: Literal["newest", "best"] = "newest"
    rotations: tuple[PositiveInt, ...] = ()
    """Degrees by which the test images are rotated to measure the response to shifted inputs."""
    shift_names: tuple[str, ...] = ()
    """Other data sets whose test split is scored as shifted input (images are resized and their channels matched)."""
    neighbours: NonNegativeInt = 0
    """k of the deep k-nearest-neighbour comparison (paper figure 7); 0 leaves it out."""


class ExplainSettings(_Section):
    """Which decisions are shown after training."""

    count: NonNegativeInt = 12
    """Decisions shown at the end of training."""
    width: PositiveInt | None = None
    """Prototypes shown for each decision; absent: 64, or the whole database where that is smaller."""


class Settings(_Section):
    """One experiment."""

    name: str
    """Names the experiment; a run folder belongs to one experiment."""
    data: DataSettings = DataSettings()
    encoder: EncoderSettings
    method: MethodSettings
    optimizer: OptimizerSettings = OptimizerSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    explain: ExplainSettings = ExplainSettings()

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.method.kind == "protoattend" and self.train.candidate_count == 0:
            raise ValueError("train.candidate_count must be at least 1: protoattend decides from candidates")
        if self.method.kind == "encoder" and self.train.candidate_count:
            raise ValueError("train.candidate_count must be 0: the encoder baseline has no candidates")
        return self


def load(path: str | Path, overrides: Sequence[str] = ()) -> Settings:
    """Reads an experiment from TOML and applies `section.key=value` overrides (values in TOML syntax or bare strings).

    Raises:
      SettingsError: the file cannot be read or a setting is unknown, of the wrong type or impossible.
    """
    path = Path(path)
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such experiment file") from None
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read as an experiment file: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from None
    return _overridden(tree, overrides, str(path))


def override(settings: Settings, overrides: Sequence[str], origin: str) -> Settings:
    """The settings with `section.key=value` overrides; `origin` names them in errors.

    Raises:
      SettingsError: an override is unknown, of the wrong type or impossible.
    """
    return _overridden(to_tree(settings), overrides, origin)


def from_tree(tree: dict[str, Any], origin: str) -> Settings:
    """Validates a tree of plain values; `origin` names it in errors.

    Raises:
      SettingsError: a setting is unknown, of the wrong type or impossible.
    """
    try:
        # Strict JSON mode: TOML has arrays where the settings have tuples, and no silent "3" -> 3 is wanted.
        return Settings.model_validate_json(json.dumps(tree, default=str))
    except pydantic.ValidationError as error:
        raise SettingsError("\n".join(f"{origin}: {_explain(e)}" for e in error.errors())) from None


def to_tree(settings: Settings) -> dict[str, Any]:
    """The resolved settings as plain JSON values."""
    return json.loads(settings.model_dump_json())


def _overridden(tree: dict[str, Any], overrides: Sequence[str], origin: str) -> Settings:
    for text in overrides:
        _set(tree, text)
    return from_tree(tree, origin)


def _set(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise SettingsError(f"{override!r}: an override has the form section.key=value, such as train.steps=500")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, last = key.strip().split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise SettingsError(f"{override!r}: {section} is a setting, not a section")
    tree[last] = value


def _explain(error: dict[str, Any]) -> str:
    # Union branches add their tag ("resnet") to the location; it is no key of the file.
    location = [part for part in error["loc"] if part not in _TAGS]
    key = ".".join(str(part) for part in location)
    if error["type"] == "extra_forbidden":
        valid = _valid_keys(error["loc"][:-1])
        near = difflib.get_close_matches(str(location[-1]), valid, n=1, cutoff=0.0)
        return f"unknown key {key}; did you mean {'.'.join([*map(str, location[:-1]), *near])}?"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{key} is required"
    if error["type"].startswith("union_tag"):
        return f"{key}: {message}"
    return (
        f"{key}: {message} (got {error['input']!r})"
        if key and error["type"] != "value_error"
        else (f"{key}: {message}" if key else message)
    )


_TAGS = ("conv", "resnet", "vdcnn", "lstm", "protoattend", "encoder_baseline")


def _valid_keys(location: tuple[Any, ...]) -> list[str]:
    model: Any = Settings
    for part in location:
        if part in ("encoder", "method") and model is Settings:
            model = {m.model_fields["kind"].default: m for m in _variants(part)}
        elif isinstance(model, dict):
            model = model[part]
        elif part in getattr(model, "model_fields", {}):
            model = model.model_fields[part].annotation
        elif model == dict[str, NumericColumn]:
            model = NumericColumn
    return list(getattr(model, "model_fields", {}))


def _variants(section: str) -> tuple[type[_Section], ...]:
    if section == "encoder":
        return ConvSettings, ResNetSettings, VDCNNSettings, LSTMSettings
    return ProtoAttendSettings, EncoderBaselineSettings
