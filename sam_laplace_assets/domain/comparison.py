"""SAM, SAM with scaled logits, the head and its posterior on the same rows, in one pass.

All see what the head sees: SAM's logits clipped to +-logit_clip, without which a few confident errors would decide
SAM's NLL. Scaling by a positive factor and averaging over the posterior leave a mask as it is: SAM and scaled SAM share
one, and so do the head and its posterior.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sam_laplace_assets.domain.calibration import Scale, fit_scale
from sam_laplace_assets.domain.head import head_inputs
from sam_laplace_assets.domain.method_scores import MethodScores
from sam_laplace_assets.domain.metrics import binary_entropy
from sam_laplace_assets.domain.pack import Rows, batches
from sam_laplace_assets.domain.quantities import quantities
from sam_laplace_assets.domain.scoring import BAND, Answers, Truth

if TYPE_CHECKING:
    from sam_laplace_assets.domain.predictor import Predictor

SAM, SAM_SCALED, HEAD, LAPLACE, LAPLACE_SCALED = METHODS = ("sam", "sam_scaled", "head", "laplace", "laplace_scaled")
UNCERTAINTIES = ("entropy", "mutual_information", "variance")
"""Entropy of the probability and mutual information, nats; variance of the logit. SAM and the head have the first."""


def compare_methods(
    predictor: "Predictor",
    rows: Rows,
    *,
    sam_scale: float,
    laplace_scale: float | None = None,
    batch_size: int,
    band: int = BAND,
) -> dict[str, MethodScores]:
    """Scores of every method on every row, in memory that does not grow with the pixels.

    Args:
        predictor: head and posterior, without a logit scale.
        rows: N of a pack.
        sam_scale: factor on SAM's clipped logits, for `sam_scaled`.
        laplace_scale: factor on the posterior's logits, for `laplace_scaled`; None leaves that method out.
        batch_size: rows that are worked on together.
        band: pixels of the boundary band on each side.
    """
    if not len(rows):
        raise ValueError("Cannot compare: the pack has no rows. Materialise its split first.")
    found: dict[str, MethodScores] = {}
    for batch in batches(rows, batch_size=batch_size, device=predictor.device):
        truth = Truth.of(batch.rows, batch.masks, band=band)
        said = answers_of(predictor, batch.inputs, truth, sam_scale=sam_scale, laplace_scale=laplace_scale)
        for name, answers in said.items():
            scores = MethodScores.of(answers)
            found[name] = found[name] + scores if name in found else scores
    return found


def answers_of(
    predictor: "Predictor", inputs: Tensor, truth: Truth, *, sam_scale: float, laplace_scale: float | None = None
) -> dict[str, Answers]:
    """What each method says of stored inputs (B, 3, 256, 256), on the predictor's device as the truth is."""
    sam = clipped_sam(inputs, logit_clip=predictor.logit_clip)
    mean, variance = predictor.logits(inputs)
    found = {SAM: point_answers(truth, sam), SAM_SCALED: point_answers(truth, sam * sam_scale),
             HEAD: point_answers(truth, mean), LAPLACE: posterior_answers(truth, mean, variance)}  # fmt: skip
    if laplace_scale is not None:
        scaled = mean * laplace_scale, variance * laplace_scale**2
        found[LAPLACE_SCALED] = posterior_answers(truth, *scaled)
    return found


def point_answers(truth: Truth, logits: Tensor) -> Answers:
    """Answers of logits (B, H, W) without a variance, with the entropy as uncertainty."""
    return Answers.from_logits(truth, logits, uncertainties={"entropy": binary_entropy(logits.double())})


def posterior_answers(truth: Truth, mean: Tensor, variance: Tensor) -> Answers:
    """Answers of the posterior predictive E[sigmoid(f)], f ~ N(mean, variance), by quadrature.

    The logit of the probability is taken on the side of the rarer label, where it keeps its precision. There the
    probability is never below sigmoid(-|mean|), which bounds the quadrature's absolute error far out.

    Args:
        truth: masks (B, H, W).
        mean, variance: (B, H, W) of each pixel's logit.
    """
    magnitude = mean.abs()
    found = quantities(-magnitude, variance)
    rarer = torch.maximum(found.probability, torch.sigmoid(-magnitude.double()))
    logits = torch.copysign(torch.log1p(-rarer) - torch.log(rarer), mean.double())
    uncertainties = {"entropy": found.predictive_entropy, "mutual_information": found.mutual_information,
                     "variance": variance}  # fmt: skip
    return Answers.from_logits(truth, logits, uncertainties=uncertainties)


def fit_sam_scale(rows: Rows, *, logit_clip: float, batch_size: int) -> Scale:
    """The factor that makes SAM's clipped logits most likely on these rows. Raises `NoScale`."""
    return fit_scale(_sam_batches(rows, logit_clip=logit_clip, batch_size=batch_size))


def clipped_sam(inputs: Tensor, *, logit_clip: float) -> Tensor:
    """SAM's logits as the head sees them: (B, 3, H, W) stored inputs to (B, H, W) float32."""
    return head_inputs(inputs, logit_clip=logit_clip)[:, 0]


def _sam_batches(rows: Rows, *, logit_clip: float, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in batches(rows, batch_size=batch_size):
        yield clipped_sam(batch.inputs, logit_clip=logit_clip), batch.masks
