"""AUROC and AURC against sorting and against every pair; bounds that hold, and orders that nothing changes."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_laplace_assets.domain.ranking import UncertaintyHistogram, _harmonic, best_aurc, rank_rows
from sam_laplace_assets_tests.domain.some_answers import some_answers

SETTINGS = settings(max_examples=60, deadline=None)
CASES = st.tuples(st.integers(0, 10_000), st.integers(1, 40), st.integers(2, 60))


def drawn(seed, levels, n):
    """Scores (n,) with ties, of both signs and a wide range, and whether each pixel is wrong."""
    rng = np.random.default_rng(seed)
    scores = np.float32(np.exp(rng.normal(-4, 3, size=levels)) * rng.choice([-1, 1], size=levels))
    scores = np.round(scores, 3)  # far apart in relative terms, or equal: also 0 and -0
    return rng.choice(scores, size=n), rng.random(n) < rng.uniform(0.1, 0.9)


def histogram_of(scores, wrong):
    return UncertaintyHistogram.of(torch.from_numpy(np.asarray(scores)), torch.from_numpy(np.asarray(wrong)))


def auroc_of_pairs(scores, wrong):
    above = scores[wrong][:, None] - scores[~wrong][None, :]
    return np.mean((above > 0) + 0.5 * (above == 0))


def aurc_of_order(wrong):
    return np.mean(np.cumsum(wrong) / np.arange(1, len(wrong) + 1))


def aurc_by_sorting(scores, wrong):
    """Errors are spread over equal scores, as they are in the mean over orders."""
    _, group, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rates = np.bincount(group, weights=wrong) / counts
    return aurc_of_order(np.repeat(rates, counts))


def of_row(scores, wrong):
    columns = rank_rows({"u": torch.from_numpy(scores)[None, None]}, torch.from_numpy(wrong)[None, None])
    return {name: (column.values[0], column.present[0]) for name, column in columns.items()}


def test_spreading_errors_over_ties_is_the_mean_over_their_orders():
    wrong = np.array([True, True, False, False, False])
    orders = [aurc_of_order(np.array(order)) for order in itertools.permutations(wrong)]
    assert aurc_by_sorting(np.zeros(5), wrong) == pytest.approx(np.mean(orders))


@SETTINGS
@given(CASES)
def test_a_rows_auroc_and_aurc_are_those_of_pairs_and_of_sorting(case):
    scores, wrong = drawn(*case)
    found = of_row(scores, wrong)
    assert found["aurc_u"] == (pytest.approx(aurc_by_sorting(scores, wrong), rel=1e-9), True)
    if wrong.any() and not wrong.all():
        assert found["auroc_u"] == (pytest.approx(auroc_of_pairs(scores, wrong), rel=1e-9), True)
    else:
        assert found["auroc_u"] == (0.0, False)


@SETTINGS
@given(CASES)
def test_pooled_auroc_and_aurc_are_within_their_bounds_and_exact_but_for_shared_bins(case):
    scores, wrong = drawn(*case)
    histogram = histogram_of(scores, wrong)
    aurc, auroc = histogram.aurc(), histogram.auroc()
    assert abs(aurc.value - aurc_by_sorting(scores, wrong)) <= aurc.bound
    if auroc is not None:
        assert abs(auroc.value - auroc_of_pairs(scores, wrong)) <= auroc.bound
    if len(np.unique(scores)) == histogram.counts.any(0).sum():
        assert aurc.bound < 1e-8
        assert auroc is None or auroc.bound < 1e-8
        assert aurc.value == pytest.approx(aurc_by_sorting(scores, wrong), rel=1e-9)
        assert auroc is None or auroc.value == pytest.approx(auroc_of_pairs(scores, wrong), rel=1e-9)


@SETTINGS
@given(st.integers(0, 10_000), st.floats(1e-4, 0.05))
def test_the_bounds_hold_when_scores_crowd_into_a_few_bins(seed, spread):
    rng = np.random.default_rng(seed)
    scores = np.float32(0.69 + spread * rng.random(300))
    wrong = rng.random(300) < np.clip((scores - 0.69) / spread, 0.05, 0.95)
    histogram = histogram_of(scores, wrong)
    assert abs(histogram.aurc().value - aurc_by_sorting(scores, wrong)) <= histogram.aurc().bound
    assert abs(histogram.auroc().value - auroc_of_pairs(scores, wrong)) <= histogram.auroc().bound


@pytest.mark.parametrize("wrong", [np.arange(200) >= 150, np.arange(200) < 50])
def test_the_bounds_are_reached_when_one_bin_holds_all_pixels_in_the_best_or_the_worst_order(wrong):
    scores = np.float32(0.6 + np.linspace(0, 1e-4, 200))
    histogram = histogram_of(scores, wrong)
    assert histogram.counts.any(0).sum() == 1
    assert histogram.auroc().bound == pytest.approx(abs(auroc_of_pairs(scores, wrong) - 0.5), rel=1e-6)
    assert histogram.aurc().bound == pytest.approx(aurc_of_order(np.arange(200) < 50) - 0.25, rel=1e-6)
    assert abs(histogram.aurc().value - aurc_by_sorting(scores, wrong)) <= histogram.aurc().bound


def test_the_bound_is_small_for_scores_as_they_are():
    answers = some_answers(12)
    for scores in (scores.round(decimals=5) for scores in answers.uncertainties.values()):
        histogram = UncertaintyHistogram.of(scores, answers.wrong)
        flat, wrong = scores.flatten().numpy(), answers.wrong.flatten().numpy()
        assert abs(histogram.aurc().value - aurc_by_sorting(flat, wrong)) <= histogram.aurc().bound < 0.002
        assert abs(histogram.auroc().value - auroc_of_pairs(flat, wrong)) <= histogram.auroc().bound < 0.002


def test_scores_that_only_rounding_tells_apart_are_equal():
    scores = np.float32(np.repeat([0.1, 0.6], 50))
    noisy = np.nextafter(scores, np.where(np.arange(100) % 3 == 0, np.float32(1), scores))
    wrong = np.arange(100) % 7 == 0
    assert histogram_of(noisy, wrong).auroc() == histogram_of(scores, wrong).auroc()
    assert histogram_of(noisy, wrong).auroc().bound < 1e-8
    assert histogram_of(noisy, wrong).aurc().bound < 1e-8


def test_an_order_turned_round_gives_one_minus_the_auroc():
    scores, wrong = drawn(3, 30, 500)
    one, two = (histogram_of(sign * scores, wrong).auroc().value for sign in (1, -1))
    assert one == pytest.approx(1 - two, abs=1e-12)
    assert of_row(scores, wrong)["auroc_u"][0] == pytest.approx(1 - of_row(-scores, wrong)["auroc_u"][0], abs=1e-12)


@pytest.mark.parametrize("transform", [lambda s: 7 * s, np.cbrt, lambda s: np.exp(s) - 3])
def test_a_monotone_transform_changes_nothing(transform):
    scores = np.arange(-10, 11, dtype=np.float64)[np.random.default_rng(0).integers(21, size=400)]
    wrong = np.random.default_rng(1).random(400) < 0.3
    before, after = of_row(scores, wrong), of_row(transform(scores / 10), wrong)
    assert before == after
    pooled = histogram_of(scores, wrong), histogram_of(transform(scores / 10), wrong)
    assert pooled[0].auroc().value == pytest.approx(pooled[1].auroc().value, rel=1e-12)
    assert pooled[0].aurc().value == pytest.approx(pooled[1].aurc().value, rel=1e-9)


def test_a_constant_score_is_chance_and_its_risk_the_error_rate():
    wrong = np.arange(1000) < 130
    histogram = histogram_of(np.full(1000, 0.3), wrong)
    assert histogram.auroc().value == 0.5
    assert histogram.aurc().value == pytest.approx(0.13)
    np.testing.assert_allclose(histogram.curve().risk, 0.13)


def test_a_perfect_score_has_no_excess():
    wrong = np.arange(1000) < 130
    histogram = histogram_of(np.where(wrong, 0.6, 0.1), wrong)
    assert histogram.auroc().value == 1.0
    assert histogram.excess_aurc().value < 1e-3
    in_order = histogram_of(np.where(wrong, 1.0 + np.arange(1000), 0.0), wrong)
    assert in_order.excess_aurc().value == pytest.approx(0, abs=1e-9)


def test_the_best_aurc_is_that_of_the_best_order_and_tends_to_the_closed_form():
    assert best_aurc(870, 130) == pytest.approx(aurc_of_order(np.arange(1000) >= 870), rel=1e-12)
    assert best_aurc(5, 0) == 0.0
    assert best_aurc(0, 5) == pytest.approx(1.0)
    r = 0.02
    assert best_aurc(9_800_000_000, 200_000_000) == pytest.approx(r + (1 - r) * np.log(1 - r), rel=1e-6)


def test_the_curve_ends_at_the_error_rate_and_its_mean_is_the_area():
    answers = some_answers(40)
    histogram = UncertaintyHistogram.of(answers.uncertainties["entropy"], answers.wrong)
    curve = histogram.curve(points=2000)
    assert (curve.coverage[0], curve.coverage[-1]) == (1 / 2000, 1.0)
    assert curve.risk[-1] == pytest.approx(answers.wrong.double().mean().item(), rel=1e-12)
    assert curve.risk.mean() == pytest.approx(histogram.aurc().value, rel=0.01)


def test_a_row_without_wrong_pixels_or_without_right_ones_has_no_auroc():
    wrong = torch.zeros(3, 4, 5, dtype=torch.bool)
    wrong[1], wrong[2, 0, 0] = True, True
    columns = rank_rows({"mi": torch.rand(3, 4, 5)}, wrong)
    assert columns["auroc_mi"].present.tolist() == [False, False, True]
    assert columns["auroc_mi"].left_out == 2
    assert columns["aurc_mi"].values[:2].tolist() == [0.0, 1.0]
    assert histogram_of(np.ones(4), np.zeros(4, dtype=bool)).auroc() is None


def test_rows_are_ranked_each_on_its_own():
    answers = some_answers(6)
    together = rank_rows(answers.uncertainties, answers.wrong)
    for row in range(6):
        alone = rank_rows({n: s[row : row + 1] for n, s in answers.uncertainties.items()}, answers.wrong[row : row + 1])
        assert {n: c.values[row] for n, c in together.items()} == {n: c.values[0] for n, c in alone.items()}


def test_minus_zero_the_smallest_numbers_and_large_ones_keep_their_order():
    scores = np.float32([-3e38, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1e-6, 3e38])
    wrong = np.array([False, True, True, False, True, False, True, False])
    assert histogram_of(scores[[3, 4]], wrong[[3, 4]]).counts.any(0).sum() == 1
    assert of_row(np.delete(scores, [2, 5]), np.delete(wrong, [2, 5]))["auroc_u"][0] == auroc_of_pairs(
        np.delete(scores, [2, 5]), np.delete(wrong, [2, 5])
    )


def test_harmonic_numbers_are_sums_at_both_ends_of_the_table():
    sums = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, 300_000, dtype=np.longdouble))]).astype(np.float64)
    np.testing.assert_allclose(_harmonic(np.arange(300_000.0)), sums, rtol=1e-14)
    np.testing.assert_allclose(_harmonic(np.arange(100.0)), sums[:100], rtol=1e-14)
