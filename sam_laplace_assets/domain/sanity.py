"""The sanity check before a long training: can the head learn a few rows by heart?"""

from dataclasses import dataclass

import numpy as np
import torch

from sam_laplace_assets.domain.head import build_head
from sam_laplace_assets.domain.learner import Learner, row_losses
from sam_laplace_assets.domain.pack import Batch, Rows, batches

GOOD_LOSS = 0.05
GOOD_FRACTION = 0.9


@dataclass(frozen=True)
class SanityReport:
    """What a few rows could be fitted to.

    Attributes:
        first_loss: mean loss before the first step.
        last_loss: mean loss after the last step.
        constant_loss: what the best answer that ignores its inputs would cost: one probability for every pixel.
        iou: mean over the rows after the last step.
        passed: the loss has fallen, and is under 0.9 of the constant's or under 0.05. A head sees 5x5 pixels of logits
            and maps, so not every mask can be reached; inputs that say nothing about their masks do not get there.
    """

    first_loss: float
    last_loss: float
    constant_loss: float
    iou: float
    passed: bool


def overfits_tiny_batch(
    rows: Rows,
    *,
    dice_lambda: float,
    logit_clip: float,
    seed: int,
    hidden_channels: int,
    channels_in: int,
    num_rows: int = 4,
    steps: int = 100,
    lr: float = 0.01,
    device: torch.device | str = "cpu",
) -> SanityReport:
    """Fit a fresh head to a few rows, without weight decay and without AMP.

    Args:
        rows: a pack; rows at equal distances are taken, hence different images.
        num_rows: how many.
        steps: full-batch steps of AdamW.
        lr: larger than in training, since the steps are few.
    """
    if not len(rows):
        raise ValueError("Cannot check that the head learns: the pack has no rows.")
    head = build_head(channels_in=channels_in, hidden_channels=hidden_channels, seed=seed).to(device)
    learner = Learner(head, lr=lr, weight_decay=0.0, dice_lambda=dice_lambda, amp=False, logit_clip=logit_clip)
    batch = _spread(rows, num_rows=num_rows).to(learner.device)
    first_loss = learner.validate(iter([batch]))["val_loss"]
    for _ in range(steps):
        learner.step(batch)
    last = learner.validate(iter([batch]))
    constant_loss = _constant_loss(batch, dice_lambda=dice_lambda)
    good = last["val_loss"] < max(GOOD_LOSS, GOOD_FRACTION * constant_loss)
    return SanityReport(
        first_loss, last["val_loss"], constant_loss, last["val_iou"], good and last["val_loss"] < first_loss
    )


def _spread(rows: Rows, *, num_rows: int) -> Batch:
    """Rows at equal distances, as one batch."""
    order = np.unique(np.linspace(0, len(rows) - 1, num=num_rows).round().astype(np.int64))
    return next(batches(rows, batch_size=len(order), order=order))


def _constant_loss(batch: Batch, *, dice_lambda: float) -> float:
    """Mean loss of the best single logit, over a grid of them; a row with no contrast costs what training charges."""
    grid = torch.linspace(-8, 8, 65, device=batch.masks.device)
    losses = [row_losses(z.expand(batch.masks.shape), batch.masks, dice_lambda=dice_lambda).mean() for z in grid]
    return float(torch.stack(losses).min())
