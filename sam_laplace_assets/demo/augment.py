"""Training batches for the toy SAM: scenes turned, cut, enlarged and recoloured, with points on their shapes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sam_laplace_assets.demo.points import draw_points
from sam_laplace_assets.demo.toy_sam import IMAGE_SIZE

if TYPE_CHECKING:
    from torch import Tensor

MAX_PAIRS = 10


@dataclass(frozen=True)
class Batch:
    """Images, each with the same number of objects, each of those with the same number of points.

    images   (B, 3, 256, 256) float32, normalised and padded as SAM does it
    points   (B * M, K, 2) float32, (x, y) in the input frame; the objects of one image follow each other
    labels   (B * M, K) int64, 1 on the object, 0 off it
    targets  (B * M, 64, 64) float32, the share of each cell that the object covers
    """

    images: "Tensor"
    points: "Tensor"
    labels: "Tensor"
    targets: "Tensor"


@dataclass(frozen=True)
class Scenes:
    """Scenes in memory: (N, H, W, 3) uint8 images and (N, H, W) uint8 labels."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]


def draw_batch(rng: np.random.Generator, scenes: Scenes, *, images: int, objects: int, min_fraction: float) -> Batch:
    """One batch of augmented scenes; `min_fraction` is the least visible share of the image an object may have."""
    import torch
    from torch.nn.functional import avg_pool2d

    positives, negatives = draw_counts(rng)
    pictures, points, labels, masks = [], [], [], []
    for _ in range(images):
        picture, map_, size = draw_view(rng, scenes, min_area=min_fraction * IMAGE_SIZE**2)
        pictures.append(picture)
        for label in choose_objects(rng, map_, objects, min_area=min_fraction * IMAGE_SIZE**2):
            mask = map_ == label
            where, what = draw_points(rng, mask[: size[0], : size[1]], positives=positives, negatives=negatives)
            points.append(where)
            labels.append(what)
            masks.append(mask)
    targets = avg_pool2d(torch.from_numpy(np.stack(masks)).float()[:, None], 4)[:, 0]
    return Batch(torch.stack(pictures), torch.from_numpy(np.stack(points)), torch.from_numpy(np.stack(labels)), targets)


def draw_counts(rng: np.random.Generator) -> tuple[int, int]:
    """How many positive and negative points: mostly pairs, sometimes any mixture."""
    positives = int(rng.integers(1, MAX_PAIRS + 1))
    return positives, positives if rng.random() < 0.75 else int(rng.integers(0, MAX_PAIRS + 1))


def choose_objects(rng: np.random.Generator, labels: NDArray[np.uint8], count: int, *, min_area: float) -> list[int]:
    """Labels of shapes that are not tiny, each as often as the others where that is possible."""
    large = visible_labels(labels, min_area)
    order = np.concatenate([rng.permutation(large) for _ in range(-(-count // len(large)))])
    return [int(label) for label in order[:count]]


def visible_labels(labels: NDArray[np.uint8], min_area: float) -> NDArray[np.int64]:
    """Labels, other than the background's, with at least so many pixels."""
    return np.asarray(np.flatnonzero(np.bincount(labels.ravel())[1:] >= min_area) + 1, np.int64)


def draw_view(
    rng: np.random.Generator, scenes: Scenes, *, min_area: float
) -> "tuple[Tensor, NDArray[np.uint8], tuple[int, int]]":
    """A view of some scene that shows an object: its input to SAM, its padded labels and its size before padding."""
    while True:
        index = int(rng.integers(len(scenes.images)))
        image, labels = cut(rng, *turn(rng, scenes.images[index], scenes.labels[index]))
        picture, map_, size = to_input_frame(recolour(rng, image), labels)
        if len(visible_labels(map_, min_area)) and (map_[: size[0], : size[1]] == 0).any():
            return picture, map_, size


def turn(
    rng: np.random.Generator, image: NDArray[np.uint8], labels: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One of the eight orientations of a picture and its labels."""
    quarters, mirrored = int(rng.integers(4)), rng.random() < 0.5
    image, labels = np.rot90(image, quarters), np.rot90(labels, quarters)
    return (image[:, ::-1], labels[:, ::-1]) if mirrored else (image, labels)


def cut(
    rng: np.random.Generator, image: NDArray[np.uint8], labels: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A part of a picture: mostly a square one, and mostly smaller than the whole."""
    side = rng.uniform(0.35, 1.0) if rng.random() < 0.6 else 1.0
    aspect = rng.uniform(0.5, 1.0) if rng.random() < 0.3 else 1.0
    shape = np.array(labels.shape)
    size = np.round(shape * side * (rng.permutation([1.0, aspect]))).astype(int)
    top, left = (int(rng.integers(0, room + 1)) for room in shape - size)
    window = slice(top, top + int(size[0])), slice(left, left + int(size[1]))
    return image[window], labels[window]


def recolour(rng: np.random.Generator, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W, 3) float32 in [0, 255]: other light and other colours."""
    values = image.astype(np.float32)
    if rng.random() < 0.3:
        values = values[..., rng.permutation(3)]
    if rng.random() < 0.15:
        values = 255 - values
    if rng.random() < 0.1:
        values = np.repeat(values.mean(2, keepdims=True), 3, axis=2)
    if rng.random() < 0.7:
        gain, offset = rng.uniform(0.6, 1.4, 2).astype(np.float32), np.float32(rng.uniform(-30, 30))
        values = (values - values.mean()) * gain[0] + values.mean() * gain[1] + offset
    return np.clip(values, 0, 255)


def to_input_frame(
    image: NDArray[np.float32], labels: NDArray[np.uint8]
) -> "tuple[Tensor, NDArray[np.uint8], tuple[int, int]]":
    """Enlarge to the longest side of 256, normalise and pad, as SAM's own transforms do."""
    import torch
    from torch.nn.functional import interpolate, pad

    scale = IMAGE_SIZE / max(labels.shape)
    size = (int(labels.shape[0] * scale + 0.5), int(labels.shape[1] * scale + 0.5))
    padding = (0, IMAGE_SIZE - size[1], 0, IMAGE_SIZE - size[0])
    values = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    picture = interpolate(values, size, mode="bilinear", align_corners=False)[0]
    map_ = interpolate(torch.from_numpy(np.ascontiguousarray(labels))[None, None], size, mode="nearest-exact")[0, 0]
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    normalised = (picture - mean[:, None, None]) / std[:, None, None]
    return pad(normalised, padding), pad(map_, padding).numpy(), size
