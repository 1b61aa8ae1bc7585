"""Whether a candidate is better than the one that holds the title, by a paired bootstrap over images."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """Candidate minus holder, in nats a pixel; negative is better.

    Attributes:
        difference: mean over images.
        low, high: its bootstrap interval; None with fewer than two images.
        better: the whole interval is below 0.
        n_images: how many images were compared.
        confidence: of the interval.
    """

    difference: float
    low: float | None
    high: float | None
    better: bool
    n_images: int
    confidence: float


def per_image(values: FloatArray, images: npt.NDArray[np.int64]) -> FloatArray:
    """Mean of values (N,) over the rows of each image (N,): (I,) in ascending order of the images' numbers."""
    _, image_of_row, counts = np.unique(images, return_inverse=True, return_counts=True)
    return np.bincount(image_of_row, weights=values, minlength=len(counts)) / counts


def compare(
    candidate_nll: FloatArray,
    holder_nll: FloatArray,
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare two posteriors on the same images.

    The images are drawn again with replacement, both scores of an image together; the interval is the percentile one.
    With fewer than two images nothing can be said about the spread, and the candidate is never better.

    Args:
        candidate_nll: (I,) NLL of each image, nats a pixel.
        holder_nll: (I,) likewise, of the same images in the same order.
        resamples: bootstrap draws.
        seed: of the draws.
    """
    if candidate_nll.shape != holder_nll.shape or candidate_nll.ndim != 1 or not len(candidate_nll):
        raise ValueError(
            f"Cannot compare scores of shapes {candidate_nll.shape} and {holder_nll.shape}. "
            "Score both on the same images, at least one."
        )
    differences = candidate_nll - holder_nll
    if not np.isfinite(differences).all():
        raise ValueError(f"The scores of {int((~np.isfinite(differences)).sum())} images are not finite. Fit again.")
    n_images, difference = len(differences), float(differences.mean())
    if n_images < 2:
        return Comparison(difference, None, None, False, n_images, confidence)
    tail = (1 - confidence) / 2
    low, high = np.quantile(_bootstrap_means(differences, resamples=resamples, seed=seed), [tail, 1 - tail])
    return Comparison(difference, float(low), float(high), bool(high < 0), n_images, confidence)


def _bootstrap_means(values: FloatArray, *, resamples: int, seed: int) -> FloatArray:
    """(R,) means of values (I,) drawn again with replacement."""
    generator, n = np.random.default_rng(seed), len(values)
    return np.array([values[generator.integers(n, size=n)].mean() for _ in range(resamples)])
