"""The FunnyBirds protocol on a trained ProtoQuant run: are its explanations right when parts of birds are taken away?

    python experiments/protoquant/funnybirds_protocol.py RUN [--count N] [section.key=value ...]

RUN was trained on a data set of `protojax prepare funnybirds` with a frozen encoder. Every test scene is shown with all
32 sets of parts kept; those that the data lack are composed (`protojax.data.funnybirds.without`). Class scores are
logits. The attribution of a class is its logit, taken apart: code m gives relu(W)_cm s_m to the one cell of the map
where s_m is reached, and cells are enlarged to what the network saw
of the image by bilinear interpolation.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from protojax import metrics, opened, ops, self_portrait
from protojax.concepts import upsampled
from protojax.config import Settings
from protojax.data import catalog, frozen, funnybirds, loading, prepare
from protojax.data.funnybirds import PARTS, Scene
from protojax.data.prepare.funnybirds import FOLDER
from protojax.methods import Variables, pruning
from protojax.methods.pruning import BOOK


def main() -> None:
    """Prints the scores of a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    parser.add_argument("--count", type=int, help="test scenes, evenly spread over the classes; absent: all")
    parsed = parser.parse_args()
    settings = opened.reopened_settings(parsed.run, parsed.overrides)
    encoder = opened.open_encoder(parsed.run, settings)
    extract = frozen.Extractor(loading.load(settings.data), settings.encoder)
    _, folder = catalog.folder(settings.data.name, settings.data.data_dir)
    scenes = list(prepare.annotations(folder).values())
    count = parsed.count or len(scenes)
    scenes = [scenes[i * len(scenes) // count] for i in range(count)]
    classes = funnybirds.read(Path(folder) / FOLDER).classes
    birds, seen, composed = judged(scenes, classes, extract, encoder.state.variables, settings)
    print(f"{count} test scenes with {2 ** len(PARTS)} pictures each, {composed} composed; {(~seen).sum()} hide a part")
    for name, those in (("all scenes", birds), ("no part hidden", birds_at(birds, seen))):
        print(name)
        for key, value in metrics.funnybirds(those)._asdict().items():
            print(f"  {key:16} {value:.4f}")


def judged(
    scenes: Sequence[Scene], classes: np.ndarray, extract: frozen.Extractor, variables: Variables, settings: Settings
) -> tuple[metrics.Birds, np.ndarray, int]:
    """What the protocol asks of a model: scores with every set of parts, and attributions in the parts.

    Returns:
      The birds; bool `[birds]`, whether every part is seen; and how many pictures were composed.
    """
    scores, importance, total, seen, composed = [], [], [], [], 0
    for scene in tqdm(scenes, unit=" scenes"):
        pictures = []
        for kept in range(2 ** len(PARTS)):
            pixels, rendered = funnybirds.without(scene, [p for i, p in enumerate(PARTS) if not kept >> i & 1])
            pictures.append(pixels)
            composed += not rendered
        nothing = np.zeros(len(pictures), np.int32)
        maps = np.stack(extract(np.stack(pictures), nothing, nothing, augmented=False))
        logits, parts = (np.asarray(x) for x in decided(variables, maps, settings.method.temperature))
        masks = funnybirds.piece_masks(scene)
        height, width = masks.shape[1:]
        box = np.array(self_portrait.seen(settings, pictures[0])) * (height, width, height, width)
        top, left, bottom, right = box.round().astype(int)
        attribution = np.zeros((len(classes), height, width), np.float32)
        attribution[:, top:bottom, left:right] = upsampled(parts, (bottom - top, right - left))
        scores.append(logits)
        importance.append(metrics.part_importance(attribution, np.stack([masks] * len(classes)), funnybirds.PART_OF))
        total.append(attribution.sum(axis=(1, 2)))
        seen.append(all(masks[funnybirds.PART_OF == part].any() for part in range(len(PARTS))))
    labels = np.array([scene.label for scene in scenes])
    birds = metrics.Birds(classes, labels, *(np.stack(x) for x in (scores, importance, total)))
    return birds, np.array(seen), composed


@partial(jax.jit, static_argnames="temperature")
def decided(variables: Variables, maps: jax.Array, temperature: float) -> tuple[jax.Array, jax.Array]:
    """Logits `[batch, classes]`, and those of the last example by cells of its map, `[classes, height, width]`."""
    batch, height, width, features = maps.shape
    codes, active = variables["params"]["codes"], variables[BOOK]["active"]
    presence, place = ops.presence(maps.reshape(batch, -1, features), codes, temperature, active)
    weights = pruning.classifier(variables)
    parts = jnp.zeros((len(weights), height * width)).at[:, place[-1]].add(weights * presence[-1])
    return pruning.class_logits(presence, weights), parts.reshape(-1, height, width)


def birds_at(birds: metrics.Birds, chosen: np.ndarray) -> metrics.Birds:
    """Some of the birds: bool `[birds]`."""
    return birds._replace(**{key: getattr(birds, key)[chosen] for key in ("labels", "scores", "importance", "total")})


if __name__ == "__main__":
    main()
