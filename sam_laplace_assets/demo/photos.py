"""Photographs inside scikit-image's wheel, with masks: nothing is downloaded, and the toy SAM never trains on them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COIN_AREA = 500
CROP = 2.2


@dataclass(frozen=True)
class Sample:
    """A picture and one object in it.

    image   (H, W) or (H, W, 3) uint8
    mask    (H, W) bool
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]

    def __post_init__(self) -> None:
        """Refuse a mask of another size."""
        if self.image.shape[:2] != self.mask.shape:
            raise ValueError(f"A mask of {self.mask.shape} does not fit an image of {self.image.shape}.")

    def rgb(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8."""
        return self.image if self.image.ndim == 3 else np.repeat(self.image[..., None], 3, axis=2)


def coins() -> Iterator[Sample]:
    """Each of the 24 coins with its neighbours partly in view, from top to bottom."""
    from skimage import data, measure

    image = np.asarray(data.coins(), np.uint8)
    labels = label_coins(image)
    for region in measure.regionprops(labels):
        yield crop_around(image, labels == region.label)


def label_coins(image: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(H, W) labels of the coins: a watershed of the edges from certain background and certain metal."""
    from scipy.ndimage import binary_fill_holes
    from skimage import filters, measure, segmentation

    markers = np.where(image < 30, 1, np.where(image > 150, 2, 0))
    metal = binary_fill_holes(segmentation.watershed(filters.sobel(image), markers) == 2)
    labels = measure.label(metal)
    small = np.flatnonzero(np.bincount(labels.ravel()) < COIN_AREA)
    return np.asarray(measure.label(np.where(np.isin(labels, small), 0, labels) > 0), np.int64)


def crop_around(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> Sample:
    """The part of an image around an object that is 2.2 times the object's box, as far as the image reaches."""
    window = []
    for axis in (0, 1):
        inside = np.flatnonzero(mask.any(1 - axis))
        centre, half = (inside[0] + inside[-1] + 1) / 2, CROP * (inside[-1] + 1 - inside[0]) / 2
        window.append(slice(max(0, round(centre - half)), min(mask.shape[axis], round(centre + half))))
    return Sample(image[tuple(window)], mask[tuple(window)])


def cell() -> Sample:
    """One cell under a microscope, by Otsu's threshold."""
    from skimage import data, filters

    image = np.asarray(data.cell(), np.uint8)
    return Sample(image, image > filters.threshold_otsu(image))


def horse() -> Sample:
    """The black silhouette of a horse on white, which is its own mask."""
    from skimage import data

    white = np.asarray(data.horse(), bool)
    return Sample(np.where(white, 255, 0).astype(np.uint8), ~white)
