"""Decisions that lean on concepts, for people: where each concept is seen, and the training patches that show it.

The arrays come from `Method.views` of a method with concepts. Boxes are data: top, left, bottom and right as shares of
height and width of the image, so that they hold at any resolution. A map covers the `region` of the image that the
network saw, a box, too: a frozen backbone sees a crop.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from protojax import figures, readable
from protojax.evaluate import number
from protojax.portraits import Subject, matrix

SCHEMA = "protojax.concepts/1"

Box = tuple[float, float, float, float]

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
"""The region of a network that sees whole images."""

CODES_A_CLASS = 10
"""Heaviest codes of a class in the table."""

CODES_A_ROW = 4
"""Codes of a decision in the picture, each with `PATCHES` training patches."""

PATCHES = 3
ROWS_A_PICTURE = 12
"""Decisions in the picture; the records hold all."""

_CODES_DRAWN, _CLASSES_DRAWN = 40, 30
"""Sizes up to which the table is drawn, too."""


def upsampled(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Activation maps `[..., height, width]` at the size of an image, float32, bilinear."""
    maps = np.asarray(maps, np.float32)
    flat = maps.reshape(-1, *maps.shape[-2:])
    resized = [np.asarray(Image.fromarray(one).resize(size[::-1], Image.Resampling.BILINEAR)) for one in flat]
    return np.stack(resized).reshape(*maps.shape[:-2], *size)


def records(
    views: Mapping[str, np.ndarray], subjects: Sequence[Subject], label_names: Sequence[str], region: Box = WHOLE
) -> dict[str, Any]:
    """Decisions, their concepts and the table of classes as plain JSON values.

    Args:
      views: what `Method.views` returned for the subjects, as NumPy arrays.
      subjects: the images of its batch.
      label_names: names of the classes.
      region: of every image, that maps cover.

    Returns:
      `schema`, `label_names`, `region`; `decisions`, each with `id`, `label`, `predicted` and `concepts`, heaviest
      first: `code`, `share` of the decided logit, `highest` share at a position, the `box` of the cell where that is,
      and the `map` of shares; `classes`, each with its heaviest `codes` and `weight`; and `patches` of every code that
      occurs: training examples by `id` with `label`, `similarity` and `box`.
    """
    numbers, weights = views["code_numbers"], np.asarray(views["code_to_class"])
    decisions = []
    for row, subject in enumerate(subjects):
        concepts = [
            {
                "code": int(views["concept_numbers"][row, j]),
                "share": number(views["concept_shares"][row, j]),
                "highest": number(views["concept_maps"][row, j].max()),
                "box": _box(views["concept_maps"][row, j], region),
                "map": [[number(x) for x in line] for line in views["concept_maps"][row, j]],
            }
            for j in np.flatnonzero(views["concept_shares"][row] > 0)
        ]
        predicted = int(views["image_to_class"][row].argmax())
        decisions.append({"id": subject.id, "label": subject.label, "predicted": predicted, "concepts": concepts})
    classes = []
    for label, own in enumerate(weights.T):
        heaviest = [place for place in np.argsort(-own, kind="stable")[:CODES_A_CLASS] if own[place] > 0]
        codes = [{"code": int(numbers[place]), "weight": number(own[place])} for place in heaviest]
        classes.append({"label": label, "active": int((own > 0).sum()), "codes": codes})
    mentioned = {c["code"] for d in decisions for c in d["concepts"]} | {c["code"] for k in classes for c in k["codes"]}
    places = {int(code): place for place, code in enumerate(numbers)}
    return {
        "schema": SCHEMA,
        "label_names": list(label_names),
        "region": [number(x) for x in region],
        "codes": {"all": len(numbers), "active": int(np.asarray(views["code_active"]).sum())},
        "decisions": decisions,
        "classes": classes,
        "patches": {str(code): _patches(views, places[code], region) for code in sorted(mentioned)},
    }


def write(
    folder: str | Path,
    views: Mapping[str, np.ndarray],
    subjects: Sequence[Subject],
    label_names: Sequence[str],
    examples: Any,
    region: Box = WHOLE,
) -> list[Path]:
    """Writes `concepts.json`; for images `concepts.png`, and `code_to_class.png` where the table is not too large.

    Args:
      folder: receives the files; made where it does not exist.
      views: as `records`.
      subjects: as `records`.
      label_names: as `records`.
      examples: all of the data set, from `readable.everything`.
      region: as `records`.

    Returns:
      The files written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found = records(views, subjects, label_names, region)
    files = [folder / "concepts.json"]
    files[0].write_text(json.dumps(found, allow_nan=False) + "\n", encoding="utf-8")
    if readable.has_images(examples) and subjects[0].image.shape[-1] in (1, 3):
        files.append(figures.save(_decisions(found, subjects[:ROWS_A_PICTURE], examples), folder / "concepts.png"))
    codes = list(dict.fromkeys(c["code"] for rank in range(3) for k in found["classes"] for c in k["codes"][rank:][:1]))
    if len(label_names) <= _CLASSES_DRAWN:
        codes = sorted(codes[:_CODES_DRAWN])
        rows = np.flatnonzero(np.isin(views["code_numbers"], codes))
        table = np.asarray(views["code_to_class"])[rows]
        names = [f"code {code}" for code in views["code_numbers"][rows]]
        figure = matrix("Weights from codes (rows) to classes: the heaviest of each class", table, names, label_names)
        files.append(figures.save(figure, folder / "code_to_class.png"))
    return files


def _box(heat: np.ndarray, region: Box) -> list[float]:
    height, width = heat.shape
    row, column = divmod(int(heat.argmax()), width)
    return _within(region, (row / height, column / width, (row + 1) / height, (column + 1) / width))


def _within(region: Box, box: Sequence[float]) -> list[float]:
    """A box of a region as one of the image."""
    top, left, bottom, right = region
    starts, sides = (top, left, top, left), (bottom - top, right - left) * 2
    return [number(start + x * side) for start, x, side in zip(starts, box, sides, strict=True)]


def _patches(views: Mapping[str, np.ndarray], place: int, region: Box) -> list[dict[str, Any]]:
    return [
        {"id": int(id), "label": int(label), "similarity": number(similarity), "box": _within(region, box)}
        for id, label, similarity, box in zip(
            *(views[f"patch_{name}"][place] for name in ("ids", "labels", "similarities", "boxes")), strict=True
        )
        if id >= 0
    ]


def _decisions(found: Mapping[str, Any], subjects: Sequence[Subject], examples: Any) -> Figure:
    """One decision a line: the image, then its heaviest codes, each over the image and with training patches."""
    columns = 1 + CODES_A_ROW * (1 + PATCHES)
    figure = Figure(figsize=(0.85 * columns, 0.5 + 1.25 * len(subjects)), layout="constrained")
    figure.suptitle("Where the codes of a decision are seen, and the training patches most like each", fontsize=10)
    grid = figure.subplots(len(subjects), columns, squeeze=False)
    names = found["label_names"]
    for axes in grid.ravel():
        axes.set_axis_off()
    for line, decision, subject in zip(grid, found["decisions"], subjects, strict=False):
        _show(line[0], subject.image, f"{names[decision['label']]}\n-> {names[decision['predicted']]}")
        for place, concept in enumerate(decision["concepts"][:CODES_A_ROW]):
            first = 1 + place * (1 + PATCHES)
            _show(line[first], subject.image, f"code {concept['code']}\n{concept['share']:.2f}")
            _lay(line[first], np.array(concept["map"]), found["region"], subject.image.shape[:2])
            patches = found["patches"][str(concept["code"])][:PATCHES]
            images = readable.shown(examples, [patch["id"] for patch in patches], "the data set")
            for axes, patch, image in zip(line[first + 1 :], patches, images, strict=False):
                _show(axes, _cut(image, patch["box"]), f"{names[patch['label']][:10]}\n#{patch['id']}")
    return figure


def _lay(axes: Any, heat: np.ndarray, region: Sequence[float], size: tuple[int, int]) -> None:
    """A map over the image: the hotter, the less is seen through it; its own maximum is the hottest."""
    (height, width), (top, left, bottom, right) = size, region
    sides = max(round((bottom - top) * height), 1), max(round((right - left) * width), 1)
    warm = upsampled(heat / max(float(heat.max()), 1e-12), sides).clip(0, 1)
    # Pixels reach half a pixel beyond their centres.
    extent = (left * width - 0.5, right * width - 0.5, bottom * height - 0.5, top * height - 0.5)
    axes.imshow(warm, cmap="inferno", alpha=0.75 * warm, vmin=0, vmax=1, extent=extent)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _cut(image: np.ndarray, box: Sequence[float]) -> np.ndarray:
    height, width = image.shape[:2]
    top, left = int(box[0] * height), int(box[1] * width)
    bottom, right = max(round(box[2] * height), top + 1), max(round(box[3] * width), left + 1)
    return image[top:bottom, left:right]


def _show(axes: Any, image: np.ndarray, title: str) -> None:
    axes.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
    axes.set_title(title, fontsize=6)
