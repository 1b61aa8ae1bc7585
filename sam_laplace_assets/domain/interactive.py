"""Prompt sets like those of real work: a first click on the object, the next ones where the answer so far is wrong.

When prompts are drawn, no model has answered yet: SAM comes later in the graph, and prompts must not depend on its
checkpoint. So the answer is simulated. The signed distance to the true boundary is disturbed by a smooth random field
plus a shift, both in proportion to the size of the object; where the sum is positive, the simulated mask is. The field
loses parts of the object and spills over its edge in pieces, as SAM does; the shift makes the whole too small in some
sets, which then ask for positive clicks, and too large in others, which ask for negative ones. Around each click the
disturbance vanishes, so that a click removes errors and never makes one, and the next click goes elsewhere.

Eroding or dilating the mask would put every error along the edge; clicks drawn from anywhere would not depend on those
before. A model in the loop would be truer, and would make prompts depend on the model.

Lengths are in original pixels. The work is done in a window around the object, on a grid of at most 256 x 256 cells.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from sam_laplace_assets.domain.clicks import (
    FloatMap,
    Mask,
    Pitch,
    best,
    depth,
    distance_to,
    error_depth,
    jittered,
    require_mask,
    squared_distances,
)
from sam_laplace_assets.domain.geometry import LOW_RES
from sam_laplace_assets.domain.prompts import Point, PromptSet

INTERACTIVE_VERSION = "1"
MAX_CLICKS = 20

LEAST_REACH = 0.03  # of the image's size: SAM's errors do not shrink with the object
MARGIN = 2.0  # in reaches, as are the rest
FIELD_LENGTH = (0.35, 1.4)
FIELD_AMPLITUDE = (0.2, 0.8)
WAVES = 64
SHIFT_DEVIATION = 0.3
CLICK_LENGTH = 0.5


@dataclass(frozen=True, eq=False)
class Window:
    """The object and its surroundings.

    Attributes:
        signed: (h, w) float64, original pixels: distance to the boundary, positive on the object, never 0.
        rows: (h,) int64, the row of the original that each row of cells lies in.
        columns: (w,) int64, the same for columns.
        pitch: height and width of a cell, original pixels.
        reach: the scale of errors, original pixels: the radius of a disc of the object's area, or 3 % of the image's.
    """

    signed: FloatMap
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    pitch: Pitch
    reach: float

    @property
    def truth(self) -> Mask:
        """(h, w) bool, the true mask at the cells of the grid; never empty."""
        return self.signed > 0


def draw_interactive_sets(
    mask: Mask, *, sample_id: str, count: int, max_clicks: int, prompt_seed: int, jitter: float = 0.5
) -> tuple[PromptSet, ...]:
    """Prompt sets of one sample: unbalanced, the first click positive, later ones from simulated errors.

    The number of clicks n is drawn with P(n) in proportion to 1 / n for n from 1 to `max_clicks`: every doubling is
    about as likely as the next, and of 20, 28 % have one click and 18 % more than ten. A set ends sooner where its
    simulated mask has no error left. Each set has its own stream, from the seed, the sample and its number. Positive
    and negative points are each in the order of their clicks.

    Args:
        mask: (H, W) bool, in original pixels, with one pixel of the object at least.
        sample_id: "<class>/<stem>".
        count: sets to draw.
        max_clicks: largest number of clicks, from 1 to 20.
        prompt_seed: seed of all prompts.
        jitter: how far from the deepest point of a region a click may fall, as a share of the depth there; below 1,
            so that it stays in the region. 0 clicks the deepest point, and the first click is then always the same.
    """
    if not 1 <= max_clicks <= MAX_CLICKS or count < 0:
        raise ValueError(
            f"Cannot draw {count} prompt sets of up to {max_clicks} clicks: "
            f"max_clicks must be 1 to {MAX_CLICKS}, and the count not negative."
        )
    if not 0 <= jitter < 1:
        raise ValueError(f"jitter is {jitter}, a share of the depth: it must be 0 or more and below 1.")
    require_mask(mask, f"The mask of {sample_id}")
    if not mask.any():
        raise ValueError(f"Cannot click on the object of {sample_id}: its mask has no such pixels. Drop this mask.")
    window = window_around(mask)
    streams = (_stream(prompt_seed, sample_id, index) for index in range(count))
    return tuple(_draw_set(window, index, max_clicks, jitter, stream) for index, stream in enumerate(streams))


def window_around(mask: Mask) -> Window:
    """The object with two reaches around it, inside the image; at full size where a coarser grid misses the object."""
    reach = max(np.sqrt(mask.sum() / np.pi), LEAST_REACH * np.sqrt(mask.size), 1.0)
    margin = int(np.ceil(MARGIN * reach))
    sides = zip(np.nonzero(mask), mask.shape, strict=True)
    spans = [(max(int(on.min()) - margin, 0), min(int(on.max()) + margin + 1, side)) for on, side in sides]
    for most in (LOW_RES, max(mask.shape)):
        (rows, height), (columns, width) = (_cells(*span, most) for span in spans)
        truth = mask[np.ix_(rows, columns)]
        if truth.any():
            break
    pitch = (height, width)
    return Window(depth(truth, pitch=pitch) - distance_to(truth, pitch=pitch), rows, columns, pitch, float(reach))


def _cells(start: int, stop: int, most: int) -> tuple[NDArray[np.int64], float]:
    """The pixel under the centre of each of at most `most` cells between start and stop, and a cell's length."""
    span, cells = stop - start, min(stop - start, most)
    centres = (2 * np.arange(cells, dtype=np.int64) + 1) * span // (2 * cells)
    return start + centres, span / cells


def _stream(prompt_seed: int, sample_id: str, index: int) -> np.random.Generator:
    """Random stream of one prompt set, the same in every process; another one than that of the set drawn in pairs."""
    name = json.dumps(["interactive", prompt_seed, sample_id, index]).encode()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name).digest(), "big"))


def _draw_set(window: Window, index: int, max_clicks: int, jitter: float, stream: np.random.Generator) -> PromptSet:
    wanted = _click_count(max_clicks, stream)
    cells = list(islice(_clicks(window, jitter, stream), wanted))
    on = [bool(window.truth[y, x]) for x, y in cells]
    points = [(int(window.columns[x]), int(window.rows[y])) for x, y in cells]
    pos, neg = (tuple(p for p, there in zip(points, on, strict=True) if there is side) for side in (True, False))
    return PromptSet(index, pos, neg)


def _click_count(max_clicks: int, stream: np.random.Generator) -> int:
    """A number of clicks, P(n) in proportion to 1 / n."""
    weights = 1 / np.arange(1, max_clicks + 1)
    return int(stream.choice(max_clicks, p=weights / weights.sum())) + 1


def _clicks(window: Window, jitter: float, stream: np.random.Generator) -> Iterator[Point]:
    """Cells (x, y) that are clicked one after another, until the simulated mask has no error."""
    disturbance, depths = disturb(window, stream), np.maximum(window.signed, 0)
    while depths.any():
        cell = _click(depths, jitter, stream, window.pitch)
        yield cell
        disturbance = disturbance * _away_from(cell, window)
        depths = error_depth(window.truth, window.signed + disturbance > 0, pitch=window.pitch)


def disturb(window: Window, stream: np.random.Generator) -> FloatMap:
    """What is added to the signed distance before any click: (h, w) float64, original pixels.

    A Gaussian field of standard deviation 0.2 to 0.8 reaches and correlation length 0.35 to 1.4 reaches, and a normal
    shift of standard deviation 0.3 reaches.
    """
    length = float(np.exp(stream.uniform(*np.log(FIELD_LENGTH)))) * window.reach
    amplitude, shift = stream.uniform(*FIELD_AMPLITUDE), stream.normal(0, SHIFT_DEVIATION)
    return window.reach * (amplitude * _smooth_field(window, length, stream) + shift)


def _smooth_field(window: Window, length: float, stream: np.random.Generator) -> FloatMap:
    """Sum of waves of random direction, length and phase: nearly a Gaussian field of mean 0 and variance 1.

    With frequencies from a normal distribution of deviation 1 / length, the covariance at distance d is
    exp(-d^2 / (2 length^2)) (random Fourier features, Rahimi and Recht 2007). cos(a + b) splits into products of
    rows and columns, so the sum is two matrix products, whatever the length.
    """
    frequencies, phases = stream.normal(0, 1 / length, (2, WAVES)), stream.uniform(0, 2 * np.pi, WAVES)
    rows = window.rows[:, None] * frequencies[0] + phases
    columns = window.columns[:, None] * frequencies[1]
    field: FloatMap = np.cos(rows) @ np.cos(columns).T - np.sin(rows) @ np.sin(columns).T
    return field * float(np.sqrt(2 / WAVES))


def _click(depths: FloatMap, jitter: float, stream: np.random.Generator, pitch: Pitch) -> Point:
    """The deepest cell, or one near it; nearer than the depth, so in the same region."""
    deepest = best(depths)
    return jittered(deepest, radius=jitter * float(depths.max()), within=depths > 0, generator=stream, pitch=pitch)


def _away_from(cell: Point, window: Window) -> FloatMap:
    """What a click leaves of the disturbance: nothing at its cell, nearly all beyond a reach."""
    squared = squared_distances(window.signed.shape, cell, pitch=window.pitch)
    left: FloatMap = -np.expm1(-squared / (2 * (CLICK_LENGTH * window.reach) ** 2))
    return left
