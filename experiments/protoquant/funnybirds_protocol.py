"""The FunnyBirds protocol on a trained ProtoQuant run: are its explanations right when parts of birds are taken away?

    python experiments/protoquant/funnybirds_protocol.py RUN [--count N] [--only parts] [section.key=value ...]

RUN was trained on a data set of `protojax prepare funnybirds` with a frozen encoder. Class scores are logits.

*Parts.* Every test scene is shown with all 32 sets of parts kept; those that the data lack are composed
(`protojax.data.funnybirds.without`). The attribution of a class is its logit, taken apart: code m gives relu(W)_cm s_m
to the one cell of the map where s_m is reached, and cells are enlarged to what the network saw of the image by bilinear
interpolation.

*Background.* The share of background objects whose removal takes less than 5 % of the logit of the true class. This is
the authors' background independence but for the pictures: theirs were rendered without the object, ours are painted
(`protojax.data.background_objects`), which is the same where nothing but plain background lies around it. The authors
count all objects described, those out of sight as independent; so does the line "all described", and the others count
objects in sight, those in the crop that the network sees, and of these those with plain background all around and those
that touch something. Beside them stands the same share of parts in sight, by the authors' pictures: the nearer the
two, the less the threshold tells.

With `--only parts`, D is of parts alone; otherwise of parts and background objects in sight, as the authors' is.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from protojax import metrics, opened, ops, self_portrait
from protojax.concepts import upsampled
from protojax.config import Settings
from protojax.data import background_objects, catalog, frozen, funnybirds, loading, prepare
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
    parser.add_argument("--only", choices=("parts", "background"), help="one of the two; absent: both")
    parsed = parser.parse_intermixed_args()
    settings = opened.reopened_settings(parsed.run, parsed.overrides)
    variables = opened.open_encoder(parsed.run, settings).state.variables
    look = Look(frozen.Extractor(loading.load(settings.data), settings.encoder), variables, settings)
    _, folder = catalog.folder(settings.data.name, settings.data.data_dir)
    scenes = list(prepare.annotations(folder).values())
    count = parsed.count or len(scenes)
    scenes = [scenes[i * len(scenes) // count] for i in range(count)]
    background = None if parsed.only == "parts" else without_objects(scenes, look)
    if background is not None:
        report_background(background)
    if parsed.only != "background":
        classes = funnybirds.read(Path(folder) / FOLDER).classes
        birds, seen, composed = judged(scenes, classes, look)
        if background is not None:
            birds = birds._replace(object_scores=background.scores, object_importance=background.importance)
        pictures = f"{2 ** len(PARTS)} pictures each, {composed} composed"
        print(f"{count} test scenes with {pictures}; {(~seen).sum()} hide a part")
        for name, those in (("all scenes", birds), ("no part hidden", birds_at(birds, seen))):
            print(name)
            for key, value in metrics.funnybirds(those)._asdict().items():
                print(f"  {key:16} {value:.4f}")


class Look(NamedTuple):
    """A trained run that looks at pictures."""

    extract: frozen.Extractor
    variables: Variables
    settings: Settings

    def __call__(self, pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Logits `[pictures, classes]`, and those of the last picture by its pixels, `[classes, height, width]`."""
        nothing = np.zeros(len(pictures), np.int32)
        maps = self.extract(np.stack(pictures), nothing, nothing, augmented=False)
        # One number of maps, whatever that of the pictures: it compiles once.
        filled = np.stack([maps[0]] * (-len(maps) % 2 ** len(PARTS)) + maps)
        logits, parts = (np.asarray(x) for x in decided(self.variables, filled, self.settings.method.temperature))
        height, width = pictures[-1].shape[:2]
        top, left, bottom, right = self.seen(pictures[-1])
        attribution = np.zeros((logits.shape[1], height, width), np.float32)
        attribution[:, top:bottom, left:right] = upsampled(parts, (bottom - top, right - left))
        return logits[-len(maps) :], attribution

    def seen(self, picture: np.ndarray) -> np.ndarray:
        """What the network sees of a picture: top, left, bottom and right in pixels."""
        height, width = picture.shape[:2]
        box = np.array(self_portrait.seen(self.settings, picture)) * (height, width, height, width)
        return box.round().astype(int)


class Background(NamedTuple):
    """What a run makes of scenes without one background object each, and without one part each."""

    label_scores: np.ndarray
    """Logit of the true class, float `[scenes]`."""
    scores: np.ndarray
    """The same without one object, float `[scenes, objects]`; NaN where there are fewer."""
    importance: np.ndarray
    """Attribution of the true class in each object, float `[scenes, objects]`."""
    visible: np.ndarray
    """Whether the network sees some of the object, bool `[scenes, objects]`."""
    certain: np.ndarray
    """Whether nothing but plain background is around it, bool `[scenes, objects]`."""
    stays: np.ndarray
    """Whether the decision stays without it, bool `[scenes, objects]`."""
    part_scores: np.ndarray
    """Logit of the true class without one part, float `[scenes, parts]`; NaN where the part is hidden."""
    part_stays: np.ndarray
    """Whether the decision stays without it, bool `[scenes, parts]`."""
    described: int
    """Objects of all scenes, in sight or not."""


def without_objects(scenes: Sequence[Scene], look: Look) -> Background:
    """Shows a run every scene, the scene without one background object, and without one part."""
    rows = [_without_objects(scene, look) for scene in tqdm(scenes, desc="background", unit=" scenes")]
    whole, scores, importance, visible, certain, stays, part_scores, part_stays = zip(*rows, strict=True)
    return Background(
        np.array(whole),
        _filled(scores, np.nan),
        *(_filled(column, 0) for column in (importance, visible, certain, stays)),
        np.stack(part_scores),
        np.stack(part_stays),
        sum(max(scene.objects, len(row)) for scene, row in zip(scenes, scores, strict=True)),
    )


def _without_objects(scene: Scene, look: Look) -> tuple:
    """The fields of `Background` but for the last, of one scene."""
    without, picture = background_objects.without_each(scene), funnybirds.picture(scene.image)
    count = len(without.pictures)
    lacking = [funnybirds.without(scene, [part])[0] for part in PARTS]
    logits, attribution = look([*without.pictures, *lacking, picture])
    scores, stays = logits[:, scene.label], logits.argmax(axis=1) == logits[-1].argmax()
    importance = np.zeros(0)
    if count:
        own = attribution[[scene.label]]
        importance = metrics.part_importance(own, without.masks[None], np.arange(count))[0]
    top, left, bottom, right = look.seen(picture)
    visible = without.masks[:, top:bottom, left:right].any(axis=(1, 2))
    pieces = funnybirds.piece_masks(scene).any(axis=(1, 2))
    hidden = [not pieces[funnybirds.PART_OF == part].any() for part in range(len(PARTS))]
    of_parts = np.where(hidden, np.nan, scores[count:-1]), stays[count:-1]
    return scores[-1], scores[:count], importance, visible, without.certain, stays[:count], *of_parts


def _filled(rows: Sequence[np.ndarray], nothing: float) -> np.ndarray:
    """Rows of different lengths as one array."""
    most = max(len(row) for row in rows)
    return np.stack([np.pad(row, (0, most - len(row)), constant_values=nothing) for row in rows])


def report_background(found: Background) -> None:
    """Prints the share of objects, and of parts, that the logit does not lean on."""
    there, whole = ~np.isnan(found.scores), found.label_scores[:, None]
    print(f"background of {len(whole)} test scenes: less than 5 % of the logit lost, decision stays, median change")
    groups = {
        "objects in sight": (there, found.scores, found.stays),
        "in the crop": (there & found.visible, found.scores, found.stays),
        "plain around": (there & found.visible & found.certain, found.scores, found.stays),
        "touching": (there & found.visible & ~found.certain, found.scores, found.stays),
        "parts in sight": (~np.isnan(found.part_scores), found.part_scores, found.part_stays),
    }
    for name, (chosen, scores, stays) in groups.items():
        share = metrics.background_independence(found.label_scores, np.where(chosen, scores, np.nan))
        change = np.abs(scores / whole - 1)[chosen]
        print(f"  {name:16} {chosen.sum():5} {share:.4f} {stays[chosen].mean():.4f} {np.median(change):.4f}")
    share = metrics.background_independence(found.label_scores, found.scores)
    print(f"  {'all described':16} {found.described:5} {1 - (1 - share) * there.sum() / found.described:.4f}")


def judged(scenes: Sequence[Scene], classes: np.ndarray, look: Look) -> tuple[metrics.Birds, np.ndarray, int]:
    """What the protocol asks of a model: scores with every set of parts, and attributions in the parts.

    Returns:
      The birds; bool `[birds]`, whether every part is seen; and how many pictures were composed.
    """
    scores, importance, total, seen, composed = [], [], [], [], 0
    for scene in tqdm(scenes, desc="parts", unit=" scenes"):
        pictures = []
        for kept in range(2 ** len(PARTS)):
            pixels, rendered = funnybirds.without(scene, [p for i, p in enumerate(PARTS) if not kept >> i & 1])
            pictures.append(pixels)
            composed += not rendered
        logits, attribution = look(pictures)
        masks = funnybirds.piece_masks(scene)
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
    kept = {key: value[chosen] for key, value in birds._asdict().items() if key != "classes" and value is not None}
    return birds._replace(**kept)


if __name__ == "__main__":
    main()
