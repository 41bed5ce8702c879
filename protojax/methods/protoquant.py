"""ProtoQuant: decisions from which concepts of a codebook are present, over a network that stays as it is.

Janusz et al. 2026, "ProtoQuant: Quantization of Prototypical Parts For General and Fine-Grained Image Classification",
with z = phi(x) the feature map of a frozen network and c_1 ... c_M the codes:

    q(z_ij) = argmax_k cos(z_ij, c_k)                                        (equation 3)
    L_codebook = 1/N sum_ij |sg[z_ij] - c_q(z_ij)|^2                         (equation 4)
    p_ij(m) = softmax over m of cos(z_ij, c_m) / temperature                 (equation 6)
    s_m = max_ij p_ij(m)                                                     (equation 8)
    y = relu(W) s                                                            (equation 10)

One experiment has both stages of the paper, and a third one, in one line of checkpoints; the number of the step says
which it is in, and in each the optimiser starts anew (its warm-up and schedule too) on what that stage trains:

    codebook     until `codebook_steps`    L_codebook + task_weight CE(h(c_q(z))), h the frozen head; trains the codes
    classifier   then                      CE(y); trains W, and with `tune_codes` the codes
    pruned       from `prune_at` on        the same with W cut to the `top_k` codes of a class; trains W and the codes

What a stage does not train has no gradient in it and no place in its optimiser: it stays bitwise as it is. What is more
than gradient descent (codes drawn from the first batch, dead codes revived, W cut) happens between steps, in `revise`.

A decision leans on codes. Each stands for the training example in which it is most like a patch, and weighs its share
of the decided logit, relu(W)_cm s_m / y_c. C = max_k sum_m share_m [label_m = k].
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import export, lax
from jax.sharding import PartitionSpec

from protojax import ops, sharding
from protojax.candidates import CandidateDatabase
from protojax.config import ProtoQuantSettings
from protojax.methods import patches, pruning
from protojax.methods.method import SHARES, Batch, Method, Prediction, Stage, Variables, support_of, target_of
from protojax.methods.pruning import BOOK

SHOWN = 8
"""Codes of a decision that `views` maps."""

FROZEN = "frozen"
"""Where the variables of the network stand: beside the parameters, which the optimiser changes."""


def build(
    network: nn.Module,
    classes: int,
    settings: ProtoQuantSettings,
    axis_name: str | None = None,
    pretrained: Variables | None = None,
) -> Method:
    """ProtoQuant as a method.

    Args:
      network: module `(inputs, train) -> (outputs, {"map": [batch, height, width, features], ...})`, run with
        `train=False`. Its outputs are class logits where it has a method `head(map) -> logits` (h of equation 1), which
        is then shown quantised maps, too; otherwise they are not looked at.
      classes: number of classes.
      settings: the method's settings.
      axis_name: mapped axis over which examples are split under `pmap`; None where arrays are global.
      pretrained: variables of the network; None draws them, which is right for one without any.

    Raises:
      ValueError: a task loss is wanted and the network has no head; or, later, it has no map.
    """
    has_head = callable(getattr(type(network), "head", None))
    if settings.task_weight and not has_head:
        raise ValueError(
            f"method.task_weight = {settings.task_weight:g} needs a network with a classification head: name the "
            "weights of one by encoder.head, or set it to 0"
        )
    mesh = sharding.mesh() if axis_name is None else None

    def features(variables: Variables, inputs: jax.Array) -> tuple[jax.Array | None, jax.Array]:
        """phi(x) float32 `[batch, height, width, features]`, behind the outputs of the network."""
        outputs, made = network.apply(variables.get(FROZEN, {}), inputs, train=False)
        if "map" not in made:
            raise ValueError("protoquant needs a map of features: set encoder.kind to frozen or features")
        return lax.stop_gradient((outputs, made["map"].astype(jnp.float32)))

    def head(variables: Variables, maps: jax.Array) -> jax.Array:
        """h of equation 1: logits `[batch, classes]` of maps."""
        return network.apply(variables.get(FROZEN, {}), maps, method="head")

    def init(key: jax.Array, batch: Batch) -> Variables:
        network_key, code_key, weight_key = jax.random.split(key, 3)
        frozen = network.init(network_key, batch["inputs"], train=False) if pretrained is None else pretrained
        frozen = {FROZEN: frozen} if jax.tree.leaves(frozen) else {}
        size = features(frozen, batch["inputs"])[1].shape[-1]
        weights = 1 + 0.1 * jax.random.normal(weight_key, (classes, settings.codes))
        params = {"codes": ops.orthogonal_codes(code_key, settings.codes, size), "weights": weights}
        return {"params": params, **frozen, BOOK: pruning.everything(classes, settings.codes)}

    def by_device(function: Callable, maps: jax.Array, codes: jax.Array, active: jax.Array) -> Any:
        """What is computed position by position, on each device for its own examples."""
        batch = maps.shape[0]
        if mesh is None or mesh.size == 1 or export.is_symbolic_dim(batch) or batch % mesh.size:
            return function(maps, codes, active)
        own, all_of_it = PartitionSpec(sharding.AXIS), PartitionSpec()
        over = jax.shard_map(function, mesh=mesh, in_specs=(own, all_of_it, all_of_it), out_specs=own, check_vma=False)
        return over(maps, codes, active)

    def assigned(maps: jax.Array, codes: jax.Array, active: jax.Array) -> jax.Array:
        """q of equation 3, int32 `[batch, height, width]`."""

        def own(maps: jax.Array, codes: jax.Array, active: jax.Array) -> jax.Array:
            return ops.nearest(maps.reshape(-1, maps.shape[-1]), codes).index.reshape(maps.shape[:3])

        return by_device(own, maps, lax.stop_gradient(codes), active)

    def present(maps: jax.Array, codes: jax.Array, active: jax.Array) -> tuple[jax.Array, jax.Array]:
        """s of equation 8, `[batch, codes]`, and where it is reached."""

        def own(maps: jax.Array, codes: jax.Array, active: jax.Array) -> tuple[jax.Array, jax.Array]:
            batch, height, width, size = maps.shape
            return ops.presence(maps.reshape(batch, height * width, size), codes, settings.temperature, active)

        return by_device(own, maps, codes, active)

    def codebook_stage(
        variables: Variables, maps: jax.Array, target: jax.Array, label: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        params, book = variables["params"], variables[BOOK]
        index = assigned(maps, params["codes"], book["active"])
        loss_codebook = ops.codebook_loss(maps.reshape(-1, maps.shape[-1]), params["codes"], index.reshape(-1))
        used = total_over(ops.usage(index, len(params["codes"])))
        metrics = nothing_measured() | {
            "loss_codebook": loss_codebook,
            "perplexity": ops.perplexity(used),
            "codes_used": (used > 0).mean(dtype=jnp.float32),
        }
        if has_head:
            logits = head(variables, params["codes"][index])
            metrics["loss_task"] = ops.cross_entropy(logits, target).mean()
            metrics["accuracy_quantised"] = _accuracy(logits, label)
        task = settings.task_weight * metrics["loss_task"] if settings.task_weight else 0.0
        return loss_codebook + task, (book["used"] + used, metrics)

    def classifier_stage(
        variables: Variables, maps: jax.Array, target: jax.Array, label: jax.Array, trains_codes: bool
    ) -> tuple[jax.Array, dict[str, Any]]:
        codes, book = variables["params"]["codes"], variables[BOOK]
        scores, _ = present(maps, codes if trains_codes else lax.stop_gradient(codes), book["active"])
        logits = jnp.dot(scores, pruning.classifier(variables).T, precision=lax.Precision.HIGHEST)
        loss_class = ops.cross_entropy(logits, target).mean()
        metrics = {"loss_class": loss_class, "accuracy_prototypes": _accuracy(logits, label)}
        return loss_class, (book["used"], nothing_measured() | metrics)

    def total_over(counts: jax.Array) -> jax.Array:
        return counts if axis_name is None else lax.psum(counts, axis_name)

    def nothing_measured() -> dict[str, jax.Array]:
        # A stage has its own measures; those of the other are not zero, but unknown.
        names = ["loss_codebook", "perplexity", "codes_used", "loss_class", "accuracy_prototypes"]
        return dict.fromkeys(names + ["loss_task", "accuracy_quantised"] * has_head, jnp.float32(jnp.nan))

    def loss(variables: Variables, batch: Batch, key: jax.Array, step: jax.Array):
        _, maps = features(variables, batch["inputs"])
        # Stages start at their steps, the first at 0.
        stage = sum((step >= later.start).astype(jnp.int32) for later in stages[1:])
        total, (used, metrics) = lax.switch(stage, losses, variables, maps, target_of(batch), batch["label"])
        return total, ({BOOK: {**variables[BOOK], "used": used}}, metrics)

    def revise(variables: Variables, batch: Batch, key: jax.Array, step: jax.Array) -> Variables:
        def vectors() -> jax.Array:
            maps = features(variables, batch["inputs"])[1]
            maps = maps if axis_name is None else lax.all_gather(maps, axis_name, tiled=True)
            return maps.reshape(-1, maps.shape[-1])

        def with_codes(variables: Variables, make: Callable[[Variables], jax.Array]) -> Variables:
            book = variables[BOOK]
            params = {**variables["params"], "codes": make(variables)}
            return {**variables, "params": params, BOOK: {**book, "used": jnp.zeros_like(book["used"])}}

        def when(chosen: jax.Array, variables: Variables, make: Callable[[Variables], Variables]) -> Variables:
            changing = {name: variables[name] for name in ("params", BOOK)}
            rest = {name: value for name, value in variables.items() if name not in changing}

            def changed(changing: Variables) -> Variables:
                made = make({**rest, **changing})
                return {name: made[name] for name in changing}

            return {**rest, **lax.cond(chosen, changed, lambda same: same, changing)}

        if settings.initializer != "orthogonal":
            draw = ops.sampled_codes if settings.initializer == "sampled" else ops.kmeans_plus_plus_codes
            make = partial(with_codes, make=lambda _: draw(key, vectors(), settings.codes))
            variables = when(step == 0, variables, make)
        if settings.revive_every:
            # Not at the very end, so that a revived code still learns.
            falls = (step > 0) & (step % settings.revive_every == 0)
            falls &= step <= settings.codebook_steps - settings.revive_every
            make = partial(
                with_codes, make=lambda v: ops.revived(key, v["params"]["codes"], v[BOOK]["used"], vectors())
            )
            variables = when(falls, variables, make)
        if settings.prune_at is not None:
            variables = when(step == settings.prune_at - 1, variables, lambda v: pruning.pruned(v, settings.top_k))
        return variables

    def encode(variables: Variables, inputs: jax.Array) -> dict[str, jax.Array]:
        return patches.most_similar(features(variables, inputs)[1], variables["params"]["codes"])

    def memory(variables: Variables, database: CandidateDatabase) -> CandidateDatabase:
        return patches.nearest(database)

    def decide(variables: Variables, inputs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Logits, those of the frozen head, shares of codes in the decision `[batch, codes]`, and the maps."""
        outputs, maps = features(variables, inputs)
        scores, _ = present(maps, variables["params"]["codes"], variables[BOOK]["active"])
        weights = pruning.classifier(variables)
        logits = pruning.class_logits(scores, weights)
        parts = weights[logits.argmax(axis=-1)] * scores
        total = parts.sum(axis=-1, keepdims=True)
        shares = parts / jnp.where(total > 0, total, 1)
        return logits, outputs, shares, maps

    def predict(variables: Variables, memory: CandidateDatabase, batch: Batch, width: int) -> Prediction:
        logits, frozen_logits, shares, _ = decide(variables, batch["inputs"])
        scores = nn.softmax(logits)
        return Prediction(
            scores=scores,
            encoder_scores=nn.softmax(frozen_logits) if has_head else None,
            support=support_of(shares, memory.ids, memory.labels, width, variables[BOOK]["number"]),
            confidence=scores.max(axis=-1),
            prototypes_for=ops.fewest_for(shares, SHARES),
        )

    def heads(variables: Variables, inputs: jax.Array) -> dict[str, jax.Array]:
        outputs, maps = features(variables, inputs)
        codes = variables["params"]["codes"]
        quantised = codes[assigned(maps, codes, variables[BOOK]["active"])]
        return {"frozen_head": outputs, "quantised_head": head(variables, quantised)}

    def views(variables: Variables, memory: CandidateDatabase, batch: Batch) -> dict[str, jax.Array]:
        logits, _, shares, maps = decide(variables, batch["inputs"])
        codes, active = variables["params"]["codes"], variables[BOOK]["active"]
        heaviest, places = ops.top_k(shares, min(SHOWN, len(codes)))
        # All shares of an example at once, example by example.
        concept_maps = lax.map(
            lambda one: ops.concept_shares(one[0], codes, settings.temperature, active)[..., one[1]], (maps, places)
        )
        numbers = variables[BOOK]["number"]
        return {
            "image_to_class": logits,
            "concept_numbers": numbers[places],
            "concept_places": places,
            "concept_shares": heaviest,
            "concept_maps": jnp.moveaxis(concept_maps, -1, 1),
            "code_numbers": numbers,
            "code_to_class": pruning.classifier(variables).T,
            "code_active": active,
            "patch_ids": memory.embeddings["ids"],
            "patch_labels": memory.embeddings["labels"],
            "patch_boxes": memory.embeddings["boxes"],
            "patch_similarities": memory.embeddings["similarities"],
        }

    stages = stages_of(settings)
    losses = [codebook_stage, *(partial(classifier_stage, trains_codes="codes" in s.trains) for s in stages[1:])]
    return Method(
        init,
        loss,
        encode,
        predict,
        memory,
        views,
        stages=stages,
        heads=heads if has_head else None,
        revise=revise,
        soft_labels=True,
        has_codes=True,
    )


def stages_of(settings: ProtoQuantSettings) -> tuple[Stage, ...]:
    """The stages of training, by their first step, and what each trains."""
    stages = [
        Stage("codebook", 0, ("codes",)),
        Stage("classifier", settings.codebook_steps, ("weights", "codes") if settings.tune_codes else ("weights",)),
    ]
    if settings.prune_at is not None:
        stages.append(Stage("pruned", settings.prune_at, ("weights", "codes")))
    return tuple(stages)


def _accuracy(logits: jax.Array, label: jax.Array) -> jax.Array:
    return (jnp.argmax(logits, axis=-1) == label).mean(dtype=jnp.float32)
