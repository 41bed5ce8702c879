"""Adam with the schedules, clipping and weight decay of the papers."""

import jax
import optax

from protojax.config import OptimizerSettings


def build(settings: OptimizerSettings, steps: int) -> optax.GradientTransformation:
    """The optimiser of a run of `steps` steps."""
    clipping = {
        "none": optax.identity(),
        "value": optax.clip(settings.clip_at),
        "norm": optax.clip_by_global_norm(settings.clip_at),
    }[settings.clip]
    # L2 regularisation is part of the loss of the papers, so it joins the gradient before clipping and Adam.
    decay = optax.add_decayed_weights(settings.conv_weight_decay, mask=_is_convolution)
    return optax.chain(
        decay if settings.conv_weight_decay else optax.identity(),
        clipping,
        optax.adam(schedule(settings, steps)),
    )


def schedule(settings: OptimizerSettings, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up from 0, then constant, continuous exponential decay, or cosine to 0."""
    rate, warmup = settings.learning_rate, settings.warmup_steps
    match settings.schedule:
        case "constant":
            main = optax.constant_schedule(rate)
        case "exponential":
            main = optax.exponential_decay(rate, settings.decay_every, settings.decay_rate)
        case "cosine":
            main = optax.cosine_decay_schedule(rate, max(steps - warmup, 1))
    if not warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), main], [warmup])


def _is_convolution(params: optax.Params) -> optax.Params:
    return jax.tree.map_with_path(lambda path, x: path[-1].key == "kernel" and x.ndim >= 3, params)
