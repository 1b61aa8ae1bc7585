"""What tells whether points, maps and logits of other scripts are what would be made here."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sam_laplace_assets.domain.geometry import LOW_RES
from sam_laplace_assets.domain.prompts import PromptSet

LOGIT_TOLERANCE = 0.02
"""How far logits of two routes through the same SAM may lie apart, beside the rounding of float16."""


def misplaced_points(sets: Sequence[PromptSet], mask: NDArray[np.bool_]) -> str:
    """The first point that does not lie where it should, in words; empty where all do.

    Args:
        sets: prompt sets, points in original pixels.
        mask: (H, W) bool, of the original's size.
    """
    height, width = mask.shape
    for one in sets:
        for side, points, wanted in (("positive", one.pos, True), ("negative", one.neg, False)):
            for x, y in points:
                if not (0 <= x < width and 0 <= y < height):
                    where = f"outside the image of {height} x {width} pixels (H x W)"
                elif mask[y, x] != wanted:
                    where = "beside the object" if wanted else "on the object"
                else:
                    continue
                return f"{side} point (x, y) = ({x}, {y}) of prompt set {one.promptset_id} lies {where}"
    return ""


def unusable_array(array: NDArray[np.generic]) -> str:
    """Why an array cannot stand in the cache, in words; empty where it can: (256, 256) float16, all finite."""
    if array.shape != (LOW_RES, LOW_RES) or array.dtype != np.float16:
        return f"it is {array.dtype} of shape {array.shape}, not float16 of ({LOW_RES}, {LOW_RES})"
    if not np.isfinite(array).all():
        return "it holds values that are not finite"
    return ""


def same_map(theirs: NDArray[np.float16], ours: NDArray[np.float16]) -> bool:
    """Whether two (256, 256) maps in [0, 1] are one but for the last bit of float16."""
    apart = np.abs(theirs.astype(np.float32) - ours.astype(np.float32))
    step = np.spacing(np.maximum(np.abs(theirs), np.abs(ours)))
    return bool((apart <= step).all())


def largest_difference(theirs: NDArray[np.float16], ours: NDArray[np.float16]) -> float:
    """How far two (256, 256) arrays of logits lie apart where they do most, beyond what float16 rounds of each."""
    theirs_, ours_ = theirs.astype(np.float32), ours.astype(np.float32)
    rounding = (np.abs(theirs_) + np.abs(ours_)) * 2.0**-11
    return float(np.maximum(np.abs(theirs_ - ours_) - rounding, 0).max())


def disagreement(
    theirs: NDArray[np.float16], ours: NDArray[np.float16], *, their_branch: int | None, our_branch: int
) -> str:
    """How recorded logits and branch differ from those of SAM today, in words; empty where they are the same.

    Args:
        theirs: (256, 256) float16 logits that were recorded.
        ours: (256, 256) float16 logits of SAM today.
        their_branch: index that was recorded; None where none was.
        our_branch: index that SAM chooses today.
    """
    apart = largest_difference(theirs, ours)
    if apart > LOGIT_TOLERANCE:
        return f"its logits are up to {apart:.3g} from those of this SAM, more than {LOGIT_TOLERANCE}"
    if their_branch is not None and their_branch != our_branch:
        return f"it names branch {their_branch}, this SAM chooses {our_branch}"
    return ""
