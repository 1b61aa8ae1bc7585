"""All that one method scored on some rows, row by row and pooled, over whole images and in the boundary band.

A `Tally`, and what it does not have: the calibration of each row, overlap as counts of pixels, and how well uncertainty
finds errors in the band. It grows by some kilobytes a row; its histograms stay as they are.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sam_laplace_assets.domain.ranking import UncertaintyHistogram, rank_rows
from sam_laplace_assets.domain.reliability import WIDE, Bounded, ProbabilityHistogram
from sam_laplace_assets.domain.scoring import Answers, RowValues, Truth, row_values
from sam_laplace_assets.domain.tally import Tally

FloatArray = npt.NDArray[np.float64]
PREFIXES = ("", "band_")
"""Of scores over whole images, and in the boundary band."""


@dataclass(frozen=True)
class MethodScores:
    """What one method scored on N rows.

    Attributes:
        tally: its rows also have `ece` and `adaptive_ece` (15 bins each), and the pixel counts `intersection` and
            `mask_pixels` (predicted plus true), each with `band_` before it, too; and of each uncertainty
            `band_auroc_<name>` and `band_aurc_<name>`.
        gaps: (N, 2, 15) float64, of each row, over the image and in the band, the sum of p - y in each of the bins of
            the ECE, in the order in which rows were fed: from them follows the pooled ECE of any set of rows.
        band: the band's pixels by each uncertainty.
    """

    tally: Tally
    gaps: FloatArray
    band: Mapping[str, UncertaintyHistogram]

    @classmethod
    def of(cls, answers: Answers) -> "MethodScores":
        """Scores of one batch."""
        gaps, band = calibration_gaps(answers), answers.truth.band
        tally = Tally.of(answers)
        more = _calibration(answers, gaps, tally.scores) | _overlap(answers) | _rank_band(answers)
        pooled = {name: UncertaintyHistogram.of(scores[band], answers.wrong[band])
                  for name, scores in answers.uncertainties.items()}  # fmt: skip
        return cls(replace(tally, scores={**tally.scores, **more}), gaps, pooled)

    def __add__(self, other: "MethodScores") -> "MethodScores":
        band = {name: own + other.band[name] for name, own in self.band.items()}
        return MethodScores(self.tally + other.tally, np.concatenate([self.gaps, other.gaps]), band)

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """(N,) the rows' numbers, ascending."""
        return self.tally.rows

    @property
    def uncertainties(self) -> Mapping[str, UncertaintyHistogram]:
        """All pixels by each uncertainty."""
        return self.tally.uncertainties

    def columns(self) -> dict[str, RowValues]:
        """Scores by name, (N,) each in the order of `rows`."""
        return self.tally.columns()

    def ordered_gaps(self, *, band: bool) -> FloatArray:
        """(N, 15) `gaps` of the image or of the band, in the order of `rows`."""
        ordered: FloatArray = self.gaps[np.argsort(self.tally.fed), int(band)]
        return ordered

    def pooled(self) -> dict[str, float]:
        """Scores over all pixels alike, those of `Tally.pooled` and the same of uncertainties in the band."""
        found = self.tally.pooled()
        for name, histogram in self.band.items():
            for area, bounded in {"auroc": histogram.auroc(), "aurc": _aurc(histogram)}.items():
                if bounded is not None:
                    found |= {f"band_{area}_{name}": bounded.value, f"band_{area}_{name}_bound": bounded.bound}
        return found


def calibration_gaps(answers: Answers) -> FloatArray:
    """(N, 2, 15) float64: sum of p - y over the pixels of each row in each bin of p, (a, b], image then band."""
    edges = torch.arange(1, WIDE, dtype=torch.float64, device=answers.probabilities.device) / WIDE
    bins = torch.bucketize(answers.probabilities, edges).flatten(1)
    errors = answers.probabilities - answers.truth.masks.double()
    gaps = errors.new_zeros(len(errors), 2, WIDE)
    gaps[:, 0].scatter_add_(1, bins, errors.flatten(1))
    gaps[:, 1].scatter_add_(1, bins, (errors * answers.truth.band).flatten(1))
    return gaps.cpu().numpy()


def one_row_each(answers: Answers) -> Iterator[Answers]:
    """The same answers, a row at a time."""
    truth = answers.truth
    for i in range(len(truth.rows)):
        its = slice(i, i + 1)
        alone = Truth(truth.rows[its], truth.masks[its], truth.band[its])
        uncertainties = {name: scores[its] for name, scores in answers.uncertainties.items()}
        yield Answers(alone, answers.logits[its], answers.probabilities[its], uncertainties)


def _calibration(answers: Answers, gaps: FloatArray, scores: Mapping[str, RowValues]) -> dict[str, RowValues]:
    """`ece` and `adaptive_ece` of each row; a row without a band has none there."""
    histograms = [ProbabilityHistogram.of(one) for one in one_row_each(answers)]
    columns = {}
    for region, prefix in enumerate(PREFIXES):
        pixels = scores[prefix + "pixels"]
        ece = np.abs(gaps[:, region]).sum(1) / np.maximum(pixels.values, 1)
        adaptive = [one.adaptive_error(band=bool(region)) for one in histograms]
        values = np.array([0.0 if one is None else one.value for one in adaptive])
        columns[prefix + "ece"] = RowValues(ece, pixels.present)
        columns[prefix + "adaptive_ece"] = RowValues(values, pixels.present)
    return columns


def _overlap(answers: Answers) -> dict[str, RowValues]:
    """Counts of pixels from which IoU and Dice of any set of rows follow."""
    said, masks, columns = answers.logits > 0, answers.truth.masks, {}
    for prefix, where in zip(PREFIXES, (torch.ones_like(masks), answers.truth.band), strict=True):
        columns[prefix + "intersection"] = _counts(said & masks & where)
        total = _counts(said & where).values + _counts(masks & where).values
        columns[prefix + "mask_pixels"] = RowValues(total, np.ones(len(total), dtype=bool))
    return columns


def _counts(pixels: Tensor) -> RowValues:
    counts = pixels.flatten(1).sum(1)
    return row_values(counts.double(), torch.ones_like(counts, dtype=torch.bool))


def _rank_band(answers: Answers) -> dict[str, RowValues]:
    """`band_auroc_<name>` and `band_aurc_<name>` of each row; the second is there where the row has a band."""
    if not answers.uncertainties:
        return {}
    found = [_rank_one_band(one) for one in one_row_each(answers)]
    return {name: _stacked([one[name] for one in found]) for name in found[0]}


def _rank_one_band(answers: Answers) -> dict[str, RowValues]:
    band = answers.truth.band
    if not band.any():
        none = RowValues(np.zeros(1), np.zeros(1, dtype=bool))
        return {f"band_{area}_{name}": none for name in answers.uncertainties for area in ("auroc", "aurc")}
    scores = {name: values[band][None] for name, values in answers.uncertainties.items()}
    return {f"band_{name}": one for name, one in rank_rows(scores, answers.wrong[band][None]).items()}


def _stacked(columns: list[RowValues]) -> RowValues:
    return RowValues(np.concatenate([one.values for one in columns]), np.concatenate([one.present for one in columns]))


def _aurc(histogram: UncertaintyHistogram) -> Bounded | None:
    return histogram.aurc() if histogram.counts.any() else None
