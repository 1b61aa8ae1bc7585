"""An epoch of the head's training as the description has it, in plain PyTorch on tensors that are in memory."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


def build_model() -> nn.Sequential:
    """The head: two 3x3 convolutions of 16 channels with ReLU, then a 1x1 convolution."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 1, 1),
    )


def loss_of(logits: Tensor, masks: Tensor, *, dice_lambda: float) -> Tensor:
    """Binary cross-entropy plus dice_lambda times the soft Dice loss; logits and masks (B, H, W) float32."""
    probabilities = torch.sigmoid(logits)
    intersection = (probabilities * masks).sum((1, 2))
    total = probabilities.sum((1, 2)) + masks.sum((1, 2))
    dice_loss = 1 - ((2 * intersection + 1) / (total + 1)).mean()
    return functional.binary_cross_entropy_with_logits(logits, masks) + dice_lambda * dice_loss


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    masks: Tensor,
    *,
    batch_size: int,
    dice_lambda: float,
    logit_clip: float,
    rng: np.random.Generator,
) -> float:
    """One epoch over inputs (N, 3, H, W) and masks (N, H, W), both float32, in a new order; gives the mean loss."""
    model.train()
    order, losses = rng.permutation(len(inputs)), []
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        x = torch.stack([inputs[i] for i in chosen])
        y = torch.stack([masks[i] for i in chosen])
        x[:, 0] = x[:, 0].clamp(-logit_clip, logit_clip)
        optimizer.zero_grad()
        loss = loss_of(model(x)[:, 0], y, dice_lambda=dice_lambda)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses))
