"""What a published classifier says of photographs: a look at whether its weights were read as they are meant."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from protojax import weights
from protojax.config import FrozenSettings
from protojax.data import frozen
from protojax.data.prepare.image_folder import read_image
from protojax.weights import WeightsError


class Guess(NamedTuple):
    """One class, and how probable the network holds it to be."""

    name: str
    probability: float


def recognise(
    images: Sequence[str | Path], settings: FrozenSettings, names: Sequence[str] | None = None, count: int = 5
) -> list[list[Guess]]:
    """The most probable classes of each image, prepared as for features.

    Args:
      images: image files.
      settings: the network, its weights, and how images are prepared.
      names: of the classes; their numbers when absent.
      count: classes shown of each.

    Raises:
      WeightsError: the weights do not fit, have no classifier, or another number of classes than there are names.
      DataError: a file is no image.
    """
    found = weights.load(settings.weights, settings.network)
    classes = found.module.classes
    if not classes:
        raise WeightsError(f"{settings.weights}: has no classifier; recognising needs one")
    if names is not None and len(names) != classes:
        raise WeightsError(f"{settings.weights}: has {classes} classes, but there are {len(names)} names")
    score = jax.jit(partial(_probabilities, found.module, settings))
    guesses = []
    for path in images:
        (probabilities,) = np.asarray(score(found.variables, read_image(Path(path))[None]))
        best = np.argsort(-probabilities, kind="stable")[:count]
        guesses.append([Guess(str(i) if names is None else names[i], float(probabilities[i])) for i in best])
    return guesses


def read_names(path: str | Path) -> list[str]:
    """Names of classes in the order of their numbers: a line each, or as JSON a list, or an object by number.

    Raises:
      WeightsError: the file cannot be read.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            return text.splitlines()
        tree = json.loads(text)
        found = [tree[str(number)] for number in range(len(tree))] if isinstance(tree, dict) else tree
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise ValueError("neither a list of texts nor an object of texts by number")
        return found
    except KeyError as error:
        raise WeightsError(f"{path}: names no class {error}: number them from '0'") from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read as names of classes: {error}") from None


def _probabilities(module: nn.Module, settings: FrozenSettings, variables: dict, images: jax.Array) -> jax.Array:
    nothing = np.zeros(1, np.int32)
    logits, _ = module.apply(variables, frozen.prepared(images, nothing, nothing, settings), train=False)
    return nn.softmax(logits)
