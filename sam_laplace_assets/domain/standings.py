"""How click strategies stand after an experiment: curves, areas, clicks to reach an IoU, and paired differences.

An image counts once: what its seeds give is averaged first. Intervals are bootstraps over images, or over their groups.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from sam_laplace_assets.domain.bootstrap import Estimate, difference, estimate
from sam_laplace_assets.domain.experiment import Run
from sam_laplace_assets.domain.geometry import LOW_RES
from sam_laplace_assets.domain.interaction import THRESHOLDS, Source, Trace, area_under, clicks_to_reach

FloatArray = NDArray[np.float64]
Row = dict[str, Any]

SOURCES: tuple[Source, ...] = get_args(Source)
NEAR_EARLIER = 12.0
AT_BORDER = 3
RIVALS = ("random", "foreground_random", "balanced_random", "entropy")
"""What the others are compared with."""


def _reached(curves: FloatArray, *, threshold: float) -> FloatArray:
    return np.asarray((curves >= threshold).any(axis=-1), dtype=np.float64)


def _clicks(curves: FloatArray, *, threshold: float) -> FloatArray:
    return clicks_to_reach(curves, threshold).astype(np.float64)


METRICS: Mapping[str, Callable[[FloatArray], FloatArray]] = {
    "area": area_under,
    "final_iou": lambda curves: curves[:, -1],
    **{f"noc{100 * at:g}": partial(_clicks, threshold=at) for at in THRESHOLDS},
    **{f"reached{100 * at:g}": partial(_reached, threshold=at) for at in THRESHOLDS},
}
COMPARED = {"area": "area", "noc85": "noc85", "final": "final_iou"}
"""Differences are given in these: their name in the table -> the metric."""


@dataclass(frozen=True)
class Standings:
    """All traces of an experiment on I images.

    Attributes:
        sample_ids: (I) of the images.
        groups: (I) what is drawn again with each image: its patient, video or survey line, or its own sample_id.
        strategies: those that were tried, each with every seed on every image.
        seeds: of each strategy.
        clicks: length of the curves; a trace that ended early keeps its last IoU.
        traces: of each image, each run's.
        resamples: bootstrap draws.
    """

    sample_ids: Sequence[str]
    groups: Sequence[str]
    strategies: Sequence[str]
    seeds: Sequence[int]
    clicks: int
    traces: Sequence[Mapping[Run, Trace]]
    resamples: int = 2000

    def __post_init__(self) -> None:
        if not len(self.sample_ids) == len(self.groups) == len(self.traces):
            raise ValueError(f"{len(self.sample_ids)} samples, {len(self.groups)} groups and {len(self.traces)} sets "
                             "of traces do not fit: give one of each an image.")  # fmt: skip
        for sample_id, traces in zip(self.sample_ids, self.traces, strict=True):
            if lacking := [run.name for run in self.runs() if run not in traces]:
                raise ValueError(f"{sample_id} has no trace of {', '.join(lacking)}: play it again.")

    def runs(self) -> Iterator[Run]:
        """Strategies with seeds, in order."""
        return (Run(strategy, seed) for strategy in self.strategies for seed in self.seeds)

    def curves(self, strategy: str, source: Source) -> FloatArray:
        """(I, S, N) IoU after each of N clicks, for each of S seeds."""
        return np.array([[traces[Run(strategy, seed)].curve(self.clicks, source=source) for seed in self.seeds]
                         for traces in self.traces])  # fmt: skip

    def by_image(self, strategy: str, source: Source, metric: str) -> FloatArray:
        """(I,) a metric of `METRICS`, a mean over the image's seeds."""
        images, seeds, clicks = (curves := self.curves(strategy, source)).shape
        means: FloatArray = METRICS[metric](curves.reshape(-1, clicks)).reshape(images, seeds).mean(axis=1)
        return means

    def estimate(self, values: FloatArray) -> Estimate:
        """Mean of one value an image (I,), with its interval."""
        return estimate(values, np.arange(len(values)), groups=np.array(self.groups), resamples=self.resamples)

    def difference(self, ours: FloatArray, theirs: FloatArray) -> Estimate:
        """Mean of ours minus theirs, one value an image each (I,), paired."""
        return difference(ours, theirs, np.arange(len(ours)), groups=np.array(self.groups), resamples=self.resamples)


def curve_rows(standings: Standings) -> Iterator[Row]:
    """Mean IoU after each click, with its interval."""
    for strategy in standings.strategies:
        for source in SOURCES:
            for at, ious in enumerate(standings.curves(strategy, source).mean(axis=1).T, start=1):
                yield {
                    "strategy": strategy,
                    "source": source,
                    "click": at,
                    **_told(standings.estimate(ious), "mean_iou"),
                }


def summary_rows(standings: Standings) -> Iterator[Row]:
    """What each strategy comes to, and where its clicks lie."""
    for strategy in standings.strategies:
        placed = placement([traces[Run(strategy, seed)] for traces in standings.traces for seed in standings.seeds])
        for source in SOURCES:
            values = {metric: standings.by_image(strategy, source, metric) for metric in METRICS}
            means = {metric: float(each.mean()) for metric, each in values.items() if metric != "area"}
            area = _told(standings.estimate(values["area"]), "area")
            yield {"strategy": strategy, "source": source, **area, **means, **placed}


def difference_rows(standings: Standings) -> Iterator[Row]:
    """Each strategy minus each of `RIVALS` on the same images."""
    rivals = [rival for rival in RIVALS if rival in standings.strategies]
    for source in SOURCES:
        for name, metric in COMPARED.items():
            values = {one: standings.by_image(one, source, metric) for one in standings.strategies}
            for strategy in standings.strategies:
                for rival in rivals:
                    if strategy != rival:
                        found = standings.difference(values[strategy], values[rival])
                        yield {"strategy": strategy, "against": rival, "source": source, "metric": name,
                               **_told(found, "difference"), "n_images": found.n_images}  # fmt: skip


def placement(traces: Sequence[Trace]) -> Row:
    """Where the clicks after the first lie, all traces together; None where there are none.

    Returns:
        spacing: median distance to the nearest earlier click, pixels at 256x256.
        near_earlier: share within 12 pixels of an earlier click.
        at_border: share within 3 pixels of the image's side.
        positive: share on the object.
    """
    gaps, sides, labels = (np.concatenate(parts) for parts in zip(*map(_places, traces), strict=True))
    if not len(gaps):
        return dict.fromkeys(("spacing", "near_earlier", "at_border", "positive"))
    return {"spacing": float(np.median(gaps)), "near_earlier": float((gaps <= NEAR_EARLIER).mean()),
            "at_border": float((sides <= AT_BORDER).mean()), "positive": float(labels.mean())}  # fmt: skip


def _places(trace: Trace) -> tuple[FloatArray, NDArray[np.int64], NDArray[np.bool_]]:
    """Of each click after the first: distance to the nearest earlier one, to the nearest side, and its label."""
    points = trace.points
    gaps = [np.linalg.norm(points[:k] - points[k], axis=1).min() for k in range(1, len(points))]
    sides = np.minimum(points, LOW_RES - 1 - points).min(axis=1)
    return np.array(gaps, dtype=np.float64), sides[1:], trace.labels[1:]


def in_words(found: Mapping[str, Any]) -> str:
    """A row of differences in area as a clause: `beats random by +0.084 [+0.069, +0.099]`."""
    rival, mean, low, high = (found[name] for name in ("against", "difference", "low", "high"))
    if low is None:
        return f"differs from {rival} by {mean:+.3f} on {found['n_images']} image, too few to tell"
    said = "beats" if low > 0 else "is worse than" if high < 0 else "cannot be told from"
    return f"{said} {rival}: {mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def _told(found: Estimate, name: str) -> Row:
    return {name: found.mean, "low": found.low, "high": found.high}
