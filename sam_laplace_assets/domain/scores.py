"""What a model's maps of one image say to an annotator: where to click next, and how the mask as a whole stands."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sam_laplace_assets.domain.acquisition import Maps, Suggestion, named, suggest, without_truth
from sam_laplace_assets.domain.geometry import to_low_res, to_original
from sam_laplace_assets.domain.prompts import Point, PromptSet

if TYPE_CHECKING:
    from sam_laplace_assets.domain.answering import Answer

SCORES_VERSION = "1"
UNDECIDED = (0.1, 0.9)


@dataclass(frozen=True)
class Rule:
    """How next points are chosen; lengths in pixels of the maps, as in `acquisition.suggest`."""

    strategy: str
    suggestions: int
    spacing: float
    border: int
    earlier_radius: float
    seed: int

    def __post_init__(self) -> None:
        require_offered(self.strategy)

    @property
    def in_words(self) -> str:
        """`bald_local: 10 points, 16 px apart, ...`, for a reader."""
        border = f"{self.border} px from the border" if self.border else "up to the border"
        return (f"{self.strategy}: {self.suggestions} points, {self.spacing:g} px apart, {border}, "
                f"{self.earlier_radius:g} px from earlier clicks (of 256)")  # fmt: skip


@dataclass(frozen=True)
class NextPoint:
    """A point that is worth asking an annotator for.

    Attributes:
        x, y: in original pixels.
        positive: whether the model expects the object there.
        score: of the strategy, comparable within one image.
        rank: 1 is the best.
        x_256, y_256: in pixels of the maps.
    """

    x: int
    y: int
    positive: bool
    score: float
    rank: int
    x_256: int
    y_256: int


@dataclass(frozen=True)
class MapSummary:
    """How the answer to one prompt set stands as a whole; means over all pixels of the 256x256 maps, nats.

    Attributes:
        mean_mutual_information, max_mutual_information, mean_entropy, max_entropy: of those maps.
        boundary_mutual_information: mean over pixels of the mask beside the background; None without any.
        undecided_fraction: share of pixels whose probability is between 0.1 and 0.9.
        foreground_fraction: share of pixels of the predicted mask.
        expected_iou: of the predicted mask with a true one, see `expected_iou`.
    """

    mean_mutual_information: float
    max_mutual_information: float
    boundary_mutual_information: float | None
    mean_entropy: float
    max_entropy: float
    undecided_fraction: float
    foreground_fraction: float
    expected_iou: float


def require_offered(strategy: str) -> str:
    """The strategy itself, if it is one that needs no true mask. Raises ValueError, naming those that exist."""
    if strategy not in without_truth():
        raise ValueError(f"there is no strategy {strategy!r} to ask annotators by; choose one of "
                         f"{', '.join(without_truth())}")  # fmt: skip
    return strategy


def maps_of(answer: "Answer") -> Maps:
    """The maps that strategies read, (256, 256) each."""
    found = answer.quantities
    parts = (found.probability, found.predictive_entropy, found.mutual_information)
    probability, entropy, information = (part.numpy() for part in parts)
    return Maps(probability, entropy, information, answer.variance)


def next_points(
    maps: Maps, prompt_set: PromptSet, *, rule: Rule, image_size: tuple[int, int], stream_name: str
) -> tuple[NextPoint, ...]:
    """Where to click next on an image, best first; no two in one original pixel, none where there was a click.

    Fewer than `rule.suggestions` where the image or the rule has no room for more.

    Args:
        maps: of the answer to the clicks so far.
        prompt_set: those clicks, original pixels.
        rule: how to choose.
        image_size: (H, W) of the original.
        stream_name: what a random strategy's stream is named by, beside the seed.
    """
    clicks = [*prompt_set.pos, *prompt_set.neg]
    wanted = rule.suggestions
    while True:
        found = _suggested(maps, clicks, rule=rule, count=wanted, image_size=image_size, stream_name=stream_name)
        kept = list(_distinct(found, clicks, image_size))[: rule.suggestions]
        if len(kept) == rule.suggestions or len(found) < wanted:
            break
        wanted *= 2  # points 16 px apart in the maps may lie in one pixel of a tiny image
    return tuple(NextPoint(*place, one.positive, one.score, rank, one.x, one.y)
                 for rank, (place, one) in enumerate(kept, start=1))  # fmt: skip


def _suggested(
    maps: Maps, clicks: Sequence[Point], *, rule: Rule, count: int, image_size: tuple[int, int], stream_name: str
) -> tuple[Suggestion, ...]:
    height, width = image_size
    earlier = to_low_res(np.array(clicks), image_h=height, image_w=width)
    return suggest(rule.strategy, maps, count, spacing=rule.spacing, border=rule.border, earlier=earlier,
                   earlier_radius=rule.earlier_radius, generator=stream(rule.seed, stream_name))  # fmt: skip


def _distinct(
    found: Sequence[Suggestion], clicks: Iterable[Point], image_size: tuple[int, int]
) -> Iterator[tuple[Point, Suggestion]]:
    """Each suggestion with its original pixel, without those whose pixel is taken."""
    taken, (height, width) = set(clicks), image_size
    places = to_original(np.array([(one.x, one.y) for one in found]), image_h=height, image_w=width)
    for (x, y), one in zip(places.tolist(), found, strict=True):
        if (x, y) not in taken:
            taken.add((x, y))
            yield (x, y), one


def stream(seed: int, name: str) -> np.random.Generator:
    """Random stream of one answer, the same in every process and on every machine."""
    named_by = hashlib.sha256(json.dumps([seed, name]).encode()).digest()
    return np.random.default_rng(int.from_bytes(named_by, "big"))


def ranks_images(strategy: str) -> bool:
    """Whether a strategy's scores say which image needs a click most: those drawn at random do not."""
    return not named(strategy).random


def summarise(maps: Maps) -> MapSummary:
    """How one answer stands as a whole."""
    probability, information = maps.probability, maps.mutual_information
    edge = boundary(maps.foreground)
    low, high = UNDECIDED
    return MapSummary(
        mean_mutual_information=float(information.mean()), max_mutual_information=float(information.max()),
        boundary_mutual_information=float(information[edge].mean()) if edge.any() else None,
        mean_entropy=float(maps.entropy.mean()), max_entropy=float(maps.entropy.max()),
        undecided_fraction=float(((probability > low) & (probability < high)).mean()),
        foreground_fraction=float(maps.foreground.mean()), expected_iou=expected_iou(probability),
    )  # fmt: skip


def expected_iou(probability: NDArray[Any]) -> float:
    """IoU of the mask `probability >= 0.5` with a true mask whose pixels are drawn with these probabilities.

    It is the expected intersection over the expected union: the limit of many independent pixels, and exact where the
    probabilities are 0 and 1. Real errors come in regions, so the true IoU scatters around it far more than this says,
    and it is as good as the probabilities are calibrated. Empty against empty is 1.
    """
    mask = probability >= 0.5
    intersection, union = float(probability[mask].sum()), float(mask.sum() + probability[~mask].sum())
    return intersection / union if union else 1.0


def boundary(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a mask with one of the background beside, above or below; (H, W) bool. The image's border is none."""
    from scipy.ndimage import binary_erosion

    inside: NDArray[np.bool_] = binary_erosion(mask, border_value=1)
    return mask & ~inside


def as_facts(summary: MapSummary) -> dict[str, Any]:
    """A summary as plain JSON."""
    return asdict(summary)
