"""A few predictions on an input that no data decide: a posterior that is read back must make them again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from sam_laplace_assets.domain.predictive import predict

if TYPE_CHECKING:
    from sam_laplace_assets.domain.posterior import Posterior

SEED = 0
SIZE = 32
LOUDEST = 8.0
PIXELS = ((0, 0), (3, 20), (11, 7), (15, 15), (16, 30), (22, 4), (29, 18), (31, 31))
TOLERANCE = 1e-4
"""Part of the largest value by which predictions may differ: float32 convolutions round otherwise on other machines."""


@dataclass(frozen=True)
class Probe:
    """Predictions at some pixels of `probe_input(seed)`.

    Attributes:
        seed: of the input.
        pixels: (y, x) of each.
        mean: of each pixel's logit.
        variance: of each pixel's logit.
    """

    seed: int
    pixels: Sequence[Sequence[int]]
    mean: Sequence[float]
    variance: Sequence[float]


def probe_input(seed: int) -> Tensor:
    """(1, 3, 32, 32) float32 [logits within +-8, maps in [0, 1]]; PCG64's bits are those of every NumPy release."""
    uniform = np.random.PCG64(seed).random_raw(3 * SIZE * SIZE).reshape(1, 3, SIZE, SIZE) / 2.0**64
    uniform[:, 0] = LOUDEST * (2 * uniform[:, 0] - 1)
    return torch.from_numpy(uniform).float()


def take_probe(
    laplace: "Posterior", head: nn.Module, *, seed: int = SEED, pixels: Sequence[Sequence[int]] = PIXELS
) -> Probe:
    """What a posterior and its head, both on the CPU, predict at some pixels (y, x)."""
    predictive = predict(laplace, head, probe_input(seed))
    y, x = torch.tensor(pixels).T
    return Probe(seed, pixels, *(values[0, y, x].tolist() for values in (predictive.mean, predictive.variance)))


def probe_difference(recorded: Probe, laplace: "Posterior", head: nn.Module) -> float:
    """How far a posterior's predictions are from the recorded ones: at most, as a part of the largest recorded one."""
    taken = take_probe(laplace, head, seed=recorded.seed, pixels=recorded.pixels)
    pairs = (recorded.mean, taken.mean), (recorded.variance, taken.variance)
    differences = [_difference(*(torch.tensor(values).double() for values in pair)) for pair in pairs]
    return float(torch.stack(differences).max())  # NaN if there is one, which Python's max would hide


def _difference(before: Tensor, after: Tensor) -> Tensor:
    return (after - before).abs().max() / before.abs().max().clamp(min=torch.finfo(before.dtype).tiny)
