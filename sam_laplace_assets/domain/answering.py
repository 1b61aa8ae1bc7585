"""Frozen SAM, the head and its posterior as one thing that answers clicks on an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sam_laplace_assets.domain.geometry import to_low_res
from sam_laplace_assets.domain.prompts import PromptSet, gaussian_map

if TYPE_CHECKING:
    from sam_laplace_assets.domain.predictor import Predictor
    from sam_laplace_assets.domain.quantities import Quantities
    from sam_laplace_assets.domain.sam import Embedding, FrozenSam, SamAnswer

FloatMap = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Answer:
    """What SAM and the posterior say to one prompt set, over the whole image at 256x256.

    Attributes:
        sam_logits: (256, 256) float16, of SAM's chosen branch.
        mean: (256, 256) float32, the head's logits, times the posterior's logit scale if it has one.
        variance: (256, 256) float32, of those logits under the posterior.
    """

    sam_logits: NDArray[np.float16]
    mean: FloatMap
    variance: FloatMap

    @property
    def sam_mask(self) -> Mask:
        """(256, 256) bool, SAM's mask."""
        return self.sam_logits > 0

    @property
    def mask(self) -> Mask:
        """(256, 256) bool, the head's mask, which is the posterior's, too."""
        return self.mean > 0

    @cached_property
    def quantities(self) -> "Quantities":
        """Probability, entropies and mutual information in nats, (256, 256) float64 each, computed when first asked."""
        import torch

        from sam_laplace_assets.domain.quantities import quantities

        return quantities(torch.from_numpy(self.mean), torch.from_numpy(self.variance))


class Answerer:
    """Answers prompt sets on images: SAM's logits and the point maps go through the head and its posterior.

    Args:
        sam: the SAM that the head was trained on.
        predictor: the head and its posterior.
        gaussian_sigma: of the point maps, 256x256 pixels, as in training.
    """

    def __init__(self, sam: "FrozenSam", predictor: "Predictor", *, gaussian_sigma: float) -> None:
        self.sam, self.predictor, self.gaussian_sigma = sam, predictor, gaussian_sigma

    def embed(self, image: NDArray[np.uint8]) -> "Embedding":
        """Embedding of one image (H, W, 3) uint8 RGB; to be kept while it is clicked on."""
        return self.sam.embed(image)

    def answer(self, embedding: "Embedding", prompt_sets: Sequence[PromptSet]) -> list[Answer]:
        """What SAM and the posterior say to prompt sets on one image, points in original pixels, in their order."""
        answers = self.sam.answer(embedding, prompt_sets)
        return [self._refine(embedding, *pair) for pair in zip(prompt_sets, answers, strict=True)]

    def _refine(self, embedding: "Embedding", prompt_set: PromptSet, sam_answer: "SamAnswer") -> Answer:
        import torch

        maps = point_maps(prompt_set, embedding.original_size, sigma=self.gaussian_sigma)
        x = torch.from_numpy(np.stack([sam_answer.logits_256, *maps])[None]).to(self.predictor.device)
        mean, variance = (one[0].cpu().numpy() for one in self.predictor.logits(x))
        return Answer(sam_answer.logits_256, mean, variance)


def point_maps(
    prompt_set: PromptSet, original_size: tuple[int, int], *, sigma: float
) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """The maps of positive and of negative points, (256, 256) float16 each, as sam_cache stores them."""
    height, width = original_size
    pos, neg = (
        gaussian_map(to_low_res(np.array(points).reshape(-1, 2), image_h=height, image_w=width), sigma=sigma)
        for points in (prompt_set.pos, prompt_set.neg)
    )
    return pos, neg
