"""Tables of a comparison: means over images and pooled figures with bootstrap intervals over images, and the verdict.

Every table is a list of rows, dicts with the same keys. What has no value (no band, no wrong pixel, one image) is None,
and how many images a figure lacks stands beside it.
"""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from sam_laplace_assets.domain import bootstrap
from sam_laplace_assets.domain.bootstrap import Estimate, percentile_interval
from sam_laplace_assets.domain.comparison import HEAD, LAPLACE, LAPLACE_SCALED, SAM, SAM_SCALED, UNCERTAINTIES
from sam_laplace_assets.domain.method_scores import PREFIXES, MethodScores
from sam_laplace_assets.domain.reliability import WIDE, Reliability
from sam_laplace_assets.domain.scoring import RowValues

FloatArray = npt.NDArray[np.float64]
AnyArray = npt.NDArray[Any]
Scores = Mapping[str, MethodScores]
TableRow = dict[str, Any]

PLAIN = ("iou", "dice", "nll", "brier", "ece", "adaptive_ece")
RANKED = tuple(f"{area}_{name}" for name in UNCERTAINTIES for area in ("auroc", "aurc"))
METRICS = tuple(prefix + name for prefix in PREFIXES for name in (*PLAIN, *RANKED))
"""Of each row; `band_` before those in the boundary band."""
HIGHER_IS_BETTER = ("iou", "dice", "auroc")
BAND = "band_"
PAIRS = (
    (LAPLACE_SCALED, SAM_SCALED), (LAPLACE, SAM_SCALED), (LAPLACE, HEAD), (LAPLACE, SAM), (LAPLACE_SCALED, LAPLACE),
    (HEAD, SAM_SCALED), (HEAD, SAM), (SAM_SCALED, SAM),
)  # fmt: skip
IN_WORDS = {SAM: "SAM", SAM_SCALED: "scaled SAM logits", HEAD: "the head", LAPLACE: "the Laplace predictive",
            LAPLACE_SCALED: "the scaled Laplace predictive"}  # fmt: skip
WORKED_ON_AT_ONCE = 2**22


@dataclass(frozen=True)
class Draws:
    """How intervals are drawn: which rows are of one image, and of one group.

    Attributes:
        images: (N,) which image each row belongs to.
        groups: (N,) the patient, video or survey line of each row, drawn again as a whole; None: images are.
        resamples, confidence, seed: of the bootstrap.
    """

    images: npt.NDArray[np.int64]
    groups: AnyArray | None = None
    resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0

    @cached_property
    def units(self) -> npt.NDArray[np.int64]:
        """(N,) number of the group, or image, that is drawn again with each row; from 0 on."""
        _, units = np.unique(self.images if self.groups is None else self.groups, return_inverse=True)
        return np.asarray(units, dtype=np.int64)

    def estimate(self, score: RowValues) -> Estimate:
        """Mean over images of a score that rows have."""
        return bootstrap.estimate(score.values, self.images, present=score.present, **self._options)

    def difference(self, ours: RowValues, theirs: RowValues) -> Estimate:
        """Mean over images of ours minus theirs, paired, on the rows that have both."""
        both = ours.present & theirs.present
        return bootstrap.difference(ours.values, theirs.values, self.images, present=both, **self._options)

    def by_label(self, score: RowValues, labels: AnyArray) -> Mapping[Hashable, Estimate]:
        """`estimate` for the rows of each label."""
        return bootstrap.by_label(score.values, self.images, labels, present=score.present, **self._options)

    def pooled(self, parts: FloatArray, totals: FloatArray) -> Estimate:
        """Sum over K of |sum of parts| by the sum of totals: a figure of all pixels alike.

        Args:
            parts: (N, K) of each row; K = 1 and not negative for a ratio, the gaps of bins for an ECE.
            totals: (N,) of each row, not negative; images whose rows have none are left out.
        """
        counts = np.bincount(self.units, weights=totals).astype(np.float64)
        sums = np.stack([np.bincount(self.units, weights=part) for part in parts.T], axis=1).astype(np.float64)
        kept = counts > 0
        sums, counts = sums[kept], counts[kept]
        images = len(np.unique(self.images[kept[self.units]]))
        left_out = len(np.unique(self.images)) - images
        if not len(counts):
            return Estimate(None, None, None, 0, 0, left_out, self.confidence)
        value = float(np.abs(sums.sum(0)).sum() / counts.sum())
        low, high = self._interval(sums, counts)
        return Estimate(value, low, high, images, len(counts), left_out, self.confidence)

    def _interval(self, sums: FloatArray, counts: FloatArray) -> tuple[float, float] | tuple[None, None]:
        n = len(counts)
        if n < 2:
            return None, None
        generator, step = np.random.default_rng(self.seed), max(1, WORKED_ON_AT_ONCE // n)
        found = np.empty(self.resamples)
        for start in range(0, self.resamples, step):
            times = generator.multinomial(n, np.full(n, 1 / n), size=min(step, self.resamples - start)).astype(float)
            found[start : start + len(times)] = np.abs(times @ sums).sum(1) / (times @ counts)
        return percentile_interval(found, confidence=self.confidence)

    @property
    def _options(self) -> dict[str, Any]:
        return {"groups": self.groups, "resamples": self.resamples, "confidence": self.confidence, "seed": self.seed}


def metric_rows(scores: Scores, draws: Draws) -> list[TableRow]:
    """method, scope (pooled, per_image, band_pooled, band_per_image), metric, value, low, high, bound, n_images...

    Pooled adaptive ECE, AUROC and AURC come from histograms of all pixels: they have a bound on what the histogram may
    change, and no interval.
    """
    rows = []
    for method, one in scores.items():
        columns = one.columns()
        for name in METRICS:
            if name in columns:
                rows.append(_row(draws.estimate(columns[name]), method=method, **_scope(name, "per_image")))
        rows += [_row(found, method=method, **_scope(name, "pooled"), bound=bound)
                 for name, found, bound in _pooled(one, draws)]  # fmt: skip
    return [{"bound": None, **row} for row in rows]


def _pooled(scores: MethodScores, draws: Draws) -> Iterator[tuple[str, Estimate, float | None]]:
    columns, read = scores.columns(), scores.pooled()
    for prefix in PREFIXES:
        pixels, both, total = (columns[prefix + name].values for name in ("pixels", "intersection", "mask_pixels"))
        parts = {"iou": (both, total - both), "dice": (2 * both, total)}
        parts |= {name: (columns[prefix + name].values * pixels, pixels) for name in ("nll", "brier")}
        for name, (part, whole) in parts.items():
            yield prefix + name, draws.pooled(part[:, None], whole), None
        yield prefix + "ece", draws.pooled(scores.ordered_gaps(band=bool(prefix)), pixels), None
        pooled = draws.pooled(np.zeros((len(pixels), 1)), pixels)
        for name in ("adaptive_ece", *RANKED):
            if prefix + name in read:
                value = replace(pooled, mean=read[prefix + name], low=None, high=None)
                yield prefix + name, value, read[f"{prefix}{name}_bound"]


def label_rows(scores: Scores, draws: Draws, labels: AnyArray, *, name: str) -> list[TableRow]:
    """Means over images of the rows of each label (N,): `name`, method, scope, metric, value, low, high, n_images..."""
    return [
        {name: label, **_row(found, method=method, **_scope(metric, "per_image"))}
        for method, one in scores.items()
        for metric, column in one.columns().items()
        if metric in METRICS
        for label, found in draws.by_label(column, labels).items()
    ]


def prompt_size_rows(
    scores: Scores, draws: Draws, n_pos: npt.NDArray[np.int64], n_neg: npt.NDArray[np.int64]
) -> list[TableRow]:
    """As `label_rows`, by k_pairs and clicks: balanced prompt sets by pairs, others (no k_pairs) by all their clicks.

    Args:
        n_pos, n_neg: (N,) positive and negative points of each row.
    """
    clicks = n_pos + n_neg
    coded = 2 * clicks + (n_pos != n_neg)
    found = label_rows(scores, draws, coded, name="coded")
    return [_by_prompt_size(**row) for row in found]


def _by_prompt_size(coded: int, **row: Any) -> TableRow:
    clicks, unbalanced = divmod(coded, 2)
    return {"k_pairs": None if unbalanced else clicks // 2, "clicks": clicks, **row}


def difference_rows(scores: Scores, draws: Draws) -> list[TableRow]:
    """ours, theirs, scope, metric, ours minus theirs with its interval, and what that says, by images, paired."""
    columns = {method: one.columns() for method, one in scores.items()}
    rows = []
    for ours, theirs in PAIRS:
        if ours in columns and theirs in columns:
            for metric in METRICS:
                if metric in columns[ours] and metric in columns[theirs]:
                    found = draws.difference(columns[ours][metric], columns[theirs][metric])
                    rows.append(_difference(found, ours, theirs, metric))
    return rows + _uncertainty_rows(columns, draws)


def _uncertainty_rows(columns: Mapping[str, Mapping[str, RowValues]], draws: Draws) -> list[TableRow]:
    """Each other uncertainty of the posterior against its entropy, as `laplace/mutual_information`."""
    rows, entropy = [], UNCERTAINTIES[0]
    for method in (LAPLACE, LAPLACE_SCALED):
        its = columns.get(method, {})
        for other in UNCERTAINTIES[1:]:
            for area in [prefix + name for prefix in PREFIXES for name in ("auroc", "aurc")]:
                if f"{area}_{other}" in its:
                    found = draws.difference(its[f"{area}_{other}"], its[f"{area}_{entropy}"])
                    rows.append(_difference(found, f"{method}/{other}", f"{method}/{entropy}", area))
    return rows


def _difference(found: Estimate, ours: str, theirs: str, metric: str) -> TableRow:
    row = _row(found, ours=ours, theirs=theirs, **_scope(metric, "per_image"))
    return {**row, "n_units": found.n_units, "ours_is": judge(found, metric)}


def judge(found: Estimate, metric: str) -> str | None:
    """`better`, `worse` or `no difference shown`, for a difference in a metric; None without an interval."""
    if found.low is None or found.high is None:
        return None
    if found.low <= 0 <= found.high:
        return "no difference shown"
    higher = metric.removeprefix(BAND).startswith(HIGHER_IS_BETTER)
    return "better" if (found.low > 0) == higher else "worse"


def reliability_rows(scores: Scores) -> list[TableRow]:
    """method, region (image or band), bin_low, bin_high, mean_probability, frequency, pixels; bins that hold pixels."""
    return [
        {"method": method, "region": region, **row}
        for method, one in scores.items()
        for region in ("image", "band")
        for row in _bins(one.tally.probabilities.foreground(band=region == "band"))
    ]


def _bins(diagram: Reliability) -> Iterator[TableRow]:
    columns = (diagram.centres, diagram.means, diagram.frequencies, diagram.counts)
    for centre, mean, frequency, pixels in zip(*(column.tolist() for column in columns), strict=True):
        number = round(centre * WIDE - 0.5)
        yield {"bin_low": number / WIDE, "bin_high": (number + 1) / WIDE, "mean_probability": mean,
               "frequency": frequency, "pixels": pixels}  # fmt: skip


def risk_coverage_rows(scores: Scores, *, points: int = 100) -> list[TableRow]:
    """method, region (image or band), uncertainty, coverage, risk: pooled pixels, the most certain ones first."""
    rows: list[TableRow] = []
    for method, one in scores.items():
        for region, histograms in {"image": one.uncertainties, "band": one.band}.items():
            for name, histogram in histograms.items():
                if histogram.counts.any():
                    curve = histogram.curve(points=points)
                    rows += [{"method": method, "region": region, "uncertainty": name, "coverage": c, "risk": r}
                             for c, r in zip(curve.coverage.tolist(), curve.risk.tolist(), strict=True)]  # fmt: skip
    return rows


def verdict(scores: Scores, draws: Draws, *, ours: str, theirs: str = SAM_SCALED) -> tuple[str, str | None]:
    """Whether one method is better than the other by NLL, as a sentence with both scores, and what `judge` says."""
    nll = {name: scores[name].columns()["nll"] for name in (ours, theirs)}
    found = draws.difference(nll[ours], nll[theirs])
    judged, one, other = judge(found, "nll"), IN_WORDS[ours], IN_WORDS[theirs]
    begin = {None: f"One image cannot tell {one} from {other}",
             "no difference shown": f"No difference is shown between {one} and {other}"}  # fmt: skip
    claim = begin.get(judged, f"{one[0].upper()}{one[1:]} is {judged} than {other}")
    means = [draws.estimate(nll[name]).mean for name in (ours, theirs)]
    return f"{claim}: NLL {means[0]:.3g} against {means[1]:.3g}, difference {_signed(found)}.", judged


def _signed(found: Estimate) -> str:
    """`+0.008 [+0.0061, +0.0102] over 40 images`."""
    interval = "" if found.low is None else f" [{found.low:+.3g}, {found.high:+.3g}]"
    images = f"{found.n_images} image{'s' if found.n_images != 1 else ''}"
    grouped = f" of {found.n_units} groups" if found.n_units != found.n_images else ""
    return f"{found.mean:+.3g}{interval} over {images}{grouped}"


def _scope(metric: str, scope: str) -> dict[str, str]:
    if metric.startswith(BAND):
        return {"scope": BAND + scope, "metric": metric.removeprefix(BAND)}
    return {"scope": scope, "metric": metric}


def _row(found: Estimate, **names: Any) -> TableRow:
    return {**names, "value": found.mean, "low": found.low, "high": found.high, "n_images": found.n_images,
            "images_left_out": found.images_left_out}  # fmt: skip
