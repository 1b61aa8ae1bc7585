"""Choice of the prior precision by validation likelihood, all of a grid in one pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sam_laplace_assets.domain.curvature import Curvature, spectrum
from sam_laplace_assets.domain.last_layer import jacobian, row_passes
from sam_laplace_assets.domain.metrics import binary_nll
from sam_laplace_assets.domain.pack import Progress, Rows
from sam_laplace_assets.domain.posterior import refuse_foreign
from sam_laplace_assets.domain.predictive import probit_logits

TIE = 1e-6
"""Nats a pixel. Precisions whose NLL is this near to the best one are equally good."""


@dataclass(frozen=True)
class PriorSearch:
    """What validation says about prior precisions.

    Attributes:
        grid: the precisions, ascending.
        val_nll: NLL of the probit predictive at each, nats, a mean over pixels and rows.
        map_nll: NLL of the head without a posterior, likewise.
        chosen: the largest precision within `TIE` of the best: where data do not decide, the tighter posterior.
        flat: all of a grid of several are within `TIE`, so the data do not decide at all.
        at_edge: the grid is not flat, and the choice is its first or last: the best may lie beyond.
    """

    grid: tuple[float, ...]
    val_nll: tuple[float, ...]
    map_nll: float
    chosen: float
    flat: bool
    at_edge: bool


def choose_prior_precision(grid: Sequence[float], val_nll: Sequence[float], *, map_nll: float) -> PriorSearch:
    """The choice among precisions (ascending) with these validation NLLs, as `PriorSearch` describes it."""
    best = min(val_nll)
    good = [precision for precision, nll in zip(grid, val_nll, strict=True) if nll <= best + TIE]
    chosen = max(good)
    flat = len(good) == len(grid) > 1
    at_edge = len(grid) > 1 and not flat and chosen in (grid[0], grid[-1])
    return PriorSearch(tuple(grid), tuple(val_nll), map_nll, chosen, flat, at_edge)


def tune_prior_precision(
    head: nn.Module,
    curvature: Curvature,
    validation: Rows,
    *,
    prior_precision_grid: Sequence[float],
    temperature: float = 1.0,
    logit_clip: float,
    batch_size: int,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> PriorSearch:
    """Validation NLL of the probit predictive for every prior precision of the grid.

    In the basis U of H's eigenvectors every grid point's variance is a weighted sum of the same squares, v = sum_k
    (U^T J)_k^2 / (h_k / T + precision), so one matrix product serves them all.
    """
    grid = _checked(prior_precision_grid)
    if not len(validation):
        raise ValueError("Cannot tune prior_precision: the validation pack has no rows. Materialise val first.")
    refuse_foreign(curvature.weights, head, target_layer=curvature.target_layer)
    eigenvalues, basis = (part.to(device) for part in spectrum(curvature.hessian))
    variances = 1 / (eigenvalues / temperature + torch.tensor(grid, dtype=torch.float64, device=device)[:, None])
    nll = torch.zeros(len(grid) + 1, dtype=torch.float64, device=device)
    for each in row_passes(
        head,
        validation,
        target_layer=curvature.target_layer,
        logit_clip=logit_clip,
        batch_size=batch_size,
        device=device,
        progress=progress,
    ):
        squares = (basis.T @ jacobian(each.features)).square()
        nll += _nll_of_each(each.logits.flatten().double(), variances @ squares, each.masks.flatten())
    means = (nll / len(validation)).tolist()
    return choose_prior_precision(grid, means[1:], map_nll=means[0])


def _nll_of_each(logits: Tensor, variance: Tensor, masks: Tensor) -> Tensor:
    """NLL, a mean over pixels, of the logits (n,) and of their probit predictive at each variance (G, n): (G + 1,)."""
    return binary_nll(torch.cat([logits[None], probit_logits(logits, variance)]), masks).mean(1)


def _checked(grid: Sequence[float]) -> tuple[float, ...]:
    ascending = tuple(sorted({float(precision) for precision in grid}))
    if not ascending or not 0 < ascending[0] <= ascending[-1] < float("inf"):
        raise ValueError(f"laplace.prior_precision_grid is {list(grid)}. Give one positive number or more.")
    return ascending
