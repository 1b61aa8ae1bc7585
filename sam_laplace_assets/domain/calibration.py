"""Logit scaling: the one factor on all logits that makes them most likely, in one pass and 4 MB.

With y = 1 for the mask, the Bernoulli NLL of logits s z is the sum of log(1 + exp(-s |z|)) over all pixels plus s times
the sum of |z| over the pixels on the wrong side of 0. The second sum is one number; the first asks for the distribution
of |z| alone. A histogram holds it whose bins are the floats that agree in their first ten binary digits (each 1/2048 to
1/1024 of its place wide) and which remembers the mean of each bin: logits that were float16 have a bin for every value,
and others cost `NLL_ERROR` at most, whatever the factor.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sam_laplace_assets.domain.finite import refuse_not_finite

MANTISSA_DIGITS = 10
FLOAT32_MANTISSA_DIGITS = 23
BINS = 1 << (8 + MANTISSA_DIGITS)
NLL_ERROR = 5.3e-8
"""Nats a pixel by which an NLL may come out too small (never too large).

A bin's variance is at most (|z| / 2048)^2, the second derivative of log(1 + exp(-s z)) by z is s^2 p (1 - p), and
u^2 sigmoid(u) sigmoid(-u) / 2 is at most 0.22.
"""
LOG_FACTORS = (-40.0, 40.0)
HALVINGS = 64


class NoScale(ValueError):
    """Logits whose likelihood has no best factor."""


@dataclass(frozen=True)
class Scale:
    """The factor that minimises the NLL of the logits times it.

    Attributes:
        value: factor on logits, positive; below 1 they were too confident. On a variance of logits, its square.
        nll_before, nll_after: nats, a mean over pixels, of the logits as they were and times `value`.
    """

    value: float
    nll_before: float
    nll_after: float

    @property
    def temperature(self) -> float:
        """What the logits are divided by: 1 / value."""
        return 1 / self.value


class LogitHistogram:
    """All that the NLL of scaled logits depends on, summed up batch by batch.

    Attributes:
        counts, sums: (BINS,) float64, of the |z| in each bin.
        wrong: sum of |z| over pixels with a logit above 0 off the mask, or below 0 on it.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.sums = torch.zeros(BINS, dtype=torch.float64)
        self.wrong = 0.0

    def add(self, logits: Tensor, masks: Tensor) -> None:
        """Count logits and masks bool, both of one shape; on any device, in any float dtype."""
        magnitudes = logits.abs().flatten().cpu()
        bins = magnitudes.float().view(torch.int32) >> (FLOAT32_MANTISSA_DIGITS - MANTISSA_DIGITS)
        self.counts += torch.bincount(bins, minlength=BINS)
        self.sums += torch.bincount(bins, weights=magnitudes.double(), minlength=BINS)
        self.wrong += float(magnitudes[((logits > 0) != masks).flatten().cpu()].sum(dtype=torch.float64))

    def nll(self, factor: float) -> float:
        """NLL of factor times the logits in nats, a mean over pixels; see `NLL_ERROR`."""
        counts, magnitudes = self._seen()
        right = (counts * functional.softplus(-factor * magnitudes)).sum()
        return (float(right) + factor * self.wrong) / float(counts.sum())

    def slope(self, factor: float) -> float:
        """Derivative of the summed NLL by the factor; it never falls."""
        counts, magnitudes = self._seen()
        return self.wrong - float((counts * magnitudes * torch.sigmoid(-factor * magnitudes)).sum())

    def _seen(self) -> tuple[Tensor, Tensor]:
        """Counts of the bins that are not empty and the means of |z| in them."""
        filled = self.counts > 0
        return self.counts[filled], self.sums[filled] / self.counts[filled]


def fit_scale(batches: Iterable[tuple[Tensor, Tensor]]) -> Scale:
    """The best factor for a source of logits: SAM's, the head's, or any other's.

    Args:
        batches: (logits (B, H, W) float, masks (B, H, W) bool), met once; every pixel counts the same.

    Raises:
        ValueError: a batch does not fit together or has a NaN or infinite logit; rows are numbered from 0 over all.
        NoScale: no pixel is on the wrong side, so that more is always better; or too many are, so that less is.
    """
    histogram, first_row = LogitHistogram(), 0
    for logits, masks in batches:
        _refuse_unusable(logits, masks, first_row=first_row)
        histogram.add(logits, masks)
        first_row += len(logits)
    if not first_row:
        raise NoScale("Cannot scale logits: there are no rows. Materialise the split first.")
    return best_scale(histogram)


def best_scale(histogram: LogitHistogram) -> Scale:
    """The factor at which the NLL, which is convex in it, stops falling: found by halving its logarithm's range."""
    low, high = LOG_FACTORS
    _refuse_boundless(histogram.slope(math.exp(low)), histogram.slope(math.exp(high)))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if histogram.slope(math.exp(middle)) > 0 else (middle, high)
    value = math.exp((low + high) / 2)
    return Scale(value, histogram.nll(1.0), histogram.nll(value))


def _refuse_boundless(first_slope: float, last_slope: float) -> None:
    if first_slope >= 0:
        raise NoScale("The logits point away from the masks at least as much as towards them: no factor helps.")
    if last_slope <= 0:
        raise NoScale("No logit is on the wrong side of 0: the larger the factor, the better. Give more rows.")


def _refuse_unusable(logits: Tensor, masks: Tensor, *, first_row: int) -> None:
    if logits.shape != masks.shape or masks.dtype != torch.bool or not logits.is_floating_point():
        raise ValueError(
            f"From row {first_row} on, logits are {logits.dtype} {tuple(logits.shape)} and masks {masks.dtype} "
            f"{tuple(masks.shape)}. Give float logits and bool masks of one shape."
        )
    refuse_not_finite(logits, what="The logit", advice="Compute this row again, or leave it out.", first_item=first_row)
