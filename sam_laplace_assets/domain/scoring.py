"""What a method says about some rows, and a score a row: overlap, likelihood and Brier score, at the boundary too.

Logits are scored in their own precision (float32 at least), sums and means are float64.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from sam_laplace_assets.domain.metrics import binary_nll, dice, iou, row_means, squared_error

BAND = 3
"""Pixels of the boundary band on each side, at 256x256."""
FINITE = torch.finfo(torch.float32).max
"""Scores are compared as float32 in the end."""


@dataclass(frozen=True)
class RowValues:
    """One number a row, where a row has one.

    Attributes:
        values: (N,) float64, finite; 0 where there is none.
        present: (N,) bool, whether there is one.
    """

    values: npt.NDArray[np.float64]
    present: npt.NDArray[np.bool_]

    def __add__(self, other: "RowValues") -> "RowValues":
        """These rows, then those."""
        values = np.concatenate([self.values, other.values])
        return RowValues(values, np.concatenate([self.present, other.present]))

    @property
    def left_out(self) -> int:
        """How many rows have none."""
        return int((~self.present).sum())


@dataclass(frozen=True)
class Truth:
    """The masks of some rows; made once, then shared by the methods that are compared.

    Attributes:
        rows: (N,) int64, the rows' numbers, which errors name and tables are sorted by.
        masks: (N, H, W) bool.
        band: (N, H, W) bool, `boundary_band` of the masks.
    """

    rows: npt.NDArray[np.int64]
    masks: Tensor
    band: Tensor

    def __post_init__(self) -> None:
        shape = self.masks.shape
        if len(shape) != 3 or 0 in shape or self.band.shape != shape or self.rows.shape != shape[:1]:
            raise ValueError(
                f"Rows do not fit together: masks {tuple(shape)}, band {tuple(self.band.shape)}, "
                f"rows {self.rows.shape}. Give (N, H, W) twice, none of them 0, and (N,)."
            )
        if self.masks.dtype != torch.bool or self.band.dtype != torch.bool:
            raise ValueError(f"Masks and band must be bool, found {self.masks.dtype} and {self.band.dtype}.")

    @classmethod
    def of(cls, rows: npt.NDArray[np.int64], masks: Tensor, *, band: int = BAND) -> "Truth":
        """The truth of masks (N, H, W) bool, with a band of so many pixels on each side of the boundary."""
        return cls(rows, masks, boundary_band(masks, width=band))


@dataclass(frozen=True)
class Answers:
    """What one method says about the pixels of some rows.

    Attributes:
        truth: masks of the same rows.
        logits: (N, H, W) float32 or float64, finite; the mask is `logits > 0`.
        probabilities: (N, H, W) float64 in [0, 1], of foreground.
        uncertainties: a name each, (N, H, W) finite; larger is less certain (entropy, MI, variance).
    """

    truth: Truth
    logits: Tensor
    probabilities: Tensor
    uncertainties: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in {"logits": self.logits, **self.uncertainties}.items():
            self._refuse_outside(name, values, -FINITE, FINITE, "Give finite numbers.")
        self._refuse_outside("probabilities", self.probabilities, 0, 1, "Give probabilities in [0, 1].")

    @classmethod
    def from_logits(
        cls, truth: Truth, logits: Tensor, *, uncertainties: Mapping[str, Tensor] | None = None
    ) -> "Answers":
        """Answers with the sigmoid of these logits (N, H, W) as probabilities."""
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return cls(truth, wide, torch.sigmoid(wide.double()), uncertainties or {})

    @classmethod
    def from_probabilities(
        cls, truth: Truth, probabilities: Tensor, *, uncertainties: Mapping[str, Tensor] | None = None
    ) -> "Answers":
        """Answers with these probabilities (N, H, W) of foreground, where there are no logits.

        Logits, and with them the NLL, are those of the probability clamped to [eps, 1 - eps], eps being the resolution
        of its dtype at 1: a pixel's NLL is at most 15.9 nats in float32, 36.0 in float64, 6.9 in float16. Brier score
        and calibration take the probability as it is.
        """
        eps = torch.finfo(probabilities.dtype).eps
        return cls(
            truth, torch.logit(probabilities.double(), eps=eps), probabilities.double(), dict(uncertainties or {})
        )

    @property
    def wrong(self) -> Tensor:
        """(N, H, W) bool, the pixels that the mask has wrong."""
        return (self.logits > 0) != self.truth.masks

    def _refuse_outside(self, name: str, values: Tensor, low: float, high: float, advice: str) -> None:
        if values.shape != self.truth.masks.shape or not values.is_floating_point():
            raise ValueError(
                f"{name} are {values.dtype} of shape {tuple(values.shape)}, the masks {tuple(self.truth.masks.shape)}. "
                "Give floats of the masks' shape."
            )
        least, most = torch.aminmax(values)  # both NaN if one value is
        if not (least >= low and most <= high):
            row, y, x = (int(index) for index in (~((values >= low) & (values <= high))).nonzero()[0])
            raise ValueError(
                f"{name} of row {self.truth.rows[row]} hold {float(values[row, y, x])} at (x, y) = ({x}, {y}). {advice}"
            )


def boundary_band(masks: Tensor, *, width: int = BAND) -> Tensor:
    """Pixels that have one of the other side within `width` pixels, centre to centre (Euclidean).

    A straight boundary thus has `width` pixels on each side, the trimap of Kohli et al. 2009 and of the band of
    Boundary IoU (Cheng et al. 2021), here on both sides. The image's border is no boundary; a mask without a boundary,
    empty or full, has no band.

    Args:
        masks: (N, H, W) bool.

    Returns:
        (N, H, W) bool.
    """
    if width < 1:
        raise ValueError(f"The boundary band is {width} pixels wide. Give 1 or more.")
    return torch.where(masks, _near(~masks, width), _near(masks, width))


def score_rows(answers: Answers) -> dict[str, RowValues]:
    """Scores of each row, (N,) each, over all pixels and over the boundary band.

    Returns:
        `iou`, `dice` (empty against empty is 1), `nll` in nats a pixel, `brier`, `pixels`; the same with `band_`
        before, which rows without a band do not have.
    """
    truth = answers.truth
    nll, brier = binary_nll(answers.logits, truth.masks), squared_error(answers.probabilities, truth.masks)
    columns: dict[str, RowValues] = {}
    for prefix, where in {"": None, "band_": truth.band}.items():
        pixels = torch.ones_like(truth.masks) if where is None else where
        scores = {
            "iou": iou(answers.logits, truth.masks, where=where),
            "dice": dice(answers.logits, truth.masks, where=where),
            "nll": row_means(nll, where=where),
            "brier": row_means(brier, where=where),
            "pixels": pixels.flatten(1).sum(1).double(),
        }
        present = scores["pixels"] > 0
        columns |= {prefix + name: row_values(score, present) for name, score in scores.items()}
    return columns


def row_values(values: Tensor, present: Tensor) -> RowValues:
    """`RowValues` of values (N,), 0 where they are not present (N,)."""
    return RowValues(torch.where(present, values, 0).double().cpu().numpy(), present.cpu().numpy())


def _near(pixels: Tensor, width: int) -> Tensor:
    """Pixels within `width` of a True one; outside the image there is none."""
    height, breadth = pixels.shape[-2:]
    padded, found = functional.pad(pixels, (width,) * 4), torch.zeros_like(pixels)
    for dy in range(-width, width + 1):
        for dx in range(-width, width + 1):
            if dx * dx + dy * dy <= width * width:
                found |= padded[..., width + dy : width + dy + height, width + dx : width + dx + breadth]
    return found
