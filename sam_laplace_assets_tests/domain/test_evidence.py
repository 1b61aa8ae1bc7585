"""The closed form against laplace-torch's own marginal likelihood, its optimiser, and a fine grid."""

import itertools
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from sam_laplace_assets.domain.curvature import fit_curvature
from sam_laplace_assets.domain.evidence import BOUNDS, Evidence
from sam_laplace_assets.domain.posterior import build_laplace
from sam_laplace_assets_tests.domain.some_rows import some_head, some_rows

HEAD, ROWS = some_head(), some_rows(8)
CURVATURES = {
    approx: fit_curvature(HEAD, ROWS, approx=approx, logit_clip=20.0, batch_size=4) for approx in ("diagonal", "full")
}
FINE = np.geomspace(1e-4, 1e4, 4001)
both = pytest.mark.parametrize("approx", CURVATURES)
temperatures = pytest.mark.parametrize("temperature", [1.0, 300.0])


@both
@temperatures
def test_it_is_the_librarys_at_every_precision(approx, temperature):
    laplace = build_laplace(HEAD, CURVATURES[approx], prior_precision=1.0, temperature=temperature)
    evidence = Evidence.of(CURVATURES[approx], temperature=temperature)
    for precision in (1e-4, 0.03, 1.0, 50.0, 1e4):
        theirs = laplace.log_marginal_likelihood(prior_precision=torch.tensor([precision]).double())
        assert evidence.at(precision) == pytest.approx(float(theirs), rel=1e-7)  # theirs has 1 / T in float32


@both
@temperatures
def test_the_most_likely_precision_is_the_best_of_a_fine_grid_of_the_librarys(approx, temperature):
    laplace = build_laplace(HEAD, CURVATURES[approx], prior_precision=1.0, temperature=temperature)
    theirs = [float(laplace.log_marginal_likelihood(prior_precision=torch.tensor([one]).double())) for one in FINE]
    found = Evidence.of(CURVATURES[approx], temperature=temperature).most_likely()
    step = math.log(FINE[1] / FINE[0])
    assert abs(math.log(found / FINE[int(np.argmax(theirs))])) <= step


@both
def test_the_librarys_optimiser_ends_at_the_most_likely_precision(approx):
    laplace = build_laplace(HEAD, CURVATURES[approx], prior_precision=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        laplace.optimize_prior_precision(method="marglik", n_steps=400, prior_structure="scalar")
    assert laplace.prior_precision.item() == pytest.approx(
        Evidence.of(CURVATURES[approx], temperature=1.0).most_likely(), rel=1e-3
    )


@both
@temperatures
def test_the_slope_is_the_derivative_by_the_log_and_never_grows(approx, temperature):
    evidence = Evidence.of(CURVATURES[approx], temperature=temperature)
    slopes = [evidence.slope(precision) for precision in FINE]
    assert all(later <= earlier for earlier, later in itertools.pairwise(slopes))
    for precision in (0.01, 1.0, 100.0):
        up, down = evidence.at(precision * math.exp(1e-4)), evidence.at(precision * math.exp(-1e-4))
        assert evidence.slope(precision) == pytest.approx((up - down) / 2e-4, rel=1e-5, abs=1e-6)
    assert evidence.slope(evidence.most_likely()) == pytest.approx(0, abs=1e-12)


def test_with_endless_data_it_is_parameters_over_their_squared_norm():
    evidence = Evidence(torch.full((5,), 1e20).double(), squared_norm=2.0, log_likelihood=0.0)
    assert evidence.most_likely() == pytest.approx(5 / 2)


def test_weights_of_zero_and_a_curvature_of_zero_run_to_the_bounds():
    evidence = Evidence(torch.ones(5).double(), squared_norm=0.0, log_likelihood=0.0)
    assert evidence.most_likely() == BOUNDS[1]
    assert replace(evidence, eigenvalues=torch.zeros(5).double(), squared_norm=1.0).most_likely() == BOUNDS[0]


def test_the_curve_is_highest_in_its_middle():
    evidence = Evidence.of(CURVATURES["full"], temperature=1.0)
    precisions, heights = zip(*evidence.curve(evidence.most_likely()), strict=True)
    assert heights.index(max(heights)) == len(heights) // 2
    assert precisions[len(precisions) // 2] == pytest.approx(evidence.most_likely())
