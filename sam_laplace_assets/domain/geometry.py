"""Frames of an image: original pixels, SAM's padded input, and the 256x256 that everything is stored at."""

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

LOW_RES = 256


def to_low_res(points: NDArray[Any], *, image_h: int, image_w: int) -> NDArray[np.float64]:
    """Points of the original image in the 256x256 frame, with pixel centres at whole numbers in both.

    Args:
        points: (K, 2), (x, y) in original pixels.
        image_h: height of the original, in pixels.
        image_w: its width.

    Returns:
        (K, 2) float64, (x, y) in low-res pixels.
    """
    if min(image_h, image_w) < 1:
        raise ValueError(f"Cannot rescale points of an image of {image_h} x {image_w} pixels: give its true size.")
    points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    return (points + 0.5) * LOW_RES / np.array([image_w, image_h], dtype=np.float64) - 0.5


def to_original(points: NDArray[Any], *, image_h: int, image_w: int) -> NDArray[np.int64]:
    """Pixels of the original image that points of the 256x256 frame lie in: the way back from `to_low_res`.

    A low-res pixel goes to the pixel that `resize_nearest` would fill it from, so a mask has the same label at both.
    Where an image has fewer than 256 pixels along a side, neighbouring points go to one pixel.

    Args:
        points: (K, 2), (x, y) in low-res pixels, from -0.5 to 255.5.
        image_h: height of the original, in pixels.
        image_w: its width.

    Returns:
        (K, 2) int64, (x, y) in original pixels, inside the image.
    """
    if min(image_h, image_w) < 1:
        raise ValueError(f"Cannot rescale points to an image of {image_h} x {image_w} pixels: give its true size.")
    points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    outside = ~((points >= -0.5) & (points <= LOW_RES - 0.5)).all(axis=1)
    if outside.any():
        raise ValueError(f"Point (x, y) = {tuple(points[outside][0].tolist())} lies outside the 256x256 frame.")
    sides = np.array([image_w, image_h])
    pixels = np.floor((points + 0.5) * sides / LOW_RES).astype(np.int64)
    inside: NDArray[np.int64] = np.minimum(pixels, sides - 1)
    return inside


def resize_nearest(mask: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Mask at another size: each pixel takes the one that its centre falls in.

    Args:
        mask: (h, w), any dtype.
        height: rows of the result.
        width: its columns.

    Returns:
        (height, width), same dtype; row i is row floor((i + 0.5) * h / height) of the mask.
    """
    if mask.ndim != 2 or 0 in mask.shape or min(height, width) < 1:
        raise ValueError(f"Cannot resize a mask of shape {mask.shape} to {height} x {width}: both need two sides.")
    rows, columns = (_nearest(old, new) for old, new in zip(mask.shape, (height, width), strict=True))
    return mask[rows[:, None], columns[None, :]]


def _nearest(old: int, new: int) -> NDArray[np.int64]:
    """floor((i + 0.5) * old / new) for i below `new`, in whole numbers so that no rounding shifts a pixel."""
    return (2 * np.arange(new, dtype=np.int64) + 1) * old // (2 * new)


def resampling_matrices(
    *, low_res: int, image_size: int, input_size: tuple[int, int], original_size: tuple[int, int], out: int = LOW_RES
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """SAM's postprocessing of mask logits, then the resize to 256x256, as one matrix per axis.

    `M_y @ logits @ M_x.T` is what bilinear steps low_res -> image_size, crop to input_size, -> original_size, -> out
    give: each is linear and separable, so their composition is too.

    Args:
        low_res: side of the decoder's logits (256; the toy's 64).
        image_size: side of SAM's padded input (1024; the toy's 256).
        input_size: (H, W) of the image in that input, without padding.
        original_size: (H, W) of the original image.
        out: side of the result.

    Returns:
        M_y (out, low_res) and M_x (out, low_res), float32 on the CPU; shared between calls, so not to be written to.
    """
    if not all(1 <= side <= image_size for side in input_size) or min(original_size) < 1:
        raise ValueError(
            f"Cannot resample an input of {input_size[0]} x {input_size[1]} pixels (of {image_size}) "
            f"to an original of {original_size[0]} x {original_size[1]}: each side needs one pixel at least."
        )
    rows, columns = (
        _axis_matrix(low_res, image_size, inside, original, out)
        for inside, original in zip(input_size, original_size, strict=True)
    )
    return rows, columns


@lru_cache(maxsize=256)
def _axis_matrix(low_res: int, image_size: int, inside: int, original: int, out: int) -> "torch.Tensor":
    """(out, low_res) float32: what the bilinear steps do to one axis, read off the rows of an identity.

    Sending the identity through the steps needs low_res x original numbers, where a matrix for each step would need
    original x original. float32, because `F.interpolate` places its samples in the precision of its input.
    """
    import torch

    unit_rows = torch.eye(low_res, dtype=torch.float32)[None]
    padded = _resize_linear(unit_rows, image_size)
    whole = _resize_linear(padded[..., :inside], original)
    return _resize_linear(whole, out)[0].T.contiguous()


def _resize_linear(rows: "torch.Tensor", size: int) -> "torch.Tensor":
    """(1, R, n) -> (1, R, size), along the last axis."""
    from torch.nn import functional

    return functional.interpolate(rows, size=size, mode="linear", align_corners=False)
