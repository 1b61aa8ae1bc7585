"""Batches add up to what one feeding gives, in any order; pooled numbers are those of all pixels."""

from dataclasses import replace
from functools import reduce
from operator import add

import numpy as np
import pytest
import torch

from sam_laplace_assets.domain.metrics import binary_nll
from sam_laplace_assets.domain.scoring import Answers, Truth
from sam_laplace_assets.domain.tally import Tally
from sam_laplace_assets_tests.domain.some_answers import pixels_of, some_answers

ANSWERS = some_answers(9)


def rows_of(answers, rows):
    """The answers of some rows alone."""
    truth = answers.truth
    part = Truth(truth.rows[rows], truth.masks[rows], truth.band[rows])
    uncertainties = {name: scores[rows] for name, scores in answers.uncertainties.items()}
    return Answers.from_logits(part, answers.logits[rows], uncertainties=uncertainties)


def assert_same(one, two):
    np.testing.assert_array_equal(one.rows, two.rows)
    for name, column in one.columns().items():
        np.testing.assert_allclose(column.values, two.columns()[name].values, rtol=1e-12)
        np.testing.assert_array_equal(column.present, two.columns()[name].present)
    assert one.pooled() == pytest.approx(two.pooled(), rel=1e-9)


@pytest.mark.parametrize("parts", [[[0, 1, 2, 3], [4, 5, 6, 7, 8]], [[7], [3, 1], [8, 0, 2, 4, 5, 6]]])
def test_batches_in_any_order_add_up_to_one_feeding(parts):
    assert_same(reduce(add, [Tally.of(rows_of(ANSWERS, part)) for part in parts]), Tally.of(ANSWERS))


def test_adding_is_associative_and_leaves_its_parts():
    a, b, c = (Tally.of(rows_of(ANSWERS, part)) for part in ([0, 1], [2, 3, 4], [5, 6, 7, 8]))
    before = a.pooled()
    assert_same((a + b) + c, a + (b + c))
    assert a.pooled() == before


@pytest.mark.parametrize("band", [False, True])
def test_pooled_likelihood_and_brier_weigh_pixels_alike(band):
    pooled, prefix, (p, y) = Tally.of(ANSWERS).pooled(), "band_" if band else "", pixels_of(ANSWERS, band=band)
    where = ANSWERS.truth.band if band else torch.ones_like(ANSWERS.truth.masks)
    nll = binary_nll(ANSWERS.logits.double(), ANSWERS.truth.masks)[where].mean().item()
    assert pooled[prefix + "nll"] == pytest.approx(nll, rel=1e-6)
    assert pooled[prefix + "brier"] == pytest.approx(((p - y) ** 2).mean(), rel=1e-12)
    assert pooled[prefix + "error_rate"] == pytest.approx(((p > 0.5) != y).mean(), rel=1e-12)
    assert pooled[prefix + "pixels"] == len(p)


def test_pooled_holds_each_uncertainty_with_its_bounds():
    pooled = Tally.of(ANSWERS).pooled()
    for name in "entropy", "mi":
        for area in "auroc", "aurc", "excess_aurc":
            assert 0 <= pooled[f"{area}_{name}_bound"] < 0.05
            assert 0 <= pooled[f"{area}_{name}"] <= 1
    assert pooled["auroc_entropy"] > pooled["auroc_mi"] > 0.5  # mi is entropy's order with noise


def test_what_has_no_value_is_not_there():
    truth = Truth.of(np.arange(2), torch.zeros(2, 5, 5, dtype=torch.bool))
    scores = torch.rand(2, 5, 5)
    tally = Tally.of(Answers.from_logits(truth, torch.full((2, 5, 5), -1.0), uncertainties={"mi": scores}))
    pooled = tally.pooled()
    assert pooled["band_pixels"] == 0
    assert not {"band_nll", "band_ece", "auroc_mi"} & set(pooled)
    assert pooled["aurc_mi"] == 0
    assert all(np.isfinite(value) for value in pooled.values())
    assert tally.columns()["band_nll"].left_out == tally.columns()["auroc_mi"].left_out == 2


def test_a_method_without_uncertainties_is_scored_too():
    tally = Tally.of(replace(ANSWERS, uncertainties={}))
    assert tally.pooled()["ece"] == Tally.of(ANSWERS).pooled()["ece"]


def test_a_row_that_was_fed_twice_and_uncertainties_that_differ_are_refused():
    one = Tally.of(rows_of(ANSWERS, [0, 1]))
    twice = one + Tally.of(rows_of(ANSWERS, [1, 2]))
    for read in (Tally.pooled, Tally.columns, lambda tally: tally.rows):
        with pytest.raises(ValueError, match="Rows were scored more than once: 1, first row 1"):
            read(twice)
    with pytest.raises(ValueError, match=r"uncertainties \[\] to some with \['entropy', 'mi'\]"):
        _ = one + Tally.of(replace(rows_of(ANSWERS, [2]), uncertainties={}))


def test_a_tally_does_not_grow_with_its_pixels():
    small, large = some_answers(1), some_answers(30)
    for read in (lambda tally: tally.probabilities.counts, lambda tally: tally.uncertainties["mi"].counts):
        assert read(Tally.of(small)).nbytes == read(Tally.of(large) + Tally.of(small)).nbytes
