"""Scores of one method, gathered batch by batch in flat memory: a line a row, and pixels in histograms.

`Tally.of(answers)` is one batch, `a + b` is both; in which order they are added changes the last bits of sums at most.
A row costs some hundred bytes, the histograms 4 MB and 6 MB for each uncertainty, whatever the number of pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sam_laplace_assets.domain.ranking import UncertaintyHistogram, rank, rank_rows
from sam_laplace_assets.domain.reliability import ProbabilityHistogram
from sam_laplace_assets.domain.scoring import Answers, RowValues, score_rows


@dataclass(frozen=True)
class Tally:
    """What one method scored on some rows.

    Attributes:
        fed: (N,) int64, the rows' numbers in the order in which they were fed.
        scores: of these rows by name, those of `score_rows` and `rank_rows`.
        probabilities: all pixels by probability, for calibration.
        uncertainties: all pixels by each uncertainty, for AUROC and risk-coverage.
    """

    fed: npt.NDArray[np.int64]
    scores: Mapping[str, RowValues]
    probabilities: ProbabilityHistogram
    uncertainties: Mapping[str, UncertaintyHistogram]

    @classmethod
    def of(cls, answers: Answers) -> "Tally":
        """Scores of one batch."""
        scores = score_rows(answers) | rank_rows(answers.uncertainties, answers.wrong)
        return cls(answers.truth.rows, scores, ProbabilityHistogram.of(answers), rank(answers))

    def __add__(self, other: "Tally") -> "Tally":
        if self.uncertainties.keys() != other.uncertainties.keys():
            raise ValueError(
                f"Cannot add scores with uncertainties {sorted(other.uncertainties)} "
                f"to some with {sorted(self.uncertainties)}. Give every batch the same ones."
            )
        return Tally(
            np.concatenate([self.fed, other.fed]),
            {name: own + other.scores[name] for name, own in self.scores.items()},
            self.probabilities + other.probabilities,
            {name: own + other.uncertainties[name] for name, own in self.uncertainties.items()},
        )

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """(N,) the rows' numbers, ascending."""
        _refuse_repeated(self.fed)
        return np.sort(self.fed)

    def columns(self) -> dict[str, RowValues]:
        """Scores by name, (N,) each in the order of `rows`."""
        _refuse_repeated(self.fed)
        order = np.argsort(self.fed)
        return {name: RowValues(own.values[order], own.present[order]) for name, own in self.scores.items()}

    def pooled(self) -> dict[str, float]:
        """Scores over all pixels alike, by name; what has no value (no band, no wrong pixel) is not there.

        Returns:
            `pixels`, `nll` (nats a pixel), `brier`, `error_rate` of the mask, `ece` (15 bins of the probability of
            foreground), `confidence_ece` (15 bins of confidence), `adaptive_ece` and its `_bound`; the same with
            `band_` before; of each uncertainty `auroc_<name>`, `aurc_<name>`, `excess_aurc_<name>`, each with its
            `_bound`.
        """
        _refuse_repeated(self.fed)
        found: dict[str, float | None] = {}
        for prefix in "", "band_":
            found |= {prefix + name: value for name, value in self._calibration(prefix).items()}
        for name, histogram in self.uncertainties.items():
            found |= _ranked(name, histogram)
        return {name: value for name, value in found.items() if value is not None}

    def _calibration(self, prefix: str) -> dict[str, float | None]:
        pixels, band = self.scores[prefix + "pixels"].values, prefix == "band_"
        adaptive = self.probabilities.adaptive_error(band=band)
        if adaptive is None:
            return {"pixels": 0.0}
        means = {
            name: float(np.average(self.scores[prefix + name].values, weights=pixels)) for name in ("nll", "brier")
        }
        return {
            "pixels": float(pixels.sum()),
            **means,
            "error_rate": self.probabilities.error_rate(band=band),
            "ece": self.probabilities.foreground(band=band).error,
            "confidence_ece": self.probabilities.confidence(band=band).error,
            "adaptive_ece": adaptive.value,
            "adaptive_ece_bound": adaptive.bound,
        }


def _ranked(name: str, histogram: UncertaintyHistogram) -> dict[str, float]:
    areas = {"auroc": histogram.auroc(), "aurc": histogram.aurc(), "excess_aurc": histogram.excess_aurc()}
    found: dict[str, float] = {}
    for area, bounded in areas.items():
        if bounded is not None:
            found |= {f"{area}_{name}": bounded.value, f"{area}_{name}_bound": bounded.bound}
    return found


def _refuse_repeated(rows: npt.NDArray[np.int64]) -> None:
    found, counts = np.unique(rows, return_counts=True)
    if counts.max() > 1:
        twice = found[counts > 1]
        raise ValueError(f"Rows were scored more than once: {len(twice)}, first row {twice[0]}. Feed each row once.")
