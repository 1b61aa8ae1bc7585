"""Places to click: the rule that picks maxima which keep their distance, depths in regions and errors, a shaky hand.

Points are (x, y), masks (H, W) bool. What lies outside the image counts as outside every region. `pitch` is the
(height, width) of a pixel where distances are to be in another unit than pixels. Of equal pixels the first in reading
order is taken: the uppermost, then the leftmost.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import islice, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam_laplace_assets.domain.prompts import Point

Mask = NDArray[np.bool_]
FloatMap = NDArray[np.float64]
Pitch = tuple[float, float]
SQUARE: Pitch = (1.0, 1.0)
SPACING = 16.0


def pick(
    scores: NDArray[Any],
    count: int,
    *,
    spacing: float = SPACING,
    border: int = 0,
    earlier: Sequence[tuple[float, float]] | NDArray[Any] = (),
    earlier_radius: float = 0.0,
    turns: Iterator[Mask] | None = None,
) -> list[Point]:
    """Greedy maxima of a score map: the best pixel, then the best that is far enough from those taken, and so on.

    Args:
        scores: (H, W) finite, higher is better.
        count: points to pick at most.
        spacing: least distance between two points, pixels; two points are never the same.
        border: pixels along each side of the image that are left out.
        earlier: (K, 2), (x, y) of earlier clicks; not necessarily whole.
        earlier_radius: least distance from those, pixels; 0 leaves them out of account, 1 excludes their pixels.
        turns: for each point in turn, where it is to lie as long as anything is free there.

    Returns:
        (x, y) of each point, best first; fewer than `count` where nothing is left.
    """
    scores = np.asarray(scores, dtype=np.float64)
    require_map(scores, "scores", scores.shape)
    if count < 0:
        raise ValueError(f"Cannot pick {count} points: the count must not be negative.")
    if min(spacing, border, earlier_radius) < 0:
        raise ValueError(f"spacing {spacing}, border {border} and earlier_radius {earlier_radius} must be 0 or more.")
    free = _inner(scores.shape, border) & _away_from(scores.shape, earlier, earlier_radius)
    points: list[Point] = []
    for turn in islice(turns or repeat(free), count):
        if not free.any():
            break
        chosen = free & turn
        point = best(np.where(chosen if chosen.any() else free, scores, -np.inf))
        points.append(point)
        free = free & (squared_distances(scores.shape, point) >= max(spacing, 1.0) ** 2)
    return points


def _inner(shape: tuple[int, ...], border: int) -> Mask:
    inner = np.zeros(shape, dtype=bool)
    inner[border : max(shape[0] - border, 0), border : max(shape[1] - border, 0)] = True
    return inner


def _away_from(shape: tuple[int, ...], points: Sequence[tuple[float, float]] | NDArray[Any], radius: float) -> Mask:
    away = np.ones(shape, dtype=bool)
    for x, y in np.asarray(points, dtype=np.float64).reshape(-1, 2):
        rows, columns = (slice(max(math.ceil(at - radius), 0), max(math.floor(at + radius) + 1, 0)) for at in (y, x))
        near = away[rows, columns]
        near &= squared_distances(near.shape, (x - columns.start, y - rows.start)) >= radius**2
    return away


def depth(region: Mask, *, pitch: Pitch = SQUARE) -> FloatMap:
    """Distance of each pixel of a region to the nearest pixel outside it; 0 outside.

    Returns:
        (H, W) float64.
    """
    depths = np.zeros(region.shape)
    box = _box_of(region)
    if region[box].size:
        depths[box] = _distance(np.pad(region[box], 1), pitch)[1:-1, 1:-1]
    return depths


def distance_to(region: Mask, *, pitch: Pitch = SQUARE) -> FloatMap:
    """Distance of each pixel to the nearest one of a region: 0 inside, infinite everywhere if the region is empty.

    Returns:
        (H, W) float64.
    """
    return _distance(~region, pitch) if region.any() else np.full(region.shape, np.inf)


def error_depth(truth: Mask, predicted: Mask, *, pitch: Pitch = SQUARE) -> FloatMap:
    """Depth of each wrong pixel in its error: in the false negatives or in the false positives, whichever it is of.

    Its maximum is the next click of the protocol of RITM (Sofiiuk et al. 2021, `Clicker._get_next_click`), but for
    exact ties, where RITM takes a false positive first and this the first in reading order.

    Returns:
        (H, W) float64, 0 where the prediction is right.
    """
    return depth(truth & ~predicted, pitch=pitch) + depth(predicted & ~truth, pitch=pitch)


def best(scores: FloatMap) -> Point:
    """The pixel of the highest score."""
    flat = int(np.argmax(scores))
    return flat % scores.shape[1], flat // scores.shape[1]


def squared_distances(shape: tuple[int, ...], point: tuple[float, float], *, pitch: Pitch = SQUARE) -> FloatMap:
    """Squared distance of each pixel to a point: (H, W) float64, exact where point and pitch are whole."""
    y, x = (np.arange(side, dtype=np.float64) for side in shape)
    rows, columns = np.square((y - point[1]) * pitch[0]), np.square((x - point[0]) * pitch[1])
    distances: FloatMap = rows[:, None] + columns[None, :]
    return distances


def jittered(
    point: Point, *, radius: float, within: Mask, generator: np.random.Generator, pitch: Pitch = SQUARE
) -> Point:
    """A pixel drawn evenly from those of `within` that are nearer than `radius`; the point itself is always one."""
    near = within & (squared_distances(within.shape, point, pitch=pitch) < radius**2)
    near[point[1], point[0]] = True
    flat = int(generator.choice(np.flatnonzero(near)))
    return flat % within.shape[1], flat // within.shape[1]


def require_map(values: NDArray[Any], name: str, shape: tuple[int, ...]) -> None:
    if values.ndim != 2 or not values.size or values.shape != shape:
        raise ValueError(f"The map of {name} has shape {values.shape}: give (H, W) maps of one shape, here {shape}.")
    if not np.isfinite(values).all():
        raise ValueError(f"The map of {name} has {int((~np.isfinite(values)).sum())} pixels that are not finite.")


def require_mask(mask: NDArray[Any], name: str) -> None:
    """Refuse what is not a (H, W) bool array with pixels."""
    if mask.ndim != 2 or mask.dtype != np.bool_ or not mask.size:
        raise ValueError(f"{name} is {mask.dtype} of shape {mask.shape}: give a bool (H, W) array with pixels.")


def _box_of(region: Mask) -> tuple[slice, slice]:
    """The rows and the columns that hold a region: outside of them every pixel is outside it."""
    rows, columns = (np.flatnonzero(region.any(axis=axis)) for axis in (1, 0))
    return _span(rows), _span(columns)


def _span(places: NDArray[np.intp]) -> slice:
    return slice(int(places[0]), int(places[-1]) + 1) if places.size else slice(0, 0)


def _distance(region: Mask, pitch: Pitch) -> FloatMap:
    """Distance to the nearest pixel outside a region, of which there must be one."""
    from scipy.ndimage import distance_transform_edt

    distances: FloatMap = distance_transform_edt(region, sampling=pitch)
    return distances
