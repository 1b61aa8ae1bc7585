"""The log marginal likelihood of a Laplace posterior in closed form, and the prior precision that maximises it.

With eigenvalues l_k of H / T, P weights w of the MAP and prior precision d, it is

    -nll / T - 1/2 (sum_k log(l_k + d) - P log d + d |w|^2),

and its derivative by log d is (gamma(d) - d |w|^2) / 2, gamma(d) = sum_k l_k / (l_k + d) being how many parameters the
data decide (MacKay 1992). gamma falls and d |w|^2 grows, so it is concave in log d: there is one maximum, and halving
finds it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sam_laplace_assets.domain.curvature import Curvature, spectrum

BOUNDS = (1e-8, 1e8)
"""Prior precisions that are looked at: standard deviations of a weight from 1e4 to 1e-4."""
HALVINGS = 64
CURVE_POINTS = 33


@dataclass(frozen=True)
class Evidence:
    """The log marginal likelihood as a function of the prior precision.

    Attributes:
        eigenvalues: (P,) float64 of H / T.
        squared_norm: |w|^2 of the MAP weights.
        log_likelihood: -nll / T, nats.
    """

    eigenvalues: Tensor
    squared_norm: float
    log_likelihood: float

    @classmethod
    def of(cls, curvature: Curvature, *, temperature: float) -> "Evidence":
        """That of a curvature at a temperature of the likelihood."""
        eigenvalues, _ = spectrum(curvature.hessian)
        return cls(eigenvalues / temperature, float(curvature.weights.square().sum()), -curvature.nll / temperature)

    def at(self, prior_precision: float) -> float:
        """Log marginal likelihood in nats, as laplace-torch computes it."""
        log_ratio = torch.log1p(self.eigenvalues / prior_precision).sum()
        return self.log_likelihood - (float(log_ratio) + prior_precision * self.squared_norm) / 2

    def slope(self, prior_precision: float) -> float:
        """Its derivative by the logarithm of the prior precision; it never grows."""
        decided = (self.eigenvalues / (self.eigenvalues + prior_precision)).sum()
        return (float(decided) - prior_precision * self.squared_norm) / 2

    def most_likely(self) -> float:
        """The prior precision at its maximum, or the end of `BOUNDS` that it grows towards."""
        if self.slope(BOUNDS[0]) <= 0:
            return BOUNDS[0]
        if self.slope(BOUNDS[1]) >= 0:
            return BOUNDS[1]
        low, high = map(math.log, BOUNDS)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.slope(math.exp(middle)) > 0 else (low, middle)
        return math.exp((low + high) / 2)

    def curve(self, around: float) -> tuple[tuple[float, float], ...]:
        """(prior precision, log marginal likelihood) over four decades on each side of a precision, ascending."""
        exponents = torch.linspace(-4, 4, CURVE_POINTS, dtype=torch.float64).tolist()
        return tuple((around * 10**exponent, self.at(around * 10**exponent)) for exponent in exponents)
