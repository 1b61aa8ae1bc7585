"""The best factor against scipy on all pixels at once, on data whose factor is known, and at the ends of its range."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from sam_laplace_assets.domain.calibration import NLL_ERROR, LogitHistogram, NoScale, Scale, fit_scale
from sam_laplace_assets.domain.metrics import binary_nll


def drawn(factor=1.0, *, n=40, seed=0, spread=4.0):
    """Logits (n, 32, 32) float64 whose masks were drawn from factor times them."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(n, 32, 32, generator=generator).double() - 1
    return logits, torch.rand(n, 32, 32, generator=generator) < torch.sigmoid(factor * logits)


def in_batches(logits, masks, *, size=7):
    """Once only, as a stream would have it."""
    yield from zip(logits.split(size), masks.split(size), strict=True)


def nll(factor, logits, masks):
    return binary_nll(factor * logits.double(), masks).mean().item()


def scipys(logits, masks):
    found = minimize_scalar(lambda u: nll(np.exp(u), logits, masks), bounds=(-8, 8), options={"xatol": 1e-9})
    return float(np.exp(found.x)), float(found.fun)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [0.02, 0.3, 1.0, 5.0])
def test_the_factor_is_scipys_on_all_pixels_at_once(factor, dtype):
    logits, masks = drawn(factor)
    logits = logits.to(dtype)
    scale = fit_scale(in_batches(logits, masks))
    value, lowest = scipys(logits, masks)
    assert scale.value == pytest.approx(value, rel=1e-5)
    rounding = 1e-9 if dtype == torch.float16 else NLL_ERROR
    assert -rounding <= scale.nll_after - lowest <= 1e-9
    assert -rounding <= scale.nll_before - nll(1.0, logits, masks) <= 1e-9


def test_the_error_bound_holds_for_logits_at_the_edges_of_one_bin():
    magnitude = torch.tensor([[2.0, 2.0 + 2**-9 - 2**-20]]).double().repeat(500, 1)
    masks = torch.ones(500, 2, dtype=torch.bool)
    masks[:40] = False
    scale = fit_scale([(magnitude, masks)])
    error = nll(1.0, magnitude, masks) - scale.nll_before
    assert NLL_ERROR / 10 < error < NLL_ERROR
    assert 0 <= nll(scale.value, magnitude, masks) - scale.nll_after < NLL_ERROR


def test_calibrated_logits_have_the_factor_one():
    logits, masks = drawn(1.0, n=400)
    scale = fit_scale(in_batches(logits, masks))
    p = torch.sigmoid(logits)
    standard_error = (logits.square() * p * (1 - p)).sum().rsqrt().item()
    assert abs(scale.value - 1) < 4 * standard_error
    assert standard_error < 0.005


def test_logits_times_c_have_the_factor_over_c():
    logits, masks = drawn(0.7)
    value = fit_scale(in_batches(logits, masks)).value
    for c in (0.01, 3.0, 200.0):
        scaled = fit_scale(in_batches(c * logits, masks))
        assert scaled.value == pytest.approx(value / c, rel=1e-5)
        assert scaled.temperature == pytest.approx(c / value, rel=1e-5)
        assert scaled.nll_after == pytest.approx(fit_scale(in_batches(logits, masks)).nll_after, abs=2 * NLL_ERROR)


def test_scaling_twice_changes_nothing_more():
    logits, masks = drawn(0.3)
    scale = fit_scale(in_batches(logits, masks))
    again = fit_scale(in_batches(scale.value * logits, masks))
    assert again.value == pytest.approx(1, rel=1e-5)
    assert again.nll_before == pytest.approx(scale.nll_after, abs=2 * NLL_ERROR)


def test_the_size_of_a_batch_changes_nothing():
    logits, masks = drawn(0.3)
    logits = logits.half()  # sums of halves are exact in float64
    assert len({fit_scale(in_batches(logits, masks, size=size)) for size in (1, 3, 40)}) == 1


def test_labels_and_logits_may_both_change_sign():
    logits, masks = drawn(0.3)
    logits = logits.half()
    mirrored, found = fit_scale([(-logits, ~masks)]), fit_scale([(logits, masks)])
    assert mirrored.value == pytest.approx(found.value, rel=1e-12)


def test_nll_never_rises():
    for factor in (0.05, 1.0, 20.0):
        scale = fit_scale(in_batches(*drawn(factor)))
        assert scale.nll_after <= scale.nll_before


def test_memory_does_not_grow_with_what_was_seen():
    histogram = LogitHistogram()
    before = histogram.counts.nbytes + histogram.sums.nbytes
    for seed in range(3):
        histogram.add(*drawn(seed=seed))
    assert histogram.counts.nbytes + histogram.sums.nbytes == before < 5e6
    assert histogram.counts.sum() == 3 * 40 * 32 * 32


def test_every_finite_magnitude_has_a_bin():
    histogram = LogitHistogram()
    values = torch.tensor([0.0, -0.0, 1e-45, 1e-300, 65504.0, -3e38, 1e300], dtype=torch.float64)
    histogram.add(values, torch.zeros(7, dtype=torch.bool))
    assert histogram.counts.sum() == 7
    assert histogram.wrong == pytest.approx(1e300)


def test_logits_that_are_nowhere_wrong_have_no_best_factor():
    logits, _ = drawn()
    with pytest.raises(NoScale, match="No logit is on the wrong side of 0"):
        fit_scale([(logits, logits > 0)])


def test_logits_that_point_away_or_nowhere_have_no_best_factor():
    logits, masks = drawn()
    for backwards in (-logits, torch.zeros_like(logits)):
        with pytest.raises(NoScale, match="point away from the masks"):
            fit_scale([(backwards, masks)])


def test_no_rows_have_no_best_factor():
    for nothing in ([], [(torch.zeros(0, 4, 4), torch.zeros(0, 4, 4, dtype=torch.bool))]):
        with pytest.raises(NoScale, match="there are no rows"):
            fit_scale(nothing)


def test_a_broken_logit_is_named_by_its_row_in_the_stream():
    logits, masks = drawn()
    logits[9, 4, 5] = float("nan")
    with pytest.raises(ValueError, match=r"The logit of item 9 is nan at pixel \(4, 5\)\. Compute this row again"):
        fit_scale(in_batches(logits, masks))


def test_batches_that_do_not_fit_together_are_refused():
    logits, masks = drawn()
    for one, other in ((logits, masks.float()), (logits, masks[:, 1:]), (logits.int(), masks)):
        with pytest.raises(ValueError, match=r"From row 40 on, logits are .* Give float logits and bool masks"):
            fit_scale([(logits, masks), (one, other)])


def test_a_scale_says_its_temperature():
    assert Scale(0.25, 1.0, 0.5).temperature == 4.0
