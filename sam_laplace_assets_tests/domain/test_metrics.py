"""Overlaps against counting, likelihoods against float64 at every magnitude of the logit."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sam_laplace_assets.domain.metrics import (
    bernoulli_variance,
    binary_entropy,
    binary_nll,
    dice,
    iou,
    residuals,
    row_means,
    soft_dice_loss,
    squared_error,
)

LOGITS = torch.cat([torch.linspace(-100, 100, 2001), torch.tensor([0.0, -0.0, 1e-6, -1e-6])])


def log_one_plus_exp(z):
    """In extended precision, from the definition on the side where nothing cancels."""
    z = np.asarray(z, dtype=np.longdouble)
    return np.where(z > 0, z + np.log1p(np.exp(-np.abs(z))), np.log1p(np.exp(-np.abs(z)))).astype(np.float64)


@pytest.mark.parametrize("truth", [True, False])
def test_binary_nll_in_float32_is_exact_from_minus_100_to_100(truth):
    expected = log_one_plus_exp(-LOGITS.double().numpy() if truth else LOGITS.double().numpy())
    found = binary_nll(LOGITS, torch.full(LOGITS.shape, truth)).double().numpy()
    np.testing.assert_allclose(found, expected, rtol=3e-7, atol=1e-37)


def test_binary_nll_has_gradient_p_minus_y_at_every_logit():
    for truth in (True, False):
        logits = LOGITS.clone().requires_grad_()
        masks = torch.full(LOGITS.shape, truth)
        binary_nll(logits, masks).sum().backward()
        torch.testing.assert_close(logits.grad, residuals(LOGITS, masks), rtol=1e-6, atol=1e-37)


def test_binary_entropy_in_float32_is_exact_from_minus_100_to_100():
    z = np.abs(LOGITS.double().numpy()).astype(np.longdouble)
    p = 1 / (1 + np.exp(z))  # the rarer side, so that nothing rounds to 1
    expected = -(p * np.log(p) + (1 - p) * np.log1p(-p))
    np.testing.assert_allclose(binary_entropy(LOGITS).numpy(), expected.astype(np.float64), rtol=5e-7, atol=1e-37)


def test_binary_entropy_is_log_2_at_zero_and_even():
    assert binary_entropy(torch.zeros(1)).item() == pytest.approx(np.log(2))
    assert torch.equal(binary_entropy(LOGITS), binary_entropy(-LOGITS))


def test_bernoulli_variance_does_not_vanish_where_one_minus_p_does():
    z = torch.tensor([17.0, 30.0, 80.0])
    assert (torch.sigmoid(z) * (1 - torch.sigmoid(z)) == 0).all()
    torch.testing.assert_close(bernoulli_variance(z).double(), torch.exp(-z.double()), rtol=1e-6, atol=0)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_iou_and_dice_are_what_counting_gives(pixels):
    predicted, truth = {i for i, (p, _) in enumerate(pixels) if p}, {i for i, (_, t) in enumerate(pixels) if t}
    logits = torch.tensor([[[2.0 if p else -1.0 for p, _ in pixels]]])
    masks = torch.tensor([[[t for _, t in pixels]]])
    union, both = len(predicted | truth), len(predicted & truth)
    assert iou(logits, masks).item() == (both / union if union else 1.0)
    assert dice(logits, masks).item() == (2 * both / (len(predicted) + len(truth)) if union else 1.0)


def test_a_logit_of_zero_is_background():
    assert iou(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.bool)).item() == 1.0
    assert iou(torch.zeros(1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool)).item() == 0.0


def test_soft_dice_loss_of_certain_logits_is_one_minus_dice():
    masks = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)) < 0.4
    logits = torch.where(torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1)) < 0.5, 100.0, -100.0)
    expected = 1 - dice(logits, masks).float()
    torch.testing.assert_close(soft_dice_loss(logits, masks, smoothing=0.0), expected, rtol=1e-5, atol=1e-6)


def test_soft_dice_loss_of_an_empty_mask_is_near_zero_only_when_nothing_is_said():
    empty = torch.zeros(1, 16, 16, dtype=torch.bool)
    assert soft_dice_loss(torch.full((1, 16, 16), -50.0), empty).item() == pytest.approx(0, abs=1e-6)
    assert soft_dice_loss(torch.full((1, 16, 16), 50.0), empty).item() > 0.99


def test_row_means_add_up_in_float64():
    values = torch.full((2, 1000, 1000), 0.1)
    values[1] = 0.3
    np.testing.assert_allclose(row_means(values).numpy(), values[:, 0, 0].double().numpy(), rtol=1e-12)


def test_scores_of_some_pixels_are_those_of_a_row_that_has_no_others():
    generator = torch.Generator().manual_seed(3)
    logits, masks = torch.randn(4, 9, 11, generator=generator), torch.rand(4, 9, 11, generator=generator) < 0.4
    where = torch.rand(4, 9, 11, generator=generator) < 0.3
    for score in (iou, dice):
        alone = [score(z[w][None, None], m[w][None, None]).item() for z, m, w in zip(logits, masks, where, strict=True)]
        assert score(logits, masks, where=where).tolist() == alone
    means = [values[kept].double().mean().item() for values, kept in zip(logits, where, strict=True)]
    np.testing.assert_allclose(row_means(logits, where=where), means, rtol=1e-6)
    nothing = torch.zeros_like(where)
    assert row_means(logits, where=nothing).tolist() == [0.0] * 4
    assert iou(logits, masks, where=nothing).tolist() == [1.0] * 4


def test_squared_error_is_that_of_the_two_class_brier_score():
    masks = torch.tensor([True, False, True])
    found = squared_error(torch.tensor([1.0, 0.25, 0.0], dtype=torch.float64), masks)
    assert found.tolist() == [0.0, 0.0625, 1.0]
