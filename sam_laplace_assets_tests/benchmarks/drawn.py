"""Rows, files and heads for benchmarks, drawn from a seed: discs that a segmenter more or less finds."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sam_laplace_assets.domain.head import PromptHead
    from sam_laplace_assets.domain.pack import MemoryRows
    from sam_laplace_assets.storage.shards import PackedSample

SIDE, SIGMA, CLICKS, MISSED = 256, 8.0, 3, 0.15
ROWS_A_SAMPLE = 10
"""Prompt sets of a training image in the default settings."""
LOGIT_CLIP, DICE_LAMBDA, BATCH_SIZE = 20.0, 0.5, 8


def draw_samples(count: int, *, rows: int = ROWS_A_SAMPLE, seed: int = 0) -> "Iterator[PackedSample]":
    """Samples with their rows: logits that say more or less where a disc is, and Gaussians around some points."""
    from sam_laplace_assets.storage.shards import ARRAYS, PackedSample

    rng = np.random.default_rng(seed)
    for _ in range(count):
        centre, radius = rng.uniform(80, 176, 2), rng.uniform(25, 70)
        y, x = np.ogrid[:SIDE, :SIDE]
        distance = np.hypot(y - centre[0], x - centre[1])
        elsewhere = np.hypot(y - centre[1], x - centre[0] / 2) - radius
        each = [_draw_row(rng, elsewhere if rng.random() < MISSED else distance - radius) for _ in range(rows)]
        stacked = (np.stack(values) for values in zip(*each, strict=True))
        arrays = dict(zip(ARRAYS, stacked, strict=True))
        counts = dict.fromkeys(("k_pairs", "n_pos", "n_neg"), [CLICKS] * rows)
        yield PackedSample(arrays, {"promptset_id": range(rows), **counts}, distance < radius)


def _draw_row(rng: np.random.Generator, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, positive and negative map of one prompt set, (256, 256) float16 each."""
    blocks = np.kron(rng.normal(0, 8, (16, 16)), np.ones((16, 16)))
    logits = -0.4 * (outside + blocks) + rng.normal(0, 0.5, outside.shape)
    maps = [_draw_map(rng, np.argwhere(side)) for side in (outside < 0, outside >= 0)]
    return logits.astype(np.float16), maps[0], maps[1]


def _draw_map(rng: np.random.Generator, places: np.ndarray) -> np.ndarray:
    line, found = np.arange(SIDE), np.zeros((SIDE, SIDE))
    for y, x in places[rng.integers(len(places), size=CLICKS)]:
        found += np.exp(-((line - y) ** 2)[:, None] / (2 * SIGMA**2)) * np.exp(-((line - x) ** 2) / (2 * SIGMA**2))
    return found.clip(0, 1).astype(np.float16)


def draw_rows(count: int, *, seed: int = 0) -> "MemoryRows":
    """Rows in memory, ten a sample."""
    import torch

    from sam_laplace_assets.domain.pack import MemoryRows

    samples = list(draw_samples(-(-count // ROWS_A_SAMPLE), seed=seed))
    stacked = np.concatenate([np.stack(list(sample.arrays.values()), axis=1) for sample in samples])[:count]
    images = np.repeat(np.arange(len(samples)), ROWS_A_SAMPLE)[:count]
    masks = np.stack([sample.mask for sample in samples])[images]
    return MemoryRows(torch.from_numpy(stacked), torch.from_numpy(masks), images)


def trained_head(rows: "MemoryRows", *, epochs: int = 2) -> "PromptHead":
    """A head that has learned from rows for a moment."""
    from sam_laplace_assets.domain.head import restore_head
    from sam_laplace_assets.domain.training import train

    *_, state = train(
        rows, rows, batch_size=BATCH_SIZE, num_epochs=epochs, lr=1e-2, weight_decay=1e-4, dice_lambda=DICE_LAMBDA,
        amp=False, early_stop_patience=0, logit_clip=LOGIT_CLIP, seed=0, hidden_channels=16, channels_in=3,
    )  # fmt: skip
    return restore_head(state.head)
