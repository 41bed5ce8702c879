"""Every picture: the curves of an evaluation, and grids of decisions with their prototypes.

Colours are those of Okabe and Ito, which stay apart for colour-blind readers; no picture tells things apart by colour
alone. Figures are drawn without pyplot, so that nothing needs a display and nothing global changes.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
GREY, RED = "#595959", "#C00000"

_STYLES = (
    {"color": BLUE, "linestyle": "-", "marker": "o"},
    {"color": VERMILLION, "linestyle": "--", "marker": "s"},
    {"color": GREEN, "linestyle": "-.", "marker": "^"},
    {"color": PURPLE, "linestyle": ":", "marker": "D"},
    {"color": ORANGE, "linestyle": "-", "marker": "v"},
    {"color": SKY, "linestyle": "--", "marker": "P"},
)

_DPI = 150


def evaluation(folder: str | Path, results: Mapping[str, Any]) -> list[Path]:
    """Draws the curves of an evaluation.

    Args:
      folder: receives the pictures; made where it does not exist.
      results: what `evaluate.results` returned; with `shift`, a dict of `evaluate.shift` results by name of the
        shifted set, and `neighbours`, what `neighbours.results` returned, these are drawn, too.

    Returns:
      The files written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {
        "coverage_curve.png": _coverage(results),
        "reliability.png": _reliability(results),
        "confidence.png": _confidence(results["confidence"]),
    }
    if results["support"]["distribution"] is not None:
        drawn["support_size.png"] = _support(results["support"])
    if results.get("shift"):
        drawn["shift.png"] = _shift(results["shift"])
    if results.get("neighbours"):
        drawn["neighbours.png"] = _neighbours(results["neighbours"])
    return [save(figure, folder / name) for name, figure in drawn.items()]


def _coverage(results: Mapping[str, Any]) -> Figure:
    curve = results["coverage_curve"]
    figure, axes = _axes("Accuracy against the share of examples decided", "share of examples decided", "accuracy")
    _curve(axes, curve, "accuracy", "accuracy", 0)
    if "auc" in curve:
        _curve(axes, curve, "auc", "AUC", 1)
        axes.set_ylabel("accuracy, AUC")
    if (everything := results["accuracy"]["encoder"]) is not None:
        axes.axhline(
            everything, color=GREY, linewidth=1, linestyle=":", label=f"encoder, all decided: {everything:.4f}"
        )
    _decided(axes, [curve])
    _legend(figure)
    return figure


def _neighbours(results: Mapping[str, Any]) -> Figure:
    title = f"Beside deep k-nearest neighbours (k = {results['k']})"
    figure, axes = _axes(title, "share of examples decided", "accuracy")
    names = {
        "method": "this method: confidence",
        "neighbours_confidence": "dkNN: confidence",
        "neighbours_credibility": "dkNN: credibility",
    }
    for i, (key, name) in enumerate(names.items()):
        _curve(axes, results["coverage_curve"][key], "accuracy", name, i)
    _decided(axes, list(results["coverage_curve"].values()))
    _legend(figure)
    return figure


def _curve(axes: Axes, curve: Mapping[str, list[Any]], of: str, name: str, style: int) -> None:
    points = [(share, value) for share, value in zip(curve["share"], curve[of], strict=True) if value is not None]
    axes.plot(*zip(*points, strict=True), label=name, markersize=3.5, linewidth=1.5, **_STYLES[style])


def _decided(axes: Axes, curves: Sequence[Mapping[str, list[Any]]]) -> None:
    least = min(share for curve in curves for share in curve["share"] if share > 0)
    # A confident method withholds little, and its curve would be a speck on an axis from 0 to 1.
    room = max(1 - least, 0.02)
    axes.set_xlim(1 - 1.05 * room, 1 + 0.02 * room)
    axes.xaxis.set_major_formatter(PercentFormatter(1))


def _reliability(results: Mapping[str, Any]) -> Figure:
    figure, (axes, below) = _axes(
        "Reliability", "confidence", "accuracy in the bin", rows=2, height_ratios=(3, 1), figsize=(6.4, 5.6)
    )
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="perfectly calibrated")
    names = {
        "confidence": ("confidence C", results["confidence"]["ece"]),
        "encoder": ("largest encoder score", results["ece"]["encoder"]),
        "prototypes": ("largest prototype score", results["ece"]["prototypes"]),
    }
    for i, (key, bins) in enumerate(results["reliability"].items()):
        name, error = names[key]
        points = [p for p in zip(bins["confidence"], bins["accuracy"], strict=True) if p[0] is not None]
        label = f"{name} (ECE {error:.3f})"
        # Thinner and thinner, so that curves that coincide remain visible.
        axes.plot(*zip(*points, strict=True), label=label, markersize=8 - 2 * i, linewidth=2.6 - 0.8 * i, **_STYLES[i])
        edges = np.linspace(0, 1, len(bins["counts"]) + 1)
        style = {"color": _STYLES[i]["color"], "linestyle": _STYLES[i]["linestyle"]}
        below.stairs(np.asarray(bins["counts"]) / sum(bins["counts"]), edges, linewidth=2.6 - 0.8 * i, **style)
    _legend(figure)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="")
    below.set(xlim=(0, 1.02), ylabel="share of\nexamples", xlabel="confidence")
    below.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def _confidence(confidence: Mapping[str, Any]) -> Figure:
    figure, axes = _axes("Confidence of right and of wrong decisions", "confidence", "share of these decisions")
    histogram = confidence["histogram"]
    looks = {
        "right": {"color": BLUE, "fill": True, "alpha": 0.45},
        "wrong": {"color": VERMILLION, "linewidth": 2, "hatch": "///"},
    }
    for name, look in looks.items():
        counts = np.asarray(histogram[name])
        mean = f", mean {confidence[name]:.3f}" if counts.sum() else ""
        label = f"{name} ({counts.sum()}{mean})"
        axes.stairs(counts / max(counts.sum(), 1), histogram["edges"], label=label, **look)
    axes.set_xlim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    _legend(figure)
    return figure


def _support(support: Mapping[str, Any]) -> Figure:
    figure, axes = _axes("Prototypes of a decision", "prototypes with a weight", "examples")
    edges, counts = np.asarray(support["distribution"]["edges"]), support["distribution"]["counts"]
    # A bin [a, a + 1) holds the size a, so its bar is drawn around it.
    axes.stairs(counts, edges - 0.5, fill=True, color=SKY, edgecolor="white")
    axes.axvline(support["median"], color=BLUE, linewidth=1.5, label=f"median {support['median']:g}")
    mean = f"mean {support['mean']:.1f}"
    axes.axvline(support["mean"], color=VERMILLION, linewidth=1.5, linestyle="--", label=mean)
    axes.plot([], [], " ", label=f"largest {support['max']}")
    if len(counts) <= support["max"]:
        axes.set_xscale("symlog", linthresh=10)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(-0.5, edges[-1] - 0.5)
    _legend(figure)
    return figure


def _shift(shifts: Mapping[str, Mapping[str, Any]]) -> Figure:
    title = "Share of examples above a confidence level"
    figure, axes = _axes(title, "confidence level", "share of examples", figsize=(6.4, 4.4))
    test = next(iter(shifts.values()))
    axes.plot(test["levels"], test["share"]["test"], color="black", linewidth=2, label="test set")
    for i, (name, shift) in enumerate(shifts.items()):
        style = _STYLES[i % len(_STYLES)]
        # A different offset of the markers keeps curves that coincide visible.
        label = f"{name} (AUROC {shift['auroc']:.3f})"
        axes.plot(shift["levels"], shift["share"]["shifted"], label=label, markevery=(3 * i, 12), markersize=4, **style)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    _legend(figure)
    return figure


def _axes(
    title: str, x: str, y: str, rows: int = 1, figsize: tuple[float, float] = (6.4, 4.2), **options: Any
) -> tuple[Figure, Any]:
    figure = Figure(figsize=figsize, layout="constrained")
    axes = figure.subplots(rows, **options)
    for each in np.atleast_1d(axes):
        each.spines[["top", "right"]].set_visible(False)
        each.grid(color="#E0E0E0", linewidth=0.6)
        each.set_axisbelow(True)
    first = np.atleast_1d(axes)[0]
    first.set_title(title)
    first.set(xlabel=x, ylabel=y)
    return figure, axes


def _legend(figure: Figure) -> None:
    # Outside the axes, where no curve can run through it.
    figure.legend(loc="outside lower center", ncols=2, frameon=False)


class Cell(NamedTuple):
    """One prototype in a grid."""

    image: np.ndarray
    """uint8 `[h, w]`, `[h, w, 1]` or `[h, w, 3]`."""
    above: str
    label: str
    id: int
    marked: bool
    """Framed in red, because its label is wrong."""


class Row(NamedTuple):
    """One decision in a grid."""

    image: np.ndarray
    """The query, shaped like the prototypes or not."""
    lines: Sequence[tuple[str, bool]]
    """Text beside the query; True marks a line in red."""
    prototypes: Sequence[Cell]
    note: str
    """Stands after the prototypes."""


_SIDE, _GAP = 1.0, 0.2
_QUERY_TEXT, _NOTE = 1.75, 0.95
_ABOVE, _BELOW, _TITLE, _MARGIN, _WIDEST_TITLE = 0.26, 0.54, 0.42, 0.15, 12.0


def grid(path: str | Path, title: str, rows: Sequence[Row]) -> Path:
    """Draws decisions, one a line: the query, what was decided, and its prototypes, heaviest first.

    Args:
      path: the PNG to write.
      title: stands above, in lines where it is long.
      rows: at least one decision.
    """
    columns = max(1, *(len(row.prototypes) for row in rows))
    left = _MARGIN + _SIDE + _QUERY_TEXT
    width = left + columns * (_SIDE + _GAP) + (_NOTE if any(row.note for row in rows) else 0) + _MARGIN
    width = max(width, min(0.11 * len(title), _WIDEST_TITLE))
    title = textwrap.fill(title, round(width / 0.11))
    pitch, head = _ABOVE + _SIDE + _BELOW, _TITLE + 0.19 * title.count("\n")
    height = head + len(rows) * pitch + _MARGIN
    figure = Figure(figsize=(width, height))
    # One set of axes measured in inches from the top left corner: placing a hundred images needs no hundred axes.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.text(_MARGIN, _MARGIN, title, va="top", fontsize=11, weight="bold", parse_math=False)
    for i, row in enumerate(rows):
        top = head + i * pitch + _ABOVE
        _image(axes, row.image, _MARGIN, top, "black", 1.0)
        y = top
        for text, marked in row.lines:
            for line in textwrap.wrap(text, 20 if marked else 24, max_lines=2, placeholder=" …"):
                look = {"color": RED, "weight": "bold"} if marked else {}
                axes.text(_MARGIN + _SIDE + 0.12, y, line, va="top", fontsize=8.5, parse_math=False, **look)
                y += 0.165
        for j, cell in enumerate(row.prototypes):
            _prototype(axes, cell, left + j * (_SIDE + _GAP), top)
        x = left + len(row.prototypes) * (_SIDE + _GAP)
        axes.text(x, top + _SIDE / 2, row.note, va="center", fontsize=8.5, color=GREY)
        if i:
            axes.plot([_MARGIN, width - _MARGIN], [top - _ABOVE - 0.02] * 2, color="#D0D0D0", linewidth=0.6)
    axes.set(xlim=(0, width), ylim=(height, 0))
    return save(figure, Path(path))


def _prototype(axes: Axes, cell: Cell, x: float, y: float) -> None:
    _image(axes, cell.image, x, y, *((RED, 3.0) if cell.marked else ("#A0A0A0", 0.8)))
    middle = x + _SIDE / 2
    axes.text(middle, y - 0.05, cell.above, ha="center", va="bottom", fontsize=9, weight="bold")
    look = {"color": RED, "weight": "bold"} if cell.marked else {}
    lines = textwrap.wrap(cell.label, 14 if cell.marked else 16, max_lines=2, placeholder=" …")
    y += _SIDE + 0.06
    for line in lines:
        axes.text(middle, y, line, ha="center", va="top", fontsize=8.5, parse_math=False, **look)
        y += 0.14
    axes.text(middle, y, f"#{cell.id}", ha="center", va="top", fontsize=7.5, color=GREY)


def _image(axes: Axes, image: np.ndarray, x: float, y: float, color: str, linewidth: float) -> None:
    pixels = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
    scale = _SIDE / max(pixels.shape[:2])
    h, w = (side * scale for side in pixels.shape[:2])
    x, y = x + (_SIDE - w) / 2, y + (_SIDE - h) / 2
    # Small images keep their square pixels; larger ones are smoothed into the space they get.
    how = "nearest" if max(pixels.shape[:2]) <= 64 else "antialiased"
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=(x, x + w, y + h, y), interpolation=how, aspect="auto")
    axes.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=color, linewidth=linewidth))


def save(figure: Figure, path: Path) -> Path:
    """Writes a figure as PNG without any display; returns the path."""
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=_DPI)
    return path
