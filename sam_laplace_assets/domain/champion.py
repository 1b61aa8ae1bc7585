"""Whether a candidate is better than the one that holds the title, by a paired bootstrap over images."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sam_laplace_assets.domain.bootstrap import bootstrap_means, percentile_interval

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
    means = bootstrap_means(differences, np.ones(n_images), resamples=resamples, seed=seed)
    low, high = percentile_interval(means, confidence=confidence)
    return Comparison(difference, low, high, high < 0, n_images, confidence)
