"""Active prompting on one image: strategies and seeds click together, and SAM, head and posterior answer them at once.

Every strategy of a seed starts from the same first click. Each (strategy, seed) has a stream of its own, from seed,
sample and strategy, and the first click one from seed and sample: another strategy's, seed's or sample's coming or
going changes no draw. What SAM says may differ in the last bits of float32 with how many it answers at once.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sam_laplace_assets.domain import interaction
from sam_laplace_assets.domain.acquisition import Clicks, Maps, named
from sam_laplace_assets.domain.clicks import Mask
from sam_laplace_assets.domain.geometry import LOW_RES, resize_nearest, to_original
from sam_laplace_assets.domain.interaction import Interaction, Trace, first_click, interact_together
from sam_laplace_assets.domain.prompts import Point, PromptSet

if TYPE_CHECKING:
    from sam_laplace_assets.domain.answering import Answer
    from sam_laplace_assets.domain.sam import Embedding

EXPERIMENT_VERSION = "1"


class Answers(Protocol):
    """What answers clicks on an image, as `answering.Answerer` does."""

    def answer(self, embedding: "Embedding", prompt_sets: Sequence[PromptSet]) -> "list[Answer]":
        """An answer to each prompt set, in their order."""
        ...


@dataclass(frozen=True, order=True)
class Run:
    """One strategy with one seed, on whatever image."""

    strategy: str
    seed: int

    def __post_init__(self) -> None:
        named(self.strategy)

    @property
    def name(self) -> str:
        """`entropy/0`."""
        return f"{self.strategy}/{self.seed}"

    @classmethod
    def of(cls, name: str) -> "Run":
        """The run of that name."""
        strategy, _, seed = name.rpartition("/")
        return cls(strategy, int(seed))


@dataclass(frozen=True)
class Design:
    """How the experiment is run on every image.

    Attributes:
        protocol: of each interaction.
        first_click_jitter: the first click falls evenly on the object within this radius of its deepest point, pixels.
    """

    protocol: interaction.Protocol = field(default_factory=interaction.Protocol)
    first_click_jitter: float = 0.0

    def __post_init__(self) -> None:
        if self.first_click_jitter < 0:
            raise ValueError(f"first_click_jitter is {self.first_click_jitter}: give 0 or more.")


class AnswerMaps(Maps):
    """The maps of an answer, computed when a strategy first reads one: most read none, or one.

    Args:
        answer: whose maps they are; it keeps what was computed.
        truth: the true mask, for a strategy that needs it.
        clicks: (K, 2), (x, y) of the clicks that it answers to, for a strategy that reads them.
    """

    def __init__(self, answer: "Answer", truth: Mask | None = None, clicks: Clicks = ()) -> None:
        self.__dict__.update(_answer=answer, truth=truth, clicks=clicks)

    @property
    def probability(self) -> NDArray[Any]:  # type: ignore[override]
        """(256, 256) float64."""
        return self._quantity("probability")

    @property
    def entropy(self) -> NDArray[Any]:  # type: ignore[override]
        """(256, 256) float64, nats."""
        return self._quantity("predictive_entropy")

    @property
    def mutual_information(self) -> NDArray[Any]:  # type: ignore[override]
        """(256, 256) float64, nats."""
        return self._quantity("mutual_information")

    @property
    def variance(self) -> NDArray[Any]:  # type: ignore[override]
        """(256, 256) float32, squared logits."""
        return self._read().variance

    @property
    def shape(self) -> tuple[int, ...]:
        """(256, 256)"""
        return self._read().mean.shape

    @property
    def foreground(self) -> Mask:
        """(256, 256) bool, where the logit is 0 or more: a probability of 0.5 or more, without computing it."""
        return self._read().mean >= 0

    def showing(self, truth: Mask | None) -> "AnswerMaps":
        """The same maps with this truth, or with none; nothing is computed twice."""
        return AnswerMaps(self._read(), truth, self.clicks)

    def after(self, clicks: Clicks) -> "AnswerMaps":
        """The same maps, told which clicks they answer to."""
        return AnswerMaps(self._read(), self.truth, clicks)

    def _read(self) -> "Answer":
        answer: Answer = self.__dict__["_answer"]
        return answer

    def _quantity(self, name: str) -> NDArray[Any]:
        values: NDArray[Any] = getattr(self._read().quantities, name).numpy()
        return values


def play(
    answerer: Answers, embedding: "Embedding", mask: Mask, runs: Iterable[Run], *, sample_id: str, design: Design
) -> dict[Run, Trace]:
    """What each run does on one image.

    Args:
        answerer: answers the clicks.
        embedding: of the image.
        mask: (h, w) bool, the truth, of any size.
        runs: strategies with their seeds.
        sample_id: whose streams are drawn from.
        design: how they are run.

    Returns:
        For each run its clicks in pixels of the 256x256 frame, and IoUs of the head's mask and of SAM's.

    Raises:
        ValueError: the mask is empty at 256x256.
    """
    truth = resize_nearest(mask, LOW_RES, LOW_RES)
    if not truth.any():
        raise ValueError(f"The mask of {sample_id} is empty at {LOW_RES}x{LOW_RES}, so there is nothing to click on: "
                         "drop this sample, or allow for it with data.max_failed_fraction.")  # fmt: skip
    started = {run: start(truth, run, sample_id=sample_id, design=design) for run in runs}
    traces = interact_together(lambda waiting: _answer_waiting(answerer, embedding, waiting), list(started.values()))
    return dict(zip(started, traces, strict=True))


def start(truth: Mask, run: Run, *, sample_id: str, design: Design) -> Interaction:
    """The interaction of one run on one image, before its first answer."""
    jitter = design.first_click_jitter
    first = first_click(truth, jitter=jitter, generator=_stream(run.seed, sample_id))
    stream = _stream(run.seed, sample_id, run.strategy)
    return Interaction(truth, run.strategy, first, protocol=design.protocol, generator=stream)


def prompt_set_of(points: NDArray[np.int64], labels: Mask, *, original_size: tuple[int, int]) -> PromptSet:
    """Clicks (K, 2) of the 256x256 frame, (x, y), with labels (K,) as a prompt set in original pixels."""
    height, width = original_size
    pixels = to_original(points, image_h=height, image_w=width)
    return PromptSet(0, _points(pixels[labels]), _points(pixels[~labels]))


def _points(pixels: NDArray[np.int64]) -> tuple[Point, ...]:
    return tuple((int(x), int(y)) for x, y in pixels)


def _answer_waiting(
    answerer: Answers, embedding: "Embedding", waiting: Sequence[Interaction]
) -> list[tuple[Mask, Maps, Mask]]:
    """One call for all that wait; those that clicked alike, as all do at first, share an answer."""
    size = embedding.original_size
    asked = [prompt_set_of(one.points, one.labels, original_size=size) for one in waiting]
    distinct = list(dict.fromkeys(asked))
    answers = dict(zip(distinct, answerer.answer(embedding, distinct), strict=True))
    return [(answers[one].mask, AnswerMaps(answers[one]), answers[one].sam_mask) for one in asked]


def _stream(*names: Any) -> np.random.Generator:
    """Random stream of these names, the same in every process and on every machine."""
    name = json.dumps(["active_prompting", *names]).encode()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name).digest(), "big"))


def trace_to_json(trace: Trace) -> dict[str, Any]:
    """A trace as plain JSON: `points` (x, y) at 256x256, `positive`, `head_iou`, `sam_iou`, one of each a click."""
    return {"points": trace.points.tolist(), "positive": trace.labels.tolist(), "head_iou": trace.ious.tolist(),
            "sam_iou": trace.sam_ious.tolist()}  # fmt: skip


def trace_from_json(found: Mapping[str, Any]) -> Trace:
    """The trace that `trace_to_json` wrote."""
    points = np.array(found["points"], dtype=np.int64).reshape(-1, 2)
    ious, sam_ious = (np.array(found[name], dtype=np.float64) for name in ("head_iou", "sam_iou"))
    return Trace(points, np.array(found["positive"], dtype=np.bool_), ious, sam_ious)
