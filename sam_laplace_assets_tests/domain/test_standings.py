import numpy as np
import pytest

from sam_laplace_assets.domain.experiment import Run
from sam_laplace_assets.domain.interaction import Trace, area_under, summarise
from sam_laplace_assets.domain.standings import (
    METRICS,
    Standings,
    curve_rows,
    difference_rows,
    in_words,
    placement,
    summary_rows,
)

STRATEGIES = ("bald", "random", "entropy")
SEEDS = (0, 4)
CLICKS = 6


def trace(stream, length):
    points = stream.integers(0, 256, (length, 2))
    ious, sam_ious = stream.random((2, length))
    return Trace(points, stream.random(length) < 0.5, ious, sam_ious)


def some(images=7, *, seed=0, groups=None, strategies=STRATEGIES):
    """Standings of random traces, some of which end early."""
    stream = np.random.default_rng(seed)
    traces = [{Run(name, s): trace(stream, int(stream.integers(2, CLICKS + 1))) for name in strategies for s in SEEDS}
              for _ in range(images)]  # fmt: skip
    names = [f"cat/{at}" for at in range(images)]
    return Standings(names, groups or names, strategies, SEEDS, CLICKS, traces, resamples=300)


@pytest.mark.parametrize("source", ["head", "sam"])
def test_curves_go_on_at_their_last_iou_when_the_clicks_run_out(source):
    standings = some()
    curves = standings.curves("bald", source)
    assert curves.shape == (7, 2, CLICKS)
    for image, traces in enumerate(standings.traces):
        for at, seed in enumerate(SEEDS):
            one = traces[Run("bald", seed)]
            ious = one.ious if source == "head" else one.sam_ious
            np.testing.assert_array_equal(curves[image, at], [*ious, *[ious[-1]] * (CLICKS - len(ious))])


def test_an_image_counts_once_and_its_seeds_are_averaged_first():
    standings = some()
    expected = area_under(standings.curves("random", "head")).mean(axis=1)
    np.testing.assert_allclose(standings.by_image("random", "head", "area"), expected)


def test_means_over_images_are_those_of_all_interactions_where_each_image_has_as_many():
    standings = some()
    for row in summary_rows(standings):
        expected = summarise(standings.curves(row["strategy"], row["source"]).reshape(-1, CLICKS))
        assert {name: row[name] for name in METRICS} == pytest.approx(expected)
        assert row["low"] <= row["area"] <= row["high"]


def test_curves_have_a_row_a_click_and_the_mean_over_images():
    standings, rows = some(), list(curve_rows(some()))
    assert len(rows) == len(STRATEGIES) * 2 * CLICKS
    for row in rows:
        curves = standings.curves(row["strategy"], row["source"])
        assert row["mean_iou"] == pytest.approx(curves[..., row["click"] - 1].mean())


def test_differences_are_paired_and_turn_their_sign_with_the_sides():
    rows = list(difference_rows(some()))
    found = {(row["strategy"], row["against"], row["source"], row["metric"]): row for row in rows}
    assert {(row["strategy"], row["against"]) for row in rows} == {
        ("bald", "random"), ("bald", "entropy"), ("random", "entropy"), ("entropy", "random"),
    }  # fmt: skip
    assert {row["metric"] for row in rows} == {"area", "noc85", "final"}
    for source in ("head", "sam"):
        one, other = (found[(*pair, source, "area")] for pair in (("random", "entropy"), ("entropy", "random")))
        assert one["difference"] == pytest.approx(-other["difference"])
        assert (one["low"], one["high"]) == pytest.approx((-other["high"], -other["low"]))


def test_a_strategy_that_is_better_by_the_same_on_every_image_has_an_interval_of_no_width():
    standings = some(strategies=("random", "bald"))
    traces = [{Run(name, seed): Trace(one[Run("random", seed)].points, one[Run("random", seed)].labels,
                                      0.5 * one[Run("random", seed)].ious + (0.25 if name == "bald" else 0),
                                      one[Run("random", seed)].sam_ious)
               for name in ("random", "bald") for seed in SEEDS} for one in standings.traces]  # fmt: skip
    better = Standings(standings.sample_ids, standings.groups, ("random", "bald"), SEEDS, CLICKS, traces)
    (row,) = [row for row in difference_rows(better) if (row["source"], row["metric"]) == ("head", "area")]
    assert [row[name] for name in ("difference", "low", "high")] == pytest.approx([0.25] * 3)
    assert in_words(row) == "beats random: +0.250 [+0.250, +0.250]"


def test_images_of_one_group_are_drawn_together():
    rows = list(summary_rows(some(groups=["a", "a", "a", "b", "b", "c", "c"])))
    assert {row["area"] for row in rows} == {row["area"] for row in summary_rows(some())}
    assert [row["low"] for row in rows] != [row["low"] for row in summary_rows(some())]


def test_one_image_has_no_interval_and_says_so():
    (row, *_) = difference_rows(some(images=1))
    assert row["low"] is row["high"] is None
    assert "on 1 image, too few to tell" in in_words(row)


@pytest.mark.parametrize(
    ("low", "high", "said"), [(0.1, 0.2, "beats"), (-0.2, -0.1, "is worse than"), (-0.1, 0.1, "cannot be told from")]
)
def test_a_difference_in_words(low, high, said):
    row = {"against": "random", "difference": (low + high) / 2, "low": low, "high": high}
    assert in_words(row) == f"{said} random: {(low + high) / 2:+.3f} [{low:+.3f}, {high:+.3f}]"


def test_where_clicks_lie_is_worked_by_hand():
    points = np.array([[100, 100], [100, 110], [3, 110], [128, 252], [128, 240]])
    labels = np.array([True, True, False, False, False])
    found = placement([Trace(points, labels, np.zeros(5), np.zeros(5))])
    distances = [10, 97, np.hypot(28, 142), 12]
    assert found == {"spacing": pytest.approx(np.median(distances)), "near_earlier": 0.5, "at_border": 0.5,
                     "positive": 0.25}  # fmt: skip


def test_the_first_clicks_alone_lie_nowhere():
    found = placement([Trace(np.array([[5, 5]]), np.array([True]), np.zeros(1), np.zeros(1))])
    assert set(found.values()) == {None}


def test_a_trace_that_is_missing_is_named():
    standings = some()
    traces = [dict(one) for one in standings.traces]
    del traces[2][Run("entropy", 4)]
    with pytest.raises(ValueError, match=r"^cat/2 has no trace of entropy/4: play it again\.$"):
        Standings(standings.sample_ids, standings.groups, STRATEGIES, SEEDS, CLICKS, traces)
    with pytest.raises(ValueError, match="7 samples, 6 groups and 7 sets of traces do not fit"):
        Standings(standings.sample_ids, standings.groups[:6], STRATEGIES, SEEDS, CLICKS, standings.traces)
