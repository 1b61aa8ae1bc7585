import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from sam_laplace_assets.domain import interactive
from sam_laplace_assets.domain.clicks import best, depth, error_depth
from sam_laplace_assets.domain.interactive import disturb, draw_interactive_sets, window_around
from sam_laplace_assets.domain.prompts import PromptSet

unhurried = settings(deadline=None, max_examples=40)  # a busy machine is no failure

DEFAULTS = {"sample_id": "cat/0017", "count": 4, "max_clicks": 20, "prompt_seed": 777}
FIRST_OF_VERSION_1 = PromptSet(0, pos=((37, 24), (17, 31)), neg=((40, 39),))


def draw(mask, **changes):
    return draw_interactive_sets(mask, **(DEFAULTS | changes))


def clicks(one):
    return len(one.pos) + len(one.neg)


def blob(height=60, width=80):
    y, x = np.mgrid[:height, :width]
    return np.hypot((y - 25) / 14, (x - 35) / 20) < 1 + 0.2 * np.sin(np.arctan2(y - 25, x - 35) * 3)


@st.composite
def masks(draw):
    """Masks with a pixel of the object at least; full ones too."""
    mask = draw(npst.arrays(np.bool_, npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14)))
    mask[-1, 0] = True
    return mask


@unhurried
@given(masks(), st.integers(0, 2**31), st.integers(1, 20), st.sampled_from([0, 0.5, 0.99]), st.text(min_size=1))
def test_points_are_distinct_and_lie_on_their_side_and_the_first_is_positive(mask, seed, max_clicks, jitter, sample_id):
    for one in draw(mask, prompt_seed=seed, max_clicks=max_clicks, jitter=jitter, sample_id=sample_id):
        assert len(one.pos) >= 1
        assert clicks(one) <= max_clicks
        assert len({*one.pos, *one.neg}) == clicks(one)
        assert all(mask[y, x] for x, y in one.pos)
        assert not any(mask[y, x] for x, y in one.neg)


@pytest.mark.parametrize("shape", [(3, 3), (2, 600), (600, 2), (1, 1), (1, 2000)])
@pytest.mark.parametrize("full", [False, True])
def test_thin_images_and_single_pixels_and_full_masks_are_clicked_inside(shape, full):
    mask = np.full(shape, full)
    mask[shape[0] // 2, shape[1] // 2] = True
    for one in draw(mask, count=8):
        assert all(mask[y, x] for x, y in one.pos)
        assert not any(mask[y, x] for x, y in one.neg)
        assert not (full and one.neg)


def test_an_object_that_a_grid_of_256_would_miss_is_clicked():
    corners = np.zeros((1000, 1000), dtype=bool)
    corners[[0, 999], [0, 999]] = True
    window = window_around(corners)
    assert window.truth.shape == (1000, 1000)
    assert window.pitch == (1.0, 1.0)
    (one,) = draw(corners, count=1)
    assert set(one.pos) <= {(0, 0), (999, 999)}


def test_a_line_on_a_grid_of_256_is_clicked_on_the_line():
    line = np.zeros((1500, 900), dtype=bool)
    line[:, 451] = True
    assert window_around(line).truth.shape[0] == 256
    assert all(x == 451 for one in draw(line) for x, _ in one.pos)
    assert all(x != 451 for one in draw(line) for x, _ in one.neg)


def test_the_window_is_a_grid_of_the_mask_around_the_object():
    mask = np.zeros((1000, 1400), dtype=bool)
    mask[300:700, 100:1300] = True
    window = window_around(mask)
    assert window.truth.shape == (256, 256)
    np.testing.assert_array_equal(window.truth, mask[np.ix_(window.rows, window.columns)])
    assert window.reach == pytest.approx(np.sqrt(400 * 1200 / np.pi))
    rows, columns = (np.diff(places) for places in (window.rows, window.columns))
    assert (rows.mean(), columns.mean()) == pytest.approx(window.pitch, rel=0.01)


def test_a_small_object_in_a_large_image_is_seen_at_full_size():
    mask = np.zeros((2000, 3000), dtype=bool)
    mask[1200, 300] = True
    window = window_around(mask)
    assert window.pitch == (1.0, 1.0)
    assert window.truth.sum() == 1
    assert window.reach == pytest.approx(0.03 * np.sqrt(6e6))
    assert any(one.neg for one in draw(mask, count=8))


def test_without_jitter_the_first_click_is_the_deepest_point():
    mask = blob()
    for one in draw(mask, jitter=0, count=3):
        assert one.pos[0] == best(depth(mask))


def test_with_jitter_the_first_clicks_scatter_within_their_share_of_the_depth():
    mask = blob()
    centre, deepest = best(depth(mask)), depth(mask).max()
    firsts = {one.pos[0] for one in draw(mask, jitter=0.5, count=30, max_clicks=1)}
    assert len(firsts) > 15
    assert max(np.hypot(x - centre[0], y - centre[1]) for x, y in firsts) < 0.5 * deepest


@unhurried
@given(st.integers(0, 2**31), st.integers(0, 14))
def test_a_click_removes_errors_and_never_makes_one(seed, steps):
    window, stream = window_around(blob()), np.random.default_rng(seed)
    disturbance = disturb(window, stream)
    wrong = (window.signed + disturbance > 0) != window.truth
    for _ in range(steps):
        depths = error_depth(window.truth, window.signed + disturbance > 0)
        if not depths.any():
            break
        cell = interactive._click(depths, 0.5, stream, window.pitch)
        assert wrong[cell[1], cell[0]]
        disturbance = disturbance * interactive._away_from(cell, window)
        before, wrong = wrong, (window.signed + disturbance > 0) != window.truth
        assert not (wrong & ~before).any()
        assert not wrong[cell[1], cell[0]]


def test_later_clicks_are_of_both_kinds_and_sets_are_unbalanced():
    sets = [one for one in draw(blob(), count=120) if clicks(one) > 3]
    positive = [(len(one.pos) - 1) / (clicks(one) - 1) for one in sets]
    assert 0.3 < np.mean(positive) < 0.7
    assert np.mean(np.abs(np.array(positive) - 0.5) > 0.3) > 0.3


def test_the_number_of_clicks_is_drawn_with_odds_of_one_over_n():
    stream = np.random.default_rng(0)
    counts = np.bincount([interactive._click_count(4, stream) for _ in range(6000)], minlength=5)[1:]
    np.testing.assert_allclose(counts / 6000, np.array([12, 6, 4, 3]) / 25, atol=0.02)


def test_the_random_field_has_mean_zero_variance_one_and_its_correlation_length():
    window = window_around(blob())
    fields = np.stack([interactive._smooth_field(window, 9.0, np.random.default_rng(seed)) for seed in range(800)])
    assert abs(fields[:, 20, 20].mean()) < 0.1
    assert fields[:, 20, 20].var() == pytest.approx(1, abs=0.15)
    assert (fields[:, 20, 20] * fields[:, 20, 29]).mean() == pytest.approx(np.exp(-0.5), abs=0.12)
    assert (fields[:, 20, 20] * fields[:, 29, 20]).mean() == pytest.approx(np.exp(-0.5), abs=0.12)


@unhurried
@given(masks(), st.integers(0, 4), st.integers(0, 4))
def test_more_sets_leave_the_first_ones_as_they_are(mask, count, more):
    assert draw(mask, count=count + more)[:count] == draw(mask, count=count)


def test_a_mask_keeps_its_prompts_when_another_mask_was_drawn_from():
    alone = draw(blob())
    draw(~blob(), sample_id="cat/0018")
    np.random.default_rng(0).random()
    assert draw(blob()) == alone


def test_prompts_are_the_same_in_another_process():
    code = "from sam_laplace_assets_tests.domain.test_interactive import draw, blob;print(draw(blob()))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert there.strip() == str(draw(blob()))


def test_the_stream_is_the_one_of_version_1():
    """Fails where NumPy or the simulation changes: then INTERACTIVE_VERSION must rise."""
    assert draw(blob(), count=1, max_clicks=4)[0] == FIRST_OF_VERSION_1


@pytest.mark.parametrize("change", [{"prompt_seed": 778}, {"sample_id": "cat/0018"}])
def test_seed_and_sample_each_change_every_set(change):
    assert all(one != other for one, other in zip(draw(blob()), draw(blob(), **change), strict=True))


def test_an_empty_mask_is_named():
    text = r"^Cannot click on the object of cat/0017: its mask has no such pixels\. Drop this mask\.$"
    with pytest.raises(ValueError, match=text):
        draw(np.zeros((5, 5), dtype=bool))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"max_clicks": 0}, "up to 0 clicks: max_clicks must be 1 to 20"),
        ({"max_clicks": 21}, "up to 21 clicks: max_clicks must be 1 to 20"),
        ({"count": -1}, "Cannot draw -1 prompt sets"),
        ({"jitter": 1}, "jitter is 1, a share of the depth"),
        ({"jitter": -0.1}, "jitter is -0.1, a share of the depth"),
        ({"jitter": float("nan")}, "jitter is nan, a share of the depth"),
    ],
)
def test_impossible_settings_are_refused(change, text):
    with pytest.raises(ValueError, match=text):
        draw(blob(), **change)


def test_a_mask_of_another_type_is_refused():
    with pytest.raises(ValueError, match=r"The mask of cat/0017 is uint8 of shape \(60, 80\): give a bool"):
        draw(blob().astype(np.uint8))
