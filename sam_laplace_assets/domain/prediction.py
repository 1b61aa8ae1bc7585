"""An answer at the original size: the calibrated mask, probability, entropy and mutual information of every pixel.

What is resized is the logit, bilinearly (align_corners=False), as SAM does it, and the quantities are computed of what
comes out: resized probabilities would not say the same as the mask where an edge is steep, and a resized mutual
information would not fit the resized entropy. The logit between two pixels is a weighted sum of theirs. Its mean is
exactly the weighted sum of the means; its standard deviation is that of the deviations where the two vary together,
which neighbours nearly do, since they share their weights and most of their features, and is never more.

Rows are worked on in bands, so that memory beside the result does not grow with the image.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sam_laplace_assets.domain.answering import Answer
from sam_laplace_assets.domain.quantities import quantities

BAND_PIXELS = 1 << 19


@dataclass(frozen=True, eq=False)
class Prediction:
    """What is predicted of an image, at its original size.

    Attributes:
        mask: (H, W) bool, probability of 0.5 or more.
        probability: (H, W) float32, of the object.
        entropy: (H, W) float32, of the predictive, nats.
        mutual_information: (H, W) float32, between label and weights, nats.
    """

    mask: NDArray[np.bool_]
    probability: NDArray[np.float32]
    entropy: NDArray[np.float32]
    mutual_information: NDArray[np.float32]


def predict(answer: Answer, size: tuple[int, int], *, band_pixels: int = BAND_PIXELS) -> Prediction:
    """An answer over an image of (H, W) pixels.

    Args:
        answer: at 256x256.
        size: of the original.
        band_pixels: worked on at once: memory, not the result.
    """
    if min(size) < 1:
        raise ValueError(f"Cannot predict an image of {size[0]} x {size[1]} pixels: give its true size.")
    found = [np.empty(size, dtype=np.float32) for _ in range(3)]
    mask = np.empty(size, dtype=bool)
    for rows, mean, deviation in _bands(answer, size, band_pixels):
        of = quantities(mean, deviation.square())
        mask[rows] = of.probability.numpy() >= 0.5
        for whole, band in zip(found, (of.probability, of.predictive_entropy, of.mutual_information), strict=True):
            whole[rows] = band.numpy()
    return Prediction(mask, *found)


def _bands(answer: Answer, size: tuple[int, int], band_pixels: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Some rows at a time: which, and mean and standard deviation of the logit there, (rows, W) float32."""
    height, width = size
    low_res = torch.from_numpy(np.stack([answer.mean, np.sqrt(answer.variance)]))
    wide = functional.interpolate(low_res, size=width, mode="linear", align_corners=False)
    above, below, weight = _neighbours(wide.shape[1], height)
    step = max(band_pixels // width, 1)
    for start in range(0, height, step):
        rows = slice(start, min(start + step, height))
        mean, deviation = torch.lerp(wide[:, above[rows]], wide[:, below[rows]], weight[rows, None])
        yield rows, mean, deviation


def _neighbours(old: int, new: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each of `new` rows the two of `old` rows that it lies between, and how far it is towards the second."""
    centres = ((torch.arange(new, dtype=torch.float64) + 0.5) * old / new - 0.5).clamp(0, old - 1)
    above = centres.floor().long()
    return above, (above + 1).clamp(max=old - 1), (centres - above).float()
