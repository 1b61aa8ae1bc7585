"""Training does what it says, on a few scenes and steps."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sam_laplace_assets.demo.augment import MAX_PAIRS, Scenes, draw_batch
from sam_laplace_assets.demo.toy_sam import build_toy_sam
from sam_laplace_assets.demo.train_toy_sam import (
    cell_iou,
    decode,
    dice_loss,
    draw_training_scene,
    focal_loss,
    learning_rate_factor,
    train,
)


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    drawn = [draw_training_scene(0, index) for index in range(4)]
    return Scenes(np.stack([image for image, _ in drawn]), np.stack([labels for _, labels in drawn]))


def test_points_of_a_batch_lie_in_cells_that_agree_with_them(scenes: Scenes) -> None:
    for seed in range(5):
        batch = draw_batch(np.random.default_rng(seed), scenes, images=2, objects=3, min_fraction=0.005)
        cells = (batch.points // 4).long()
        shares = batch.targets[torch.arange(6)[:, None], cells[..., 1], cells[..., 0]]
        assert bool((shares[batch.labels == 1] > 0).all())
        assert bool((shares[batch.labels == 0] < 1).all())
        assert batch.points.shape[1] <= 2 * MAX_PAIRS


def test_decoding_a_batch_agrees_with_the_stock_decoder(scenes: Scenes) -> None:
    torch.manual_seed(0)
    sam = build_toy_sam()
    batch = draw_batch(np.random.default_rng(0), scenes, images=2, objects=2, min_fraction=0.005)
    with torch.no_grad():
        logits, qualities = decode(sam, batch)
        sparse, dense = sam.prompt_encoder(points=(batch.points, batch.labels), boxes=None, masks=None)
        embeddings = sam.image_encoder(batch.images)
        for image in range(2):
            own = slice(2 * image, 2 * image + 2)
            expected = sam.mask_decoder.predict_masks(
                embeddings[image : image + 1], sam.prompt_encoder.get_dense_pe(), sparse[own], dense[own]
            )
            assert float((logits[own] - expected[0]).std() / expected[0].std()) < 0.05
            assert torch.allclose(qualities[own], expected[1], atol=0.02)


def test_losses_vanish_for_a_sure_and_right_answer_only() -> None:
    targets = torch.zeros(1, 1, 8, 8)
    targets[..., :4] = 1
    right = 40 * (targets - 0.5)
    for loss in (focal_loss, dice_loss):
        assert float(loss(right, targets)) < 1e-3
        assert float(loss(-right, targets)) > 0.9
    assert float(cell_iou(right, targets)) == 1
    assert float(cell_iou(-right, targets)) == 0


def test_learning_rate_rises_then_falls() -> None:
    factors = [learning_rate_factor(step, 1000) for step in range(1001)]
    peak = int(np.argmax(factors))
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert factors[-1] == pytest.approx(0.01)


def test_training_twice_from_one_seed_gives_the_same_bytes(scenes: Scenes, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    for name in ("a.pt", "b.pt"):
        train(scenes, steps=2, seed=1, threads=1, out=tmp_path / name, probes=1)
    torch.set_num_threads(threads)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
