"""The systems, one file each, and the one table that maps settings to them."""

import jax.numpy as jnp

from protojax import networks, tuned
from protojax.config import Settings, ViTSettings
from protojax.methods import attention_autoencoder, encoder, fine_tuning, protoattend, protoquant, prototype_autoencoder
from protojax.methods.method import Batch, Method, Prediction, Stage, Support, Variables

__all__ = ["Batch", "Method", "Prediction", "Stage", "Support", "Variables", "build"]


def build(settings: Settings, classes: int, axis_name: str | None = None, devices: int = 1) -> Method:
    """The method that the settings describe.

    Args:
      settings: the experiment.
      classes: number of classes of its data set.
      axis_name: mapped axis over which examples are split under `pmap`; None under `jit`.
      devices: how many devices a training batch is split over.

    Raises:
      WeightsError: the weights that a method starts from or the head that it reads do not fit.
    """
    network = networks.build(settings.encoder, jnp.dtype(settings.train.precision), axis_name)
    match settings.method.kind:
        case "encoder":
            return encoder.build(network, classes, settings.method.value_size)
        case "protoattend":
            chunk = settings.train.candidate_chunk if settings.train.candidates == "support" else None
            return protoattend.build(network, classes, settings.method, axis_name, devices, chunk)
        case "prototype_autoencoder":
            return prototype_autoencoder.build(network, classes, settings.method, axis_name)
        case "fine_tuning":
            if isinstance(settings.encoder, ViTSettings):
                return fine_tuning.build(network.clone(classes=classes))
            return fine_tuning.build(*tuned.start(settings.encoder, classes, jnp.dtype(settings.train.precision)))
        case "protoquant":
            head = getattr(settings.encoder, "head", None)
            if head is None:
                return protoquant.build(network, classes, settings.method, axis_name)
            module, variables = tuned.head(head, settings.encoder.network, classes)
            return protoquant.build(module, classes, settings.method, axis_name, variables)
        case "attention_autoencoder":
            return attention_autoencoder.build(network, classes, settings.method)
