"""Calibration of pixels from one histogram: ECE, adaptive ECE and the reliability diagram, in flat memory.

A pixel's bin is its logit's step of 1/1024 within +-32, cut once more where the probability crosses a multiple of 1/15:
65,550 bins that are narrow where probabilities crowd (2.5e-4 at one half, 1e-7 and less near 0 and 1, where 10,000
bins of equal width would put nearly all background into one), and that fit both the 15 bins of the ECE and the
threshold exactly. Each holds its pixels by label and the sum of their probabilities. Counts are exact; sums are
float64, so adding up in another order changes the last bits.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sam_laplace_assets.domain.scoring import Answers

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

WIDE = 15
"""Bins of the ECE, of equal width, (a, b] as in Guo et al. 2017."""
STEPS = 1024
LIMIT = 32
ZERO = LIMIT * STEPS
"""The first step above a logit of 0: from here on a pixel is foreground."""
FINE = 2 * ZERO + WIDE - 1


@dataclass(frozen=True)
class Bounded:
    """A number read from a histogram; the one that all single pixels would give is within `bound` of it."""

    value: float
    bound: float


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: the bins that hold pixels, ascending.

    Attributes:
        centres: (B,) middle of each bin.
        means: (B,) mean probability (or confidence) of its pixels.
        frequencies: (B,) part of them that is foreground (or right).
        counts: (B,) int64 its pixels.
    """

    centres: FloatArray
    means: FloatArray
    frequencies: FloatArray
    counts: IntArray

    @property
    def error(self) -> float | None:
        """Mean of |means - frequencies| over pixels, the expected calibration error; None without a pixel."""
        gaps = np.abs(self.means - self.frequencies)
        return float(np.average(gaps, weights=self.counts)) if len(gaps) else None


@dataclass(frozen=True)
class ProbabilityHistogram:
    """Pixels by predicted probability of foreground.

    Attributes:
        counts: (2, 2, FINE) int64, [in the boundary band, label, bin].
        sums: (2, FINE) float64, sum of probabilities, [in the boundary band, bin].
        least, most: (FINE,) float64, ends of the probabilities in each bin; 1 and 0 in an empty one.
    """

    counts: IntArray
    sums: FloatArray
    least: FloatArray
    most: FloatArray

    @classmethod
    def of(cls, answers: Answers) -> "ProbabilityHistogram":
        """The pixels of some rows."""
        bins, band = _bins(answers.logits, answers.probabilities), answers.truth.band
        places = bins + FINE * answers.truth.masks + 2 * FINE * band
        counts = torch.bincount(places.flatten(), minlength=4 * FINE)
        placed = (bins + FINE * band).flatten()
        sums = torch.bincount(placed, weights=answers.probabilities.flatten(), minlength=2 * FINE)
        tables = counts.reshape(2, 2, FINE), sums.reshape(2, FINE), *bin_ends(bins, answers.probabilities, FINE, (0, 1))
        return cls(*(table.cpu().numpy() for table in tables))

    def __add__(self, other: "ProbabilityHistogram") -> "ProbabilityHistogram":
        ends = np.minimum(self.least, other.least), np.maximum(self.most, other.most)
        return ProbabilityHistogram(self.counts + other.counts, self.sums + other.sums, *ends)

    def foreground(self, *, band: bool = False) -> Reliability:
        """Diagram of the probability of foreground in 15 bins; its `error` is what `ece` means here. Exact.

        For a binary problem the ECE compares, in bins of the positive class's probability, its mean and the frequency
        of that class: Naeini et al. 2015, torchmetrics' BinaryCalibrationError, and for segmentation Jungo et al. 2020
        (Frontiers in Neuroscience 14:282). Too much and too little foreground cannot cancel in it.
        """
        total, foreground, sums = self._region(band)
        return _diagram(_wide_bins(), total, sums, foreground)

    def confidence(self, *, band: bool = False) -> Reliability:
        """Diagram of the confidence max(p, 1 - p) against being right, in 15 bins over [0, 1]. Exact.

        The ECE of Guo et al. 2017, made for many classes: of its 15 bins two classes can use the upper 8, and a gap
        of a foreground bin and of its mirror image, p and 1 - p, are added before their absolute value is taken.
        Background's bins are mirrored with their edges: [a, b).
        """
        total, foreground, sums = self._region(band)
        wide, said = _wide_bins(), _is_foreground()
        bins = np.where(said, wide, WIDE - 1 - wide)
        return _diagram(bins, total, np.where(said, sums, total - sums), np.where(said, foreground, total - foreground))

    def error_rate(self, *, band: bool = False) -> float | None:
        """Part of the pixels that the mask has wrong, exact; None without a pixel."""
        total, foreground, _ = self._region(band)
        wrong = np.where(_is_foreground(), total - foreground, foreground).sum()
        return float(wrong / total.sum()) if total.any() else None

    def adaptive_error(self, *, bins: int = 15, band: bool = False) -> Bounded | None:
        """Adaptive ECE (Nguyen and O'Connor 2015; Nixon et al. 2019): the same in bins of equal mass; None if empty.

        Pixels in order of probability are cut into `bins` bins of n / bins pixels, whole or not. Where a cut falls
        among equal probabilities, each side takes its share of them and of their foreground, the mean over their
        orders. The histogram does so for all pixels of one fine bin: where these are not all equal, that puts the
        foreground on the wrong side of the cut at worst. What that would change, summed over cuts, is the bound.
        """
        total, foreground, sums = self._region(band)
        if not total.any():
            return None
        mass, gaps = (np.concatenate([[0.0], np.cumsum(part)]) for part in (total, sums - foreground))
        cuts = np.linspace(0, mass[-1], bins + 1)
        value = np.abs(np.diff(np.interp(cuts, mass, gaps))).sum() / mass[-1]
        bound = 2 * _shift(cuts[1:-1], mass, total, foreground, self.most - self.least).sum() / mass[-1]
        return Bounded(float(value), float(bound) + 1e-12)

    def _region(self, band: bool) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Pixels, foreground pixels and sum of probabilities in each fine bin: three (FINE,) float64."""
        counts, sums = (part[1] if band else part.sum(0) for part in (self.counts, self.sums))
        return counts.sum(0).astype(np.float64), counts[1].astype(np.float64), sums


def bin_ends(bins: Tensor, values: Tensor, n_bins: int, ends: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Least and most value of each bin, (n_bins,) each; where it is empty, the upper and the lower of the ends."""
    least, most = (torch.full((n_bins,), end, dtype=values.dtype, device=values.device) for end in ends[::-1])
    least.scatter_reduce_(0, bins.flatten(), values.flatten(), "amin")
    most.scatter_reduce_(0, bins.flatten(), values.flatten(), "amax")
    return least, most


def _bins(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Fine bin of each pixel, int64.

    Step of the logit plus wide bin of the probability: both rise with the probability, so their sum tells all pairs
    apart. Multiplying by a power of two is exact, so is the threshold.
    """
    step = torch.ceil(logits * STEPS).clamp_(1 - ZERO, ZERO).long() + (ZERO - 1)
    wide = torch.ceil(probabilities * WIDE).clamp_(min=1).long() - 1
    return step + wide


@cache
def _wide_bins() -> IntArray:
    """(FINE,) which of the 15 bins each fine bin lies in."""
    edges = np.arange(1, WIDE)
    steps = np.ceil(np.log(edges / (WIDE - edges)) * STEPS).astype(np.int64) + ZERO - 1
    return np.searchsorted(steps + edges, np.arange(FINE), side="right").astype(np.int64)


def _is_foreground() -> npt.NDArray[np.bool_]:
    """(FINE,) whether the pixels of each fine bin are in the predicted mask."""
    return np.arange(FINE) - _wide_bins() >= ZERO


def _diagram(bins: IntArray, total: FloatArray, sums: FloatArray, hits: FloatArray) -> Reliability:
    """Fine bins (FINE,) gathered into wide ones."""
    counts, means, frequencies = (np.bincount(bins, weights=part, minlength=WIDE) for part in (total, sums, hits))
    kept = counts > 0
    counts, means, frequencies = counts[kept], means[kept], frequencies[kept]
    centres = ((np.arange(WIDE) + 0.5) / WIDE)[kept]
    return Reliability(centres, means / counts, frequencies / counts, counts.astype(np.int64))


def _shift(
    cuts: FloatArray, mass: FloatArray, total: FloatArray, foreground: FloatArray, widths: FloatArray
) -> FloatArray:
    """By how much the sum of p - y below each cut can differ from its proportional share: (cuts,), in pixels.

    Of the c pixels of the cut bin, f of them foreground, m lie below: between max(0, m - c + f) and min(m, f) of these
    are foreground, and m f / c is the share. Their probabilities, within w of each other, add w m (c - m) / c. Equal
    ones, w = 0, are shared in proportion by definition.
    """
    place = np.clip(np.searchsorted(mass, cuts) - 1, 0, len(total) - 1)
    m, c, f = cuts - mass[place], np.maximum(total[place], 1), foreground[place]
    share = m * f / c
    labels = np.maximum(np.minimum(m, f) - share, share - np.maximum(0, m - c + f))
    return np.where(widths[place] > 0, labels + widths[place] * m * (c - m) / c, 0)
