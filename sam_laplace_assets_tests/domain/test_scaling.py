"""The best factor against scipy on all pixels at once, and as the inverse of a factor that the logits were given."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from sam_laplace_assets.domain.calibration import NoScale
from sam_laplace_assets.domain.metrics import binary_nll
from sam_laplace_assets.domain.predictive import probit_logits
from sam_laplace_assets.domain.scaling import CELLS, PredictiveHistogram, anchored, scale_logits


def drawn(*, n=200_000, spread=6.0, width=0.3, truth=0.5, seed=0):
    """Means (n,), variances (n,) that grow with them, and masks drawn from the logits times `truth`."""
    generator = torch.Generator().manual_seed(seed)
    mean = spread * torch.randn(n, generator=generator).double() - 1
    variance = width * (0.1 + mean.square()) * torch.rand(n, generator=generator).double()
    probability = torch.sigmoid(probit_logits(*scale_logits(mean, variance, truth)))
    return mean, variance, torch.rand(n, generator=generator).double() < probability


def found(mean, variance, masks, *, parts=4):
    histogram = PredictiveHistogram(1)
    for some in zip(*(one.chunk(parts) for one in (mean, variance, masks)), strict=True):
        histogram.add(some[0], some[1][None], some[2])
    return histogram.best(0)


def nll(mean, variance, masks, factor):
    return binary_nll(probit_logits(*scale_logits(mean, variance, factor)), masks).mean().item()


def scipys(mean, variance, masks):
    lowest = minimize_scalar(
        lambda u: nll(mean, variance, masks, np.exp(u)), bounds=(-3, 3), options={"xatol": 1e-9}, method="bounded"
    )
    return float(np.exp(lowest.x)), float(lowest.fun)


@pytest.mark.parametrize("width", [0.0, 1e-6, 0.01, 0.3, 3.0])
@pytest.mark.parametrize("truth", [0.2, 1.0, 2.5])
def test_the_factor_is_scipys_on_all_pixels_at_once(width, truth):
    data = drawn(width=width, truth=truth)
    value, lowest = scipys(*data)
    scale = anchored(found(*data), nll(*data, 1.0))
    assert scale.value == pytest.approx(value, rel=2e-3)
    assert scale.nll_before == nll(*data, 1.0)
    assert scale.nll_after == pytest.approx(lowest, abs=2e-6)


@pytest.mark.parametrize("factor", [0.25, 2.0, 8.0])
def test_logits_that_were_multiplied_come_back_by_the_inverse(factor):
    """Powers of two keep each pixel's bin, but for the ends."""
    mean, variance, masks = drawn(width=0.05, truth=1.0)
    before = found(mean, variance, masks)
    after = found(*scale_logits(mean, variance, factor), masks)
    assert after.value * factor == pytest.approx(before.value, rel=1e-3)
    assert after.nll_after == pytest.approx(before.nll_after, abs=1e-6)


def test_logits_that_masks_were_drawn_from_need_no_scale():
    assert found(*drawn(truth=1.0)).value == pytest.approx(1.0, rel=0.02)


def test_batches_and_companions_do_not_matter():
    mean, variance, masks = drawn()
    histogram = PredictiveHistogram(3)
    histogram.add(mean, torch.stack([0 * variance, variance, 5 * variance]), masks)
    assert histogram.best(1).value == pytest.approx(found(mean, variance, masks).value, rel=1e-9)


def test_every_pixel_is_in_one_cell_whatever_its_size():
    histogram = PredictiveHistogram(1)
    mean = torch.tensor([0.0, 1e-30, -1e-5, 1.0, 127.9, -1e4, 1e30]).double()
    variance = torch.tensor([0.0, 1e-30, 1e-4, 1.0, 1e4, 1e6, 1e30]).double()
    histogram.add(mean, variance[None], mean > 0)
    assert histogram.counts.shape == (1, CELLS)
    assert histogram.counts.sum() == len(mean)
    assert histogram.means.sum() == pytest.approx(mean.abs().sum().item())


def test_where_more_or_less_is_always_better_there_is_no_scale():
    mean, variance, _ = drawn(n=1000)
    with pytest.raises(NoScale, match=r"the larger, the better"):
        found(mean, variance, mean > 0)
    with pytest.raises(NoScale, match=r"the smaller, the better"):
        found(mean, variance, mean < 0)


def test_a_factor_of_one_leaves_logits_as_they_are():
    mean, variance, _ = drawn(n=100)
    assert all(torch.equal(a, b) for a, b in zip(scale_logits(mean, variance, 1.0), (mean, variance), strict=True))
