"""Many posteriors of one head judged on validation, in one pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sam_laplace_assets.domain.calibration import NoScale, Scale
from sam_laplace_assets.domain.curvature import Curvature, spectrum
from sam_laplace_assets.domain.finite import refuse_not_finite
from sam_laplace_assets.domain.last_layer import RowPass, over_rows, pixel_features
from sam_laplace_assets.domain.metrics import signed_nll
from sam_laplace_assets.domain.pack import Progress, Rows
from sam_laplace_assets.domain.posterior import refuse_foreign
from sam_laplace_assets.domain.predictive import probit_logits
from sam_laplace_assets.domain.quantities import quantities
from sam_laplace_assets.domain.scaling import PredictiveHistogram, anchored

CHUNK_PIXELS = 8192
WIDE = 15
"""Bins of the ECE."""
INFORMATION_PIXELS, INFORMATION_SEED = 256, 0
"""Pixels of each row that the mean mutual information is taken over, and what draws them."""


@dataclass(frozen=True)
class Form:
    """Posteriors of one curvature, at one temperature or several.

    Attributes:
        basis: (P, P) eigenvectors of H in columns; None where H is diagonal, and they are the parameters themselves.
        variances: (G, P) float64, those of G posteriors in the directions of the basis.
    """

    basis: Tensor | None
    variances: Tensor

    @classmethod
    def of(cls, curvature: Curvature, settings: Sequence[tuple[float, float]]) -> "Form":
        """Posteriors with these (temperature, prior precision): variance 1 / (h / T + precision)."""
        eigenvalues, basis = spectrum(curvature.hessian)
        temperatures, precisions = torch.tensor(settings, dtype=torch.float64).T[:, :, None]
        variances = 1 / (eigenvalues / temperatures + precisions)
        return cls(None if curvature.hessian.ndim == 1 else basis, variances)

    def to(self, device: torch.device | str) -> "Form":
        """The same on a device."""
        return Form(None if self.basis is None else self.basis.to(device), self.variances.to(device))

    def logit_variances(self, pixels: Tensor) -> Tensor:
        """(G, n) float64 of pixels with features (n, C) float64: one matrix product over the same squares for all."""
        if self.basis is None:
            return torch.addmm(self.variances[:, -1:], self.variances[:, :-1], pixels.square().T)
        return self.variances @ torch.addmm(self.basis[-1], pixels, self.basis[:-1]).square().T


@dataclass(frozen=True)
class Details:
    """What is worth knowing of posteriors that are compared with each other; (G,) float64 each.

    Attributes:
        ece: expected calibration error of the probit probability of foreground, in 15 bins.
        mean_variance: of the logits, over all pixels.
        mean_information: mutual information in nats, over `INFORMATION_PIXELS` of each row.
    """

    ece: Tensor
    mean_variance: Tensor
    mean_information: Tensor


NO_DETAILS = Details(*torch.empty(3, 0, dtype=torch.float64))


@dataclass(frozen=True)
class Judged:
    """What validation says of G posteriors of one head.

    Attributes:
        map_nll: NLL of the head without a posterior, nats, a mean over pixels.
        nll: of the probit predictive of each, likewise.
        histogram: of the pixels under each, for their logit scales.
        details: empty where they were not asked for.
    """

    map_nll: float
    nll: tuple[float, ...]
    histogram: PredictiveHistogram
    details: Details

    def scale(self, g: int) -> Scale | None:
        """The logit scale of posterior g; None where there is none."""
        try:
            return anchored(self.histogram.best(g), self.nll[g])
        except NoScale:
            return None


def judge(
    head: nn.Module,
    curvature: Curvature,
    forms: Sequence[Form],
    validation: Rows,
    *,
    in_detail: bool = False,
    logit_clip: float,
    batch_size: int,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Judged:
    """Judge the posteriors of all forms, in the order of the forms; their logits share their means.

    Args:
        head: at its MAP weights.
        curvature: one that was taken at them; another head's is refused.
        forms: the posteriors.
        validation: the rows.
        in_detail: also calibration error, variance and mutual information.
    """
    if not len(validation):
        raise ValueError("Cannot tune prior_precision: the validation pack has no rows. Materialise val first.")
    refuse_foreign(curvature.weights, head, target_layer=curvature.target_layer)
    forms = [form.to(device) for form in forms]
    tally = _Tally(sum(len(form.variances) for form in forms), in_detail=in_detail, device=device)
    judgements = over_rows(
        head,
        validation,
        lambda each: _judge_row(each, forms, in_detail=in_detail),
        target_layer=curvature.target_layer,
        logit_clip=logit_clip,
        batch_size=batch_size,
        device=device,
        progress=progress,
    )
    for one in judgements:
        tally.add(one)
    return tally.judged()


def _refuse_overflow(each: RowPass) -> None:
    refuse_not_finite(
        each.logits, what="The head's logit", advice="Look at this row, or train the head again.", first_item=each.row
    )


@dataclass(frozen=True)
class _DetailSums:
    """Sums over a row's pixels, for G posteriors: of what `Details` has the means of.

    Attributes:
        gaps: (G, WIDE), of p - y in each bin (a, b] of the probability p; their sizes make up the ECE.
        variance: (G,).
        information: (G,), over the pixels that were drawn.
        n_drawn: how many these are.
    """

    gaps: Tensor
    variance: Tensor
    information: Tensor
    n_drawn: int


@dataclass(frozen=True)
class _JudgedRow:
    """A row of n pixels under G posteriors.

    Attributes:
        logits, masks: (n,) of the head, and what is true.
        variances: (G, n) float64, of the logits.
        nll: (G + 1,) float64, a sum over pixels: of the head, then of each posterior.
        details: None where they were not asked for.
    """

    logits: Tensor
    masks: Tensor
    variances: Tensor
    nll: Tensor
    details: _DetailSums | None


def _judge_row(each: RowPass, forms: Sequence[Form], *, in_detail: bool) -> _JudgedRow:
    _refuse_overflow(each)
    logits, masks, pixels = each.logits.flatten().double(), each.masks.flatten(), pixel_features(each.features)
    nlls, variances, gaps = [], [], []
    for mean, truth, some in zip(*(torch.split(whole, CHUNK_PIXELS) for whole in (logits, masks, pixels)), strict=True):
        variances.append(_all_variances(forms, some))
        probit = probit_logits(mean, variances[-1])
        signs = truth.to(mean.dtype).mul_(2).sub_(1)  # once for all posteriors, where binary_nll would choose for each
        nlls.append(signed_nll(torch.cat([mean[None], probit]) * signs).sum(1))
        if in_detail:
            gaps.append(_gaps(probit, truth))
    whole = torch.cat(variances, dim=1)
    details = _detail_sums(each.row, logits, whole, gaps) if in_detail else None
    return _JudgedRow(logits, masks, whole, torch.stack(nlls).sum(0), details)


def _gaps(probit: Tensor, masks: Tensor) -> Tensor:
    """(G, WIDE) of pixels with probit logits (G, n) and masks (n,)."""
    probabilities = torch.sigmoid(probit)
    bins = torch.ceil(probabilities * WIDE).long().clamp_(1, WIDE) - 1
    return probit.new_zeros(len(probit), WIDE).scatter_add_(1, bins, probabilities - masks.double())


def _detail_sums(row: int, logits: Tensor, variances: Tensor, gaps: Sequence[Tensor]) -> _DetailSums:
    drawn = _drawn_pixels(row, len(logits), device=logits.device)
    means = logits[drawn].expand(len(variances), -1)
    information = quantities(means, variances[:, drawn]).mutual_information.sum(1)
    return _DetailSums(torch.stack(list(gaps)).sum(0), variances.sum(1), information, len(drawn))


class _Tally:
    """Sums over rows of all that `Judged` says."""

    def __init__(self, n: int, *, in_detail: bool, device: torch.device | str) -> None:
        self.n_pixels = 0
        self.nll = torch.zeros(n + 1, dtype=torch.float64, device=device)
        self.histogram = PredictiveHistogram(n, device=device)
        self.details: list[_DetailSums] | None = [] if in_detail else None

    def add(self, one: _JudgedRow) -> None:
        self.n_pixels += len(one.logits)
        self.nll += one.nll
        self.histogram.add(one.logits, one.variances, one.masks)
        if self.details is not None and one.details is not None:
            self.details.append(one.details)

    def judged(self) -> Judged:
        map_nll, *nll = (self.nll / self.n_pixels).tolist()
        details = NO_DETAILS if self.details is None else _means(self.details, self.n_pixels)
        return Judged(map_nll, tuple(nll), self.histogram, details)


def _means(sums: Sequence[_DetailSums], n_pixels: int) -> Details:
    gaps, variance, information = (
        torch.stack([getattr(one, name) for one in sums]).sum(0).cpu() for name in ("gaps", "variance", "information")
    )
    return Details(gaps.abs().sum(1) / n_pixels, variance / n_pixels, information / sum(one.n_drawn for one in sums))


def _all_variances(forms: Sequence[Form], pixels: Tensor) -> Tensor:
    """(G, n) float64 under all posteriors, of pixels with features (n, C)."""
    double = pixels.double()
    return torch.cat([form.logit_variances(double) for form in forms])


def _drawn_pixels(row: int, n: int, *, device: torch.device) -> Tensor:
    """Places of some pixels of a row, the same on every machine."""
    stream = np.random.default_rng([INFORMATION_SEED, row])
    return torch.from_numpy(stream.choice(n, min(n, INFORMATION_PIXELS), replace=False)).to(device)
