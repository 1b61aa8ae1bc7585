"""A row of the sweep is what a fit of that configuration alone gives."""

import pytest
import torch

from sam_laplace_assets.domain.curvature import fit_curvature, resolve_temperature
from sam_laplace_assets.domain.posterior import build_laplace
from sam_laplace_assets.domain.prior import tune_prior_precision
from sam_laplace_assets.domain.sweep import Configuration, asked_for, default_sweep, diagonal_of, sweep
from sam_laplace_assets_tests.domain.fitted_head import fitted_head
from sam_laplace_assets_tests.domain.some_rows import some_rows

ROWS, VALIDATION = some_rows(8), some_rows(5, seed=9)
HEAD = fitted_head(ROWS)
GRID = [0.0001, 0.001, 0.01, 0.1, 1.0, 10.0]
PASSES = {"logit_clip": 20.0, "batch_size": 3}
OWN = asked_for("diagonal", 1.0, "grid", GRID)


def swept(configurations, settings=OWN):
    return sweep(HEAD, ROWS, VALIDATION, configurations, settings=settings, **PASSES)


def alone(approx, temperature, prior, grid):
    curvature = fit_curvature(HEAD, ROWS, approx=approx, **PASSES)
    value = resolve_temperature(curvature, temperature)
    tuned = tune_prior_precision(HEAD, curvature, VALIDATION, prior=prior, prior_precision_grid=grid, temperature=value,
                                 **PASSES)  # fmt: skip
    laplace = build_laplace(HEAD, curvature, prior_precision=tuned.search.chosen, temperature=value)
    return value, tuned, float(laplace.log_marginal_likelihood())


def test_by_default_56_configurations_are_compared():
    configurations = default_sweep(GRID)
    assert len(set(configurations)) == len(configurations) == 2 * 4 * 7


def test_each_row_is_what_a_fit_of_it_alone_gives():
    rows = swept(default_sweep(GRID))
    assert len(rows) == 56
    assert sum(row.logit_scale is not None for row in rows) > 40
    for row in rows:
        setting = row.likelihood_temperature
        value, tuned, evidence = alone(row.approx, setting if setting == "image_cluster" else float(setting), row.prior,
                                       [row.prior_precision])  # fmt: skip
        expected = value, tuned.search.chosen, tuned.search.chosen_nll, tuned.search.map_nll
        found = row.temperature, row.prior_precision, row.val_nll, row.map_nll
        assert found == pytest.approx(expected, rel=1e-6)
        assert row.log_marginal_likelihood == pytest.approx(evidence, rel=1e-6)
        assert (row.logit_scale is None) == (tuned.scale is None)
        if tuned.scale is not None:
            scale = tuned.scale.value, tuned.scale.nll_after
            assert (row.logit_scale, row.scaled_val_nll) == pytest.approx(scale, rel=1e-6)
        assert row.beats_head == (row.val_nll < row.map_nll)


def test_rows_come_with_the_lowest_nll_first_and_one_is_what_the_settings_give():
    rows = swept(default_sweep(GRID))
    assert [row.val_nll for row in rows] == sorted(row.val_nll for row in rows)
    (own,) = [row for row in rows if row.of_settings]
    _, tuned, _ = alone("diagonal", 1.0, "grid", GRID)
    assert (own.approx, own.temperature, own.prior_precision) == ("diagonal", 1.0, tuned.search.chosen)


@pytest.mark.parametrize("prior", ["grid", "marginal_likelihood"])
def test_what_the_settings_give_is_compared_though_nobody_named_it(prior):
    rows = swept([Configuration("full", 7.0, 3.0)], asked_for("diagonal", 5.0, prior, GRID))
    assert len(rows) == 2
    (own,) = [row for row in rows if row.of_settings]
    assert (own.approx, own.likelihood_temperature, own.prior) == ("diagonal", "5", prior)
    assert own.prior_precision == pytest.approx(alone("diagonal", 5.0, prior, GRID)[1].search.chosen)


def test_a_configuration_that_is_named_twice_is_compared_once():
    assert len(swept([*OWN, *OWN, Configuration("diagonal", 1, 0.1)])) == len(OWN)


def test_the_diagonal_of_the_full_curvature_is_the_diagonal_fit():
    full, diagonal = (fit_curvature(HEAD, ROWS, approx=approx, **PASSES) for approx in ("full", "diagonal"))
    taken = diagonal_of(full)
    torch.testing.assert_close(taken.hessian, diagonal.hessian, rtol=1e-12, atol=0)
    for name in ("score_covariance", "weights"):
        assert torch.equal(getattr(taken, name), getattr(diagonal, name))
    assert (taken.nll, taken.n_pixels, taken.approx) == (diagonal.nll, diagonal.n_pixels, "diagonal")


def test_a_broken_row_of_either_pack_is_refused_by_number():
    for training, validation in ((1, 0), (0, 1)):
        packs = [some_rows(8), some_rows(5, seed=9)]
        for pack, breaks in zip(packs, (training, validation), strict=True):
            if breaks:
                pack.inputs[3, 0, 0, 0] = torch.nan
        with pytest.raises(ValueError, match="Row 3 "):
            sweep(HEAD, *packs, OWN, settings=OWN, **PASSES)
