"""Variances against explicit Jacobians and against Monte Carlo; the probit against the integral."""

import numpy as np
import pytest
import torch

from sam_laplace_assets.domain.curvature import fit_curvature
from sam_laplace_assets.domain.head import head_inputs
from sam_laplace_assets.domain.last_layer import last_layer_weights
from sam_laplace_assets.domain.posterior import PosteriorRefused, build_laplace
from sam_laplace_assets.domain.predictive import Predictive, predict
from sam_laplace_assets_tests.domain.some_rows import some_head, some_rows

ROWS, HEAD = some_rows(8), some_head()
DOUBLE = some_head().double()
X = head_inputs(ROWS.inputs[:2, :, :5, :7], logit_clip=20.0)
APPROX = ["diagonal", "full"]


def posterior(approx, *, temperature=20.0):
    curvature = fit_curvature(HEAD, ROWS, approx=approx, logit_clip=20.0, batch_size=4)
    return build_laplace(HEAD, curvature, prior_precision=0.1, temperature=temperature)


def logits_with(parameters):
    """(2, 5, 7) logits of X with these last-layer parameters (P,)."""
    weights = {"final_conv.weight": parameters[:-1].reshape(1, -1, 1, 1), "final_conv.bias": parameters[-1:]}
    return torch.func.functional_call(DOUBLE, weights, (X.double(),))[:, 0]


@pytest.mark.parametrize("approx", APPROX)
def test_the_variance_is_jacobian_covariance_jacobian(approx):
    laplace = posterior(approx)
    J = torch.func.jacrev(logits_with)(last_layer_weights(HEAD, target_layer="final_conv"))
    precision = laplace.posterior_precision
    covariance = torch.linalg.inv(torch.diag(precision) if precision.ndim == 1 else precision)
    expected = torch.einsum("bhwp,pq,bhwq->bhw", J, covariance, J)
    predictive = predict(laplace, HEAD, X)
    torch.testing.assert_close(predictive.variance.double(), expected, rtol=1e-5, atol=0)
    assert torch.equal(predictive.mean, HEAD(X)[:, 0])


@pytest.mark.parametrize("approx", APPROX)
def test_mean_and_variance_are_those_of_the_logits_of_posterior_samples(approx):
    laplace = posterior(approx)
    samples = laplace.sample(20_000, generator=torch.Generator().manual_seed(0))
    logits = torch.vmap(logits_with, chunk_size=1000)(samples)
    predictive = predict(laplace, HEAD, X)
    deviation = predictive.variance.double().sqrt()
    assert ((logits.mean(0) - predictive.mean).abs() / deviation).max() < 0.04
    assert (logits.var(0).sqrt() / deviation - 1).abs().max() < 0.03


@pytest.mark.parametrize("approx", APPROX)
def test_the_predictive_is_the_librarys_glm_probit(approx):
    laplace = posterior(approx)
    theirs = laplace(X, link_approx="probit")[:, 1]
    ours = predict(laplace, HEAD, X).probabilities.flatten().double()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_the_probit_is_near_the_integral_over_the_logit():
    nodes, weights = np.polynomial.hermite_e.hermegauss(128)
    for mean in (-4.0, -1.0, 0.0, 0.5, 3.0):
        for variance in (0.01, 1.0, 4.0):
            exact = (weights / (1 + np.exp(-(mean + np.sqrt(variance) * nodes)))).sum() / weights.sum()
            shape = (1, 1, 1)
            found = Predictive(torch.full(shape, mean), torch.full(shape, variance)).probabilities.item()
            assert found == pytest.approx(exact, abs=0.02)


def test_nll_is_that_of_the_probabilities_and_no_variance_is_the_map():
    masks = ROWS.masks[:2, :5, :7]
    predictive = predict(posterior("diagonal"), HEAD, X)
    p = predictive.probabilities.double()
    expected = -torch.where(masks, p, 1 - p).log().flatten(1).mean(1)
    torch.testing.assert_close(predictive.nll(masks), expected, rtol=1e-5, atol=0)
    certain = Predictive(predictive.mean, torch.zeros_like(predictive.mean))
    assert torch.equal(certain.logits, predictive.mean)


def test_uncertainty_draws_probabilities_to_one_half_and_keeps_the_mask():
    predictive = predict(posterior("full"), HEAD, X)
    certain = torch.sigmoid(predictive.mean)
    assert ((predictive.probabilities - 0.5).abs() <= (certain - 0.5).abs()).all()
    assert torch.equal(predictive.logits > 0, predictive.mean > 0)


def test_a_full_posterior_with_a_nearly_singular_curvature_has_no_negative_variance():
    laplace = posterior("full", temperature=1e-9)
    assert (predict(laplace, HEAD, X).variance >= 0).all()


def test_a_posterior_of_another_head_is_refused():
    with pytest.raises(PosteriorRefused, match="another head"):
        predict(posterior("diagonal"), some_head(seed=5), X)
