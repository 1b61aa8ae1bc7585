"""Pictures of what the posterior says of an image: suggested clicks of several, and one prediction."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sam_laplace_assets.assets import pictures
from sam_laplace_assets.domain.acquisition import Maps
from sam_laplace_assets.domain.prompts import Point, PromptSet
from sam_laplace_assets.domain.scores import NextPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POSITIVE, NEGATIVE, CONTOUR = "#1a9850", "#d73027", "#00e5ff"
"""Green: on the object; red: beside it; the outline of the predicted mask."""
LARGEST = 1024
"""Longest side of an image in a picture, pixels."""


@dataclass(frozen=True, eq=False)
class Row:
    """One image of the sheet.

    Attributes:
        title: what it is.
        image: (H, W, 3) uint8.
        maps: of its answer, (256, 256).
        scores: (256, 256), of the strategy.
        prompt_set: the clicks so far, original pixels.
        points: the suggested ones.
    """

    title: str
    image: np.ndarray
    maps: Maps
    scores: np.ndarray
    prompt_set: PromptSet
    points: Sequence[NextPoint]


def draw_scores(rows: Sequence[Row], *, strategy: str) -> bytes:
    """For each image: itself with clicks, outline and suggestions, probability, MI, and the strategy's scores."""
    heights = [2.75 * _aspect(*row.image.shape[:2]) + 0.4 for row in rows]
    figure = pictures.new_figure(11.5, sum(heights) + 0.3)
    grid = figure.subplots(len(rows), 4, squeeze=False, height_ratios=heights)
    for axes, row in zip(grid, rows, strict=True):
        height, width = row.image.shape[:2]
        _show_clicks(axes[0], row.image, row.maps.foreground, row.prompt_set, row.points)
        axes[0].set_title(row.title, fontsize=8, loc="left")
        information = row.maps.mutual_information
        panels = {"probability": (row.maps.probability, {"cmap": "gray", "vmin": 0, "vmax": 1}),
                  _about(information): (information, _heat(information)),
                  f"score: {strategy}": (row.scores, {"cmap": "viridis", "vmin": 0})}  # fmt: skip
        for place, (name, (values, style)) in zip(axes[1:], panels.items(), strict=True):
            _show_map(place, values, (height, width), **style)
            place.set_title(name, fontsize=8)
        _mark_places(axes[3], row.points)
    figure.suptitle("+ and x: clicks so far   numbers: suggested, green where the model expects the object, else red   "
                    "blue: outline of the predicted mask", fontsize=8)  # fmt: skip
    return pictures.as_png(figure)


def draw_prediction(
    image: np.ndarray, mask: np.ndarray, probability: np.ndarray, information: np.ndarray, prompt_set: PromptSet,
    points: Sequence[NextPoint], *, title: str,
) -> bytes:  # fmt: skip
    """One prediction: the image with clicks, outline and suggestions, then probability and MI.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) bool.
        probability: (H, W).
        information: (H, W), nats.
        prompt_set: the clicks, original pixels.
        points: suggested next.
        title: what it is of.
    """
    height, width = image.shape[:2]
    step = -(-max(height, width) // LARGEST)
    figure = pictures.new_figure(12, 3.9 * _aspect(height, width) + 0.7)
    axes = figure.subplots(1, 3)
    _show_clicks(axes[0], image[::step, ::step], mask[::step, ::step], prompt_set, points, size=(height, width))
    axes[0].set_title("clicks (+ x), outline of the mask, suggested next (numbers)", fontsize=9)
    _show_map(axes[1], probability[::step, ::step], (height, width), cmap="gray", vmin=0, vmax=1)
    axes[1].set_title("probability", fontsize=9)
    shown = information[::step, ::step]
    _show_map(axes[2], shown, (height, width), **_heat(shown))
    axes[2].set_title(_about(shown), fontsize=9)
    figure.suptitle(title, fontsize=10)
    return pictures.as_png(figure)


def _show_clicks(
    axes: "Axes", image: np.ndarray, mask: np.ndarray, prompt_set: PromptSet, points: Sequence[NextPoint],
    *, size: tuple[int, int] | None = None,
) -> None:  # fmt: skip
    height, width = size or image.shape[:2]
    axes.imshow(image, extent=_extent(height, width), aspect="auto")
    if mask.any() and not mask.all() and min(mask.shape) > 1:
        columns, rows = (_centres(count, side) for count, side in ((mask.shape[1], width), (mask.shape[0], height)))
        axes.contour(columns, rows, mask, levels=[0.5], colors=CONTOUR, linewidths=1)
    for clicked, marker, colour in ((prompt_set.pos, "+", POSITIVE), (prompt_set.neg, "x", NEGATIVE)):
        _mark_clicks(axes, clicked, marker, colour)
    for one in points:
        axes.text(one.x, one.y, str(one.rank), color="white", fontsize=6, ha="center", va="center",
                  bbox={"boxstyle": "circle,pad=0.2", "facecolor": _colour(one), "edgecolor": "white", "lw": 0.4},
                  clip_on=False)  # fmt: skip
    _frame(axes, height, width)


def _mark_clicks(axes: "Axes", clicked: Iterable[Point], marker: str, colour: str) -> None:
    for width, ink in ((3.5, "white"), (1.8, colour)):  # a white rim, to be seen on any ground
        axes.scatter([x for x, _ in clicked], [y for _, y in clicked], marker=marker, c=ink, s=45, linewidths=width)


def _mark_places(axes: "Axes", points: Sequence[NextPoint]) -> None:
    """Rings on the score map, which is drawn in original pixels, too."""
    for one in points:
        axes.plot(one.x, one.y, "o", markersize=6, markerfacecolor=_colour(one), markeredgecolor="white", clip_on=False)


def _about(information: np.ndarray) -> str:
    return f"mutual information, white: {_bright(information):.1e} nats or more"


def _heat(information: np.ndarray) -> dict[str, Any]:
    return {"cmap": "magma", "vmin": 0, "vmax": _bright(information)}


def _bright(information: np.ndarray) -> float:
    """What one pixel in 200 exceeds: a few at the border are often ten times higher than all others."""
    return float(np.quantile(information, 0.995)) or float(information.max()) or 1.0


def _colour(point: NextPoint) -> str:
    return POSITIVE if point.positive else NEGATIVE


def _show_map(axes: "Axes", values: np.ndarray, size: tuple[int, int], **style: Any) -> None:
    axes.imshow(values, extent=_extent(*size), aspect="auto", interpolation="nearest", **style)
    _frame(axes, *size)


def _frame(axes: "Axes", height: int, width: int) -> None:
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    axes.set_box_aspect(_aspect(height, width))
    axes.set_axis_off()


def _aspect(height: int, width: int) -> float:
    """Height of a panel by its width; a strip is stretched, so as to be seen."""
    return min(max(height / width, 0.4), 1.5)


def _extent(height: int, width: int) -> tuple[float, float, float, float]:
    return -0.5, width - 0.5, height - 0.5, -0.5


def _centres(count: int, side: int) -> np.ndarray:
    """Where the centres of `count` pixels lie on a side of the original."""
    centres: np.ndarray = (np.arange(count) + 0.5) * side / count - 0.5
    return centres
