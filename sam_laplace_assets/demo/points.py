"""Points on and beside an object, as somebody would click them."""

import numpy as np
from numpy.typing import NDArray

from sam_laplace_assets.demo.scenes import bounding_box


def draw_points(
    rng: np.random.Generator, mask: NDArray[np.bool_], *, positives: int, negatives: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Positive points anywhere on the object, negative ones off it, every other one of them near it.

    Args:
        rng: where the randomness comes from.
        mask: (H, W) bool, with foreground and background.
        positives: number of points on the object.
        negatives: number of points off it.

    Returns:
        (K, 2) float32 points (x, y) in pixels of the mask and (K,) int64 labels, 1 on the object and 0 off it.
    """
    far, near = np.flatnonzero(~mask), background_nearby(mask)
    off = [rng.choice(near if i % 2 == 0 and len(near) else far) for i in range(negatives)]
    flat = np.concatenate([rng.choice(np.flatnonzero(mask), positives), np.array(off, np.int64)])
    points = np.stack([flat % mask.shape[1], flat // mask.shape[1]], axis=1).astype(np.float32)
    return points, np.repeat(np.array([1, 0], np.int64), (positives, negatives))


def background_nearby(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Flat indices of the background inside the object's box, grown by a quarter and three pixels on each side."""
    rows, columns = bounding_box(mask)
    margins = [(side.stop - side.start) // 4 + 3 for side in (rows, columns)]
    top, left = (max(0, side.start - margin) for side, margin in zip((rows, columns), margins, strict=True))
    part = mask[top : rows.stop + margins[0], left : columns.stop + margins[1]]
    y, x = np.nonzero(~part)
    return np.asarray((y + top) * mask.shape[1] + x + left, np.int64)
