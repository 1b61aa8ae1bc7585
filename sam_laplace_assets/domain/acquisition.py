"""Where to ask next: acquisition strategies by name, each a map of scores and a rule that picks points from it.

Everything is in the frame of the maps, 256x256 in the project: points are (x, y), distances in its pixels, whatever
the shape of the original; `geometry.to_original` leads back. Of equal scores the first in reading order is taken.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam_laplace_assets.domain.click_field import field_variance, information
from sam_laplace_assets.domain.clicks import (
    SPACING,
    FloatMap,
    Mask,
    depth,
    distance_to,
    error_depth,
    pick,
    require_map,
    require_mask,
)

REGION_SIGMA = 8.0
UNCERTAIN_SHARE = 0.5
OUTSIDE_WEIGHT = 1e-6
NEAR_FOREGROUND = 8.0

Clicks = Sequence[tuple[float, float]] | NDArray[Any]


@dataclass(frozen=True, eq=False)
class Maps:
    """What the predictive says of each pixel of one image, and for evaluation what is true.

    Attributes:
        probability: (H, W) float, of the object; in [0, 1].
        entropy: (H, W) float, of the predictive, nats.
        mutual_information: (H, W) float, between label and weights, nats.
        variance: (H, W) float, of the logit.
        truth: (H, W) bool, the true mask; only the oracle reads it.
        clicks: (K, 2), (x, y) of the clicks that the maps already answer to; `suggest` puts its `earlier` here.
    """

    probability: NDArray[Any]
    entropy: NDArray[Any]
    mutual_information: NDArray[Any]
    variance: NDArray[Any]
    truth: Mask | None = None
    clicks: Clicks = ()

    def __post_init__(self) -> None:
        shape = self.probability.shape
        for name in ("probability", "entropy", "mutual_information", "variance"):
            require_map(getattr(self, name), name, shape)
        if self.probability.min() < 0 or self.probability.max() > 1:
            raise ValueError("The map of probability leaves [0, 1]: give probabilities, not logits.")
        if self.truth is not None:
            require_mask(self.truth, "The truth")
            if self.truth.shape != shape:
                raise ValueError(f"The truth is {self.truth.shape}, the maps are {shape}: resize it to theirs.")

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W) of every map."""
        return self.probability.shape

    @property
    def foreground(self) -> Mask:
        """(H, W) bool, where the model expects the object: probability of 0.5 or more."""
        return self.probability >= 0.5

    def showing(self, truth: Mask | None) -> "Maps":
        """The same maps with this truth, or with none."""
        return replace(self, truth=truth)

    def after(self, clicks: Clicks) -> "Maps":
        """The same maps, told which clicks (K, 2) they answer to."""
        return replace(self, clicks=clicks)


Score = Callable[[Maps, np.random.Generator], FloatMap]
Turns = Callable[[Maps, np.random.Generator], Iterator[Mask]]


def _anywhere(maps: Maps, generator: np.random.Generator) -> Iterator[Mask]:
    return repeat(np.ones(maps.shape, dtype=bool))


@dataclass(frozen=True)
class Strategy:
    """A way to choose the next points.

    Attributes:
        score: (H, W) float64, finite, higher is better.
        turns: for each point in turn, where it is to lie as long as anything is free there.
        floor: only points above this score are given.
        random: whether it draws from the generator.
        needs_truth: whether it reads the true mask: for evaluation only.
    """

    score: Score
    turns: Turns = _anywhere
    floor: float = -np.inf
    random: bool = False
    needs_truth: bool = False


@dataclass(frozen=True)
class Suggestion:
    """A point that is worth asking for.

    Attributes:
        x, y: in pixels of the maps.
        score: of its strategy, comparable within one map.
        positive: whether the model expects the object there.
    """

    x: int
    y: int
    score: float
    positive: bool


def suggest(
    name: str,
    maps: Maps,
    count: int,
    *,
    spacing: float = SPACING,
    border: int = 0,
    earlier: Clicks = (),
    earlier_radius: float = 1.0,
    generator: np.random.Generator | None = None,
) -> tuple[Suggestion, ...]:
    """The next points by one strategy, best first; fewer than `count` where the constraints leave no more.

    Args:
        name: of the strategy, a key of `STRATEGIES`.
        maps: of one image.
        count: points to give at most.
        spacing, border, earlier, earlier_radius: as in `pick`; by default no pixel is clicked twice.
        generator: where a random strategy draws from; the same state gives the same points.
    """
    strategy, stream = named(name), generator or np.random.default_rng(0)
    if strategy.random and generator is None:
        raise ValueError(f"Strategy {name} draws at random: give a seeded generator.")
    scores = score_map(name, maps.after(earlier), stream)
    points = pick(
        scores,
        count,
        spacing=spacing,
        border=border,
        earlier=earlier,
        earlier_radius=earlier_radius,
        turns=strategy.turns(maps, stream),
    )
    foreground = maps.foreground
    found = [Suggestion(x, y, float(scores[y, x]), bool(foreground[y, x])) for x, y in points]
    return tuple(one for one in found if one.score > strategy.floor)


def score_map(name: str, maps: Maps, generator: np.random.Generator) -> FloatMap:
    """The scores of one strategy: (H, W) float64, finite, higher is better."""
    strategy = named(name)
    if strategy.needs_truth and maps.truth is None:
        raise ValueError(f"Strategy {name} needs the true mask, and these maps have none: it is for evaluation only.")
    return strategy.score(maps, generator)


def _float(values: NDArray[Any]) -> FloatMap:
    return np.asarray(values, dtype=np.float64)


def bald_region(maps: Maps) -> FloatMap:
    """MI smoothed by a Gaussian of sigma 8 pixels: what a click on a neighbourhood has to say; none off the image."""
    from scipy.ndimage import gaussian_filter

    smoothed: FloatMap = gaussian_filter(_float(maps.mutual_information), sigma=REGION_SIGMA, mode="constant")
    return smoothed


def interior(maps: Maps) -> FloatMap:
    """Distance inside the uncertain region, where the entropy is at least half of the map's highest.

    The weight outside is next to nothing, not nothing: with the region used up, the order is that of the quantity.
    """
    uncertain = maps.entropy >= UNCERTAIN_SHARE * maps.entropy.max()
    return np.maximum(depth(uncertain), OUTSIDE_WEIGHT)


def bald_local(maps: Maps) -> FloatMap:
    """MI of a click's neighbourhood and what is unknown there: the weights, and a local field that clicks make known.

    `bald` asks about the weights, which one click cannot change. Here the logit has a smooth random field as well, of
    which the clicks so far have told the surroundings (`click_field`); smoothed like `bald_region`. The weights' share
    is next to nothing, the field decides. No exclusion around earlier clicks and no border is needed.
    """
    from scipy.ndimage import gaussian_filter

    local = field_variance(maps.shape, maps.clicks)
    gained = information(maps.probability, maps.variance, local)
    smoothed: FloatMap = gaussian_filter(gained, sigma=REGION_SIGMA, mode="constant")
    return smoothed


def oracle(maps: Maps) -> FloatMap:
    """Depth of each wrong pixel in its error; its maximum is RITM's next click."""
    if maps.truth is None:
        raise ValueError("The oracle needs the true mask, and these maps have none: it is for evaluation only.")
    return error_depth(maps.truth, maps.foreground)


def _noise(maps: Maps, generator: np.random.Generator) -> FloatMap:
    """Independent uniform scores: taking the best of what is free, one by one, draws evenly without replacement."""
    return generator.random(maps.shape)


def _near_foreground(maps: Maps, generator: np.random.Generator) -> Iterator[Mask]:
    """The predicted mask and what is within 8 pixels of it."""
    return repeat(distance_to(maps.foreground) <= NEAR_FOREGROUND)


def _sides_by_coin(maps: Maps, generator: np.random.Generator) -> Iterator[Mask]:
    """Predicted foreground or background, with equal chance for each point."""
    foreground = maps.foreground
    while True:
        yield foreground if generator.random() < 0.5 else ~foreground


STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {
        "bald": Strategy(lambda maps, _: _float(maps.mutual_information)),
        "bald_region": Strategy(lambda maps, _: bald_region(maps)),
        "bald_interior": Strategy(lambda maps, _: maps.mutual_information * interior(maps)),
        "bald_local": Strategy(lambda maps, _: bald_local(maps)),
        "entropy": Strategy(lambda maps, _: _float(maps.entropy)),
        "entropy_interior": Strategy(lambda maps, _: maps.entropy * interior(maps)),
        "variance": Strategy(lambda maps, _: _float(maps.variance)),
        "random": Strategy(_noise, random=True),
        "foreground_random": Strategy(_noise, turns=_near_foreground, random=True),
        "balanced_random": Strategy(_noise, turns=_sides_by_coin, random=True),
        "oracle": Strategy(lambda maps, _: oracle(maps), floor=0.0, needs_truth=True),
    }
)


def named(name: str) -> Strategy:
    """The strategy of that name."""
    if name not in STRATEGIES:
        raise ValueError(f"There is no strategy {name!r}. Choose one of {', '.join(STRATEGIES)}.")
    return STRATEGIES[name]


def without_truth() -> tuple[str, ...]:
    """Names of the strategies that need no true mask: those that an annotation tool can offer."""
    return tuple(name for name, one in STRATEGIES.items() if not one.needs_truth)
