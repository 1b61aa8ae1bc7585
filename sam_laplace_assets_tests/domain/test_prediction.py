"""Answers at the original size, against plain bilinear resizing of the logit."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from sam_laplace_assets.domain.answering import Answer
from sam_laplace_assets.domain.prediction import predict
from sam_laplace_assets.domain.quantities import quantities

SIZES = [(256, 256), (300, 400), (37, 23), (2, 600), (1, 1), (515, 700)]


def some_answer(seed=0):
    coarse = torch.randn(2, 1, 12, 12, generator=torch.Generator().manual_seed(seed))
    smooth = functional.interpolate(coarse, size=(256, 256), mode="bicubic")[:, 0].numpy()
    return Answer(np.zeros((256, 256), dtype=np.float16), 5 * smooth[0], 0.1 * np.square(smooth[1]))


@pytest.mark.parametrize("size", SIZES)
def test_every_quantity_is_that_of_the_resized_logit(size):
    answer, found = some_answer(), predict(some_answer(), size)
    stacked = torch.from_numpy(np.stack([answer.mean, np.sqrt(answer.variance)]))[None]
    mean, deviation = functional.interpolate(stacked, size=size, mode="bilinear", align_corners=False)[0]
    plain = quantities(mean, deviation.square())
    for name, of in (("probability", plain.probability), ("entropy", plain.predictive_entropy),
                     ("mutual_information", plain.mutual_information)):  # fmt: skip
        assert getattr(found, name).dtype == np.float32
        np.testing.assert_allclose(getattr(found, name), of.numpy(), rtol=2e-4, atol=1e-6)


def test_at_256_it_is_the_answer_itself():
    answer = some_answer()
    found = predict(answer, (256, 256))
    np.testing.assert_allclose(found.probability, answer.quantities.probability.numpy(), rtol=1e-6)
    np.testing.assert_array_equal(found.mask, answer.quantities.probability.numpy() >= 0.5)


@pytest.mark.parametrize("band_pixels", [1, 5000, 1 << 30])
def test_the_size_of_a_band_changes_nothing(band_pixels):
    one, other = (predict(some_answer(), (61, 90), band_pixels=pixels) for pixels in (band_pixels, 700))
    for name in ("mask", "probability", "entropy", "mutual_information"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-6)


def test_the_mask_is_where_the_probability_is_a_half_or_more():
    found = predict(some_answer(), (515, 700))
    assert (found.mask != (found.probability >= 0.5)).mean() < 1e-5  # the map is rounded to float32 after the mask


def test_interpolated_deviations_bound_those_of_interpolated_logits():
    """A weighted sum of normal logits of any correlation has at most the weighted sum of their deviations."""
    generator = np.random.default_rng(0)
    for _ in range(100):
        weights, factor = generator.dirichlet(np.ones(4)), generator.normal(size=(4, 3))
        covariance = factor @ factor.T
        assert weights @ covariance @ weights <= (weights @ np.sqrt(np.diag(covariance))) ** 2 + 1e-12


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ValueError, match="0 x 5 pixels"):
        predict(some_answer(), (0, 5))
