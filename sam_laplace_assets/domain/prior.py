"""Choice of the prior precision: by validation likelihood, all of a grid in one pass, or by marginal likelihood."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from sam_laplace_assets.domain.calibration import Scale
from sam_laplace_assets.domain.curvature import Curvature
from sam_laplace_assets.domain.evidence import BOUNDS, Evidence
from sam_laplace_assets.domain.judging import Form, judge
from sam_laplace_assets.domain.pack import Progress, Rows

TIE = 1e-6
"""Nats a pixel. Precisions whose NLL is this near to the best one are equally good."""
PriorMethod = Literal["grid", "marginal_likelihood"]


@dataclass(frozen=True)
class PriorSearch:
    """What validation and the marginal likelihood say about prior precisions.

    Attributes:
        grid: the precisions that validation was asked about, ascending; by marginal likelihood the chosen one alone.
        val_nll: NLL of the probit predictive at each, nats, a mean over pixels and rows.
        map_nll: NLL of the head without a posterior, likewise.
        chosen: of a grid, the largest precision within `TIE` of the best: where data do not decide, the tighter
            posterior.
        flat: all of a grid of several are within `TIE`, so the data do not decide at all.
        at_edge: the grid is not flat, and the choice is its first or last, or the marginal likelihood still grows at
            the end of `evidence.BOUNDS`: the best may lie beyond.
        method: `grid` or `marginal_likelihood`.
        curve: (precision, log marginal likelihood in nats) around the choice, if it was made by that.
    """

    grid: tuple[float, ...]
    val_nll: tuple[float, ...]
    map_nll: float
    chosen: float
    flat: bool
    at_edge: bool
    method: PriorMethod = "grid"
    curve: tuple[tuple[float, float], ...] = ()

    @property
    def chosen_nll(self) -> float:
        """Validation NLL at the chosen precision."""
        return self.val_nll[self.grid.index(self.chosen)]


@dataclass(frozen=True)
class Tuned:
    """A prior precision and what follows it.

    Attributes:
        search: how it was chosen.
        scale: the logit scale at it; None where no factor is best.
    """

    search: PriorSearch
    scale: Scale | None


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
    prior: PriorMethod = "grid",
    temperature: float = 1.0,
    logit_clip: float,
    batch_size: int,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Tuned:
    """The prior precision, its validation NLL and the logit scale that goes with it, in one pass over validation.

    Args:
        head: at its MAP weights.
        curvature: of the training pack.
        validation: what the grid, or the precision of the largest marginal likelihood, is judged on.
        prior_precision_grid: precisions to choose from; not used by `marginal_likelihood`.
        prior: `grid` or `marginal_likelihood`.
        temperature: T of the likelihood.
    """
    evidence = Evidence.of(curvature, temperature=temperature)
    grid = checked_grid(prior_precision_grid) if prior == "grid" else (evidence.most_likely(),)
    judged = judge(
        head,
        curvature,
        [Form.of(curvature, [(temperature, precision) for precision in grid])],
        validation,
        logit_clip=logit_clip,
        batch_size=batch_size,
        device=device,
        progress=progress,
    )
    search = (
        choose_prior_precision(grid, judged.nll, map_nll=judged.map_nll)
        if prior == "grid"
        else most_likely_prior(evidence, judged.nll[0], map_nll=judged.map_nll)
    )
    return Tuned(search, judged.scale(grid.index(search.chosen)))


def most_likely_prior(evidence: Evidence, val_nll: float, *, map_nll: float) -> PriorSearch:
    """The precision of the largest marginal likelihood, whose validation NLL is given."""
    chosen = evidence.most_likely()
    return PriorSearch(
        (chosen,),
        (val_nll,),
        map_nll,
        chosen,
        flat=False,
        at_edge=chosen in BOUNDS,
        method="marginal_likelihood",
        curve=evidence.curve(chosen),
    )


def checked_grid(grid: Sequence[float]) -> tuple[float, ...]:
    """The precisions, ascending, each once. Raises ValueError for what is no precision."""
    ascending = tuple(sorted({float(precision) for precision in grid}))
    if not ascending or not 0 < ascending[0] <= ascending[-1] < float("inf"):
        raise ValueError(f"laplace.prior_precision_grid is {list(grid)}. Give one positive number or more.")
    return ascending
