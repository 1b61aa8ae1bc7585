"""The SAM stage as its description has it, with stock Segment Anything and one prompt set after another."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.modeling import Sam
from torch.nn import functional

from sam_laplace_assets.domain.prompts import PromptSet

SIZE = 256


def load_plain(model_type: str, checkpoint: Path) -> Sam:
    """Stock SAM with the weights of a checkpoint, in float32 on the CPU."""
    if model_type != "toy":
        return sam_model_registry[model_type](checkpoint=str(checkpoint)).eval()
    from sam_laplace_assets.demo.toy_sam import load_toy_sam

    return load_toy_sam(checkpoint)


def plain_precompute(
    sam: Sam, images: Sequence[tuple[Path, Sequence[PromptSet]]], folder: Path, *, sigma: float
) -> None:
    """Logits and maps of every prompt set of every image, as files."""
    predictor = SamPredictor(sam)
    for path, prompt_sets in images:
        image = np.asarray(Image.open(path).convert("RGB"))
        predictor.set_image(image)
        for prompt_set in prompt_sets:
            plain_prompt_set(predictor, prompt_set, folder / path.stem / f"{prompt_set.promptset_id:04d}", sigma=sigma)


def plain_prompt_set(predictor: SamPredictor, prompt_set: PromptSet, folder: Path, *, sigma: float) -> None:
    """What SAM says to one prompt set about the image that was set, with the maps of its points, as files."""
    logits, branch, ious = plain_answer(predictor, prompt_set)
    folder.mkdir(parents=True)
    np.save(folder / "logits_256.npy", logits.astype(np.float16))
    points_256 = {}
    for side in ("pos", "neg"):
        points = plain_low_res(getattr(prompt_set, side), predictor.original_size)
        np.save(folder / f"{side}_map.npy", plain_map(points, sigma=sigma).astype(np.float16))
        points_256[side] = points
    meta = {
        "promptset_id": prompt_set.promptset_id, "pos": prompt_set.pos, "neg": prompt_set.neg,
        "points_256": points_256, "branch": branch, "predicted_ious": ious.tolist(), "sigma": sigma,
    }  # fmt: skip
    with (folder / "meta.json").open("w") as file:
        json.dump(meta, file)


def plain_answer(predictor: SamPredictor, prompt_set: PromptSet) -> tuple[np.ndarray, int, np.ndarray]:
    """(256, 256) float32 logits of the branch of highest predicted IoU, its index, and all predicted IoUs."""
    masks, ious, _ = predictor.predict(
        point_coords=np.array(prompt_set.pos + prompt_set.neg),
        point_labels=np.array([1] * len(prompt_set.pos) + [0] * len(prompt_set.neg)),
        multimask_output=True,
        return_logits=True,
    )
    branch = int(np.argmax(ious))
    best = torch.from_numpy(masks[branch])[None, None]
    resized = functional.interpolate(best, (SIZE, SIZE), mode="bilinear", align_corners=False)
    return resized[0, 0].numpy(), branch, ious


def plain_low_res(points: Sequence[tuple[int, int]], size: tuple[int, int]) -> list[tuple[float, float]]:
    """Points of an image of (height, width) pixels in pixels at 256x256."""
    height, width = size
    return [((x + 0.5) * SIZE / width - 0.5, (y + 0.5) * SIZE / height - 0.5) for x, y in points]


def plain_map(points: Sequence[tuple[float, float]], *, sigma: float) -> np.ndarray:
    """(256, 256) sum of a Gaussian around each point, at most 1."""
    y, x = np.mgrid[:SIZE, :SIZE]
    total = np.zeros((SIZE, SIZE))
    for px, py in points:
        total += np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * sigma**2))
    return np.clip(total, 0, 1)


@torch.no_grad()
def bare_loop(sam: Sam, asked: Sequence[tuple[np.ndarray, Sequence[PromptSet]]]) -> None:
    """The encoder once an image and the decoder once a prompt set: nothing resized after it, nothing written."""
    predictor = SamPredictor(sam)
    for image, prompt_sets in asked:
        predictor.set_image(image)
        for prompt_set in prompt_sets:
            points = np.array(prompt_set.pos + prompt_set.neg)
            coords = predictor.transform.apply_coords(points, image.shape[:2])
            labels = torch.tensor([[1] * len(prompt_set.pos) + [0] * len(prompt_set.neg)])
            sparse, dense = sam.prompt_encoder(
                points=(torch.tensor(coords[None], dtype=torch.float), labels), boxes=None, masks=None
            )
            sam.mask_decoder(
                image_embeddings=predictor.features,
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
