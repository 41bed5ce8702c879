"""Settings of the systems."""

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from protojax.config.section import Fraction, Section


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
    candidate_dropout: bool = True
    """The dropout of the encoder is drawn for the candidates of a training step, too. Without it training attends to
    candidates as they are in the database that decides afterwards."""

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
    `encoder.tuned_stages` stages; or, of `encoder.kind = "vit"`, a whole network with it from random values. The run
    folder gets `weights.safetensors`: the network as it is then."""

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
