"""What a method with prototypes of its own can show of itself: pictures, and the numbers behind them as JSON.

The arrays come from `Method.views`. Every name that is there is drawn; a method shows more by giving more names.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from protojax import figures

SCHEMA = "protojax.portraits/2"


class Subject(NamedTuple):
    """An image that is looked at."""

    id: int
    label: int
    image: np.ndarray
    """uint8 `[h, w, c]`."""


def write(
    folder: str | Path,
    views: Mapping[str, np.ndarray],
    subjects: Sequence[Subject],
    label_names: Sequence[str],
    nearest: Sequence[np.ndarray] = (),
    deformed: np.ndarray | None = None,
) -> list[Path]:
    """Draws the views.

    Args:
      folder: receives `portraits.json` and the pictures; made where it does not exist.
      views: what `Method.views` returned for the subjects, as NumPy arrays.
      subjects: the images of its batch, at least one.
      label_names: names of the classes.
      nearest: uint8 images, the training example nearest to each prototype.
      deformed: `[subjects, h, w, c]` in [0, 1], the subjects as training sees them, where it deforms them.

    Returns:
      The files written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, Figure] = {}
    names = [label_names[subject.label] for subject in subjects]
    originals = [subject.image / 255 for subject in subjects]
    if "reconstructions" in views:
        drawn["reconstructions"] = _rows(
            "Originals over their reconstructions", {"": originals, " ": list(views["reconstructions"])}, names
        )
    if deformed is not None:
        drawn["deformed"] = _rows("Originals over what training sees", {"": originals, " ": list(deformed)}, names)
    if "prototype_pictures" in views:
        drawn["prototypes"] = _prototypes(views, nearest, label_names)
    if "attention_in_image" in views:
        drawn["attention"] = _attention(views, originals, names)
    tables = {
        "prototype_to_class": (
            "Weights of distances (rows: prototypes): nearness speaks for small ones",
            None,
            label_names,
        ),
        "image_to_class": ("Logits of classes for images (rows), minus their mean", names, label_names),
        "feature_to_image": ("Attended features (rows), summed over tokens, for images", None, names),
    }
    for name, (title, rows, columns) in tables.items():
        if name in views:
            values = np.asarray(views[name], np.float64)
            if name == "image_to_class":
                # What all classes have in common decides nothing, and is large where logits are sums of distances.
                values = values - values.mean(axis=1, keepdims=True)
            drawn[name] = matrix(title, values, rows, columns)
    if deformed is not None:
        views = {**views, "deformed": deformed}
    record = {
        "schema": SCHEMA,
        "label_names": list(label_names),
        "images": [{"id": subject.id, "label": subject.label} for subject in subjects],
        "views": {name: _numbers(view) for name, view in views.items()},
    }
    path = folder / "portraits.json"
    path.write_text(json.dumps(record, allow_nan=False) + "\n", encoding="utf-8")
    return [path, *(figures.save(figure, folder / f"{name}.png") for name, figure in drawn.items())]


def matrix(title: str, values: np.ndarray, rows: Sequence[str] | None, columns: Sequence[str]) -> Figure:
    """A table of signed numbers as colours, with the numbers in it where they can be read.

    Args:
      title: stands above.
      values: `[rows, columns]`.
      rows: their names; numbers from 0 where absent.
      columns: their names.
    """
    values = np.asarray(values, np.float64)
    height, width = values.shape
    figure = Figure(figsize=(2.2 + 0.55 * width, 1.4 + 0.32 * height), layout="constrained")
    axes = figure.subplots()
    bound = np.abs(values).max() or 1.0
    image = axes.imshow(values, cmap="PuOr", vmin=-bound, vmax=bound, aspect="auto")
    axes.set_title(title, fontsize=10)
    axes.set_xticks(range(width), [str(name)[:12] for name in columns], rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(height), [str(name)[:12] for name in (rows or range(height))], fontsize=8)
    for y, x in np.ndindex(height, width):
        dark = abs(values[y, x]) > 0.6 * bound
        axes.text(x, y, f"{values[y, x]:.3g}", ha="center", va="center", fontsize=7, color="white" if dark else "black")
    figure.colorbar(image, shrink=0.8)
    return figure


def confusions(path: Path, results: Mapping[str, Mapping[str, Any]], label_names: Sequence[str]) -> Path:
    """Confusion matrices of several runs side by side, as shares of the true class.

    Args:
      path: the PNG to write.
      results: `test` of each run's results, by name; `confusion` is `[true, decided]` counts.
      label_names: names of the classes.
    """
    size = max(3.2, 0.36 * len(label_names) + 1.2)
    figure = Figure(figsize=(size * len(results), size + 0.5), layout="constrained")
    for axes, (name, result) in zip(figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True):
        counts = np.asarray(result["confusion"], np.float64)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        # The root keeps rare confusions visible beside the diagonal.
        axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
        axes.set_title(f"{name}: {np.trace(counts) / counts.sum():.2%}", fontsize=10)
        axes.set(xlabel="decided", ylabel="true")
        axes.set_xticks(range(len(counts)), [n[:10] for n in label_names], rotation=45, ha="right", fontsize=8)
        axes.set_yticks(range(len(counts)), [n[:10] for n in label_names], fontsize=8)
        for y, x in np.argwhere(counts > 0):
            color = "white" if shares[y, x] > 0.4 else "black"
            axes.text(x, y, f"{counts[y, x]:g}", ha="center", va="center", fontsize=6, color=color)
    return figures.save(figure, path)


def _rows(title: str, rows: Mapping[str, Sequence[Any]], names: Sequence[str]) -> Figure:
    """Images in rows, column by column the same subject."""
    figure, grid = _grid(title, len(rows), names)
    for line, images in zip(grid, rows.values(), strict=True):
        for axes, image in zip(line, images, strict=True):
            _show(axes, image)
    return figure


def _attention(views: Mapping[str, np.ndarray], originals: Sequence[np.ndarray], names: Sequence[str]) -> Figure:
    """Where the tokens look that get more, or less, attention than others; and the attended tokens decoded."""
    title = "Originals, where the tokens with attention look, attended tokens decoded"
    figure, grid = _grid(title, 3, names)
    # Beyond these ends one pixel would leave all others pale.
    times = np.log2(np.clip(np.asarray(views["attention_in_image"], np.float64), 1 / 16, 16))
    bound = max(float(np.abs(times).max()), 0.01)
    for column, original in zip(range(len(names)), originals, strict=True):
        _show(grid[0, column], original)
        _show(grid[1, column], original)
        heat = grid[1, column].imshow(times[column], cmap="coolwarm", vmin=-bound, vmax=bound, alpha=0.6)
        _show(grid[2, column], views["reconstructions"][column])
    bar = figure.colorbar(heat, ax=grid, shrink=0.8, ticks=[-bound, 0, bound])
    bar.ax.set_yticklabels([f"{2**tick:.2g}" for tick in (-bound, 0, bound)], fontsize=7)
    bar.set_label("times equal attention", fontsize=7)
    return figure


def _grid(title: str, lines: int, names: Sequence[str]) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(max(0.8 * len(names), 6), 0.6 + 0.95 * lines), layout="constrained")
    figure.suptitle(title, fontsize=10)
    grid = figure.subplots(lines, len(names), squeeze=False)
    for axes in grid.ravel():
        axes.set_axis_off()
    for axes, name in zip(grid[0], names, strict=True):
        axes.set_title(name[:12], fontsize=7)
    return figure, grid


def _numbers(view: np.ndarray) -> Any:
    """Nested lists for JSON, which has no infinity: None stands for what is not there."""
    rounded = np.asarray(view, np.float64).round(6)
    return np.where(np.isfinite(rounded), rounded, None).tolist()


def _prototypes(views: Mapping[str, np.ndarray], nearest: Sequence[np.ndarray], label_names: Sequence[str]) -> Figure:
    pictures, distances = views["prototype_pictures"], views["nearest_distances"]
    columns = min(8, len(pictures))
    lines = -(-len(pictures) // columns)
    figure = Figure(figsize=(1.15 * columns, 0.6 + 2.5 * lines), layout="constrained")
    figure.suptitle("Prototypes, decoded, over the training example nearest to each", fontsize=10)
    grid = figure.subplots(2 * lines, columns, squeeze=False)
    for axes in grid.ravel():
        axes.set_axis_off()
    for j, picture in enumerate(pictures):
        line, column = divmod(j, columns)
        above, below = grid[2 * line, column], grid[2 * line + 1, column]
        above.set_title(f"prototype {j}", fontsize=8)
        _show(above, picture)
        if j < len(nearest):
            label, id = label_names[int(views["nearest_labels"][j, 0])], int(views["nearest_ids"][j, 0])
            below.set_title(f"{label[:12]} #{id}\ndistance {distances[j, 0]:.3g}", fontsize=7)
            _show(below, nearest[j] / 255)
    return figure


def _show(axes: Any, image: np.ndarray) -> None:
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    axes.imshow(np.clip(pixels, 0, 1), cmap="gray", vmin=0, vmax=1)
