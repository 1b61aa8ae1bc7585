"""How well an uncertainty finds the wrong pixels: AUROC, risk-coverage curve and AURC, pooled and a row.

Only the order of the scores counts. Equal scores count as ties: half in the AUROC, and in the AURC the mean over their
orders. Pooled pixels go into 262,144 bins of one 512th in relative width (the upper 18 bits of float32), so no range
needs to be known; those of one bin count as ties, and what that can change comes with the number: nothing, where all of
a bin are equal to rounding, as those of clipped logits are. In one row scores are told apart to 22 bits, 2.4e-7 in
relative terms.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sam_laplace_assets.domain.reliability import Bounded, bin_ends
from sam_laplace_assets.domain.scoring import Answers, RowValues

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

BITS = 18
BINS = 2**BITS
INT32 = (-(2**31), 2**31 - 1)
SAME = 4
"""Steps of float32 within which scores are equal: vectorised functions round the same pixel in two ways."""
ROUNDING = 1e-9
"""Of an area, from float64 harmonic numbers."""


@dataclass(frozen=True)
class RiskCoverage:
    """Error rate of the mask among its most certain pixels.

    Attributes:
        coverage: (P,) part of the pixels that is kept, ascending in (0, 1].
        risk: (P,) part of those that is wrong.
    """

    coverage: FloatArray
    risk: FloatArray


@dataclass(frozen=True)
class Ties:
    """Groups of equally uncertain pixels, from certain to uncertain.

    Attributes:
        right, wrong: (G,) float64 pixels of each group.
        right_before, wrong_before: (G,) float64 pixels of the more certain groups.
    """

    right: FloatArray
    wrong: FloatArray
    right_before: FloatArray
    wrong_before: FloatArray

    def outranked(self) -> FloatArray:
        """(G,) pairs of a wrong pixel of the group and a right one that is more certain; ties count half."""
        return self.wrong * (self.right_before + self.right / 2)

    def risks(self) -> FloatArray:
        """(G,) sum over the group's pixels of the risk at their coverage, the mean over the orders of ties."""
        return _stretch(self.right_before, self.wrong_before, self.right, self.wrong)

    def extreme_risks(self) -> tuple[FloatArray, FloatArray]:
        """The same with the right pixels of each group first, and with the wrong ones first: two (G,)."""
        none = np.zeros_like(self.right)
        low = _stretch(self.right_before, self.wrong_before, self.right, none)
        low += _stretch(self.right_before + self.right, self.wrong_before, none, self.wrong)
        high = _stretch(self.right_before, self.wrong_before, none, self.wrong)
        high += _stretch(self.right_before, self.wrong_before + self.wrong, self.right, none)
        return low, high


@dataclass(frozen=True)
class UncertaintyHistogram:
    """Pixels by uncertainty.

    Attributes:
        counts: (2, BINS) int64, [wrong, bin], from certain to uncertain.
        least, most: (BINS,) int32, ends of the scores in each bin, as `_ordered` numbers them.
    """

    counts: IntArray
    least: npt.NDArray[np.int32]
    most: npt.NDArray[np.int32]

    @classmethod
    def of(cls, scores: Tensor, wrong: Tensor) -> "UncertaintyHistogram":
        """Pixels with these scores, finite, and whether they are wrong; both of one shape."""
        ordered = _ordered(scores)
        bins = (ordered >> (32 - BITS)).long() + BINS // 2
        counts = torch.bincount((bins + BINS * wrong).flatten(), minlength=2 * BINS).reshape(2, BINS)
        return cls(*(table.cpu().numpy() for table in (counts, *bin_ends(bins, ordered, BINS, INT32))))

    def __add__(self, other: "UncertaintyHistogram") -> "UncertaintyHistogram":
        ends = np.minimum(self.least, other.least), np.maximum(self.most, other.most)
        return UncertaintyHistogram(self.counts + other.counts, *ends)

    def auroc(self) -> Bounded | None:
        """Probability that a wrong pixel is less certain than a right one; None if all are right, or all wrong."""
        ties, pairs = self._ties(), self._pairs()
        if not pairs:
            return None
        bound = (ties.wrong * ties.right)[self._mixed()].sum() / 2 / pairs
        return Bounded(float(ties.outranked().sum() / pairs), float(bound) + ROUNDING)

    def aurc(self) -> Bounded:
        """Area under the risk-coverage curve: mean of the risks at coverages 1/n, 2/n ... 1 (Geifman et al. 2019)."""
        ties, n = self._ties(), self.counts.sum()
        risks, mixed = ties.risks(), self._mixed()
        apart = [np.abs(extreme - risks)[mixed].sum() / n for extreme in ties.extreme_risks()]
        return Bounded(float(risks.sum() / n), float(max(apart)) + ROUNDING)

    def excess_aurc(self) -> Bounded:
        """AURC above that of a score that puts all wrong pixels last, E-AURC of Geifman et al. 2019; 0 is perfect."""
        found, (right, wrong) = self.aurc(), self.counts.sum(1)
        return Bounded(found.value - best_aurc(int(right), int(wrong)), found.bound)

    def curve(self, *, points: int = 100) -> RiskCoverage:
        """The risk at coverages 1/points, 2/points ... 1; inside a bin, wrong pixels are spread evenly."""
        kept = self.counts.any(0)
        right, wrong = (np.concatenate([[0.0], np.cumsum(part[kept])]) for part in self.counts)
        pixels = np.arange(1, points + 1) / points * (right[-1] + wrong[-1])
        return RiskCoverage(np.arange(1, points + 1) / points, np.interp(pixels, right + wrong, wrong) / pixels)

    def _ties(self) -> Ties:
        return _ties(*self.counts[:, self.counts.any(0)].astype(np.float64))

    def _mixed(self) -> npt.NDArray[np.bool_]:
        """(G,) whether a group holds scores that differ by more than rounding."""
        kept = self.counts.any(0)
        return self.most[kept].astype(np.int64) - self.least[kept] > SAME

    def _pairs(self) -> float:
        right, wrong = self.counts.sum(1)
        return float(right) * float(wrong)


def best_aurc(right: int, wrong: int) -> float:
    """AURC of a score that puts all wrong pixels last; near r + (1 - r) ln(1 - r) for a large number of them."""
    return float(_stretch(*(np.array([float(part)]) for part in (right, 0, 0, wrong)))[0]) / (right + wrong)


def rank_rows(uncertainties: Mapping[str, Tensor], wrong: Tensor) -> dict[str, RowValues]:
    """`auroc_<name>` and `aurc_<name>` of each row: uncertainties and wrong (N, H, W) to (N,).

    A row without a wrong pixel, or without a right one, has no AUROC.
    """
    columns = {}
    for name, scores in uncertainties.items():
        columns[f"auroc_{name}"], columns[f"aurc_{name}"] = _rank_rows(scores, wrong)
    return columns


def rank(answers: Answers) -> dict[str, UncertaintyHistogram]:
    """The pooled pixels of some rows, by each of the method's uncertainties."""
    return {name: UncertaintyHistogram.of(scores, answers.wrong) for name, scores in answers.uncertainties.items()}


def _rank_rows(scores: Tensor, wrong: Tensor) -> tuple[RowValues, RowValues]:
    """AUROC and AURC of each row.

    Whether a pixel is wrong takes the place of the last bit of its score, so that one sort carries both.
    """
    ordered = _sorted(((_ordered(scores) & ~1) | wrong).flatten(1))
    outranked, risks, pairs = np.array([_rank_row(row) for row in ordered]).T
    auroc = RowValues(outranked / np.maximum(pairs, 1), pairs > 0)
    return auroc, RowValues(risks / ordered.shape[1], np.ones(len(ordered), dtype=bool))


def _rank_row(ordered: npt.NDArray[np.int32]) -> tuple[float, float, float]:
    """Outranked pairs, sum of risks, and pairs of a wrong and a right pixel, of one row (P,)."""
    scores = ordered >> 1
    ends = np.append(np.flatnonzero(scores[1:] != scores[:-1]), len(scores) - 1)
    wrong_until = np.cumsum(ordered & 1)[ends].astype(np.float64)
    right_until = ends + 1 - wrong_until
    ties = _ties(np.diff(right_until, prepend=0), np.diff(wrong_until, prepend=0))
    return ties.outranked().sum(), ties.risks().sum(), right_until[-1] * wrong_until[-1]


def _ties(right: FloatArray, wrong: FloatArray) -> Ties:
    return Ties(right, wrong, np.cumsum(right) - right, np.cumsum(wrong) - wrong)


def _sorted(keys: Tensor) -> npt.NDArray[np.int32]:
    """Each row (N, P) int32 in ascending order; NumPy sorts integers several times faster on a CPU."""
    if keys.device.type == "cpu":
        return np.sort(keys.numpy(), axis=1)
    return torch.sort(keys, dim=1).values.cpu().numpy()


def _ordered(scores: Tensor) -> Tensor:
    """int32 in the order of the scores as float32; -0 is 0, and what float32 cannot tell apart is equal."""
    bits = (scores.float() + 0.0).contiguous().view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _stretch(right: FloatArray, wrong: FloatArray, more_right: FloatArray, more_wrong: FloatArray) -> FloatArray:
    """Sum of the risks while c pixels come to N, of which E are wrong, with errors spread evenly at rate r among them.

    The sum over j = 1 ... c of (E + r j) / (N + j) is r c + (E - r N) (H(N + c) - H(N)), H being harmonic numbers.
    """
    before, count = right + wrong, more_right + more_wrong
    rate = more_wrong / np.maximum(count, 1)
    return rate * count + (wrong - rate * before) * (_harmonic(before + count) - _harmonic(before))


def _harmonic(n: FloatArray) -> FloatArray:
    """1 + 1/2 + ... + 1/n of whole numbers, to rounding: looked up, or by the asymptotic series, off by 1 / 252 n^6."""
    table = _harmonic_table()
    if not n.size or n.max() < len(table):
        return table[n.astype(np.int64)]
    inverse = 1 / np.maximum(n, 1)
    series = -np.log(inverse) + np.euler_gamma + inverse / 2 - inverse**2 / 12 + inverse**4 / 120
    return np.where(n < len(table), table[np.minimum(n, len(table) - 1).astype(np.int64)], series)


@cache
def _harmonic_table() -> FloatArray:
    """(2^17,) of 0, 1, 2 ...: enough for a row of 256x256 pixels."""
    steps = 1 / np.arange(1, 2**17, dtype=np.longdouble)
    return np.concatenate([[0.0], np.cumsum(steps).astype(np.float64)])
