"""A head that is not worth more than SAM alone is told, with the figures that the champion is chosen by."""

import pytest

from sam_laplace_assets.checks import head_beats_sam
from sam_laplace_assets.checks.head import compare, scores_of
from sam_laplace_assets.storage.champion import read_history
from sam_laplace_assets_tests.checks.looking import look, warns, words

BETTER = {"sam_iou": 0.7, "sam_nll": 0.2, "head_iou": 0.71, "head_nll": 0.19}


def test_a_head_that_hardly_learned_is_a_warning_with_figures(read_only):
    result, scores = look(head_beats_sam, "train"), scores_of("train", read_only.settings)
    assert scores["head_iou"] < scores["sam_iou"]
    assert warns(result)
    assert f"IoU ({scores['head_iou']:.4f}, SAM {scores['sam_iou']:.4f})" in words(result)
    assert "| SAM | " in words(result)


def test_its_figures_are_those_that_the_champion_is_chosen_by(read_only):
    (candidate,) = read_history(read_only.paths.posteriors)[-1]["candidates"]
    assert scores_of("train", read_only.settings) == pytest.approx({name: candidate[name] for name in BETTER})


def test_a_head_that_is_better_by_both_is_worth_more():
    assert compare(BETTER).complaint == ""


@pytest.mark.parametrize(("name", "value", "told", "not_told"), [
    ("head_iou", 0.7, "by IoU (0.7000, SAM 0.7000).", "NLL ("),
    ("head_nll", 0.2, "by NLL (0.20000, SAM 0.20000).", "IoU ("),
])  # fmt: skip
def test_a_head_that_is_only_as_good_by_one_is_told_by_which(name, value, told, not_told):
    complaint = compare({**BETTER, name: value}).complaint
    assert told in complaint
    assert not_told not in complaint


def test_a_head_without_validation_pack_is_an_error_that_says_what_to_do(project):
    project.paths.validation_pack.unlink()
    result = look(head_beats_sam, "train")
    assert not result.passed
    assert not warns(result)
    assert "Materialise validation_pack first" in words(result)
