"""Scores of SAM, of the head and of its posterior on the same rows."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sam_laplace_assets.domain.bootstrap import per_image
from sam_laplace_assets.domain.last_layer import RowPass, over_rows
from sam_laplace_assets.domain.metrics import binary_nll, iou, row_means
from sam_laplace_assets.domain.pack import Progress, Rows
from sam_laplace_assets.domain.posterior import refuse_foreign
from sam_laplace_assets.domain.predictive import Predictive, logit_variance
from sam_laplace_assets.domain.scaling import scale_logits

if TYPE_CHECKING:
    from sam_laplace_assets.domain.posterior import Posterior

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """A number a row: IoU of `logits > 0`, and NLL in nats, a mean over pixels.

    Attributes:
        images: (N,) int64, which image each row belongs to.
        sam_iou, sam_nll: (N,) float64, SAM's own logits, clipped to +-logit_clip as the head sees them: unclipped, a
            few confident errors would decide its NLL. The clip leaves its IoU as it is.
        head_iou, head_nll: (N,) float64, the head at its MAP weights.
        posterior_iou, posterior_nll: (N,) float64, the probit predictive, scaled if it is used so; its mask is the
            head's.
    """

    images: npt.NDArray[np.int64]
    sam_iou: FloatArray
    sam_nll: FloatArray
    head_iou: FloatArray
    head_nll: FloatArray
    posterior_iou: FloatArray
    posterior_nll: FloatArray

    def means(self) -> dict[str, float]:
        """Of each score, the mean over images of the mean over an image's rows."""
        scores = [field.name for field in fields(self) if field.name != "images"]
        return {name: float(per_image(getattr(self, name), self.images).mean()) for name in scores}


def score(
    head: nn.Module,
    laplace: "Posterior",
    rows: Rows,
    *,
    logit_clip: float,
    logit_scale: float = 1.0,
    batch_size: int,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Scores:
    """Score every row of a pack in one pass; `logit_scale` is the factor that the posterior's logits are used with."""
    _refuse_empty(rows)
    target_layer = laplace.model.target_layer
    refuse_foreign(laplace.mean, head, target_layer=target_layer)
    scored = over_rows(
        head,
        rows,
        lambda each: _row_scores(laplace, each, logit_scale),
        target_layer=target_layer,
        logit_clip=logit_clip,
        batch_size=batch_size,
        device=device,
        progress=progress,
    )
    table = torch.stack(list(scored)).cpu().numpy()
    return Scores(np.asarray(rows.images), *table.T)


def score_head(
    head: nn.Module,
    rows: Rows,
    *,
    target_layer: str,
    logit_clip: float,
    batch_size: int,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """`sam_iou`, `sam_nll`, `head_iou` and `head_nll` as `Scores.means` has them, where there is no posterior yet."""
    _refuse_empty(rows)
    scored = over_rows(
        head,
        rows,
        lambda each: _overlap_and_nll([each.inputs[:, 0], each.logits], each.masks),
        target_layer=target_layer,
        logit_clip=logit_clip,
        batch_size=batch_size,
        device=device,
    )
    table = torch.stack(list(scored))
    names = ("sam_iou", "sam_nll", "head_iou", "head_nll")
    columns = zip(names, table.cpu().numpy().T, strict=True)
    return {name: float(per_image(column, rows.images).mean()) for name, column in columns}


def _refuse_empty(rows: Rows) -> None:
    if not len(rows):
        raise ValueError("Cannot score: the pack has no rows. Materialise its split first.")


def _row_scores(laplace: "Posterior", each: RowPass, logit_scale: float) -> Tensor:
    """(6,) float64: IoU and NLL of SAM, of the head, of the posterior."""
    predictive = Predictive(*scale_logits(each.logits, logit_variance(laplace, each.features), logit_scale))
    return _overlap_and_nll([each.inputs[:, 0], each.logits, predictive.logits], each.masks)


def _overlap_and_nll(answers: Sequence[Tensor], masks: Tensor) -> Tensor:
    """IoU and NLL of each of K logits (1, H, W) in turn: (2 K,) float64."""
    return torch.cat([score for one in answers for score in (iou(one, masks), row_means(binary_nll(one, masks)))])
