"""Overlap and likelihood of mask logits, in forms that stay exact for large logits.

`logits` are float, `masks` bool, both (B, H, W). Likelihoods are per pixel until `row_means` reduces them.
"""

import torch
from torch import Tensor
from torch.nn import functional


def iou(logits: Tensor, masks: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Intersection over union of `logits > 0` and the mask, one a row.

    Empty against empty is 1: nothing was there and nothing was said.

    Args:
        where: (B, H, W) bool, the pixels that count; None: all.

    Returns:
        (B,) float64.
    """
    intersection, total = _overlap(logits, masks, where)
    union = total - intersection
    return torch.where(union == 0, 1.0, intersection / union.clamp(min=1))


def dice(logits: Tensor, masks: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Dice coefficient of `logits > 0` and the mask, one a row; empty against empty is 1.

    Args:
        where: (B, H, W) bool, the pixels that count; None: all.

    Returns:
        (B,) float64.
    """
    intersection, total = _overlap(logits, masks, where)
    return torch.where(total == 0, 1.0, 2 * intersection / total.clamp(min=1))


def soft_dice_loss(logits: Tensor, masks: Tensor, *, smoothing: float = 1.0) -> Tensor:
    """One minus the Dice coefficient of the probabilities and the mask, one a row.

    Args:
        smoothing: pixels added to both sides of the fraction, so that an empty mask has a gradient and a loss near 0
            when nothing is said.

    Returns:
        (B,) in the logits' dtype, differentiable.
    """
    probabilities, targets = torch.sigmoid(logits).flatten(1), masks.flatten(1).to(logits.dtype)
    intersection = (probabilities * targets).sum(1)
    total = probabilities.sum(1) + targets.sum(1)
    return 1 - (2 * intersection + smoothing) / (total + smoothing)


def binary_nll(logits: Tensor, masks: Tensor) -> Tensor:
    """Negative log-likelihood of each pixel in nats.

    -log sigmoid(z) of the logit signed towards the truth: to relative precision on both sides, where
    max(z, 0) - z y + log(1 + exp(-|z|)) in float32 forgets what is far below |z|.

    Returns:
        (B, H, W) in the logits' dtype; any common shape works.
    """
    return signed_nll(torch.where(masks, logits, -logits))


def signed_nll(logits: Tensor) -> Tensor:
    """`binary_nll` of logits that are signed towards the truth, same shape."""
    return -functional.logsigmoid(logits)


def binary_entropy(logits: Tensor) -> Tensor:
    """Entropy of Bernoulli(sigmoid(logits)) in nats, same shape; at most log 2.

    With a = |z| and e = exp(-a) it is log(1 + e) + a e / (1 + e): no difference of large numbers.
    """
    magnitude = logits.abs()
    e = torch.exp(-magnitude)
    return torch.log1p(e) + magnitude * e / (1 + e)


def bernoulli_variance(logits: Tensor) -> Tensor:
    """p (1 - p) of p = sigmoid(logits), same shape; sigmoid(z) sigmoid(-z) does not vanish where 1 - p rounds to 0."""
    return torch.sigmoid(logits) * torch.sigmoid(-logits)


def residuals(logits: Tensor, masks: Tensor) -> Tensor:
    """p - y, the derivative of `binary_nll` by the logit, same shape; exact also where p rounds to 1."""
    return torch.where(masks, -torch.sigmoid(-logits), torch.sigmoid(logits))


def squared_error(probabilities: Tensor, masks: Tensor) -> Tensor:
    """(p - y)^2 of each pixel, same shape and dtype as the probabilities.

    Its mean is the Brier score (Brier 1950) in its two-class form, in [0, 1]; summing over both classes, as Brier
    first wrote it, gives twice as much.
    """
    return (probabilities - masks.to(probabilities.dtype)).square()


def row_means(values: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Mean over the pixels of each row: (B, H, W) to (B,) float64.

    Args:
        where: (B, H, W) bool, the pixels that count; None: all. A row without one is 0.
    """
    if where is None:
        return values.flatten(1).mean(1, dtype=torch.float64)
    sums = torch.where(where, values, 0).flatten(1).sum(1, dtype=torch.float64)
    return sums / where.flatten(1).sum(1).clamp(min=1)


def _overlap(logits: Tensor, masks: Tensor, where: Tensor | None) -> tuple[Tensor, Tensor]:
    """Pixels in both, and in the one plus in the other: two (B,) float64."""
    predicted = logits > 0
    if where is not None:
        predicted, masks = predicted & where, masks & where
    intersection = (predicted & masks).flatten(1).sum(1)
    total = predicted.flatten(1).sum(1) + masks.flatten(1).sum(1)
    return intersection.double(), total.double()
