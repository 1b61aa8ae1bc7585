"""Frozen SAM: one pass of the encoder an image, then what it answers to prompt sets at 256x256."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from sam_laplace_assets.domain.geometry import LOW_RES, resampling_matrices
from sam_laplace_assets.domain.prompts import PromptSet

if TYPE_CHECKING:
    import torch
    from segment_anything.modeling import Sam

    from sam_laplace_assets.domain.sam_decoder import ImageSide
    from sam_laplace_assets.domain.transfer import Fetched

SAM_VERSION = "2"  # 1 went through the stock modules: the same but for rounding, which float16 shows in its last bit

Precision = Literal["float32", "bf16"]
IMAGES_AT_ONCE = 16
"""Images in one call of the encoder on a GPU at most: a few keep it busy."""
PROMPT_SETS_AT_ONCE = 256
"""Prompt sets in one call of the decoder on a GPU at most."""
TOKENS_AT_ONCE = 4096
"""Image tokens in one call of the decoder on a CPU, one prompt set's of a full-size SAM: more leave its cache."""
FREE_SHARE = 0.5
"""Part of a GPU's free memory that a batch which chooses its own size may take."""


@dataclass(frozen=True)
class Prepared:
    """An image at the size that the encoder takes; to make one needs no model, so threads that read can.

    Attributes:
        pixels: (3, h, w) uint8 RGB on the CPU, the longest side as long as SAM's input.
        original_size: (H, W) of the image, in pixels.
    """

    pixels: "torch.Tensor"
    original_size: tuple[int, int]

    @property
    def input_size(self) -> tuple[int, int]:
        """(h, w) of the image in SAM's padded input, in pixels."""
        return self.pixels.shape[1], self.pixels.shape[2]


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

    Its definition is `SamPredictor`: in float32 the same branch, where IoUs differ by more than rounding, and logits
    within 0.02 of its full-size ones resized to 256x256. Which images and prompt sets share a call changes the last
    bits of float32 only. In bf16 the encoder's weights and activations are bfloat16, and on a GPU the decoder's
    products too; it is faster where the processor multiplies bfloat16 itself.

    Args:
        model: is put into evaluation mode and frozen, where it is.
        precision: `float32` or `bf16`.
        compile: whether PyTorch compiles the encoder, which takes minutes, once a process.
        images_at_once: images in one call of the encoder at most; by itself one on a CPU, where more gain nothing, and
            on a GPU as many as take half of its free memory, up to 16.
    """

    def __init__(
        self, model: "Sam", *, precision: Precision = "float32", compile: bool = False,
        images_at_once: int | None = None,
    ) -> None:  # fmt: skip
        import torch
        from segment_anything.utils.transforms import ResizeLongestSide

        from sam_laplace_assets.domain.sam_decoder import FastDecoder
        from sam_laplace_assets.domain.sam_encoder import CompiledEncoder, FastEncoder

        if precision not in get_args(Precision):
            raise ValueError(f"SAM does not compute in {precision!r}: give one of {', '.join(get_args(Precision))}.")
        self._model = model.eval().requires_grad_(False)
        self._precision: Precision = precision
        self._transform = ResizeLongestSide(model.image_encoder.img_size)
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        self._encoder = FastEncoder(model.image_encoder, dtype=dtype)
        self._encode: Callable[[torch.Tensor], torch.Tensor] = self._encoder
        if compile:
            images_at_once = images_at_once or self._fitting_images()
            self._encode = CompiledEncoder(self._encoder, images=images_at_once)
        self._at_once = images_at_once
        self._decoder = FastDecoder(model)

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
    def precision(self) -> Precision:
        """What the encoder computes in."""
        return self._precision

    def prepare(self, image: NDArray[np.uint8]) -> Prepared:
        """An image resized for the encoder, as `SamPredictor.set_image` does it.

        Args:
            image: (H, W, 3) uint8 RGB.
        """
        import torch

        from sam_laplace_assets.domain.transfer import pinned

        self._require_image(image)
        resized = torch.as_tensor(self._transform.apply_image(image)).permute(2, 0, 1).contiguous()
        return Prepared(pinned(resized, self.device), (image.shape[0], image.shape[1]))

    def _require_image(self, image: NDArray[np.uint8]) -> None:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"SAM takes (H, W, 3) uint8 RGB images, not {image.dtype} of shape {image.shape}.")
        if min(self._transform.get_preprocess_shape(*image.shape[:2], self.image_size)) < 1:
            raise ValueError(
                f"An image of {image.shape[0]} x {image.shape[1]} pixels (H x W) is too thin for SAM: at a longest "
                f"side of {self.image_size} nothing is left of the other. Crop it or drop it."
            )

    def embed(self, image: NDArray[np.uint8] | Prepared) -> Embedding:
        """Embedding of one image, that of `SamPredictor.set_image` but for rounding.

        Args:
            image: (H, W, 3) uint8 RGB, or what `prepare` made of it.
        """
        (embedding,) = self.embed_batch([image])
        return embedding

    def embed_batch(self, images: Sequence[NDArray[np.uint8] | Prepared]) -> list[Embedding]:
        """Embeddings of images of any sizes, in their order.

        Args:
            images: each as `embed` takes it.
        """
        prepared = [one if isinstance(one, Prepared) else self.prepare(one) for one in images]
        at_once = self._at_once or self._fitting_images()
        batches = [prepared[start : start + at_once] for start in range(0, len(prepared), at_once)]
        return [embedding for batch in batches for embedding in self._embed_together(batch)]

    def _fitting_images(self) -> int:
        return self._fitting(self._encoder.bytes_per_image(), 1, IMAGES_AT_ONCE)

    def _embed_together(self, batch: Sequence[Prepared]) -> list[Embedding]:
        import torch

        from sam_laplace_assets.domain.transfer import sent

        with torch.no_grad():
            padded = torch.stack([self._model.preprocess(sent(one.pixels, self.device)) for one in batch])
            features = torch.split(self._encode(padded), 1)
        return [Embedding(own, one.original_size, one.input_size) for own, one in zip(features, batch, strict=True)]

    def embedding(self, features: "torch.Tensor", original_size: tuple[int, int]) -> Embedding:
        """What the encoder said earlier of an image of this size: (1, C, h, w) of any float type, on any device."""
        from sam_laplace_assets.domain.transfer import sent

        input_size = self._transform.get_preprocess_shape(*original_size, self.image_size)
        return Embedding(sent(features, self.device).float(), original_size, input_size)

    def _fitting(self, bytes_each: int, on_cpu: int, most: int) -> int:
        """How many of something to compute at once: a number on a CPU, what free memory allows on a GPU."""
        import torch

        if self.device.type != "cuda":
            return on_cpu
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        free = torch.cuda.mem_get_info(self.device)[0] + unused
        return max(1, min(most, int(FREE_SHARE * free) // bytes_each))

    def answer(self, embedding: Embedding, prompt_sets: Sequence[PromptSet]) -> list[SamAnswer]:
        """What SAM says to each prompt set, in their order.

        Args:
            embedding: of the image that the points lie on.
            prompt_sets: any number; only their points count.
        """
        (answers,) = self.ask_many([(embedding, prompt_sets)]).wait()
        return answers

    def ask_many(
        self, asked: Sequence[tuple[Embedding, Sequence[PromptSet]]], *, max_batch: int | None = None
    ) -> "Asked":
        """What SAM says to prompt sets on several images; a GPU computes it while the caller goes on.

        Args:
            asked: embeddings of images with the prompt sets on each.
            max_batch: prompt sets in one call of the decoder at most; by itself as many as a CPU's cache holds (one of
                a full-size SAM), and on a GPU as many as take half of its free memory, up to 256.
        """
        for embedding, prompt_sets in asked:
            for prompt_set in prompt_sets:
                _require_inside(prompt_set, embedding.original_size)
        questions = [_Question(image, one) for image, (_, sets) in enumerate(asked) for one in sets]
        parts = self._decode([embedding for embedding, _ in asked], questions, max_batch)
        return Asked([len(sets) for _, sets in asked], parts)

    def _decode(
        self, embeddings: Sequence[Embedding], questions: "Sequence[_Question]", max_batch: int | None
    ) -> "list[Fetched]":
        """Answers in order, those of each call of the decoder; what sets of an image share is kept until the next."""
        import torch

        on_cpu = max(1, TOKENS_AT_ONCE // self._decoder.image_tokens)
        at_once = max_batch or self._fitting(self._decoder.bytes_per_prompt_set(), on_cpu, PROMPT_SETS_AT_ONCE)
        in_bf16 = self.device.type == "cuda" and self.precision == "bf16"
        sides: dict[int, ImageSide] = {}
        parts: list[Fetched] = []
        for start in range(0, len(questions), at_once):
            batch = questions[start : start + at_once]
            with torch.autocast(self.device.type, torch.bfloat16, enabled=in_bf16):
                sides = {
                    image: sides.get(image) or self._decoder.image_side(embeddings[image].features)
                    for image in dict.fromkeys(question.image for question in batch)
                }
                parts.append(self._decode_together(embeddings, sides, batch))
        return parts

    def _decode_together(
        self, embeddings: Sequence[Embedding], sides: "dict[int, ImageSide]", batch: "Sequence[_Question]"
    ) -> "Fetched":
        """Logits (B, 256, 256) float16, branches (B,) and IoUs (B, branches) of prompt sets in one call of the decoder.

        Args:
            embeddings: of all images.
            sides: what is kept of those that the batch is about.
            batch: B questions, those about an image one after another.
        """
        import torch

        from sam_laplace_assets.domain.transfer import Fetched

        resampling = {image: self._resampling(embeddings[image]) for image in sides}
        counts = list(Counter(question.image for question in batch).values())
        decoded = self._decoder(
            list(sides.values()), counts, *self._points(embeddings, batch),
            rows=max(one.token_rows for one in resampling.values()),
            columns=max(one.token_columns for one in resampling.values()),
        )  # fmt: skip
        resampled = map(_Resampling.apply, resampling.values(), torch.split(decoded.logits, counts))
        return Fetched([torch.cat(list(resampled)), decoded.branches, decoded.ious])

    def _points(
        self, embeddings: Sequence[Embedding], batch: "Sequence[_Question]"
    ) -> tuple["torch.Tensor", "torch.Tensor"]:
        """(B, K, 2) float32 points in SAM's input and (B, K) labels, padded to the longest set with label -1."""
        import torch

        longest = max(len(one.pos) + len(one.neg) for _, one in batch)
        coords, labels = torch.zeros(len(batch), longest, 2), torch.full((len(batch), longest), -1, dtype=torch.int)
        for place, (image, one) in enumerate(batch):
            points = np.array([*one.pos, *one.neg])
            scaled = self._transform.apply_coords(points, embeddings[image].original_size)
            coords[place, : len(points)] = torch.as_tensor(scaled, dtype=torch.float)
            labels[place, : len(points)] = torch.tensor([1] * len(one.pos) + [0] * len(one.neg))
        return coords, labels

    def _resampling(self, embedding: Embedding) -> "_Resampling":
        tokens = embedding.features.shape[-1]
        return _resampling(self.device, tokens, self.image_size, embedding.input_size, embedding.original_size)


@dataclass(frozen=True, eq=False)
class Asked:
    """Answers that a GPU may still be computing.

    Attributes:
        counts: prompt sets of each image.
        parts: logits, branches and IoUs of some prompt sets each, in order.
    """

    counts: Sequence[int]
    parts: "Sequence[Fetched]"

    def wait(self) -> list[list[SamAnswer]]:
        """The answers about each image, once they are there."""
        answers = (answer for part in self.parts for answer in _answers(part))
        return [list(islice(answers, count)) for count in self.counts]


def _answers(part: "Fetched") -> Iterator[SamAnswer]:
    logits, branches, ious = (one.numpy() for one in part.wait())
    for one, branch, row in zip(logits, branches.tolist(), ious.tolist(), strict=True):
        yield SamAnswer(one, branch, tuple(row))


class _Question(NamedTuple):
    """A prompt set, and the place of the embedding it is about."""

    image: int
    prompt_set: PromptSet


@dataclass(frozen=True)
class _Resampling:
    """How the decoder's logits of one image become those at 256x256.

    Attributes:
        to_rows, to_columns: (256, low-res side) matrices, float32, on the model's device.
        token_rows, token_columns: image tokens, from the top left, whose logits the matrices do not multiply by zero.
    """

    to_rows: "torch.Tensor"
    to_columns: "torch.Tensor"
    token_rows: int
    token_columns: int

    def apply(self, logits: "torch.Tensor") -> "torch.Tensor":
        """(B, h, w) logits as (B, 256, 256) float16 over the original image; beyond h and w they count for nothing."""
        import torch

        to_rows, to_columns = self.to_rows[:, : logits.shape[1]], self.to_columns[:, : logits.shape[2]]
        with torch.autocast(logits.device.type, enabled=False):
            return (to_rows @ logits.float() @ to_columns.T).to(torch.float16)


@lru_cache(maxsize=256)
def _resampling(
    device: "torch.device", tokens: int, image_size: int, input_size: tuple[int, int], original_size: tuple[int, int]
) -> _Resampling:
    """Matrices of one size of image, and how many of `tokens` a side they use."""
    from sam_laplace_assets.domain.sam_decoder import UPSCALING
    from sam_laplace_assets.domain.transfer import sent

    matrices = resampling_matrices(
        low_res=UPSCALING * tokens, image_size=image_size, input_size=input_size, original_size=original_size
    )
    used = [int(matrix.any(0).nonzero().max()) // UPSCALING + 1 for matrix in matrices]
    return _Resampling(sent(matrices[0], device), sent(matrices[1], device), *used)


def _require_inside(prompt_set: PromptSet, original_size: tuple[int, int]) -> None:
    height, width = original_size
    outside = [(x, y) for x, y in (*prompt_set.pos, *prompt_set.neg) if x >= width or y >= height]
    if outside:
        raise ValueError(
            f"Prompt set {prompt_set.promptset_id} has points outside an image of {height} x {width} pixels (H x W), "
            f"such as (x, y) = {outside[0]}: draw its prompts again."
        )
