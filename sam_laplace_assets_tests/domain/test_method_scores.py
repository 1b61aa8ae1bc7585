"""What is added to a tally: against numbers by hand, all pairs of pixels, and the tally's own pooled figures."""

import numpy as np
import pytest
import torch

from sam_laplace_assets.domain.method_scores import MethodScores, calibration_gaps, one_row_each
from sam_laplace_assets.domain.scoring import Answers, Truth
from sam_laplace_assets.domain.tally import Tally
from sam_laplace_assets_tests.domain.some_answers import some_answers

ANSWERS = some_answers(6)
SCORES = MethodScores.of(ANSWERS)


def four_pixels():
    """One row: probabilities .9, .3, .6, .2 against 1, 0, 0, 1; the last two are wrong."""
    truth = Truth.of(np.arange(1), torch.tensor([[[True, False, False, True]]]))
    logits = torch.logit(torch.tensor([[[0.9, 0.3, 0.6, 0.2]]], dtype=torch.float64))
    return Answers.from_logits(truth, logits, uncertainties={"mi": torch.tensor([[[1.0, 2.0, 4.0, 3.0]]])})


def test_four_pixels_by_hand():
    columns = MethodScores.of(four_pixels()).columns()
    expected = {"intersection": 1, "mask_pixels": 4, "ece": (0.1 + 0.3 + 0.6 + 0.8) / 4, "band_auroc_mi": 1.0}
    for name, value in expected.items():
        assert columns[name].values == pytest.approx([value]), name
    assert columns["band_aurc_mi"].values == pytest.approx([(0 + 0 + 1 / 3 + 2 / 4) / 4])


def test_gaps_lie_in_the_bin_of_their_probability():
    (gaps,) = calibration_gaps(four_pixels())
    expected = np.zeros(15)
    expected[[13, 4, 8, 2]] = -0.1, 0.3, 0.6, -0.8  # .9 x 15 = 13.5, .3 x 15 = 4.5, .6 x 15 = 9: (8/15, 9/15], 3
    np.testing.assert_allclose(gaps[0], expected, atol=1e-12)


@pytest.mark.parametrize("band", [False, True])
def test_gaps_of_rows_add_up_to_the_pooled_ece(band):
    prefix = "band_" if band else ""
    pixels = SCORES.columns()[prefix + "pixels"].values.sum()
    ece = np.abs(SCORES.ordered_gaps(band=band).sum(0)).sum() / pixels
    assert ece == pytest.approx(SCORES.pooled()[prefix + "ece"], rel=1e-9)


@pytest.mark.parametrize("row", range(6))
def test_calibration_of_a_row_is_what_it_is_pooled_alone(row):
    alone = Tally.of(list(one_row_each(ANSWERS))[row]).pooled()
    columns = SCORES.columns()
    for name in ("ece", "adaptive_ece", "band_ece", "band_adaptive_ece"):
        assert columns[name].present[row] == (name in alone)
        assert columns[name].values[row] == pytest.approx(alone.get(name, 0), rel=1e-9), name


def test_overlap_counts_give_the_iou_of_each_row():
    columns = SCORES.columns()
    both, total = columns["intersection"].values, columns["mask_pixels"].values
    union = total - both
    iou = np.where(union > 0, both / np.maximum(union, 1), 1)
    np.testing.assert_allclose(iou, columns["iou"].values)


def test_uncertainty_in_the_band_is_ranked_by_all_its_pairs():
    band, wrong = ANSWERS.truth.band, ANSWERS.wrong
    scores = ANSWERS.uncertainties["mi"].float()
    lost, kept = scores[band & wrong], scores[band & ~wrong]
    pairs = (lost[:, None] > kept[None]).double() + (lost[:, None] == kept[None]).double() / 2
    pooled = SCORES.pooled()
    assert pooled["band_auroc_mi"] == pytest.approx(pairs.mean().item(), abs=pooled["band_auroc_mi_bound"])


def test_rows_without_a_band_have_no_figures_there():
    truth = Truth.of(np.arange(2), torch.zeros(2, 5, 5, dtype=torch.bool))
    scores = MethodScores.of(
        Answers.from_logits(truth, -torch.rand(2, 5, 5), uncertainties={"mi": torch.rand(2, 5, 5)})
    )
    columns, pooled = scores.columns(), scores.pooled()
    for name in ("band_ece", "band_adaptive_ece", "band_auroc_mi", "band_aurc_mi"):
        assert columns[name].left_out == 2
        assert name not in pooled


def test_parts_in_any_order_add_up_to_the_whole():
    parts = [MethodScores.of(one) for one in one_row_each(ANSWERS)]
    total = parts[4] + parts[0] + (parts[5] + parts[2]) + parts[1] + parts[3]
    np.testing.assert_allclose(total.ordered_gaps(band=True), SCORES.ordered_gaps(band=True), atol=1e-12)
    assert total.pooled() == pytest.approx(SCORES.pooled(), rel=1e-9)
    for name, column in total.columns().items():
        np.testing.assert_allclose(column.values, SCORES.columns()[name].values, rtol=1e-12)
