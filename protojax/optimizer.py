"""Adam with the schedules, clipping and weight decay of the papers, and stages of training with an optimiser each."""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
import optax
from jax import lax

from protojax.config import OptimizerSettings
from protojax.methods.method import Stage


def build(settings: OptimizerSettings, steps: int, stages: Sequence[Stage] = ()) -> optax.GradientTransformation:
    """The optimiser of a run of `steps` steps; with stages, one after the other, each with a schedule of its own."""
    if not stages:
        return _adam(settings, steps)
    ends = [*(stage.start for stage in stages[1:]), steps]
    if stages[0].start or any(first >= second for first, second in pairwise([stage.start for stage in stages])):
        raise ValueError(f"stages start at 0 and one after the other, got {[stage.start for stage in stages]}")
    # A run may end before its later stages; a schedule still needs a length.
    lengths = [max(end - stage.start, 1) for stage, end in zip(stages, ends, strict=True)]
    return in_stages(stages, [_adam(settings, length) for length in lengths])


def in_stages(stages: Sequence[Stage], inner: Sequence[optax.GradientTransformation]) -> optax.GradientTransformation:
    """Every stage by its own transformation, on what it trains; the updates of all else are 0."""

    def mask(stage: Stage) -> dict[str, bool]:
        return lambda params: {name: name in stage.trains for name in params}

    # What is masked has no state, so that the moments of a codebook exist once for each stage that trains it.
    masked = [optax.masked(own, mask(stage)) for stage, own in zip(stages, inner, strict=True)]

    def init(params: optax.Params) -> tuple:
        return jnp.zeros((), jnp.int32), *(own.init(params) for own in masked)

    def update(updates: optax.Updates, state: tuple, params: optax.Params | None = None) -> tuple:
        count, *states = state

        def by(which: int, updates: optax.Updates, states: list) -> tuple:
            changed, states[which] = masked[which].update(updates, states[which], params)
            trained = stages[which].trains
            return {
                name: x if name in trained else jax.tree.map(jnp.zeros_like, x) for name, x in changed.items()
            }, states

        branches = [
            lambda updates, states, which=which: by(which, updates, list(states)) for which in range(len(stages))
        ]
        now = sum((count >= stage.start).astype(jnp.int32) for stage in stages[1:])
        changed, states = lax.switch(now, branches, updates, list(states))
        return changed, (count + 1, *states)

    return optax.GradientTransformation(init, update)


def _adam(settings: OptimizerSettings, steps: int) -> optax.GradientTransformation:
    clipping = {
        "none": optax.identity(),
        "value": optax.clip(settings.clip_at),
        "norm": optax.clip_by_global_norm(settings.clip_at),
    }[settings.clip]
    # L2 regularisation is part of the loss of the papers, so it joins the gradient before clipping and Adam.
    decay = optax.add_decayed_weights(settings.conv_weight_decay, mask=_is_convolution)
    rate = schedule(settings, steps)
    return optax.chain(
        decay if settings.conv_weight_decay else optax.identity(),
        clipping,
        optax.adamw(rate, weight_decay=settings.weight_decay) if settings.weight_decay else optax.adam(rate),
    )


def schedule(settings: OptimizerSettings, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up from 0, then constant, continuous exponential decay, or cosine."""
    rate, warmup = settings.learning_rate, settings.warmup_steps
    match settings.schedule:
        case "constant":
            main = optax.constant_schedule(rate)
        case "exponential":
            main = optax.exponential_decay(rate, settings.decay_every, settings.decay_rate)
        case "cosine":
            main = optax.cosine_decay_schedule(rate, max(steps - warmup, 1), alpha=settings.final_rate / rate)
    if not warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), main], [warmup])


def _is_convolution(params: optax.Params) -> optax.Params:
    return jax.tree.map_with_path(lambda path, x: path[-1].key == "kernel" and x.ndim >= 3, params)
