"""Frozen SAM: one pass of the encoder an image, then what it answers to prompt sets at 256x256."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sam_laplace_assets.domain.geometry import LOW_RES, resampling_matrices
from sam_laplace_assets.domain.prompts import PromptSet

if TYPE_CHECKING:
    import torch
    from segment_anything.modeling import Sam

SAM_VERSION = "1"


@dataclass(frozen=True)
class Embedding:
    """What the encoder made of one image.

    Attributes:
        features: (1, C, h, w) float32, on the model's device.
        original_size: (H, W) of the image, in pixels.
        input_size: (H, W) of the image in SAM's padded input, in pixels.
    """

    features: "torch.Tensor"
    original_size: tuple[int, int]
    input_size: tuple[int, int]

    def __post_init__(self) -> None:
        if self.features.ndim != 4 or self.features.shape[0] != 1:
            raise ValueError(f"An image embedding is (1, C, h, w), not {tuple(self.features.shape)}: give one image's.")


@dataclass(frozen=True)
class Prepared:
    """One image as SAM's encoder takes it, before padding.

    Attributes:
        pixels: (3, h, w) uint8 RGB on the CPU, resized so that the longest side is that of SAM's input.
        original_size: (H, W) of the image, in pixels.
    """

    pixels: "torch.Tensor"
    original_size: tuple[int, int]

    @property
    def input_size(self) -> tuple[int, int]:
        """(h, w) in SAM's padded input, in pixels."""
        return (self.pixels.shape[1], self.pixels.shape[2])


@dataclass(frozen=True)
class SamAnswer:
    """What SAM says to one prompt set.

    Attributes:
        logits_256: (256, 256) float16 mask logits of the chosen branch.
        branch: index of the branch with the highest predicted IoU, the first of equals.
        predicted_ious: the IoU that SAM predicts for each branch.
    """

    logits_256: NDArray[np.float16]
    branch: int
    predicted_ious: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.logits_256.shape != (LOW_RES, LOW_RES) or self.logits_256.dtype != np.float16:
            found = f"{self.logits_256.dtype} of shape {self.logits_256.shape}"
            raise ValueError(f"SAM's logits are float16 of shape ({LOW_RES}, {LOW_RES}), not {found}.")
        if not np.isfinite(self.logits_256).all():
            raise ValueError("SAM's logits are not finite: the checkpoint's weights may be damaged; fetch it again.")
        if self.branch != int(np.argmax(self.predicted_ious)):
            raise ValueError(f"Branch {self.branch} is not the first of highest IoU in {self.predicted_ious}.")


class FrozenSam:
    """A SAM that is asked, never trained.

    Its definition is `SamPredictor`: the same branch, and logits within 0.02 of its full-size ones resized to 256x256.
    Prompt sets of one size share a call of the decoder, and only the chosen branch is postprocessed. A set answered
    alone or among others may differ in the last bits of float32.

    Args:
        model: is put into evaluation mode and frozen, where it is.
    """

    def __init__(self, model: "Sam") -> None:
        import torch
        from segment_anything.utils.transforms import ResizeLongestSide

        self._model = model.eval().requires_grad_(False)
        self._transform = ResizeLongestSide(model.image_encoder.img_size)
        with torch.no_grad():
            self._dense_pe = model.prompt_encoder.get_dense_pe()

    @property
    def image_size(self) -> int:
        """Side of SAM's padded input, in pixels."""
        return int(self._model.image_encoder.img_size)

    @property
    def device(self) -> "torch.device":
        """Where the model's weights are."""
        device: torch.device = self._model.device
        return device

    @property
    def images_per_batch(self) -> int:
        """Images in one call of the encoder that suit the device."""
        return 1

    def prepare(self, image: NDArray[np.uint8]) -> Prepared:
        """An image as the encoder takes it; threads may do this while SAM computes.

        Args:
            image: (H, W, 3) uint8 RGB.
        """
        import torch

        self._input_size(image)
        resized = np.ascontiguousarray(self._transform.apply_image(image).transpose(2, 0, 1))
        return Prepared(torch.from_numpy(resized), (image.shape[0], image.shape[1]))

    def embed(self, image: NDArray[np.uint8]) -> Embedding:
        """Embedding of one image, (H, W, 3) uint8 RGB."""
        (embedding,) = self.embed_prepared([self.prepare(image)])
        return embedding

    def embed_prepared(self, images: Sequence[Prepared]) -> list[Embedding]:
        """Embeddings of images, in one call of the encoder."""
        import torch

        if not images:
            return []
        with torch.no_grad():
            padded = torch.stack([self._model.preprocess(one.pixels.to(self.device)) for one in images])
            features = self._model.image_encoder(padded)
        return [self.embedding(one, of.original_size) for one, of in zip(features.split(1), images, strict=True)]

    def embedding(self, features: "torch.Tensor", original_size: tuple[int, int]) -> Embedding:
        """What the encoder said of an image of this size, (1, C, h, w) of any float type, on the model's device."""
        input_size = self._transform.get_preprocess_shape(*original_size, self.image_size)
        return Embedding(features.to(self.device).float(), original_size, input_size)

    def _input_size(self, image: NDArray[np.uint8]) -> tuple[int, int]:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"SAM takes (H, W, 3) uint8 RGB images, not {image.dtype} of shape {image.shape}.")
        height, width = self._transform.get_preprocess_shape(*image.shape[:2], self.image_size)
        if min(height, width) < 1:
            raise ValueError(
                f"An image of {image.shape[0]} x {image.shape[1]} pixels (H x W) is too thin for SAM: at a longest "
                f"side of {self.image_size} nothing is left of the other. Crop it or drop it."
            )
        return height, width

    def answer(self, embedding: Embedding, prompt_sets: Sequence[PromptSet], *, max_batch: int = 32) -> list[SamAnswer]:
        """What SAM says to each prompt set, in their order.

        Args:
            embedding: of the image that the points lie on.
            prompt_sets: any number; only their points count.
            max_batch: prompt sets in one call of the decoder at most, for memory's sake.
        """
        for prompt_set in prompt_sets:
            _require_inside(prompt_set, embedding.original_size)
        answers: dict[int, SamAnswer] = {}
        for batch in _batches(prompt_sets, max_batch):
            answers |= zip(batch, self._answer_batch(embedding, [prompt_sets[i] for i in batch]), strict=True)
        return [answers[i] for i in range(len(prompt_sets))]

    def answer_many(
        self, asked: Sequence[tuple[Embedding, Sequence[PromptSet]]], *, max_batch: int | None = None
    ) -> list[list[SamAnswer]]:
        """What SAM says to the prompt sets of several images."""
        return [self.answer(embedding, prompt_sets, max_batch=max_batch or 32) for embedding, prompt_sets in asked]

    def _answer_batch(self, embedding: Embedding, prompt_sets: Sequence[PromptSet]) -> list[SamAnswer]:
        """Answers to prompt sets of one number of points."""
        low_res, ious = self._decode(embedding, prompt_sets)
        predicted = ious.cpu().numpy()
        branches = predicted.argmax(axis=1)
        logits = self._postprocess(low_res[range(len(prompt_sets)), branches.tolist()], embedding)
        return [
            SamAnswer(one, int(branch), tuple(float(iou) for iou in row))
            for one, branch, row in zip(logits, branches, predicted, strict=True)
        ]

    def _decode(self, embedding: Embedding, prompt_sets: Sequence[PromptSet]) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Mask logits (B, 3, h, w) and predicted IoUs (B, 3) of the three branches, for B prompt sets."""
        import torch

        coords = np.array([(*one.pos, *one.neg) for one in prompt_sets])
        coords = self._transform.apply_coords(coords, embedding.original_size)
        labels = np.array([[1] * len(one.pos) + [0] * len(one.neg) for one in prompt_sets])
        points = (
            torch.as_tensor(coords, dtype=torch.float, device=self.device),
            torch.as_tensor(labels, dtype=torch.int, device=self.device),
        )
        with torch.no_grad():
            sparse, dense = self._model.prompt_encoder(points=points, boxes=None, masks=None)
            low_res, ious = self._model.mask_decoder(
                image_embeddings=embedding.features,
                image_pe=self._dense_pe,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
        return low_res, ious

    def _postprocess(self, low_res: "torch.Tensor", embedding: Embedding) -> NDArray[np.float16]:
        """(B, h, w) logits of the decoder as (B, 256, 256) float16 logits over the original image."""
        import torch

        to_rows, to_columns = resampling_matrices(
            low_res=low_res.shape[-1],
            image_size=self.image_size,
            input_size=embedding.input_size,
            original_size=embedding.original_size,
        )
        logits = to_rows.to(low_res.device) @ low_res @ to_columns.to(low_res.device).T
        return logits.to(torch.float16).cpu().numpy()


def _require_inside(prompt_set: PromptSet, original_size: tuple[int, int]) -> None:
    height, width = original_size
    outside = [(x, y) for x, y in (*prompt_set.pos, *prompt_set.neg) if x >= width or y >= height]
    if outside:
        raise ValueError(
            f"Prompt set {prompt_set.promptset_id} has points outside an image of {height} x {width} pixels (H x W), "
            f"such as (x, y) = {outside[0]}: draw its prompts again."
        )


def _batches(prompt_sets: Sequence[PromptSet], max_batch: int) -> Iterator[list[int]]:
    """Places of prompt sets with equally many points, `max_batch` at a time: padding would change the answers."""
    by_points: dict[int, list[int]] = {}
    for place, one in enumerate(prompt_sets):
        by_points.setdefault(len(one.pos) + len(one.neg), []).append(place)
    for places in by_points.values():
        for start in range(0, len(places), max_batch):
            yield places[start : start + max_batch]
