"""One experiment: its sections, how it is trained, evaluated and explained, and what does not go together."""

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from protojax.config.data import AugmentSettings, DataSettings
from protojax.config.encoders import EncoderSettings
from protojax.config.frozen import FrozenSettings
from protojax.config.methods import MethodSettings
from protojax.config.section import Fraction, Section


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
    """Whose parameters are measured: the best are those of the best validation score."""
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
        self._check_own_prototypes()
        if self.encoder.kind == "frozen":
            self._check_frozen(self.encoder)
        elif self.encoder.kind == "vit":
            self._check_vit()
        elif self.method.kind == "fine_tuning":
            raise ValueError(
                f"fine_tuning starts from a published network, or trains a vit: encoder.kind = {self.encoder.kind!r} "
                "is neither"
            )
        if self.method.kind == "protoquant":
            last = self.method.prune_at or self.method.codebook_steps
            if last >= self.train.steps:
                raise ValueError(
                    f"train.steps = {self.train.steps} ends before the last stage of protoquant, which starts at "
                    f"{last} (method.prune_at, method.codebook_steps)"
                )
        dropped = getattr(self.method, "candidate_dropout", False) and getattr(self.encoder, "dropout", 0.0)
        if self.train.candidates == "support" and dropped:
            raise ValueError(
                "train.candidates = 'support' encodes candidates twice, and dropout would draw two different masks: "
                "set method.candidate_dropout = false or encoder.dropout = 0, or choose 'sampled'"
            )
        if not getattr(self.method, "candidate_dropout", True) and getattr(self.encoder, "norm", None) == "batch":
            raise ValueError(
                "method.candidate_dropout = false encodes candidates as outside training, where batch normalisation "
                "has no statistics of the batch: set encoder.norm = 'group', or leave it out"
            )
        if self.train.candidates == "retrieved" and self.data.feeding != "resident":
            raise ValueError(
                "train.candidates = 'retrieved' encodes the whole training split again and again, which needs "
                "data.feeding = 'resident'"
            )
        if self.train.candidates != "sampled" and self.method.kind != "protoattend":
            raise ValueError(f"train.candidates = {self.train.candidates!r} is for protoattend")
        return self

    def _check_own_prototypes(self) -> None:
        names = {"prototype_autoencoder": "prototypes", "attention_autoencoder": "prototypes", "protoquant": "codes"}
        if (name := names.get(self.method.kind)) is None or getattr(self.method, "head", None) == "linear":
            return
        count, width = getattr(self.method, name), self.explain.width
        if width is not None and width > count:
            raise ValueError(f"explain.width = {width}, but decisions have {count} prototypes (method.{name})")
        if self.evaluate.neighbours:
            raise ValueError(
                "evaluate.neighbours needs a database of training examples, and decisions of "
                f"{self.method.kind} lean on prototypes of its own: set it to 0"
            )

    def _check_vit(self) -> None:
        if self.data.augment.standardize:
            raise ValueError(
                "data.augment.standardize must be false with encoder.kind = 'vit', which normalises all images alike, "
                "as a frozen network does"
            )
        if self.method.kind == "protoquant":
            raise ValueError(
                "protoquant freezes its network, and encoder.kind = 'vit' starts from random values: train it with "
                "method.kind = 'fine_tuning', then name its weights.safetensors with encoder.kind = 'frozen' and "
                "encoder.network = 'vit'"
            )

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
        if encoder.head is not None and self.method.kind not in ("protoquant", "fine_tuning"):
            raise ValueError(
                f"encoder.head is read by protoquant and fine_tuning, and not by {self.method.kind}: leave it out"
            )
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
