"""The end of a published network on a data set of one's own: a classifier, and perhaps the last stages, trained anew.

The classifier is h of ProtoQuant's equation 1: the mean of the map over positions, then a linear layer (of ConvNeXt, a
normalisation between them).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.typing import DTypeLike

from protojax import weights
from protojax.config import FrozenSettings, ViTSettings
from protojax.networks import own_vit
from protojax.networks.backbones import Tail, layer_before, stages_of
from protojax.weights import Pretrained, WeightsError

_INSIDE = "backbone"
"""Where a tail keeps the variables of the network, and a transformer of one's own those of the one that is frozen."""


class Start(NamedTuple):
    """The end of a network, and the variables it starts from."""

    module: Tail
    variables: dict[str, Any]
    """NumPy arrays float32."""


def start(settings: FrozenSettings, classes: int, dtype: DTypeLike = jnp.float32) -> Start:
    """The end that is trained: as published, but with the classifier of `encoder.head`, or one of zeros, where no class
    is ahead.

    Args:
      settings: the network, and how many of its stages.
      classes: of the data set.
      dtype: arithmetic of the stages.

    Raises:
      WeightsError: weights are missing, not those of the network, or those of the head not of so many classes.
      ValueError: the network has fewer stages.
    """
    found = weights.load(settings.weights, settings.network, dtype)
    layer = layer_before(found.module, settings.tuned_stages)
    module = found.module.clone(classes=classes)
    if settings.tuned_stages:
        module = module.clone(done=stages_of(module) - settings.tuned_stages)
    image = jax.ShapeDtypeStruct((1, *settings.image_size, 3), jnp.float32)
    made = jax.eval_shape(lambda x: found.module.init_with_output(jax.random.key(0), x), image)[0][1]
    classifier = None if settings.head is None else head(settings.head, settings.network, classes).variables
    return _tail(found, Tail(module, settings.tuned_stages), made[layer], classifier)


def head(path: str | Path, network: str, classes: int) -> Start:
    """The classifier in a file of weights.

    Args:
      path: a safetensors file of the whole network, such as `write` makes.
      network: of the file.
      classes: of the data set.

    Raises:
      WeightsError: the file is missing, not of the network, or its classifier is not of so many classes.
    """
    found = weights.load(path, network)
    if found.module.classes != classes:
        raise WeightsError(
            f"{path}: has a classifier of {found.module.classes} classes, and the data set has {classes}: train one on "
            "it with method.kind = 'fine_tuning'"
        )
    (width,) = {x.shape[0] for k, x in _flat(found.variables).items() if k[-2:] == ("head", "kernel")}
    own = {name: {_INSIDE: tree} for name, tree in found.variables.items()}
    return _tail(found, Tail(found.module), jax.ShapeDtypeStruct((1, 1, 1, width), jnp.float32), own)


def write(path: str | Path, settings: FrozenSettings | ViTSettings, variables: Mapping[str, Any]) -> None:
    """Writes the whole network with what was trained, as a file that `weights.load` reads.

    Args:
      path: the safetensors file.
      settings: the network and the file it started from, or the network that started from random values.
      variables: of what was trained.

    Raises:
      WeightsError: the file cannot be read or written.
    """
    own = {name: tree[_INSIDE] for name, tree in variables.items()}
    if isinstance(settings, ViTSettings):
        weights.create(path, own_vit.NETWORK, own, {"heads": str(settings.heads)})
    else:
        weights.save(path, settings.weights, settings.network, own)


def _tail(found: Pretrained, module: Tail, maps: Any, classifier: Mapping[str, Any] | None) -> Start:
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), maps)
    published, taken = _flat(found.variables), {}
    trained = None if classifier is None else _flat(classifier)
    for path, shape in _flat(shapes).items():
        collection, _, *rest = path
        if rest[0] != "head":
            taken[path] = published[collection, *rest]
        else:
            taken[path] = np.zeros(shape.shape, np.float32) if trained is None else trained[path]
    return Start(module, traverse_util.unflatten_dict(taken))


def _flat(tree: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    return traverse_util.flatten_dict(dict(tree))
