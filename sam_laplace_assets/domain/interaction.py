"""The click protocol: a strategy and a simulated annotator take turns with a predictor, and each answer is scored.

Everything is in the frame of the masks, 256x256 in the project. The predictor is a function, so this knows no model;
interactions are advanced together, so that one call of a decoder can serve many.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sam_laplace_assets.domain.acquisition import Maps, named, suggest
from sam_laplace_assets.domain.clicks import Mask, best, depth, jittered, require_mask
from sam_laplace_assets.domain.prompts import Point

MISS = 20
THRESHOLDS = (0.80, 0.85, 0.90)

FloatArray = NDArray[np.float64]
Answer = tuple[Mask, Maps] | tuple[Mask, Maps, Mask]
Source = Literal["head", "sam"]
Predict = Callable[[NDArray[np.int64], Mask], Answer]
PredictMany = Callable[[Sequence["Interaction"]], Sequence[Answer]]


@dataclass(frozen=True)
class Protocol:
    """How an interaction is run.

    Attributes:
        clicks: number of clicks, the first one included.
        border: pixels along the image's sides that are never picked.
        earlier_radius: least distance of a pick from earlier clicks; 1 keeps off their pixels only.
        jitter: the annotator clicks evenly within this radius of the pick, pixels; 0 hits it.
    """

    clicks: int = 20
    border: int = 0
    earlier_radius: float = 1.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if self.clicks < 1 or min(self.border, self.earlier_radius, self.jitter) < 0:
            raise ValueError(f"Cannot run {self}: clicks must be 1 or more, the rest not negative.")


@dataclass(frozen=True, eq=False)
class Trace:
    """What happened in an interaction.

    Attributes:
        points: (K, 2) int64, (x, y) of each click, in its order.
        labels: (K,) bool, whether the object is there.
        ious: (K,) float64, of the head's mask after each click.
        sam_ious: (K,) float64, of SAM's; (0,) where SAM's masks were not given.
    """

    points: NDArray[np.int64]
    labels: Mask
    ious: FloatArray
    sam_ious: FloatArray = field(default_factory=lambda: np.empty(0))

    def curve(self, clicks: int, *, source: Source = "head") -> FloatArray:
        """(clicks,) float64, IoU after each click; a strategy with nothing left to ask keeps its last mask."""
        ious = self.ious if source == "head" else self.sam_ious
        return np.pad(ious, (0, max(clicks - len(ious), 0)), mode="edge")[:clicks]


def first_click(truth: Mask, *, jitter: float = 0.0, generator: np.random.Generator) -> Point:
    """The deepest point of the object, or one evenly within `jitter` pixels of it and on the object."""
    require_mask(truth, "The true mask")
    if not truth.any():
        raise ValueError("Cannot click on the object: the true mask is empty. Leave this sample out.")
    return jittered(best(depth(truth)), radius=jitter, within=truth, generator=generator)


class Interaction:
    """One image, one strategy, one annotator: told an answer, it scores it and clicks again.

    Args:
        truth: (H, W) bool, the true mask.
        strategy: a key of `acquisition.STRATEGIES`.
        first: (x, y) of the first click.
        protocol: how it is run.
        generator: for the strategy's draws and the annotator's hand.
    """

    def __init__(
        self, truth: Mask, strategy: str, first: Point, *, protocol: Protocol, generator: np.random.Generator
    ) -> None:
        require_mask(truth, "The true mask")
        named(strategy)
        height, width = truth.shape
        if not (0 <= first[0] < width and 0 <= first[1] < height):
            raise ValueError(f"The first click (x, y) = {first} lies outside a mask of {height} x {width} pixels.")
        self._truth, self._strategy, self._protocol, self._generator = truth, strategy, protocol, generator
        self._clicks: list[Point] = [first]
        self._ious: list[float] = []
        self._sam_ious: list[float] = []

    @property
    def points(self) -> NDArray[np.int64]:
        """(K, 2) int64, (x, y) of the clicks so far."""
        return np.array(self._clicks, dtype=np.int64)

    @property
    def labels(self) -> Mask:
        """(K,) bool, what the annotator said at each."""
        x, y = self.points.T
        labels: Mask = self._truth[y, x]
        return labels

    @property
    def waiting(self) -> bool:
        """Whether its last click has no answer yet."""
        return len(self._ious) < len(self._clicks)

    def see(self, mask: Mask, maps: Maps, sam_mask: Mask | None = None) -> None:
        """Score the answer to the clicks so far, then click again, unless that was the last click or none is left.

        Args:
            mask: (H, W) bool, the head's.
            maps: what the strategy picks from; the truth is shown to a strategy that needs it, to no other.
            sam_mask: (H, W) bool, SAM's, which is scored beside the head's; given at every click or at none.
        """
        if not self.waiting:
            raise ValueError(f"The interaction is over after {len(self._clicks)} clicks: start another one.")
        self._ious.append(mask_iou(mask, self._truth))
        if sam_mask is not None:
            self._sam_ious.append(mask_iou(sam_mask, self._truth))
        if len(self._clicks) < self._protocol.clicks:
            self._clicks.extend(self._next_click(maps))

    def _next_click(self, maps: Maps) -> list[Point]:
        """The next click, or none."""
        truth = self._truth if named(self._strategy).needs_truth else None
        picks = suggest(
            self._strategy,
            maps.showing(truth),
            1,
            border=self._protocol.border,
            earlier=self.points,
            earlier_radius=self._protocol.earlier_radius,
            generator=self._generator,
        )
        return [self._click_near((one.x, one.y)) for one in picks]

    def _click_near(self, point: Point) -> Point:
        anywhere = np.ones_like(self._truth)
        return jittered(point, radius=self._protocol.jitter, within=anywhere, generator=self._generator)

    def trace(self) -> Trace:
        """What happened; of clicks without an answer, nothing."""
        answered = len(self._ious)
        ious, sam_ious = (np.array(one, dtype=np.float64) for one in (self._ious, self._sam_ious))
        return Trace(self.points[:answered], self.labels[:answered], ious, sam_ious)


def interact(predict: Predict, interaction: Interaction) -> Trace:
    """Run one interaction to its end.

    Args:
        predict: from (K, 2) int64 points (x, y) and (K,) bool labels to a mask (H, W) bool and the maps.
        interaction: a new one.
    """
    return interact_together(lambda waiting: [predict(one.points, one.labels) for one in waiting], [interaction])[0]


def interact_together(predict_many: PredictMany, interactions: Sequence[Interaction]) -> list[Trace]:
    """Run interactions to their ends, click by click together; each gives what it would give alone.

    Args:
        predict_many: answers those that wait for one, in their order, from their `points` and `labels`: the head's mask
            and the maps, and SAM's mask if it is to be scored, too.
        interactions: new ones, of one image or of several.
    """
    while waiting := [one for one in interactions if one.waiting]:
        for one, answer in zip(waiting, predict_many(waiting), strict=True):
            one.see(*answer)
    return [one.trace() for one in interactions]


def mask_iou(mask: Mask, truth: Mask) -> float:
    """Intersection over union of two masks (H, W); of two empty ones, 1."""
    if mask.shape != truth.shape or mask.dtype != np.bool_:
        raise ValueError(f"The mask is {mask.dtype} of shape {mask.shape}, the truth bool of shape {truth.shape}.")
    union = int((mask | truth).sum())
    return float((mask & truth).sum() / union) if union else 1.0


def clicks_to_reach(curves: FloatArray, threshold: float, *, miss: int = MISS) -> NDArray[np.int64]:
    """Number of clicks after which an IoU is first reached (NoC of RITM); a miss counts as `miss`.

    Args:
        curves: (I, N) IoU of I interactions after 1 to N clicks, N at most `miss`.
        threshold: IoU to reach.
        miss: clicks that an interaction counts for that never reached it.

    Returns:
        (I,) int64.
    """
    if curves.ndim != 2 or not 1 <= curves.shape[1] <= miss:
        raise ValueError(f"Curves have shape {curves.shape}: give (I, N) with N from 1 to {miss}, what a miss counts.")
    there = curves >= threshold
    return np.where(there.any(axis=1), there.argmax(axis=1) + 1, miss)


def area_under(curves: FloatArray) -> FloatArray:
    """Area under each IoU curve by trapezoids, over clicks 1 to N, divided by N - 1: (I, N) to (I,) in [0, 1]."""
    if curves.shape[-1] == 1:
        return curves[..., 0]
    area: FloatArray = np.trapezoid(curves, axis=-1) / (curves.shape[-1] - 1)
    return area


def summarise(curves: FloatArray, *, thresholds: Sequence[float] = THRESHOLDS, miss: int = MISS) -> dict[str, float]:
    """Means over interactions of curves (I, N): `area`, `final_iou`, and of each threshold `noc80`, `reached80`."""
    if not len(curves):
        raise ValueError("Cannot summarise: there are no interactions.")
    summary = {"area": float(area_under(curves).mean()), "final_iou": float(curves[:, -1].mean())}
    for threshold in thresholds:
        name = f"{100 * threshold:g}"
        summary[f"noc{name}"] = float(clicks_to_reach(curves, threshold, miss=miss).mean())
        summary[f"reached{name}"] = float((curves >= threshold).any(axis=1).mean())
    return summary


def mean_curve(curves: FloatArray) -> FloatArray:
    """Mean IoU after each click, over interactions: (I, N) to (N,)."""
    means: FloatArray = curves.mean(axis=0)
    return means
