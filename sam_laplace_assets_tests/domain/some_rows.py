"""Rows for tests: discs that a noisy, uncalibrated segmenter has nearly found."""

import numpy as np
import torch

from sam_laplace_assets.domain.head import PromptHead, build_head
from sam_laplace_assets.domain.pack import MemoryRows

torch.set_num_threads(1)  # on shared cores, threads that wait for each other make small convolutions 50 times slower


def some_rows(n: int = 8, *, height: int = 12, width: int = 20, n_images: int = 4, seed: int = 0) -> MemoryRows:
    """Rows of small images whose logits say more or less where the mask is; image i has rows i, i + n_images..."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    inputs, masks = [], []
    for _ in range(n):
        centre_y, centre_x = rng.uniform(0.25, 0.75) * height, rng.uniform(0.25, 0.75) * width
        distance = np.hypot(y - centre_y, x - centre_x)
        radius = min(height, width) * rng.uniform(0.2, 0.4)
        logits = 2 * (radius - distance + rng.normal(0, 1.5, size=distance.shape))
        inputs.append(np.stack([logits, np.exp(-(distance**2) / 8), np.exp(-((distance - 2 * radius) ** 2) / 8)]))
        masks.append(distance < radius)
    return MemoryRows(
        torch.from_numpy(np.stack(inputs).astype(np.float16)),
        torch.from_numpy(np.stack(masks)),
        np.arange(n, dtype=np.int64) % n_images,
    )


def some_head(*, hidden_channels: int = 4, seed: int = 0) -> PromptHead:
    """A small head with logits of order one and no dead channel."""
    return build_head(channels_in=3, hidden_channels=hidden_channels, seed=seed).requires_grad_(False)
