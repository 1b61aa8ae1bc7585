"""What the posterior says about a mask: each pixel's logit as a normal distribution, and its probit approximation."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sam_laplace_assets.domain.last_layer import features_and_logits, pixel_features
from sam_laplace_assets.domain.metrics import binary_nll, row_means
from sam_laplace_assets.domain.posterior import refuse_foreign

if TYPE_CHECKING:
    from sam_laplace_assets.domain.posterior import Posterior

CHUNK_PIXELS = 8192
"""Worked on at once, so that they stay in cache."""


@dataclass(frozen=True)
class Predictive:
    """The distribution of each pixel's logit.

    Attributes:
        mean: (B, H, W) float32, the logits at the MAP weights.
        variance: (B, H, W) float32, squared logits.
    """

    mean: Tensor
    variance: Tensor

    @property
    def logits(self) -> Tensor:
        """(B, H, W) logits of `probabilities`; the same sign as the mean."""
        return probit_logits(self.mean, self.variance)

    @property
    def probabilities(self) -> Tensor:
        """(B, H, W) sigmoid averaged over the posterior, by the probit approximation; exact: `quantities`."""
        return torch.sigmoid(self.logits)

    def nll(self, masks: Tensor) -> Tensor:
        """Negative log-likelihood of masks (B, H, W) bool in nats, a mean over pixels: (B,) float64."""
        return row_means(binary_nll(self.logits, masks))


def probit_logits(mean: Tensor, variance: Tensor) -> Tensor:
    """Logit of E[sigmoid(f)] for f normal with this mean and variance, nearly: mean / sqrt(1 + pi / 8 variance).

    An approximation (MacKay 1992), at most 0.02 off in probability, that a whole grid of variances can afford.
    """
    return mean / (1 + math.pi / 8 * variance).sqrt()


def predict(laplace: "Posterior", head: nn.Module, x: Tensor) -> Predictive:
    """Mean and variance of the logits under the posterior.

    Args:
        laplace: a posterior of this head; another's is refused.
        head: in evaluation mode, on x's device.
        x: (B, 3, H, W) float32, as `head_inputs` makes it.
    """
    target_layer = laplace.model.target_layer
    refuse_foreign(laplace.mean, head, target_layer=target_layer)
    with torch.no_grad():
        features, logits = features_and_logits(head, x, target_layer=target_layer)
        return Predictive(logits, logit_variance(laplace, features))


def logit_variance(laplace: "Posterior", features: Tensor) -> Tensor:
    """Variance of each pixel's logit under a posterior with scale S, S S^T = P^-1, as `variance_under` computes it."""
    return variance_under(laplace.posterior_scale, features)


def variance_under(scale: Tensor, features: Tensor) -> Tensor:
    """Variance of each pixel's logit, J^T S S^T J = |S^T J|^2, never negative.

    Args:
        scale: (P,) standard deviations of the last layer's weights, or S (P, P), float64.
        features: (B, C, H, W) inputs of the last layer.

    Returns:
        (B, H, W) float32, computed in float64.
    """
    scale, variance = scale.to(features.device), torch.empty_like(features[:, 0], dtype=torch.float32)
    pixels = torch.split(pixel_features(features), CHUNK_PIXELS)
    for some, found in zip(pixels, torch.split(variance.view(-1), CHUNK_PIXELS), strict=True):
        found[:] = _squared_norms(scale, some.double())
    return variance


def _squared_norms(scale: Tensor, features: Tensor) -> Tensor:
    """|S^T J|^2 of pixels with features (n, C) float64: (n,)."""
    if scale.ndim == 1:
        return torch.addmv(scale[-1].square(), features.square(), scale[:-1].square())
    return torch.addmm(scale[-1], features, scale[:-1]).square().sum(1)
