"""The posterior over the last layer's weights as a normal distribution: all that prediction needs of it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sam_laplace_assets.domain.posterior import ROUNDING, PosteriorRefused

if TYPE_CHECKING:
    from sam_laplace_assets.domain.posterior import Posterior


@dataclass(frozen=True)
class WeightPosterior:
    """N(mean, S S^T) of P parameters, the weights and then the bias; float64.

    Attributes:
        mean: (P,) the MAP weights.
        scale: (P,) standard deviations, or S (P, P).
        target_layer: the layer that they are of.
    """

    mean: Tensor
    scale: Tensor
    target_layer: str = "final_conv"

    def __post_init__(self) -> None:
        mean, scale = tuple(self.mean.shape), tuple(self.scale.shape)
        if self.mean.ndim != 1 or scale not in (mean, 2 * mean):
            raise PosteriorRefused(f"The posterior's mean is {mean}, its scale {scale}. Give (P,) and (P,) or (P, P).")
        if not torch.isfinite(torch.cat([self.mean, self.scale.flatten()])).all():
            raise PosteriorRefused("The posterior's mean or scale is not finite. Materialise laplace_posterior again.")

    @classmethod
    def of(cls, laplace: "Posterior") -> "WeightPosterior":
        """That of a DiagLaplace or FullLaplace, as `restore_laplace` gives it."""
        mean, scale = laplace.mean.detach().double(), laplace.posterior_scale.detach().double()
        return cls(mean, scale, laplace.model.target_layer)

    @classmethod
    def from_covariance(
        cls, mean: Tensor, covariance: Tensor, *, target_layer: str = "final_conv"
    ) -> "WeightPosterior":
        """That of variances (P,) or of a covariance (P, P), which may be singular but not indefinite."""
        covariance = covariance.double()
        if covariance.ndim == 1:
            _refuse_indefinite(covariance)
            return cls(mean.double(), covariance.sqrt(), target_layer)
        eigenvalues, basis = torch.linalg.eigh(_symmetric(covariance))
        _refuse_indefinite(eigenvalues)
        return cls(mean.double(), basis * eigenvalues.clamp(min=0).sqrt(), target_layer)

    def to(self, device: torch.device | str) -> "WeightPosterior":
        """The same on a device."""
        return WeightPosterior(self.mean.to(device), self.scale.to(device), self.target_layer)

    def deviations(self, n: int, generator: torch.Generator) -> Tensor:
        """n draws of the weights less their mean, (n, P); on a CPU, those of laplace-torch's `sample`.

        They are drawn on the generator's device, so that its state alone decides them.
        """
        normal = torch.randn(n, len(self.mean), generator=generator, device=generator.device, dtype=torch.float64)
        normal = normal.to(self.mean.device)
        return normal * self.scale if self.scale.ndim == 1 else normal @ self.scale.T


def _symmetric(covariance: Tensor) -> Tensor:
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise PosteriorRefused(f"The posterior's covariance is {tuple(covariance.shape)}. Give (P,) or (P, P).")
    if not (covariance - covariance.T).abs().max() <= ROUNDING * covariance.abs().max():  # nor if it is NaN
        raise PosteriorRefused("The posterior's covariance is not finite and symmetric.")
    return covariance


def _refuse_indefinite(eigenvalues: Tensor) -> None:
    """PosteriorRefused for what rounding does not explain; NaN is left for the birth of the posterior."""
    lowest = float(eigenvalues.min())
    if lowest < -ROUNDING * float(eigenvalues.abs().max()):
        raise PosteriorRefused(f"The posterior's covariance has the negative eigenvalue {lowest:g}.")
