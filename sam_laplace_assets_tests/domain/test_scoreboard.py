"""Tables of a comparison: closed forms, images as what is drawn again, and what the verdict says in words."""

import math

import numpy as np
import pytest
import torch

from sam_laplace_assets.domain.bootstrap import Estimate
from sam_laplace_assets.domain.comparison import HEAD, LAPLACE, SAM, SAM_SCALED
from sam_laplace_assets.domain.method_scores import MethodScores
from sam_laplace_assets.domain.scoreboard import (
    Draws,
    difference_rows,
    judge,
    label_rows,
    metric_rows,
    prompt_size_rows,
    reliability_rows,
    risk_coverage_rows,
    verdict,
)  # fmt: skip
from sam_laplace_assets.domain.scoring import Answers
from sam_laplace_assets_tests.domain.some_answers import some_answers, some_truth

TRUTH = some_truth(8)
IMAGES = np.array([0, 0, 1, 1, 2, 2, 3, 3])
DRAWS = Draws(IMAGES, resamples=200)
SOFTPLUS = {z: math.log1p(math.exp(-z)) for z in (1.0, 4.0)}


def right(magnitude, *, noise=0.0):
    """Scores of logits on the right side everywhere, all of about one magnitude."""
    wobble = noise * torch.arange(len(TRUTH.rows)).reshape(-1, 1, 1)
    logits = (magnitude + wobble) * (2.0 * TRUTH.masks - 1)
    return MethodScores.of(Answers.from_logits(TRUTH, logits, uncertainties={"entropy": -logits.abs()}))


SCORES = {SAM: right(1.0), SAM_SCALED: right(1.0, noise=0.1), LAPLACE: right(4.0)}
WRONG = {HEAD: MethodScores.of(some_answers(8)), SAM: MethodScores.of(some_answers(8, scale=1.0))}


def rows_where(rows, **wanted):
    return [row for row in rows if wanted.items() <= row.items()]


def test_a_mean_over_images_and_a_pooled_figure_of_equal_images_are_one():
    rows = metric_rows(SCORES, DRAWS)
    for scope in ("per_image", "pooled"):
        (row,) = rows_where(rows, method=LAPLACE, scope=scope, metric="nll")
        assert row["value"] == pytest.approx(SOFTPLUS[4.0], rel=1e-6)
        assert row["low"] == pytest.approx(row["high"], rel=1e-6)
        assert row["n_images"] == 4


def test_what_has_no_value_is_none_and_counted():
    (auroc,) = rows_where(metric_rows(SCORES, DRAWS), method=SAM, scope="per_image", metric="auroc_entropy")
    assert (auroc["value"], auroc["low"], auroc["n_images"], auroc["images_left_out"]) == (None, None, 0, 4)


def test_an_interval_over_one_group_is_none():
    grouped = Draws(IMAGES, np.array(["ward"] * 8), resamples=200)
    for scope in ("per_image", "pooled"):
        (row,) = rows_where(metric_rows(SCORES, grouped), method=SAM_SCALED, scope=scope, metric="nll")
        assert row["value"] is not None
        assert row["low"] is row["high"] is None


def test_a_pooled_ratio_is_the_ratio_of_sums_and_its_interval_is_over_units():
    parts, totals = np.array([3.0, 1, 0, 2, 5, 5, 0, 1]), np.array([10.0, 10, 1, 3, 5, 9, 2, 2])
    found = DRAWS.pooled(parts[:, None], totals)
    assert found.mean == pytest.approx(parts.sum() / totals.sum())
    drawn = np.random.default_rng(5).integers(4, size=(20_000, 4))
    ratios = parts.reshape(4, 2).sum(1)[drawn].sum(1) / totals.reshape(4, 2).sum(1)[drawn].sum(1)
    wide = Draws(IMAGES, resamples=20_000).pooled(parts[:, None], totals)
    assert [wide.low, wide.high] == pytest.approx(np.quantile(ratios, [0.025, 0.975]).tolist(), abs=0.01)


def test_images_without_a_pixel_are_left_out_of_a_pooled_figure():
    totals = np.array([1.0, 1, 0, 0, 1, 1, 0, 0])
    found = DRAWS.pooled(totals[:, None] / 2, totals)
    assert (found.mean, found.n_images, found.images_left_out) == (0.5, 2, 2)
    assert DRAWS.pooled(np.zeros((8, 1)), np.zeros(8)).mean is None


@pytest.mark.parametrize(("metric", "sign", "expected"), [
    ("nll", -1, "better"), ("band_ece", 1, "worse"), ("iou", 1, "better"), ("band_dice", -1, "worse"),
    ("auroc_entropy", 1, "better"), ("aurc_entropy", 1, "worse"),
])  # fmt: skip
def test_what_is_better_depends_on_the_metric(metric, sign, expected):
    low, high = sorted([sign * 0.1, sign * 0.3])
    assert judge(Estimate(sign * 0.2, low, high, 9, 9, 0, 0.95), metric) == expected
    assert judge(Estimate(0.0, -0.1, 0.1, 9, 9, 0, 0.95), metric) == "no difference shown"
    assert judge(Estimate(0.0, None, None, 1, 1, 0, 0.95), metric) is None


def test_the_verdict_names_both_scores_the_difference_and_the_images():
    said, judged = verdict(SCORES, DRAWS, ours=LAPLACE, theirs=SAM)
    assert judged == "better"
    gap = SOFTPLUS[4.0] - SOFTPLUS[1.0]
    assert said == (f"The Laplace predictive is better than SAM: NLL {SOFTPLUS[4.0]:.3g} against {SOFTPLUS[1.0]:.3g}, "
                    f"difference {gap:+.3g} [{gap:+.3g}, {gap:+.3g}] over 4 images.")  # fmt: skip
    said, judged = verdict({SAM_SCALED: SCORES[LAPLACE], LAPLACE: SCORES[SAM]}, DRAWS, ours=LAPLACE)
    assert judged == "worse"
    assert said.startswith("The Laplace predictive is worse than scaled SAM logits: NLL")


def test_a_verdict_does_not_claim_what_is_not_shown():
    same = {SAM_SCALED: SCORES[SAM], LAPLACE: SCORES[SAM]}
    assert verdict(same, DRAWS, ours=LAPLACE)[0].startswith("No difference is shown between the Laplace predictive and")
    alone = Draws(np.zeros(8, dtype=int), resamples=200)
    said, judged = verdict(SCORES, alone, ours=LAPLACE)
    assert judged is None
    assert said.startswith("One image cannot tell the Laplace predictive from scaled SAM logits")


def test_differences_are_paired():
    (row,) = rows_where(difference_rows(SCORES, DRAWS), ours=LAPLACE, theirs=SAM, scope="per_image", metric="nll")
    assert row["value"] == pytest.approx(SOFTPLUS[4.0] - SOFTPLUS[1.0], rel=1e-6)
    assert row["ours_is"] == "better"
    assert not rows_where(difference_rows(SCORES, DRAWS), ours=LAPLACE, theirs=HEAD)


def test_labels_and_prompt_sizes_take_their_own_rows():
    labels = np.array(["a"] * 4 + ["b"] * 4)
    wanted = {"scope": "per_image", "metric": "nll"}
    both = rows_where(label_rows(SCORES, DRAWS, labels, name="class"), method=SAM_SCALED, **wanted)
    nll = SCORES[SAM_SCALED].columns()["nll"].values
    assert [(row["class"], row["n_images"]) for row in both] == [("a", 2), ("b", 2)]
    assert [row["value"] for row in both] == pytest.approx([nll[:4].mean(), nll[4:].mean()])
    n_pos, n_neg = np.array([1, 1, 2, 2, 10, 10, 3, 3]), np.array([1, 1, 2, 2, 10, 10, 1, 1])
    sizes = rows_where(prompt_size_rows(SCORES, DRAWS, n_pos, n_neg), method=SAM, **wanted)
    assert [(row["k_pairs"], row["clicks"]) for row in sizes] == [(1, 2), (2, 4), (None, 4), (10, 20)]


def test_bins_of_the_reliability_table_hold_all_pixels_and_their_means():
    for region, prefix in {"image": "", "band": "band_"}.items():
        rows = rows_where(reliability_rows(WRONG), method=HEAD, region=region)
        pooled = WRONG[HEAD].pooled()
        assert sum(row["pixels"] for row in rows) == pooled[prefix + "pixels"]
        gaps = [abs(row["mean_probability"] - row["frequency"]) * row["pixels"] for row in rows]
        assert sum(gaps) / pooled[prefix + "pixels"] == pytest.approx(pooled[prefix + "ece"])
        assert all(row["bin_low"] <= row["mean_probability"] <= row["bin_high"] + 1e-12 for row in rows)


def test_a_risk_coverage_curve_ends_with_the_error_rate():
    rows = risk_coverage_rows(WRONG, points=10)
    for region, prefix in {"image": "", "band": "band_"}.items():
        (last,) = rows_where(rows, method=HEAD, uncertainty="entropy", region=region, coverage=1.0)
        assert last["risk"] == pytest.approx(WRONG[HEAD].pooled()[prefix + "error_rate"])
