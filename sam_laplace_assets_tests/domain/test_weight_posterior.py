"""A normal distribution of weights is the library's posterior, or the covariance that it was made from."""

import pytest
import torch

from sam_laplace_assets.domain.curvature import fit_curvature
from sam_laplace_assets.domain.posterior import PosteriorRefused, build_laplace
from sam_laplace_assets.domain.weight_posterior import WeightPosterior
from sam_laplace_assets_tests.domain.some_rows import some_head, some_rows

ROWS, HEAD = some_rows(8), some_head()
MEAN = torch.arange(3).double()
COVARIANCE = torch.tensor([[2.0, 0.5, 0], [0.5, 1, -0.3], [0, -0.3, 0.2]]).double()


def posterior(approx):
    curvature = fit_curvature(HEAD, ROWS, approx=approx, logit_clip=20.0, batch_size=4)
    return build_laplace(HEAD, curvature, prior_precision=0.1, temperature=20.0)


@pytest.mark.parametrize("approx", ["diagonal", "full"])
def test_draws_are_those_of_the_library(approx):
    laplace = posterior(approx)
    weights = WeightPosterior.of(laplace)
    deviations = weights.deviations(7, torch.Generator().manual_seed(3))
    assert torch.equal(weights.mean + deviations, laplace.sample(7, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("covariance", [COVARIANCE, COVARIANCE.diagonal(), COVARIANCE.float()])
def test_a_covariance_comes_back_from_its_scale(covariance):
    scale = WeightPosterior.from_covariance(MEAN, covariance).scale
    found = scale.square() if scale.ndim == 1 else scale @ scale.T
    torch.testing.assert_close(found, covariance.double(), rtol=1e-12, atol=1e-15)


def test_a_singular_covariance_is_a_covariance():
    ones = torch.ones(3, 3).double()
    scale = WeightPosterior.from_covariance(MEAN, ones).scale
    torch.testing.assert_close(scale @ scale.T, ones)


def test_what_is_no_covariance_is_refused():
    with pytest.raises(PosteriorRefused, match="negative eigenvalue -1"):
        WeightPosterior.from_covariance(MEAN, torch.tensor([1.0, -1, 1]))
    with pytest.raises(PosteriorRefused, match="negative eigenvalue -1"):
        WeightPosterior.from_covariance(MEAN, torch.eye(3) - 2 * torch.diag(torch.tensor([0.0, 1, 0])))
    with pytest.raises(PosteriorRefused, match="not finite and symmetric"):
        WeightPosterior.from_covariance(MEAN, COVARIANCE.triu())
    with pytest.raises(PosteriorRefused, match="not finite and symmetric"):
        WeightPosterior.from_covariance(MEAN, COVARIANCE * float("nan"))
    with pytest.raises(PosteriorRefused, match="mean or scale is not finite"):
        WeightPosterior.from_covariance(MEAN, torch.tensor([1.0, float("nan"), 1]))
    with pytest.raises(PosteriorRefused, match=r"covariance is \(3, 2\)"):
        WeightPosterior.from_covariance(MEAN, COVARIANCE[:, :2])


def test_what_does_not_fit_the_mean_is_refused():
    with pytest.raises(PosteriorRefused, match=r"mean is \(3,\), its scale \(2,\)\. Give \(P,\) and"):
        WeightPosterior(MEAN, torch.ones(2).double())
    with pytest.raises(PosteriorRefused, match="mean or scale is not finite"):
        WeightPosterior(MEAN / 0, torch.ones(3).double())
