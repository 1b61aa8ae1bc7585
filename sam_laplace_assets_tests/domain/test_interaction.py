"""The protocol on predictors whose answer is known: each pixel takes the label of its nearest click."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from sam_laplace_assets.domain.acquisition import STRATEGIES, Maps
from sam_laplace_assets.domain.clicks import best, depth, error_depth
from sam_laplace_assets.domain.interaction import (
    Interaction,
    Protocol,
    area_under,
    clicks_to_reach,
    first_click,
    interact,
    interact_together,
    mask_iou,
    mean_curve,
    summarise,
)
from sam_laplace_assets.domain.metrics import iou

unhurried = settings(deadline=None)  # a busy machine is no failure

ALL = list(STRATEGIES)
curve_tables = npst.arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 20)), elements=st.floats(0, 1))


def nearest_click(shape):
    """A predictor: the label of the nearest click, the surer the nearer it is than one of the other kind."""
    y, x = np.mgrid[: shape[0], : shape[1]]

    def predict(points, labels):
        distances = np.hypot(x[None] - points[:, 0, None, None], y[None] - points[:, 1, None, None])
        off, on = (distances[labels == side].min(0, initial=max(shape)) for side in (False, True))
        p = 1 / (1 + np.exp(-(off - on) / 3))
        entropy = -np.clip(p, 1e-9, 1) * np.log(np.clip(p, 1e-9, 1)) - (1 - p) * np.log(np.clip(1 - p, 1e-9, 1))
        return p >= 0.5, Maps(p, entropy, entropy * p * (1 - p), distances.min(0))

    return predict


def halves():
    truth = np.zeros((9, 18), dtype=bool)
    truth[:, :9] = True
    return truth


def star(seed=0, shape=(40, 48)):
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    angle = np.arctan2(y - 20, x - 24)
    return np.hypot(y - 20, x - 24) < 10 + 5 * np.sin(generator.integers(2, 5) * angle + generator.uniform(0, 6))


def start(truth, strategy, *, seed=0, **protocol):
    generator = np.random.default_rng(seed)
    first = first_click(truth, generator=generator)
    return Interaction(truth, strategy, first, protocol=Protocol(**protocol), generator=generator)


def run(truth, strategy, **options):
    return interact(nearest_click(truth.shape), start(truth, strategy, **options))


def test_two_oracle_clicks_solve_two_halves_and_the_third_is_not_asked_for():
    """The centres of the halves: their bisector is the border between them."""
    trace = run(halves(), "oracle", clicks=20)
    np.testing.assert_array_equal(trace.points, [[4, 4], [13, 4]])
    np.testing.assert_array_equal(trace.labels, [True, False])
    np.testing.assert_array_equal(trace.ious, [0.5, 1.0])
    np.testing.assert_array_equal(trace.curve(5), [0.5, 1, 1, 1, 1])
    np.testing.assert_array_equal(trace.curve(1), [0.5])


def test_each_oracle_click_is_on_the_deepest_error_of_the_answer_before():
    truth = star()
    trace, predict = run(truth, "oracle", clicks=8), nearest_click(truth.shape)
    for k in range(1, 8):
        mask, _ = predict(trace.points[:k], trace.labels[:k])
        depths = error_depth(truth, mask)
        x, y = trace.points[k]
        assert depths[y, x] == depths.max()
        assert trace.labels[k] != mask[y, x]


def test_each_iou_is_that_of_the_clicks_so_far():
    truth = star()
    trace, predict = run(truth, "entropy", clicks=6), nearest_click(truth.shape)
    expected = [mask_iou(predict(trace.points[:k], trace.labels[:k])[0], truth) for k in range(1, 7)]
    np.testing.assert_array_equal(trace.ious, expected)


def test_the_oracle_is_above_the_random_strategies_after_every_click_on_average():
    curves = {
        name: np.mean([run(star(seed), name, seed=seed, clicks=12).curve(12) for seed in range(25)], axis=0)
        for name in ("oracle", "random", "foreground_random", "balanced_random")
    }
    for name in ("random", "foreground_random", "balanced_random"):
        assert curves["oracle"][0] == curves[name][0]
        assert (curves["oracle"][1:] > curves[name][1:]).all()


@pytest.mark.parametrize("strategy", ALL)
@pytest.mark.parametrize("jitter", [0.0, 3.0])
def test_the_annotator_tells_the_truth_at_every_click(strategy, jitter):
    truth = star()
    trace = run(truth, strategy, clicks=10, jitter=jitter)
    assert trace.labels[0]
    np.testing.assert_array_equal(trace.labels, truth[trace.points[:, 1], trace.points[:, 0]])
    assert len(trace.points) == len(trace.labels) == len(trace.ious) <= 10


@pytest.mark.parametrize("strategy", ALL)
def test_without_jitter_clicks_keep_off_the_border_and_off_earlier_ones(strategy):
    points = run(star(), strategy, clicks=10, border=3, earlier_radius=4).points
    gaps = np.linalg.norm(points[:, None] - points[None], axis=-1) + 99 * np.eye(len(points))
    assert gaps.min() >= 4
    assert points[1:].min() >= 3
    assert (points[1:] <= np.array([48, 40]) - 4).all()


def test_jitter_moves_clicks_by_less_than_its_radius():
    truth = star()
    interaction = start(truth, "entropy", clicks=2, jitter=4)
    mask, maps = nearest_click(truth.shape)(interaction.points, interaction.labels)
    interaction.see(mask, maps)
    moved = interaction.points[1] - best(np.where(_clicked(interaction.points[:1], truth.shape), -1, maps.entropy))
    assert 0 < np.hypot(*moved) < 4


def _clicked(points, shape):
    clicked = np.zeros(shape, dtype=bool)
    clicked[points[:, 1], points[:, 0]] = True
    return clicked


@pytest.mark.parametrize("strategy", ALL)
def test_the_same_seed_gives_the_same_interaction_and_company_changes_nothing(strategy):
    truth = star()
    alone = run(truth, strategy, clicks=7, jitter=2)
    names = ["random", strategy, "oracle"]
    crowd = [start(truth, name, clicks=7, jitter=2) for name in names]
    predict = nearest_click(truth.shape)
    calls = []

    def predict_many(waiting):
        calls.append(len(waiting))
        return [predict(one.points, one.labels) for one in waiting]

    together = interact_together(predict_many, crowd)[1]
    np.testing.assert_array_equal(together.points, alone.points)
    np.testing.assert_array_equal(together.ious, alone.ious)
    assert len(calls) == 7
    assert calls[0] == 3


def test_an_interaction_that_runs_out_of_places_ends_early():
    trace = run(halves(), "entropy", clicks=20, earlier_radius=100)
    assert len(trace.ious) == len(trace.points) == 1


def test_a_strategy_does_not_see_the_truth_that_a_predictor_leaks():
    truth = star()
    honest = nearest_click(truth.shape)

    def leaking(points, labels):
        mask, maps = honest(points, labels)
        return mask, Maps(maps.probability, maps.entropy, maps.mutual_information, maps.variance, truth=~truth)

    for strategy in ALL:
        leaked, told = (interact(predict, start(truth, strategy, clicks=5)) for predict in (leaking, honest))
        np.testing.assert_array_equal(leaked.points, told.points)


def test_an_answer_that_nobody_waits_for_is_refused():
    interaction = start(halves(), "oracle", clicks=1)
    answer = nearest_click((9, 18))(interaction.points, interaction.labels)
    interaction.see(*answer)
    assert not interaction.waiting
    with pytest.raises(ValueError, match="over after 1 clicks: start another one"):
        interaction.see(*answer)


def test_the_first_click_is_the_deepest_point_or_near_it_on_the_object():
    truth, generator = star(), np.random.default_rng(0)
    assert first_click(truth, generator=generator) == best(depth(truth))
    several = {first_click(truth, jitter=30, generator=generator) for _ in range(50)}
    assert len(several) > 20
    assert all(truth[y, x] for x, y in several)


def test_one_pixel_is_an_object_and_no_pixel_is_not():
    truth = np.zeros((5, 6), dtype=bool)
    with pytest.raises(ValueError, match=r"the true mask is empty\. Leave this sample out"):
        first_click(truth, generator=np.random.default_rng(0))
    truth[4, 0] = True
    assert first_click(truth, jitter=3, generator=np.random.default_rng(0)) == (0, 4)
    assert run(truth, "oracle", clicks=20).ious[-1] == 1
    full = run(np.ones((5, 6), dtype=bool), "oracle", clicks=20)
    np.testing.assert_array_equal(full.ious, [1])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"first": (18, 0)}, r"The first click \(x, y\) = \(18, 0\) lies outside a mask of 9 x 18 pixels"),
        ({"first": (0, -1)}, "lies outside a mask of 9 x 18"),
        ({"strategy": "bold"}, "There is no strategy 'bold'"),
        ({"truth": np.zeros((9, 18))}, "The true mask is float64"),
    ],
)
def test_an_impossible_interaction_is_refused(change, text):
    fine = {"truth": halves(), "strategy": "oracle", "first": (4, 4)}
    with pytest.raises(ValueError, match=text):
        Interaction(**(fine | change), protocol=Protocol(), generator=np.random.default_rng(0))


@pytest.mark.parametrize("change", [{"clicks": 0}, {"border": -1}, {"jitter": -1}, {"earlier_radius": -1}])
def test_a_protocol_checks_itself(change):
    with pytest.raises(ValueError, match=r"Cannot run Protocol\(.*clicks must be 1 or more, the rest not negative"):
        Protocol(**change)


@unhurried
@given(npst.arrays(np.bool_, (2, 4, 5)))
def test_the_iou_of_masks_is_that_of_logits(both):
    mask, truth = both
    logits = torch.from_numpy(np.where(mask, 1.0, -1.0))[None]
    assert mask_iou(mask, truth) == float(iou(logits, torch.from_numpy(truth)[None]))


def test_a_mask_of_another_shape_or_type_is_refused():
    with pytest.raises(ValueError, match=r"The mask is float64 of shape \(3, 3\), the truth bool of shape \(2, 3\)"):
        mask_iou(np.zeros((3, 3)), np.zeros((2, 3), dtype=bool))


def test_clicks_to_reach_count_a_miss_as_twenty():
    curves = np.array([[0.1, 0.85, 0.7], [0.8, 0.9, 0.95], [0.2, 0.3, 0.79]])
    np.testing.assert_array_equal(clicks_to_reach(curves, 0.8), [2, 1, 20])
    np.testing.assert_array_equal(clicks_to_reach(curves, 0.9), [20, 2, 20])
    np.testing.assert_array_equal(clicks_to_reach(curves, 0.95, miss=3), [3, 3, 3])


def test_a_summary_is_worked_by_hand():
    curves = np.array([[0.1, 0.85, 0.7], [0.8, 0.9, 0.95]])
    summary = summarise(curves)
    assert summary == pytest.approx(
        {
            "area": ((0.1 + 2 * 0.85 + 0.7) / 4 + (0.8 + 2 * 0.9 + 0.95) / 4) / 2,
            "final_iou": 0.825,
            "noc80": 1.5, "reached80": 1.0, "noc85": 2.0, "reached85": 1.0, "noc90": 11.0, "reached90": 0.5,
        }
    )  # fmt: skip


@unhurried
@given(curve_tables)
def test_the_area_is_that_under_the_mean_curve_and_within_its_range(curves):
    areas = area_under(curves)
    assert areas.mean() == pytest.approx(float(area_under(mean_curve(curves)[None])[0]))
    assert ((areas >= curves.min(axis=1) - 1e-12) & (areas <= curves.max(axis=1) + 1e-12)).all()


@unhurried
@given(curve_tables, st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_higher_threshold_takes_no_fewer_clicks(curves, one, other):
    low, high = sorted((one, other))
    assert (clicks_to_reach(curves, low) <= clicks_to_reach(curves, high)).all()


@pytest.mark.parametrize("shape", [(4,), (2, 0), (2, 21)])
def test_curves_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=r"give \(I, N\) with N from 1 to 20, what a miss counts"):
        clicks_to_reach(np.zeros(shape), 0.8)


def test_no_interactions_have_no_summary():
    with pytest.raises(ValueError, match="Cannot summarise: there are no interactions"):
        summarise(np.zeros((0, 20)))
