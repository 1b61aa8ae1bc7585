"""Curvature of the head's last layer, a 1x1 convolution, under a Bernoulli likelihood per pixel: exact, in one pass.

The logits are linear in the last layer's P = C + 1 parameters (C weights, then the bias), so the generalised
Gauss-Newton matrix is the Hessian of the summed negative log-likelihood. Sums run in float64.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sam_laplace_assets.domain.last_layer import RowPass, jacobian, last_layer_weights, over_rows, pixel_features
from sam_laplace_assets.domain.metrics import bernoulli_variance, binary_nll, residuals
from sam_laplace_assets.domain.pack import Progress, Rows

CHUNK_PIXELS = 8192
"""Worked on at once, so that they stay in cache."""
DEAD = 1e-12
"""Directions whose curvature is below this part of the largest one carry no data."""


@dataclass(frozen=True)
class Curvature:
    """What one pass over a pack says about the last layer at the MAP weights; everything is summed over pixels.

    Attributes:
        hessian: (P,) for `diagonal`, (P, P) for `full`, float64.
        score_covariance: (P, P) float64, J = I / (I - 1) sum_i (g_i - g)(g_i - g)^T over the I images' scores g_i (the
            gradient of the summed NLL over all rows of an image) and their mean g; zeros for a single image.
        weights: (P,) float64, the MAP weights.
        nll: negative log-likelihood in nats.
        n_rows, n_pixels, n_images: how much was summed.
        target_layer, approx: which layer, and `diagonal` or `full`.
    """

    hessian: Tensor
    score_covariance: Tensor
    weights: Tensor
    nll: float
    n_rows: int
    n_pixels: int
    n_images: int
    target_layer: str
    approx: str

    @property
    def n_dead(self) -> int:
        """How many parameters no data speaks for: their curvature is below `DEAD` of the largest."""
        diagonal = self.hessian if self.hessian.ndim == 1 else self.hessian.diagonal()
        return int((diagonal <= DEAD * diagonal.max()).sum())

    def __post_init__(self) -> None:
        sums = torch.stack([self.hessian.sum(), self.score_covariance.sum(), torch.tensor(self.nll).double()])
        if not torch.isfinite(sums).all():
            raise ValueError("The curvature is not finite. The head's logits overflow on this pack: train it again.")


def ggn_diagonal(features: Tensor, logits: Tensor) -> Tensor:
    """Diagonal of the GGN: squared features, weighted by p (1 - p), summed over pixels.

    Args:
        features: (B, C, H, W) inputs of the last layer.
        logits: (B, H, W) its outputs at the MAP weights.

    Returns:
        (P,) float64.
    """
    return jacobian(features).square() @ bernoulli_variance(logits).flatten().double()


def ggn_full(features: Tensor, logits: Tensor) -> Tensor:
    """The GGN itself, (P, P) float64; arguments as for `ggn_diagonal`."""
    J = jacobian(features)
    return (J * bernoulli_variance(logits).flatten().double()) @ J.T


def row_score(features: Tensor, logits: Tensor, masks: Tensor) -> Tensor:
    """Gradient of the summed NLL by the last layer's parameters, (P,) float64; masks (B, H, W) bool."""
    return jacobian(features) @ residuals(logits, masks).flatten().double()


APPROXES = ("diagonal", "full")


def fit_curvature(
    head: nn.Module,
    rows: Rows,
    *,
    target_layer: str = "final_conv",
    approx: str = "diagonal",
    logit_clip: float,
    batch_size: int,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Curvature:
    """Curvature, summed NLL and spread of the images' scores, in one pass over the training pack.

    Args:
        head: at its MAP weights; it is copied, never changed.
        rows: the rows that it was trained on.
        approx: `diagonal` or `full`.
    """
    if approx not in APPROXES:
        raise ValueError(f"Unknown laplace.approx {approx!r}. Choose one of {list(APPROXES)}.")
    if not len(rows):
        raise ValueError("Cannot fit a posterior: the training pack has no rows. Materialise its split first.")
    weights = last_layer_weights(head, target_layer=target_layer)
    images, image_of_row = np.unique(rows.images, return_inverse=True)
    hessian = torch.zeros((len(weights),) * (1 if approx == "diagonal" else 2), dtype=torch.float64, device=device)
    scores = torch.zeros(len(images), len(weights), dtype=torch.float64, device=device)
    nll, n_pixels = torch.zeros((), dtype=torch.float64, device=device), 0
    passes = over_rows(
        head,
        rows,
        lambda each: row_sums(each, approx=approx),
        target_layer=target_layer,
        logit_clip=logit_clip,
        batch_size=batch_size,
        device=device,
        progress=progress,
    )
    for image, sums in zip(image_of_row, passes, strict=True):
        hessian += sums.hessian
        scores[image] += sums.score
        nll += sums.nll
        n_pixels += sums.n_pixels
    return Curvature(
        hessian=hessian.cpu(),
        score_covariance=score_covariance(scores.cpu()),
        weights=weights,
        nll=float(nll),
        n_rows=len(rows),
        n_pixels=n_pixels,
        n_images=len(images),
        target_layer=target_layer,
        approx=approx,
    )


@dataclass(frozen=True)
class RowSums:
    """Sums over a row's pixels: of `ggn_diagonal` (P,) or `ggn_full` (P, P), `row_score` (P,), and the NLL in nats."""

    hessian: Tensor
    score: Tensor
    nll: Tensor
    n_pixels: int


def row_sums(each: RowPass, *, approx: str) -> RowSums:
    """What one row adds to the curvature, float64, in one pass over its pixels."""
    weights = bernoulli_variance(each.logits).flatten().double()
    errors = residuals(each.logits, each.masks).flatten().double()
    features = pixel_features(each.features)
    score, curved, mixed = (weights.new_zeros(features.shape[1]) for _ in range(3))
    gram = torch.outer(curved, curved)
    in_double = weights.new_empty(CHUNK_PIXELS, features.shape[1])
    chunks = (torch.split(whole, CHUNK_PIXELS) for whole in (features, weights, errors))
    for pixels, weight, error in zip(*chunks, strict=True):
        x = in_double[: len(pixels)].copy_(pixels)
        score += error @ x
        if approx == "diagonal":
            curved += weight @ x.square_()
        else:
            mixed += weight @ x
            gram += (x * weight[:, None]).T @ x
    bias = weights.sum()[None]
    hessian = torch.cat([curved, bias]) if approx == "diagonal" else _bordered(gram, mixed, bias)
    score = torch.cat([score, errors.sum()[None]])
    nll = binary_nll(each.logits, each.masks).sum(dtype=torch.float64)
    return RowSums(hessian, score, nll, each.masks.numel())


def _bordered(gram: Tensor, mixed: Tensor, bias: Tensor) -> Tensor:
    """(C + 1, C + 1) with the bias as the last parameter, of the sums for the weights, for both, and for the bias."""
    return torch.cat([torch.cat([gram, mixed[:, None]], 1), torch.cat([mixed, bias])[None]])


def score_covariance(scores: Tensor) -> Tensor:
    """Covariance (P, P) of the sum of I independent scores (I, P): I times their sample covariance."""
    n_images = len(scores)
    centred = scores - scores.mean(0)
    return n_images / max(n_images - 1, 1) * centred.T @ centred


def spectrum(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (P,), none negative, and eigenvectors (P, P) in columns of a diagonal (P,) or full (P, P) Hessian."""
    if hessian.ndim == 1:
        return hessian, torch.eye(len(hessian), dtype=hessian.dtype)
    eigenvalues, basis = torch.linalg.eigh(hessian)
    return eigenvalues.clamp(min=0), basis


def resolve_temperature(curvature: Curvature, likelihood_temperature: float | str) -> float:
    """The number that `likelihood_temperature` stands for: a positive number itself, or `image_cluster`.

    The likelihood is raised to the power 1 / T, so the posterior's precision is H / T plus the prior's.
    """
    if likelihood_temperature == "image_cluster":
        return image_cluster_temperature(curvature)
    if isinstance(likelihood_temperature, str) or not 0 < likelihood_temperature < float("inf"):
        raise ValueError(
            f"laplace.likelihood_temperature is {likelihood_temperature!r}. Give a positive number or image_cluster."
        )
    return float(likelihood_temperature)


def image_cluster_temperature(curvature: Curvature) -> float:
    """T = tr(H^-1 J) / P: how much further the images' scores spread than independent pixels would let them.

    The pixels and the prompt sets of one image share what they get wrong; images are the independent units. Directions
    without data (dead channels) are left out of the trace and of P.

    If every row comes k times, H grows by k and J by k squared: T grows by k, H / T and so the posterior stay the same.
    Repeating the rows of one image among many gives it more weight in both, which no single T undoes.
    """
    if curvature.n_images < 2:
        raise ValueError(
            "likelihood_temperature image_cluster compares images, and the training pack has one. Use 1.0 instead."
        )
    eigenvalues, basis = spectrum(curvature.hessian)
    alive = eigenvalues > DEAD * eigenvalues.max()
    spread = (basis.T @ curvature.score_covariance @ basis).diagonal()
    temperature = float((spread[alive] / eigenvalues[alive]).mean())
    if not 0 < temperature < float("inf"):
        raise ValueError(f"likelihood_temperature image_cluster came out as {temperature}. Use 1.0 instead.")
    return temperature
