"""All prior precisions in one pass are each of them alone, and what the data do not decide goes to the tightest."""

import pytest
import torch

from sam_laplace_assets.domain.curvature import fit_curvature
from sam_laplace_assets.domain.evidence import BOUNDS, Evidence
from sam_laplace_assets.domain.head import head_inputs
from sam_laplace_assets.domain.metrics import binary_nll
from sam_laplace_assets.domain.posterior import PosteriorRefused, build_laplace
from sam_laplace_assets.domain.predictive import predict
from sam_laplace_assets.domain.prior import TIE, choose_prior_precision, tune_prior_precision
from sam_laplace_assets_tests.domain.fitted_head import fitted_head
from sam_laplace_assets_tests.domain.some_rows import some_head, some_rows

HEAD, VALIDATION = some_head(), some_rows(5, seed=9)
FEW = some_rows(2, height=4, width=4)
GRID = [0.0001, 0.001, 0.01, 0.1, 1.0, 10.0]
SETTINGS = {"logit_clip": 20.0, "batch_size": 2}


def tuned(head, curvature, rows, **options):
    return tune_prior_precision(head, curvature, rows, **options, **SETTINGS).search


def search(approx="diagonal", *, grid=GRID, temperature=1.0, rows=FEW):
    curvature = fit_curvature(HEAD, rows, approx=approx, **SETTINGS)
    return curvature, tuned(HEAD, curvature, VALIDATION, prior_precision_grid=grid, temperature=temperature)


@pytest.mark.parametrize("approx", ["diagonal", "full"])
@pytest.mark.parametrize("temperature", [1.0, 30.0])
def test_each_grid_point_is_the_nll_of_its_own_posterior(approx, temperature):
    curvature, found = search(approx, temperature=temperature)
    x = head_inputs(VALIDATION.inputs, logit_clip=20.0)
    assert found.grid == tuple(GRID)
    for precision, nll in zip(found.grid, found.val_nll, strict=True):
        laplace = build_laplace(HEAD, curvature, prior_precision=precision, temperature=temperature)
        alone = predict(laplace, HEAD, x).nll(VALIDATION.masks).mean().item()
        assert nll == pytest.approx(alone, rel=2e-6)
    assert found.map_nll == pytest.approx(binary_nll(HEAD(x)[:, 0], VALIDATION.masks).mean().item(), rel=1e-6)


@pytest.mark.parametrize("approx", ["diagonal", "full"])
def test_all_in_one_pass_is_one_by_one(approx):
    _, together = search(approx)
    alone = [search(approx, grid=[precision])[1].val_nll[0] for precision in GRID]
    assert together.val_nll == pytest.approx(alone, rel=1e-13)


def test_the_order_and_repetition_of_the_grid_do_not_matter():
    assert search(grid=[10.0, 0.1, 0.1, 1.0])[1] == search(grid=[0.1, 1.0, 10.0])[1]


def test_ties_go_to_the_largest_precision():
    found = choose_prior_precision([0.1, 1.0, 10.0, 100.0], [0.5, 0.3, 0.3 + TIE / 2, 0.4], map_nll=0.3)
    assert (found.chosen, found.flat, found.at_edge) == (10.0, False, False)


def test_a_difference_beyond_the_tolerance_decides():
    found = choose_prior_precision([0.1, 1.0, 10.0], [0.5, 0.3, 0.3 + 2 * TIE], map_nll=0.3)
    assert found.chosen == 1.0


def test_a_flat_grid_is_called_flat_and_goes_to_the_largest():
    found = choose_prior_precision([0.1, 1.0, 10.0], [0.3, 0.3 - TIE / 2, 0.3 + TIE / 3], map_nll=0.3)
    assert (found.chosen, found.flat, found.at_edge) == (10.0, True, False)


@pytest.mark.parametrize(("nll", "chosen"), [([0.1, 0.2, 0.3], 0.1), ([0.3, 0.2, 0.1], 10.0)])
def test_a_choice_at_the_end_of_the_grid_is_called_an_edge(nll, chosen):
    found = choose_prior_precision([0.1, 1.0, 10.0], nll, map_nll=0.3)
    assert (found.chosen, found.flat, found.at_edge) == (chosen, False, True)


def test_a_grid_of_one_is_neither_flat_nor_at_an_edge():
    found = choose_prior_precision([1.0], [0.3], map_nll=0.3)
    assert (found.chosen, found.flat, found.at_edge) == (1.0, False, False)


def test_so_much_data_that_the_prior_is_nothing_is_a_flat_grid():
    curvature = fit_curvature(HEAD, some_rows(40, height=64, width=64), **SETTINGS)
    object.__setattr__(curvature, "hessian", 1e6 * curvature.hessian)
    found = tuned(HEAD, curvature, VALIDATION, prior_precision_grid=GRID)
    assert found.flat
    assert found.chosen == 10.0


def test_a_confident_head_that_is_wrong_wants_a_wide_posterior():
    """Opposite masks: the more uncertain, the better."""
    head = some_head()
    head.final_conv.weight.mul_(20)
    curvature = fit_curvature(head, FEW, **SETTINGS)
    wrong = type(VALIDATION)(
        VALIDATION.inputs, head(head_inputs(VALIDATION.inputs, logit_clip=20.0))[:, 0] < 0, VALIDATION.images
    )
    found = tuned(head, curvature, wrong, prior_precision_grid=GRID, temperature=1e4)
    assert found.chosen == GRID[0]
    assert found.at_edge
    assert found.val_nll[0] < found.map_nll


@pytest.mark.parametrize("approx", ["diagonal", "full"])
@pytest.mark.parametrize("temperature", [1.0, 30.0])
def test_by_marginal_likelihood_the_precision_is_the_most_likely_one_and_has_its_validation_nll(approx, temperature):
    curvature = fit_curvature(HEAD, FEW, approx=approx, **SETTINGS)
    found = tuned(HEAD, curvature, VALIDATION, prior="marginal_likelihood", prior_precision_grid=GRID,
                  temperature=temperature)  # fmt: skip
    assert found.chosen == Evidence.of(curvature, temperature=temperature).most_likely()
    assert (found.method, found.grid, found.flat, found.at_edge) == (
        "marginal_likelihood", (found.chosen,), False, False
    )  # fmt: skip
    in_grid = tuned(HEAD, curvature, VALIDATION, prior_precision_grid=[found.chosen], temperature=temperature)
    assert found.chosen_nll == in_grid.chosen_nll
    assert in_grid.method == "grid"
    assert max(found.curve, key=lambda point: point[1])[0] == pytest.approx(found.chosen)


def test_a_marginal_likelihood_that_grows_to_the_bound_is_called_an_edge():
    head = some_head()
    head.final_conv.weight.zero_()
    head.final_conv.bias.zero_()
    curvature = fit_curvature(head, FEW, **SETTINGS)
    found = tuned(head, curvature, VALIDATION, prior="marginal_likelihood", prior_precision_grid=GRID)
    assert (found.chosen, found.at_edge) == (BOUNDS[1], True)


@pytest.mark.parametrize("factor", [0.5, 4.0])
def test_a_head_whose_last_layer_was_multiplied_is_scaled_by_the_inverse(factor):
    """A narrow posterior: logits times c, so the best factor is 1 / c of what it was."""
    head = fitted_head(some_rows(8))
    found = []
    for times in (1.0, factor):
        head.final_conv.weight.mul_(times)
        head.final_conv.bias.mul_(times)
        curvature = fit_curvature(head, FEW, **SETTINGS)
        found.append(tune_prior_precision(head, curvature, VALIDATION, prior_precision_grid=[1e9], **SETTINGS).scale)
    assert found[1].value * factor == pytest.approx(found[0].value, rel=1e-3)
    assert found[1].nll_after == pytest.approx(found[0].nll_after, abs=1e-5)


@pytest.mark.parametrize("grid", [[], [0.0, 1.0], [-1.0], [float("nan")], [1.0, float("inf")]])
def test_grids_that_are_no_precisions_are_refused(grid):
    with pytest.raises(ValueError, match="Give one positive number or more"):
        search(grid=grid)


def test_another_heads_curvature_and_an_empty_pack_are_refused():
    curvature = fit_curvature(some_head(seed=4), FEW, **SETTINGS)
    with pytest.raises(PosteriorRefused, match="another head"):
        tune_prior_precision(HEAD, curvature, VALIDATION, prior_precision_grid=GRID, **SETTINGS)
    empty = type(FEW)(FEW.inputs[:0], FEW.masks[:0], FEW.images[:0])
    with pytest.raises(ValueError, match="the validation pack has no rows"):
        tune_prior_precision(HEAD, curvature, empty, prior_precision_grid=GRID, **SETTINGS)


def test_a_broken_validation_row_is_refused_by_number():
    broken = some_rows(5, seed=9)
    broken.inputs[3, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="Row 3 "):
        tune_prior_precision(HEAD, fit_curvature(HEAD, FEW, **SETTINGS), broken, prior_precision_grid=GRID, **SETTINGS)
