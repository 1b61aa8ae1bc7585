"""Scores of one pass are those of each model on its own."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from sam_laplace_assets.domain.curvature import fit_curvature
from sam_laplace_assets.domain.evaluation import score, score_head
from sam_laplace_assets.domain.head import head_inputs
from sam_laplace_assets.domain.metrics import binary_nll, iou, row_means
from sam_laplace_assets.domain.posterior import PosteriorRefused, build_laplace
from sam_laplace_assets.domain.predictive import Predictive, predict
from sam_laplace_assets_tests.domain.some_rows import some_head, some_rows

ROWS, HEAD = some_rows(7, n_images=3), some_head()
SETTINGS = {"logit_clip": 20.0, "batch_size": 3}


@pytest.fixture(scope="module", params=["diagonal", "full"])
def laplace(request):
    curvature = fit_curvature(HEAD, ROWS, approx=request.param, **SETTINGS)
    return build_laplace(HEAD, curvature, prior_precision=0.01, temperature=100.0)


def test_each_score_is_that_of_its_model(laplace):
    scores, x = score(HEAD, laplace, ROWS, **SETTINGS), head_inputs(ROWS.inputs, logit_clip=20.0)
    predictive = predict(laplace, HEAD, x)
    for name, logits in {"sam": x[:, 0], "head": HEAD(x)[:, 0], "posterior": predictive.logits}.items():
        np.testing.assert_allclose(getattr(scores, f"{name}_iou"), iou(logits, ROWS.masks).numpy(), rtol=1e-9)
        nll = row_means(binary_nll(logits, ROWS.masks)).numpy()
        np.testing.assert_allclose(getattr(scores, f"{name}_nll"), nll, rtol=1e-5)
    np.testing.assert_allclose(scores.posterior_nll, predictive.nll(ROWS.masks).numpy(), rtol=1e-5)
    np.testing.assert_array_equal(scores.posterior_iou, scores.head_iou)


def test_a_logit_scale_changes_the_posteriors_nll_alone(laplace):
    plain, scaled = score(HEAD, laplace, ROWS, **SETTINGS), score(HEAD, laplace, ROWS, logit_scale=0.4, **SETTINGS)
    predictive = predict(laplace, HEAD, head_inputs(ROWS.inputs, logit_clip=20.0))
    expected = Predictive(0.4 * predictive.mean, 0.16 * predictive.variance).nll(ROWS.masks).numpy()
    np.testing.assert_allclose(scaled.posterior_nll, expected, rtol=1e-5)
    for name in ("sam_iou", "sam_nll", "head_iou", "head_nll", "posterior_iou"):
        np.testing.assert_array_equal(getattr(scaled, name), getattr(plain, name))


def test_means_weigh_images_alike_however_many_rows_they_have(laplace):
    scores = score(HEAD, laplace, ROWS, **SETTINGS)
    by_hand = np.mean([scores.sam_nll[ROWS.images == image].mean() for image in range(3)])
    means = scores.means()
    assert means["sam_nll"] == pytest.approx(by_hand)
    assert set(means) == {field.name for field in fields(scores)} - {"images"}


def test_sam_and_head_score_the_same_without_a_posterior(laplace):
    means = score(HEAD, laplace, ROWS, **SETTINGS).means()
    alone = score_head(HEAD, ROWS, target_layer="final_conv", **SETTINGS)
    assert alone == {name: means[name] for name in ("sam_iou", "sam_nll", "head_iou", "head_nll")}


def test_the_clip_bounds_sams_nll_and_leaves_its_iou(laplace):
    loud = replace(ROWS, inputs=ROWS.inputs.clone())
    loud.inputs[:, 0] *= 1000
    quiet = score(HEAD, laplace, loud, logit_clip=2.0, batch_size=3)
    np.testing.assert_array_equal(quiet.sam_iou, score(HEAD, laplace, ROWS, **SETTINGS).sam_iou)
    assert quiet.sam_nll.max() <= np.log1p(np.exp(2.0)) + 1e-6


def test_another_heads_posterior_and_an_empty_pack_are_refused(laplace):
    with pytest.raises(PosteriorRefused, match="another head"):
        score(some_head(seed=3), laplace, ROWS, **SETTINGS)
    empty = replace(ROWS, inputs=ROWS.inputs[:0], masks=ROWS.masks[:0], images=ROWS.images[:0])
    with pytest.raises(ValueError, match="the pack has no rows"):
        score(HEAD, laplace, empty, **SETTINGS)
    with pytest.raises(ValueError, match="the pack has no rows"):
        score_head(HEAD, empty, target_layer="final_conv", **SETTINGS)


def test_a_broken_row_is_refused_by_number(laplace):
    broken = replace(ROWS, inputs=ROWS.inputs.clone())
    broken.inputs[4, 0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"Row 4 \(image 1\)"):
        score(HEAD, laplace, broken, **SETTINGS)
