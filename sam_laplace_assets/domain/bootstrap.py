"""Means over images with bootstrap intervals: images weigh alike, and are what is drawn again.

Pixels of an image are not independent, nor are its rows: an interval over pixels or rows would be far too narrow.
Percentile intervals (Efron 1979; Efron and Tibshirani 1993, section 13.3), which treat both tails as they are and need
no formula for the error. With few units they are narrow: a nominal 95 % covered the mean of normal and gamma values in
88 % of 1,500 simulations at 10 units, 92 % at 30, 94 % at 60 and 95 % at 100.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
AnyArray = npt.NDArray[Any]

FEW = 30
"""Units below which an interval is too narrow to be taken at its word."""
DRAWN_AT_ONCE = 2**20
"""Units in one step of resamples, 8 MB of indices; one resample at least."""


@dataclass(frozen=True)
class Estimate:
    """A mean over images and its percentile interval.

    Attributes:
        mean: over images of the mean over an image's rows; None without an image.
        low, high: the interval; None with fewer than two units.
        n_images: images that have a value.
        n_units: what was drawn again: groups, or images where no group was given.
        images_left_out: images of which no row has a value.
        confidence: of the interval.
    """

    mean: float | None
    low: float | None
    high: float | None
    n_images: int
    n_units: int
    images_left_out: int
    confidence: float


def too_narrow(units: int, called: str) -> Iterator[str]:
    """A sentence for who reads intervals over few units, called `images` or `groups`; nothing for many."""
    if units < FEW:
        yield f"Intervals over {units} {called} are too narrow."


def per_image(values: FloatArray, images: IntArray) -> FloatArray:
    """Mean of values (N,) over the rows of each image (N,): (I,) in ascending order of the images' numbers."""
    _, image_of_row, counts = np.unique(images, return_inverse=True, return_counts=True)
    return np.bincount(image_of_row, weights=values, minlength=len(counts)) / counts


def estimate(
    values: FloatArray,
    images: IntArray,
    *,
    present: npt.NDArray[np.bool_] | None = None,
    groups: AnyArray | None = None,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Mean over images of a score that rows have, with its bootstrap interval.

    Args:
        values: (N,) finite, one a row.
        images: (N,) which image each row belongs to.
        present: (N,) bool, which rows have a value; None: all. The others are left out.
        groups: (N,) the patient, video or survey line of each row, drawn again as a whole; None: images are. The mean
            stays one over images, so a resample's is the sum over its images by their number.
        resamples: bootstrap draws.
        confidence: in (0, 1), part of the draws inside the interval.
        seed: of the draws.
    """
    _refuse_unusable(values, images, present, groups, resamples=resamples, confidence=confidence)
    kept = np.ones(len(values), dtype=bool) if present is None else present
    left_out = len(np.unique(images)) - len(np.unique(images[kept]))
    means = per_image(values[kept], images[kept])
    sums, counts = _by_unit(means, images[kept], None if groups is None else groups[kept])
    if not len(means):
        return Estimate(None, None, None, 0, 0, left_out, confidence)
    low, high = _interval(sums, counts, resamples=resamples, confidence=confidence, seed=seed)
    return Estimate(float(means.mean()), low, high, len(means), len(sums), left_out, confidence)


def difference(
    ours: FloatArray,
    theirs: FloatArray,
    images: IntArray,
    *,
    present: npt.NDArray[np.bool_] | None = None,
    groups: AnyArray | None = None,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Ours minus theirs on the same rows, paired: both scores of an image are drawn together.

    Args:
        ours, theirs: (N,) scores of the same rows in the same order.
        present: (N,) bool, the rows in which both methods have a value; None: all.
        images, groups, resamples, confidence, seed: as in `estimate`.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"Cannot pair scores of shapes {ours.shape} and {theirs.shape}. Score both on the same rows.")
    return estimate(
        ours - theirs,
        images,
        present=present,
        groups=groups,
        resamples=resamples,
        confidence=confidence,
        seed=seed,
    )


def by_label(
    values: FloatArray,
    images: IntArray,
    labels: AnyArray,
    *,
    present: npt.NDArray[np.bool_] | None = None,
    groups: AnyArray | None = None,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[Hashable, Estimate]:
    """`estimate` for the rows of each label (N,), a class or a k_pairs, in the labels' ascending order.

    Of an image whose rows differ in label, each label takes its own rows.
    """
    _refuse_misfit(values, labels=labels)
    found = {}
    for label in np.unique(labels):
        its = labels == label
        found[label.item()] = estimate(
            values[its],
            images[its],
            present=None if present is None else present[its],
            groups=None if groups is None else groups[its],
            resamples=resamples,
            confidence=confidence,
            seed=seed,
        )
    return found


def bootstrap_means(sums: FloatArray, counts: FloatArray, *, resamples: int, seed: int) -> FloatArray:
    """(R,) means over images when units are drawn again with replacement, each as often as there are units.

    Args:
        sums: (U,) of each unit, the sum of its images' values.
        counts: (U,) float64, how many images it has.
    """
    generator, n = np.random.default_rng(seed), len(sums)
    means, step = np.empty(resamples), max(1, DRAWN_AT_ONCE // n)
    for start in range(0, resamples, step):
        drawn = generator.integers(n, size=(min(step, resamples - start), n))
        means[start : start + len(drawn)] = sums[drawn].sum(1) / counts[drawn].sum(1)
    return means


def percentile_interval(means: FloatArray, *, confidence: float) -> tuple[float, float]:
    """The ends of the middle part of bootstrap means (R,)."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _interval(
    sums: FloatArray, counts: FloatArray, *, resamples: int, confidence: float, seed: int
) -> tuple[float, float] | tuple[None, None]:
    if len(sums) < 2:
        return None, None
    return percentile_interval(bootstrap_means(sums, counts, resamples=resamples, seed=seed), confidence=confidence)


def _by_unit(means: FloatArray, images: IntArray, groups: AnyArray | None) -> tuple[FloatArray, FloatArray]:
    """Sum and number of the images' means (I,) in each unit: two (U,) float64."""
    if groups is None:
        return means, np.ones(len(means))
    _, first_row = np.unique(images, return_index=True)
    _, unit_of_image = np.unique(groups[first_row], return_inverse=True)
    counts = np.bincount(unit_of_image).astype(np.float64)
    return np.bincount(unit_of_image, weights=means).astype(np.float64), counts


def _refuse_unusable(
    values: FloatArray,
    images: IntArray,
    present: npt.NDArray[np.bool_] | None,
    groups: AnyArray | None,
    *,
    resamples: int,
    confidence: float,
) -> None:
    _refuse_misfit(values, images=images, present=present, groups=groups)
    broken = ~np.isfinite(values) & (True if present is None else present)
    if broken.any():
        row = int(np.flatnonzero(broken)[0])
        raise ValueError(f"The score of row {row} (image {images[row]}) is {values[row]}. Mark it as not present.")
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"resamples is {resamples} and confidence {confidence}: give 1 or more, and one in (0, 1).")
    if groups is not None:
        _refuse_split_images(images, groups)


def _refuse_misfit(values: FloatArray, **columns: AnyArray | None) -> None:
    for name, column in columns.items():
        if column is not None and (column.shape != values.shape or values.ndim != 1):
            raise ValueError(f"values {values.shape} and {name} {column.shape} do not fit: give one of each a row.")


def _refuse_split_images(images: IntArray, groups: AnyArray) -> None:
    """An image belongs to one group."""
    _, first, image_of_row = np.unique(images, return_index=True, return_inverse=True)
    stray = groups != groups[first][image_of_row]
    if stray.any():
        row = int(np.flatnonzero(stray)[0])
        one, other = groups[first][image_of_row][row], groups[row]
        raise ValueError(f"Image {images[row]} is in two groups, {one} and {other}. Give each image one group.")
