"""Answers for tests: discs, and logits that know more or less where they are."""

import numpy as np
import torch

from sam_laplace_assets.domain.metrics import bernoulli_variance, binary_entropy
from sam_laplace_assets.domain.scoring import Answers, Truth


def some_truth(n: int = 6, *, height: int = 24, width: int = 20, seed: int = 0, first_row: int = 0) -> Truth:
    """Masks of discs of all sizes; row 1 is empty and row 2 is full, as far as there are such rows."""
    rng = np.random.default_rng([seed, 1])
    y, x = np.mgrid[:height, :width]
    centres = rng.uniform([5, 5], [height - 5, width - 5], size=(n, 2))
    masks = np.stack([np.hypot(y - cy, x - cx) < rng.uniform(2, 9) for cy, cx in centres])
    for row, fill in {1: False, 2: True}.items():
        if row < n:
            masks[row] = fill
    return Truth.of(np.arange(first_row, first_row + n), torch.from_numpy(masks))


def some_logits(truth: Truth, *, scale: float = 3.0, seed: int = 0) -> torch.Tensor:
    """(N, H, W) float32 with errors on both sides, and a tenth of them clipped to one of two values."""
    rng = np.random.default_rng([seed, 2])
    logits = scale * (2.0 * truth.masks.numpy() - 1 + rng.normal(0, 1, size=tuple(truth.masks.shape)))
    return torch.from_numpy(np.clip(logits, -2 * scale, 2 * scale)).float()


def some_answers(n: int = 6, *, seed: int = 0, scale: float = 3.0, first_row: int = 0) -> Answers:
    """Answers with two uncertainties of which neither is monotone in the other."""
    truth = some_truth(n, seed=seed, first_row=first_row)
    logits = some_logits(truth, scale=scale, seed=seed)
    noise = torch.rand(logits.shape, generator=torch.Generator().manual_seed(seed))
    uncertainties = {"entropy": binary_entropy(logits), "mi": bernoulli_variance(logits) * noise}
    return Answers.from_logits(truth, logits, uncertainties=uncertainties)


def pixels_of(answers: Answers, *, band: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels of all pixels, or of the band's: two (n,) arrays."""
    where = answers.truth.band if band else torch.ones_like(answers.truth.masks)
    return answers.probabilities[where].numpy(), answers.truth.masks[where].numpy()
