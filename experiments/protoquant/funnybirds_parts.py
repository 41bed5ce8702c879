"""Purity and spatial misalignment of a trained ProtoQuant run on FunnyBirds.

    python experiments/protoquant/funnybirds_parts.py RUN [--count N] [--modes noise,pgd] [section.key=value ...]

RUN was trained on a data set of `protojax prepare funnybirds` with a frozen encoder. The key-point of a part is the
mean pixel of its mask in the part map of a test scene, in the crop that the network sees; left and right count as one.
The patch of a code has 32 of 224 pixels, as in PIP-Net, and as large a share of others. A code speaks for a class
where it is among the 10 heaviest of the class; the target of the attack is, of the codes that speak for the true class,
the one with the largest share of its logit. Its activation map are its shares p at all cells, enlarged to what the
network sees by bilinear interpolation.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from protojax import metrics, opened, ops, weights
from protojax.concepts import upsampled
from protojax.config import Settings
from protojax.data import catalog, frozen, funnybirds, prepare
from protojax.data.funnybirds import PIECES, Scene
from protojax.methods import pruning
from protojax.methods.pruning import BOOK
from protojax.metrics.misalignment import Observed
from protojax.ops import crops

PAIRS = [(1, 2), (3, 4), (6, 7)]
"""Right and left of `funnybirds.PIECES`."""
HEAVIEST = 10
"""Codes that speak for a class."""
PATCH = 32 / 224
"""Side of a patch, as a share of that of the image."""
BATCH = 25


def main() -> None:
    """Prints both measures of a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    parser.add_argument("--count", type=int, help="test scenes that are attacked, evenly spread; absent: all")
    parser.add_argument("--modes", default="noise,pgd", help="of the attack; empty for purity alone")
    parsed = parser.parse_intermixed_args()
    settings = opened.reopened_settings(parsed.run, parsed.overrides)
    variables = opened.open_encoder(parsed.run, settings).state.variables
    _, folder = catalog.folder(settings.data.name, settings.data.data_dir)
    scenes = list(prepare.annotations(folder).values())
    images = seen_by_network(scenes, settings)
    look = jax.jit(
        partial(observed, weights.load(settings.encoder.weights, settings.encoder.network), settings, variables)
    )
    found = [look(part) for part in tqdm(np.split(images, range(BATCH, len(images), BATCH)), unit=" batches")]
    presence, place, _, logits, grid = (np.concatenate([np.asarray(x[i]) for x in found]) for i in range(5))
    labels = np.array([scene.label for scene in scenes])
    print(f"{len(scenes)} test scenes, accuracy {100 * (logits.argmax(axis=1) == labels).mean():.2f} %")
    own = np.asarray(pruning.classifier(variables))
    report_purity(presence, place, tuple(grid[0]), scenes, own, settings)
    chosen = np.arange(parsed.count or len(scenes)) * len(scenes) // (parsed.count or len(scenes))
    for mode in filter(None, parsed.modes.split(",")):
        report_misalignment(mode, look, images[chosen], labels[chosen], own)


def seen_by_network(scenes: Sequence[Scene], settings: Settings) -> np.ndarray:
    """The scenes as the network sees them, float32 `[scenes, height, width, 3]`."""
    see = jax.jit(lambda x: frozen.prepared(x, jnp.zeros(len(x)), jnp.zeros(len(x)), settings.encoder))
    pictures = [funnybirds.picture(scene.image) for scene in scenes]
    return np.concatenate([np.asarray(see(np.stack(pictures[i : i + BATCH]))) for i in range(0, len(scenes), BATCH)])


def observed(network: weights.Pretrained, settings: Settings, variables: Any, images: jax.Array) -> tuple:
    """Presence and place of codes `[batch, codes]`, shares `[batch, height, width, codes]`, logits, sides of maps."""
    maps = network.module.apply(network.variables, images, train=False)[1]["map"]
    codes, active, temperature = variables["params"]["codes"], variables[BOOK]["active"], settings.method.temperature
    presence, place = ops.presence(maps.reshape(len(maps), -1, maps.shape[-1]), codes, temperature, active)
    shares = ops.concept_shares(maps, codes, temperature, active)
    logits = pruning.class_logits(presence, pruning.classifier(variables))
    return presence, place, shares, logits, jnp.broadcast_to(jnp.array(maps.shape[1:3]), (len(maps), 2))


def report_purity(
    presence: np.ndarray, place: np.ndarray, grid: tuple, scenes: Sequence[Scene], own: np.ndarray, settings: Settings
) -> None:
    """Prints the purity of the codes that any class weighs."""
    masks = [funnybirds.piece_masks(scene) for scene in scenes]
    height, width = masks[0].shape[1:]
    size = settings.encoder.image_size
    top, left, rows, columns = crops.centre_boxes(1, height, width, size, settings.encoder.crop)[0]
    visible = np.stack([mask.any(axis=(1, 2)) for mask in masks])
    points = np.zeros((len(scenes), len(PIECES), 2))
    for i, mask in enumerate(masks):
        for j in np.flatnonzero(visible[i]):
            points[i, j] = np.argwhere(mask[j]).mean(axis=0)
    points = (points + 0.5 - (top, left)) * np.array(size) / (rows, columns)
    boxes = metrics.patch_boxes(place, grid, size, round(PATCH * min(size)))
    pure = metrics.purity(presence, boxes, points, visible, own, PAIRS)
    print(f"purity of {len(pure.values)} codes: {pure.mean:.4f} +- {pure.spread:.4f}")


def report_misalignment(mode: str, look: Callable, images: np.ndarray, labels: np.ndarray, own: np.ndarray) -> None:
    """Prints what an attack outside of the place that a code shows does."""
    owners = np.zeros(own.shape, bool)
    np.put_along_axis(owners, np.argsort(-own, axis=1, kind="stable")[:, :HEAVIEST], True, axis=1)
    owners &= own > 0
    attack = jax.jit(
        lambda x, shown, target, key: metrics.attack(
            lambda seen: look(seen)[0][jnp.arange(len(target)), target], x, shown, mode, key
        )
    )
    pairs, targets = ([], []), []
    for start in tqdm(range(0, len(images), BATCH), desc=mode, unit=" batches"):
        part, label = images[start : start + BATCH], labels[start : start + BATCH]
        before = look(part)
        target = np.where(owners[label], own[label] * np.asarray(before[0]), -1).argmax(axis=1)
        shown = metrics.important_box(_map_of(before, target, part.shape[1:3]))
        changed = attack(part, shown, target, jax.random.fold_in(jax.random.key(0), start))
        for kept, made in zip(pairs, (before, look(changed)), strict=True):
            scores, predicted = np.asarray(made[0]), np.asarray(made[3]).argmax(axis=1)
            kept.append(Observed(_map_of(made, target, part.shape[1:3]), scores, predicted))
        targets.append(target)
    first, second = (Observed(*(np.concatenate(x) for x in zip(*kept, strict=True))) for kept in pairs)
    found = metrics.misalignment(first, second, np.concatenate(targets), labels, owners)
    print(
        f"misalignment of {len(labels)} scenes, {mode}: "
        + ", ".join(f"{k} {v:.3f}" for k, v in found._asdict().items())
    )


def _map_of(made: tuple, target: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    shares = np.asarray(made[2])
    return upsampled(shares[np.arange(len(target)), :, :, target], size)


if __name__ == "__main__":
    main()
