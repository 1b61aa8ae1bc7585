"""Row scores against counting and float64; the boundary band against SciPy's distances."""

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from sam_laplace_assets.domain.metrics import dice, iou
from sam_laplace_assets.domain.scoring import Answers, Truth, boundary_band, score_rows
from sam_laplace_assets_tests.domain.some_answers import some_answers, some_logits, some_truth

ROWS = np.array([3, 7], dtype=np.int64)


def two_rows(height=8, width=9):
    masks = torch.zeros(2, height, width, dtype=torch.bool)
    masks[:, 2:5, 3:6] = True
    return Truth.of(ROWS, masks)


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_the_band_is_what_distances_to_the_other_side_say(width):
    rng = np.random.default_rng(width)
    masks = rng.random((5, 40, 33)) < 0.02
    masks[1] = ~masks[1]
    found = boundary_band(torch.from_numpy(masks), width=width).numpy()
    for mask, band in zip(masks, found, strict=True):
        distance = np.where(mask, distance_transform_edt(mask), distance_transform_edt(~mask))
        np.testing.assert_array_equal(band, distance <= width)


def test_a_straight_boundary_has_a_band_of_three_pixels_on_each_side():
    masks = torch.zeros(1, 20, 30, dtype=torch.bool)
    masks[:, :, 12:] = True
    columns = boundary_band(masks)[0].any(0).nonzero()[:, 0].tolist()
    assert columns == [9, 10, 11, 12, 13, 14]


def test_a_mask_without_a_boundary_has_no_band_and_the_images_border_is_none():
    assert not boundary_band(torch.zeros(1, 9, 9, dtype=torch.bool)).any()
    assert not boundary_band(torch.ones(1, 9, 9, dtype=torch.bool)).any()


def test_the_band_of_the_other_side_is_the_same():
    masks = some_truth().masks
    assert torch.equal(boundary_band(masks), boundary_band(~masks))


def test_row_scores_are_those_of_each_rows_pixels_alone():
    answers = some_answers(8)
    columns, y = score_rows(answers), answers.truth.masks.double()
    p = torch.sigmoid(answers.logits.double())
    nll = -(y * p.log() + (1 - y) * (-p).log1p())
    for prefix, where in {"": torch.ones_like(answers.truth.masks), "band_": answers.truth.band}.items():
        for row in range(8):
            kept = where[row]
            found = {name: columns[prefix + name].values[row] for name in ("iou", "dice", "nll", "brier", "pixels")}
            if not kept.any():
                assert set(found.values()) == {0.0}
                continue
            logits, mask = answers.logits[row][kept][None, None], answers.truth.masks[row][kept][None, None]
            assert found["iou"] == iou(logits, mask).item()
            assert found["dice"] == dice(logits, mask).item()
            assert found["nll"] == pytest.approx(nll[row][kept].mean().item(), rel=1e-6)
            assert found["brier"] == pytest.approx((p - y)[row][kept].square().mean().item(), rel=1e-12)
            assert found["pixels"] == kept.sum()


def test_rows_without_a_band_are_left_out_of_its_scores_and_counted():
    columns = score_rows(some_answers(6))  # rows 1 and 2 are empty and full
    assert columns["band_nll"].left_out == columns["band_iou"].left_out == 2
    assert columns["band_nll"].present.tolist() == [True, False, False, True, True, True]
    assert columns["nll"].left_out == 0
    assert all(np.isfinite(column.values).all() for column in columns.values())


def test_empty_against_empty_is_one():
    truth = Truth.of(ROWS, torch.zeros(2, 4, 4, dtype=torch.bool))
    columns = score_rows(Answers.from_logits(truth, torch.full((2, 4, 4), -3.0)))
    assert columns["iou"].values.tolist() == columns["dice"].values.tolist() == [1.0, 1.0]


def test_nll_of_logits_stays_exact_where_probabilities_round_to_one():
    truth = two_rows()
    logits = torch.where(truth.masks, -60.0, -70.0)
    found = score_rows(Answers.from_logits(truth, logits))["nll"].values
    assert found == pytest.approx(60 * 9 / 72, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_score_as_the_logits_that_they_come_from(dtype):
    truth = some_truth()
    logits = some_logits(truth).double()
    by_logits = score_rows(Answers.from_logits(truth, logits))
    by_probabilities = score_rows(Answers.from_probabilities(truth, torch.sigmoid(logits).to(dtype)))
    for name, column in by_logits.items():
        np.testing.assert_allclose(by_probabilities[name].values, column.values, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 6.93), (torch.float32, 15.94), (torch.float64, 36.04)])
def test_a_certain_and_wrong_probability_costs_what_its_dtype_can_tell(dtype, most):
    truth = two_rows()
    found = score_rows(Answers.from_probabilities(truth, (~truth.masks).to(dtype)))
    assert found["nll"].values == pytest.approx(most, abs=0.005)
    assert found["brier"].values.tolist() == [1.0, 1.0]


def test_a_probability_of_one_half_is_background():
    truth = two_rows()
    answers = Answers.from_probabilities(truth, torch.full((2, 8, 9), 0.5))
    assert torch.equal(answers.wrong, truth.masks)


def test_what_cannot_be_scored_is_refused_by_row():
    truth = two_rows()
    logits = torch.zeros(2, 8, 9)
    logits[1, 2, 4] = torch.nan
    with pytest.raises(ValueError, match=r"logits of row 7 hold nan at \(x, y\) = \(4, 2\)\. Give finite numbers\."):
        Answers.from_logits(truth, logits)
    with pytest.raises(ValueError, match="mi of row 7 hold nan"):
        Answers.from_logits(truth, torch.zeros(2, 8, 9), uncertainties={"mi": logits})
    for value in (-0.01, 1.01, torch.nan):
        probabilities = torch.full((2, 8, 9), 0.5)
        probabilities[0, 0, 1] = value
        with pytest.raises(ValueError, match=r"of row 3 hold .* at \(x, y\) = \(1, 0\)"):
            Answers.from_probabilities(truth, probabilities)


def test_shapes_and_types_that_do_not_fit_are_refused():
    truth = two_rows()
    with pytest.raises(ValueError, match=r"shape \(2, 8, 8\), the masks \(2, 8, 9\)"):
        Answers.from_logits(truth, torch.zeros(2, 8, 8))
    with pytest.raises(ValueError, match=r"entropy are torch\.int64"):
        Answers.from_logits(truth, torch.zeros(2, 8, 9), uncertainties={"entropy": torch.zeros(2, 8, 9).long()})
    with pytest.raises(ValueError, match=r"rows \(1,\)"):
        Truth.of(ROWS[:1], truth.masks)
    with pytest.raises(ValueError, match="must be bool"):
        Truth(ROWS, truth.masks.float(), truth.band)
    with pytest.raises(ValueError, match="0 pixels wide"):
        boundary_band(truth.masks, width=0)
