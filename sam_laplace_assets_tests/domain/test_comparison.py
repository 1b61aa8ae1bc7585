"""The methods that are compared: what they share, what they come to where the answer is known, in any batches."""

import functools
import math

import numpy as np
import pytest
import torch

from sam_laplace_assets.domain.calibration import NoScale, fit_scale
from sam_laplace_assets.domain.comparison import (
    HEAD,
    LAPLACE,
    LAPLACE_SCALED,
    SAM,
    SAM_SCALED,
    answers_of,
    clipped_sam,
    compare_methods,
    fit_sam_scale,
    posterior_answers,
)  # fmt: skip
from sam_laplace_assets.domain.curvature import fit_curvature
from sam_laplace_assets.domain.metrics import binary_entropy
from sam_laplace_assets.domain.pack import MemoryRows
from sam_laplace_assets.domain.posterior import build_laplace
from sam_laplace_assets.domain.predictor import Predictor
from sam_laplace_assets.domain.scoring import Truth
from sam_laplace_assets_tests.domain.some_rows import some_head, some_rows

ROWS = some_rows(5, height=256, width=256, n_images=3)
CLIP = 20.0


@functools.cache
def predictor(**options):
    """A head with a posterior wide enough to differ from it."""
    head = some_head()
    curvature = fit_curvature(head, some_rows(8), approx="diagonal", logit_clip=CLIP, batch_size=4)
    laplace = build_laplace(head, curvature, prior_precision=0.1, temperature=20.0)
    return Predictor(head, laplace, **{"logit_clip": CLIP} | options)


def compared(rows=ROWS, *, batch_size=2, sam_scale=0.5, laplace_scale=0.7):
    return compare_methods(predictor(), rows, sam_scale=sam_scale, laplace_scale=laplace_scale, batch_size=batch_size)


@functools.cache
def found():
    return compared()


def assert_same_scores(one, other, order=slice(None)):
    """Scores of each row, those of `other` taken in an order, and pooled ones."""
    ours, theirs = one.columns(), other.columns()
    assert ours.keys() == theirs.keys()
    for name, column in ours.items():
        np.testing.assert_allclose(column.values, theirs[name].values[order], rtol=1e-9, atol=1e-12, err_msg=name)
        np.testing.assert_array_equal(column.present, theirs[name].present[order])
    assert one.pooled() == pytest.approx(other.pooled(), rel=1e-9)


def test_whole_equals_batches():
    whole = compared(batch_size=5)
    assert whole.keys() == found().keys() == {SAM, SAM_SCALED, HEAD, LAPLACE, LAPLACE_SCALED}
    for name, scores in whole.items():
        assert_same_scores(scores, found()[name])


def test_rows_in_another_order_score_the_same():
    order = np.array([3, 0, 4, 1, 2])
    moved = compared(MemoryRows(ROWS.inputs[order], ROWS.masks[order], ROWS.images[order]))
    for name, scores in moved.items():
        assert_same_scores(scores, found()[name], order)


def test_scaling_by_one_changes_nothing():
    plain = compared(sam_scale=1.0, laplace_scale=1.0)
    assert_same_scores(plain[SAM_SCALED], plain[SAM])
    assert_same_scores(plain[LAPLACE_SCALED], plain[LAPLACE])


def test_without_a_recorded_scale_there_is_no_scaled_posterior():
    assert LAPLACE_SCALED not in compared(laplace_scale=None)


@pytest.mark.parametrize(("one", "other"), [(SAM, SAM_SCALED), (HEAD, LAPLACE), (HEAD, LAPLACE_SCALED)])
def test_scaling_and_averaging_leave_the_mask(one, other):
    ours, theirs = found()[one].columns(), found()[other].columns()
    for name in ("iou", "dice", "band_iou", "band_dice"):
        np.testing.assert_array_equal(ours[name].values, theirs[name].values)


def test_a_posterior_without_variance_says_what_the_head_says():
    mean = torch.linspace(-45, 45, 4001).reshape(1, 1, -1)
    truth = Truth.of(np.arange(1), mean > 3)
    answers = posterior_answers(truth, mean, torch.zeros_like(mean))
    torch.testing.assert_close(answers.logits, mean.double(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(answers.uncertainties["entropy"], binary_entropy(mean.double()), rtol=1e-9, atol=0)
    assert (answers.uncertainties["mutual_information"] == 0).all()


def test_variance_draws_probabilities_towards_one_half_and_never_beyond_the_head():
    mean = torch.tensor([[[-60.0, -30.0, -5.0, -0.1, 0.0, 0.1, 5.0, 30.0, 60.0]]])
    truth = Truth.of(np.arange(1), mean > 0)
    for variance in (1e-6, 0.5, 2.0, 100.0):
        logits = posterior_answers(truth, mean, torch.full_like(mean, variance)).logits
        assert (logits.abs() <= mean.double().abs() * (1 + 1e-12)).all()
        assert (logits.sign() == mean.sign()).all()
        torch.testing.assert_close(logits, -logits.flip(-1), rtol=1e-12, atol=0)


def test_a_scaled_posterior_is_that_of_scaled_weights():
    inputs, masks = ROWS.read(np.array([0]))
    truth, factor = Truth.of(np.arange(1), masks), 0.7
    mean, variance = predictor().logits(inputs)
    said = answers_of(predictor(), inputs, truth, sam_scale=1.0, laplace_scale=factor)[LAPLACE_SCALED]
    expected = posterior_answers(truth, factor * mean, factor**2 * variance)
    torch.testing.assert_close(said.logits, expected.logits)


def test_sam_is_clipped_as_the_head_sees_it():
    inputs = ROWS.inputs.clone()
    inputs[0, 0, 0, 0], inputs[0, 0, 0, 1] = 900.0, -900.0
    assert clipped_sam(inputs, logit_clip=CLIP)[0, 0, :2].tolist() == [CLIP, -CLIP]


def test_sams_scale_is_the_best_factor_on_its_clipped_logits():
    scale = fit_sam_scale(ROWS, logit_clip=2.0, batch_size=2)
    clipped = clipped_sam(ROWS.inputs, logit_clip=2.0)
    assert scale.value == pytest.approx(fit_scale([(clipped, ROWS.masks)]).value, rel=1e-9)
    nll = found_nll(clipped * scale.value)
    assert nll == pytest.approx(scale.nll_after, rel=1e-6)
    assert nll < min(found_nll(clipped * scale.value * factor) for factor in (0.9, 1.1))


def found_nll(logits):
    return torch.nn.functional.binary_cross_entropy_with_logits(logits.double(), ROWS.masks.double()).item()


def test_logits_that_are_never_wrong_have_no_scale():
    sure = MemoryRows(torch.zeros(1, 3, 4, 4).half() + 5, torch.ones(1, 4, 4, dtype=torch.bool), np.zeros(1, dtype=int))
    with pytest.raises(NoScale, match="wrong side"):
        fit_sam_scale(sure, logit_clip=CLIP, batch_size=1)


def test_nothing_to_compare_is_refused():
    none = MemoryRows(ROWS.inputs[:0], ROWS.masks[:0], ROWS.images[:0])
    with pytest.raises(ValueError, match="no rows"):
        compared(none)


def test_the_nll_of_sam_is_that_of_its_pixels():
    logits, masks = ROWS.inputs[0, 0].double().clamp(-CLIP, CLIP), ROWS.masks[0]
    expected = torch.where(masks, -logits, logits).exp().log1p().mean().item()
    assert found()[SAM].columns()["nll"].values[0] == pytest.approx(expected, rel=1e-6)
    assert math.isfinite(found()[LAPLACE].pooled()["nll"])
