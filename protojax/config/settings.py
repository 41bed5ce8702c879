"""Every setting of an experiment, with its type, its default and its meaning."""

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from protojax.config.frozen import FeaturesSettings, FrozenSettings
from protojax.config.mixing import MixSettings
from protojax.config.section import Section

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class AugmentSettings(Section):
    """Transformations of images, drawn anew for every example of every step, on the device."""

    pad_crop: NonNegativeInt = 0
    """Pixels of zero padding on each side before a random crop back to the original size; 0 does not crop."""
    flip_horizontal: bool = False
    flip_vertical: bool = False
    elastic_amplitude: NonNegativeFloat = 0.0
    """Factor of the smoothed random field, in pixels, by which images are deformed; 0 does not (Li et al. 2018: 20)."""
    elastic_sigma: PositiveFloat = 4.0
    """Standard deviation, in pixels, of the Gaussian that smooths the field."""
    standardize: bool = True
    """Per-image standardisation to mean 0, standard deviation 1; also applied outside training."""
    candidates: bool = True
    """Whether the candidates of a training step are moved and deformed, too. The database that decides afterwards never
    is: where an image and its mirror image do not look alike, candidates can be learnt that only augmentation makes."""


class NumericColumn(Section):
    """The fixed transformation of one numeric column: (f(x) - shift) / scale."""

    log: Literal["none", "log", "log1p"] = "none"
    """f: the identity, log(x), or log(1 + x) where zeros occur."""
    shift: float = 0.0
    scale: PositiveFloat = 1.0


class TableSettings(Section):
    """How rows become feature vectors."""

    numeric: dict[str, NumericColumn] = {}
    """Transformation by column name; a numeric column without one is standardised with training statistics."""
    unknown: Literal["error", "bucket"] = "error"
    """A category that the training split lacks: an error, or a bucket of its own."""


class TextSettings(Section):
    """How texts become character sequences."""

    length: PositiveInt = 448
    """Characters kept; longer texts are truncated, shorter ones padded, and both are counted."""


class DataSettings(Section):
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
    mix: MixSettings = MixSettings()
    table: TableSettings = TableSettings()
    text: TextSettings = TextSettings()

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.class_shares is not None and abs(sum(self.class_shares) - 1.0) > 1e-6:
            raise ValueError(f"class_shares must sum to 1, got {sum(self.class_shares):g}")
        return self


class ConvSettings(Section):
    """A small convolution network: 3x3 convolutions of stride 1, each with 2x2 max-pooling, then dense layers."""

    kind: Literal["conv"] = "conv"
    filters: tuple[PositiveInt, ...] = (32, 64)
    dense: tuple[PositiveInt, ...] = (128,)
    norm: Literal["batch", "group"] = "batch"
    dropout: Fraction = 0.0


class ResNetSettings(Section):
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


class VDCNNSettings(Section):
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


class LSTMSettings(Section):
    """An LSTM that reads one embedding of the row at every step (ProtoAttend, appendix A.3)."""

    kind: Literal["lstm"] = "lstm"
    steps: PositiveInt = 4
    width: PositiveInt = 64
    dropout: Fraction = 0.5


class AutoencoderSettings(Section):
    """A convolutional encoder and its mirrored decoder (Li et al. 2018)."""

    kind: Literal["autoencoder"] = "autoencoder"
    filters: tuple[PositiveInt, ...] = (32, 32, 32, 10)
    """Filters of the 3x3 convolutions; the last are the features of the latent map."""
    strides: tuple[PositiveInt, ...] = (2, 2, 2, 2)
    """Strides of the convolutions; (2, 2, 2, 1) leaves 16 latent tokens of a 28x28 image instead of 4."""
    initializer: Literal["normal", "he"] = "normal"
    """Of the filters: N(0, 0.01^2) as in the reference, with which training stands still for epochs, or He-normal."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.filters) != len(self.strides):
            raise ValueError(f"filters has {len(self.filters)} layers but strides has {len(self.strides)}")
        return self


EncoderSettings = Annotated[
    ConvSettings
    | ResNetSettings
    | VDCNNSettings
    | LSTMSettings
    | AutoencoderSettings
    | FrozenSettings
    | FeaturesSettings,
    Field(discriminator="kind"),
]


class ProtoAttendSettings(Section):
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


class EncoderBaselineSettings(Section):
    """The encoder with its value and decision layers alone, trained by cross-entropy: the paper's baseline."""

    kind: Literal["encoder"] = "encoder"
    value_size: PositiveInt = 64


class PrototypeAutoencoderSettings(Section):
    """The prototype autoencoder (Li et al. 2018); the weights are those of its loss."""

    kind: Literal["prototype_autoencoder"] = "prototype_autoencoder"
    prototypes: PositiveInt = 15
    class_weight: NonNegativeFloat = 20.0
    reconstruction_weight: NonNegativeFloat = 1.0
    r1_weight: NonNegativeFloat = 1.0
    """Weight of R1: every prototype near some example."""
    r2_weight: NonNegativeFloat = 1.0
    """Weight of R2: every example near some prototype."""


class AttentionAutoencoderSettings(Section):
    """The attention autoencoder (the MNIST case study); the weights are those of its loss."""

    kind: Literal["attention_autoencoder"] = "attention_autoencoder"
    head: Literal["distances", "linear"] = "distances"
    """What the logits are linear in: distances to learned prototypes, or the attended latent itself."""
    prototypes: PositiveInt = 15
    heads: PositiveInt = 1
    """Attention heads; they divide the features of a token."""
    class_weight: NonNegativeFloat = 20.0
    reconstruction_weight: NonNegativeFloat = 1.0
    attention_weight: NonNegativeFloat = 0.1
    """Weight of the divergence of the attention from a uniform one."""


class ProtoQuantSettings(Section):
    """ProtoQuant (Janusz et al. 2026): two stages, and a third on what pruning leaves, in one run."""

    kind: Literal["protoquant"] = "protoquant"
    codes: PositiveInt = 500
    """Codes of the codebook; the paper takes 10 times the number of classes."""
    temperature: PositiveFloat = 0.1
    """By which cosines are divided before the softmax over codes."""
    initializer: Literal["orthogonal", "sampled", "kmeans++"] = "orthogonal"
    """How codes start; `sampled` and `kmeans++` take patches of the first batch."""
    codebook_steps: PositiveInt = 500
    """Steps of the first stage, which trains the codes; the second trains the classifier."""
    task_weight: NonNegativeFloat = 0.0
    """First stage: weight of the cross-entropy of the frozen head on quantised maps (the released code: 1)."""
    revive_every: NonNegativeInt = 0
    """First stage: steps after which codes that no patch was assigned to are replaced by patches; 0 never does."""
    tune_codes: bool = False
    """Second stage: trains the codes, too."""
    prune_at: PositiveInt | None = None
    """Step from which only `top_k` weights of a class are left, and weights and codes are tuned; absent: never."""
    top_k: PositiveInt | None = None
    """Codes that every class keeps when it is pruned."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if (self.prune_at is None) != (self.top_k is None):
            raise ValueError("prune_at and top_k belong together: give both, or neither")
        if self.prune_at is not None and self.prune_at <= self.codebook_steps:
            raise ValueError(
                f"prune_at = {self.prune_at} must come after codebook_steps = {self.codebook_steps}: between them the "
                "classifier is trained that is pruned"
            )
        return self


class FineTuningSettings(Section):
    """A linear classifier on the mean of the last map of a published network, trained with its last
    `encoder.tuned_stages` stages. The run folder gets `weights.safetensors`: the network as it is then."""

    kind: Literal["fine_tuning"] = "fine_tuning"


MethodSettings = Annotated[
    ProtoAttendSettings
    | EncoderBaselineSettings
    | FineTuningSettings
    | PrototypeAutoencoderSettings
    | AttentionAutoencoderSettings
    | ProtoQuantSettings,
    Field(discriminator="kind"),
]


class OptimizerSettings(Section):
    """Adam with the schedules of the papers. Where a method trains in stages, each stage has all of this anew."""

    learning_rate: PositiveFloat = 1e-3
    schedule: Literal["constant", "exponential", "cosine"] = "exponential"
    decay_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Exponential schedule: factor applied, continuously, every `decay_every` steps."""
    decay_every: PositiveInt = 6000
    warmup_steps: NonNegativeInt = 0
    """Steps of linear warm-up from 0."""
    clip: Literal["none", "value", "norm"] = "value"
    clip_at: PositiveFloat = 20.0
    final_rate: NonNegativeFloat = 0.0
    """Cosine schedule: learning rate at the end."""
    conv_weight_decay: NonNegativeFloat = 0.0
    """L2 penalty on convolution filters."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled decay of all parameters (AdamW)."""


class TrainSettings(Section):
    """The training loop."""

    steps: PositiveInt = 1000
    batch_size: PositiveInt = 128
    candidate_count: NonNegativeInt = 0
    """Candidates of every step (D of the paper's table 1)."""
    candidates: Literal["sampled", "support", "retrieved"] = "sampled"
    """`sampled` draws the candidates from the training split and differentiates through all of them; `support` draws
    the same ones and gives the same gradient, but encodes with derivatives only those with a weight; `retrieved` takes
    those of the whole training split that score best for the batch, by keys that are refreshed now and then."""
    candidate_chunk: PositiveInt = 256
    """Examples encoded together where `support` encodes its candidates, which bounds the memory of the step, and where
    `retrieved` refreshes its keys."""
    refresh_every: PositiveInt = 100
    """`retrieved`: steps between two encodings of the keys of the whole training split."""
    label_smoothing: Fraction = 0.0
    """Share of every label that all classes get alike, in the training loss only (ProtoQuant: 0.1)."""
    seed: NonNegativeInt = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the encoder; parameters, attention and losses stay float32."""
    parallel: Literal["jit", "pmap"] = "jit"
    steps_per_dispatch: PositiveInt = 1
    """Steps of one compiled call; checkpoints, evaluations and the end fall on multiples of it."""
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


class EvaluateSettings(Section):
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


class ExplainSettings(Section):
    """Which decisions are shown after training."""

    count: NonNegativeInt = 12
    """Decisions shown at the end of training."""
    width: PositiveInt | None = None
    """Prototypes shown for each decision; absent: 64, or the whole database where that is smaller."""


class Settings(Section):
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
        if self.method.kind != "protoattend" and self.train.candidate_count:
            raise ValueError(f"train.candidate_count must be 0: {self.method.kind} has no candidates")
        if self.method.kind == "protoattend" and self.data.mix.wanted:
            raise ValueError(
                "data.mix makes one example of two, and protoattend keeps examples from being their own prototypes by "
                "their one id: leave data.mix out"
            )
        if (self.encoder.kind == "autoencoder") != self.method.kind.endswith("_autoencoder"):
            raise ValueError(
                f"method.kind = {self.method.kind!r} does not go with encoder.kind = {self.encoder.kind!r}; "
                "prototype_autoencoder and attention_autoencoder need encoder.kind = 'autoencoder', and only they"
            )
        if self.encoder.kind == "autoencoder" and self.data.augment.standardize:
            raise ValueError(
                "data.augment.standardize must be false with encoder.kind = 'autoencoder': "
                "its decoder gives pixels from 0 to 1"
            )
        if self.method.kind == "attention_autoencoder" and self.encoder.filters[-1] % self.method.heads:
            raise ValueError(
                f"method.heads = {self.method.heads} does not divide the {self.encoder.filters[-1]} features of a "
                "token (the last of encoder.filters)"
            )
        if self.encoder.kind == "frozen":
            self._check_frozen(self.encoder)
        elif self.method.kind == "fine_tuning":
            raise ValueError(
                f"fine_tuning starts from a published network: encoder.kind = {self.encoder.kind!r} is none"
            )
        if self.method.kind == "protoquant":
            last = self.method.prune_at or self.method.codebook_steps
            if last >= self.train.steps:
                raise ValueError(
                    f"train.steps = {self.train.steps} ends before the last stage of protoquant, which starts at "
                    f"{last} (method.prune_at, method.codebook_steps)"
                )
        if self.train.candidates == "support" and getattr(self.encoder, "dropout", 0.0):
            raise ValueError(
                "train.candidates = 'support' encodes candidates twice, and dropout would draw two different masks: "
                "set encoder.dropout = 0, or choose 'sampled'"
            )
        if self.train.candidates == "retrieved" and self.data.feeding != "resident":
            raise ValueError(
                "train.candidates = 'retrieved' encodes the whole training split again and again, which needs "
                "data.feeding = 'resident'"
            )
        if self.train.candidates != "sampled" and self.method.kind != "protoattend":
            raise ValueError(f"train.candidates = {self.train.candidates!r} is for protoattend")
        return self

    def _check_frozen(self, encoder: FrozenSettings) -> None:
        if self.data.augment != AugmentSettings():
            raise ValueError(
                "data.augment is for encoders that are trained; the views of a frozen one are set by encoder.augment"
            )
        if encoder.tuned_stages and self.method.kind != "fine_tuning":
            raise ValueError(
                f"encoder.tuned_stages = {encoder.tuned_stages} leaves stages to train, which {self.method.kind} does "
                "not: set it to 0, or method.kind = 'fine_tuning'"
            )
        if encoder.head is not None and self.method.kind != "protoquant":
            raise ValueError(f"encoder.head is read by protoquant, and not by {self.method.kind}: leave it out")
        if encoder.features is None and self.data.feeding == "streamed" and self.data.workers:
            raise ValueError(
                "data.workers must be 0 where a frozen encoder computes features: it runs on the devices of this "
                "process; or write a store with protojax features and set encoder.features"
            )
        if encoder.views and self.train.candidates == "retrieved":
            raise ValueError("train.candidates = 'retrieved' keeps one key an example: set encoder.views = 0")
        if self.evaluate.rotations or self.evaluate.shift_names:
            raise ValueError(
                "evaluate.rotations and evaluate.shift_names shift images, but a frozen encoder leaves features to "
                "what is evaluated: leave them out"
            )
