import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_laplace_assets.domain.acquisition import STRATEGIES, Maps, interior, score_map, suggest, without_truth
from sam_laplace_assets.domain.clicks import error_depth, pick
from sam_laplace_assets.domain.geometry import to_low_res, to_original

unhurried = settings(deadline=None, max_examples=25)  # a busy machine is no failure

ALL = list(STRATEGIES)
RANDOM = [name for name in ALL if STRATEGIES[name].random]
CERTAIN = [name for name in ALL if not STRATEGIES[name].random]


def some_maps(seed=0, shape=(40, 48), *, truth=True):
    """Maps of rough blobs, no two pixels alike."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    logits = 3 * np.sin(x / 7 + seed) + 3 * np.cos(y / 5) + generator.normal(0, 0.5, shape)
    p = 1 / (1 + np.exp(-logits))
    entropy = -p * np.log(p) - (1 - p) * np.log1p(-p)
    information, variance = entropy * generator.uniform(0.01, 0.1, shape), generator.gamma(2.0, size=shape)
    return Maps(p, entropy, information, variance, (logits + generator.normal(0, 2, shape) > 0) if truth else None)


def flat_maps(p, shape=(20, 30), truth=None):
    ones = np.ones(shape)
    return Maps(p * ones, 0 * ones, 0 * ones, 0 * ones, truth)


def generator(seed=0):
    return np.random.default_rng(seed)


def places(suggestions):
    return [(one.x, one.y) for one in suggestions]


def test_the_registry_has_the_strategies_of_the_issue():
    assert set(ALL) == {
        "bald", "bald_region", "bald_interior", "bald_local", "entropy", "entropy_interior", "variance",
        "random", "foreground_random", "balanced_random", "oracle",
    }  # fmt: skip
    assert set(without_truth()) == set(ALL) - {"oracle"}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("seed", range(3))
def test_scores_are_finite_float64_of_the_maps_shape(name, seed):
    scores = score_map(name, some_maps(seed), generator())
    assert scores.dtype == np.float64
    assert scores.shape == (40, 48)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("name", ALL)
def test_maps_in_half_precision_give_scores_in_double(name):
    maps = some_maps()
    half = {
        f: getattr(maps, f).astype(np.float16) for f in ("probability", "entropy", "mutual_information", "variance")
    }
    assert score_map(name, Maps(**half, truth=maps.truth), generator()).dtype == np.float64


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("object_there", [False, True])
def test_maps_without_any_uncertainty_still_give_points(name, p, object_there):
    truth = np.full((20, 30), object_there)
    found = suggest(name, flat_maps(p, truth=truth), 5, spacing=5, generator=generator())
    wrong = object_there != (p >= 0.5)
    assert bool(found) == (name != "oracle" or wrong)
    assert all(one.positive == (p >= 0.5) for one in found)
    assert len(set(places(found))) == len(found)


@pytest.mark.parametrize("name", ALL)
def test_suggestions_are_spaced_off_the_border_and_off_earlier_clicks(name):
    earlier = np.array([[20.5, 20.25], [3, 3]])
    maps = some_maps(shape=(64, 64))
    found = suggest(name, maps, 10, spacing=9, border=4, earlier=earlier, earlier_radius=7, generator=generator())
    points = np.array(places(found))
    gaps = np.linalg.norm(points[:, None] - points[None], axis=-1) + 99 * np.eye(len(points))
    assert len(points) == 10
    assert gaps.min() >= 9
    assert np.linalg.norm(points[:, None] - earlier[None], axis=-1).min() >= 7
    assert points.min() >= 4
    assert points.max() <= 59


@pytest.mark.parametrize("name", ALL)
def test_the_label_is_what_the_model_expects_there(name):
    maps = some_maps()
    for one in suggest(name, maps, 8, spacing=5, generator=generator()):
        assert one.positive == (maps.probability[one.y, one.x] >= 0.5)


@pytest.mark.parametrize("name", CERTAIN)
@pytest.mark.parametrize("axis", [0, 1])
def test_flipping_the_maps_flips_the_scores(name, axis):
    maps = some_maps()
    flipped = Maps(
        *(np.flip(getattr(maps, field.name), axis) for field in dataclasses.fields(maps) if field.name != "clicks")
    )
    scores = score_map(name, maps, generator())
    np.testing.assert_allclose(score_map(name, flipped, generator()), np.flip(scores, axis), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", CERTAIN)
def test_strategies_that_do_not_draw_are_greedy_on_their_scores_and_need_no_generator(name):
    maps = some_maps()
    found = suggest(name, maps, 5, spacing=7)
    scores = score_map(name, maps, generator())
    assert places(found) == pick(scores, 5, spacing=7)
    assert [one.score for one in found] == sorted((scores[y, x] for x, y in places(found)), reverse=True)


@pytest.mark.parametrize("name", ["bald", "entropy", "variance"])
def test_plain_strategies_take_their_maps_maximum(name):
    maps = some_maps()
    wanted = {"bald": maps.mutual_information, "entropy": maps.entropy, "variance": maps.variance}[name]
    (found,) = suggest(name, maps, 1)
    assert wanted[found.y, found.x] == wanted.max() == found.score


def test_bald_region_prefers_a_region_to_a_pixel():
    information = np.zeros((64, 64))
    information[10, 10] = 5
    information[30:50, 30:50] = 1
    maps = Maps(np.full((64, 64), 0.5), information, information, information)
    ((found,), (pixel,)) = (suggest(name, maps, 1) for name in ("bald_region", "bald"))
    assert (pixel.x, pixel.y) == (10, 10)
    assert (found.x, found.y) in {(39, 39), (39, 40), (40, 39), (40, 40)}


def test_bald_region_is_the_gaussian_sum_of_what_is_in_the_image():
    maps = some_maps()
    y, x = np.mgrid[:40, :48]
    weights = np.exp(-((y - 3.0) ** 2 + (x - 20.0) ** 2) / (2 * 8**2)) / (2 * np.pi * 8**2)
    near = (abs(y - 3) <= 32) & (abs(x - 20) <= 32)  # SciPy cuts at four sigmas
    expected = (weights * maps.mutual_information)[near].sum()
    assert score_map("bald_region", maps, generator())[3, 20] == pytest.approx(expected, rel=1e-3)


def uncertain_square():
    entropy = np.full((30, 30), 0.1)
    entropy[8:17, 5:14] = 0.6
    return Maps(np.full((30, 30), 0.7), entropy, np.arange(900.0).reshape(30, 30) / 1e4, entropy)


def test_interior_strategies_take_the_middle_of_the_uncertain_region():
    maps = uncertain_square()
    (found,) = suggest("entropy_interior", maps, 1)
    assert (found.x, found.y, found.score) == (9, 12, pytest.approx(0.6 * 5))
    (found,) = suggest("bald_interior", maps, 1)
    assert (found.x, found.y) == (9, 12)
    assert found.score == pytest.approx(maps.mutual_information[12, 9] * 5)


def test_outside_the_uncertain_region_the_order_is_that_of_the_quantity():
    maps = uncertain_square()
    first, second = suggest("bald_interior", maps, 2, spacing=14)
    assert (first.x, first.y) == (9, 12)
    assert (second.x, second.y) == (29, 29)
    assert interior(maps)[8:17, 5:14].min() == 1 > interior(maps)[0, 0] > 0


def two_regions():
    """Two uncertain squares, the left one the larger."""
    p = np.full((96, 96), 0.001)
    p[30:66, 10:40] = p[38:58, 66:86] = 0.5
    nothing = np.zeros_like(p)
    return Maps(p, nothing, nothing, nothing)


def test_bald_local_goes_elsewhere_once_a_region_is_clicked():
    (first,) = suggest("bald_local", two_regions(), 1)
    (second,) = suggest("bald_local", two_regions(), 1, earlier=[(first.x, first.y)])
    (third,) = suggest("bald_local", two_regions(), 1, earlier=[(second.x, second.y), (first.x, first.y)])
    assert first.x < 40 < 66 <= second.x
    assert third.x < 40
    assert first.score > second.score > third.score


def test_bald_local_reads_the_clicks_and_their_order_does_not_matter():
    maps, clicks = some_maps(), [(10, 12), (30, 5), (10.5, 12.25)]
    (found,), (turned,) = (suggest("bald_local", maps, 1, earlier=earlier) for earlier in (clicks, clicks[::-1]))
    assert (found.x, found.y, found.score) == (turned.x, turned.y, pytest.approx(turned.score))
    clicked = maps.after(np.array(clicks))
    assert found.score == score_map("bald_local", clicked, generator())[found.y, found.x]


@pytest.mark.parametrize("name", [name for name in CERTAIN if name != "bald_local"])
def test_other_scores_do_not_depend_on_the_clicks(name):
    maps = some_maps()
    clicked = maps.after([(10.0, 12.0)])
    np.testing.assert_array_equal(*(score_map(name, one, generator()) for one in (maps, clicked)))


@pytest.mark.parametrize("name", RANDOM)
def test_the_same_generator_state_gives_the_same_points_and_another_seed_others(name):
    maps = some_maps()
    first, again, other = (places(suggest(name, maps, 6, spacing=3, generator=generator(seed))) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("name", RANDOM)
def test_a_random_strategy_without_a_generator_is_refused(name):
    with pytest.raises(ValueError, match=f"^Strategy {name} draws at random: give a seeded generator"):
        suggest(name, some_maps(), 1)


def share(name, maps, draws, **rule):
    """Chance of each pixel to be the last of `count` points: (H, W)."""
    stream, hits = generator(), np.zeros(maps.probability.shape)
    for _ in range(draws):
        last = suggest(name, maps, generator=stream, **rule)[-1]
        hits[last.y, last.x] += 1
    return hits / draws


def test_random_draws_are_even_over_what_is_free():
    hits = share("random", flat_maps(0.3, (4, 5)), 8000, count=1, border=1, earlier=[(1, 1)])
    free = np.zeros((4, 5), dtype=bool)
    free[1:3, 1:4] = True
    free[1, 1] = False
    np.testing.assert_allclose(hits, free / free.sum(), atol=0.02)


def test_later_random_draws_are_even_over_what_the_earlier_ones_left():
    """Of five pixels in a row, spacing 2: the exact chances of the second point, by hand."""
    hits = share("random", flat_maps(0.3, (1, 5)), 8000, count=2, spacing=2)
    left = {0: [2, 3, 4], 1: [3, 4], 2: [0, 4], 3: [0, 1], 4: [0, 1, 2]}
    expected = np.zeros(5)
    for places_left in left.values():
        expected[places_left] += 1 / 5 / len(places_left)
    np.testing.assert_allclose(hits[0], expected, atol=0.02)


def one_pixel_object(shape=(40, 40), at=(20, 15)):
    p = np.full(shape, 0.1)
    p[at[1], at[0]] = 0.9
    return Maps(p, p, p, p)


def test_balanced_random_gives_each_side_half_of_the_points_under_any_constraints():
    maps = one_pixel_object(shape=(30, 20), at=(10, 15))
    maps.probability[12:18, 6:14] = 0.8
    rule = {"border": 5, "earlier": [(7, 13)], "earlier_radius": 4}
    for count in (1, 2):
        hits = share("balanced_random", maps, 3000, count=count, spacing=2, **rule)
        assert hits[maps.foreground].sum() == pytest.approx(0.5, abs=0.04)


def test_balanced_random_takes_the_other_side_where_one_has_nothing_free():
    found = suggest("balanced_random", one_pixel_object(), 5, spacing=1, generator=generator())
    assert len(found) == 5
    assert sum(one.positive for one in found) <= 1


def test_foreground_random_stays_within_eight_pixels_of_the_predicted_mask():
    hits = share("foreground_random", one_pixel_object(), 6000, count=1)
    y, x = np.mgrid[:40, :40]
    near = (x - 20) ** 2 + (y - 15) ** 2 <= 64
    assert not hits[~near].any()
    np.testing.assert_allclose(hits, near / near.sum(), atol=0.006)


def test_foreground_random_goes_elsewhere_when_there_is_nothing_left_near_the_mask():
    found = suggest(
        "foreground_random", one_pixel_object(), 2, earlier=[(20, 15)], earlier_radius=9, generator=generator()
    )
    assert len(found) == 2
    assert suggest("foreground_random", flat_maps(0.1), 1, generator=generator())


def test_the_oracle_cannot_be_used_without_the_truth():
    maps = some_maps(truth=False)
    text = "^Strategy oracle needs the true mask, and these maps have none: it is for evaluation only"
    with pytest.raises(ValueError, match=text):
        suggest("oracle", maps, 1)
    with pytest.raises(ValueError, match=text):
        score_map("oracle", maps, generator())
    with pytest.raises(ValueError, match="evaluation only"):
        STRATEGIES["oracle"].score(maps, generator())


@unhurried
@given(st.integers(0, 1000))
def test_the_oracle_points_at_the_deepest_errors_only(seed):
    maps = some_maps(seed)
    found = suggest("oracle", maps, 30, spacing=4)
    depths = error_depth(maps.truth, maps.foreground)
    assert found[0].score == depths.max()
    assert all(maps.truth[one.y, one.x] != one.positive for one in found)


@pytest.mark.parametrize("name", without_truth())
def test_nothing_but_the_oracle_sees_the_truth(name):
    maps = some_maps()
    lied_to = dataclasses.replace(maps, truth=~maps.truth)
    ignorant = dataclasses.replace(maps, truth=None)
    with_truth, *others = (suggest(name, one, 5, generator=generator()) for one in (maps, lied_to, ignorant))
    assert others == [with_truth, with_truth]


@pytest.mark.parametrize(("height", "width"), [(3, 3), (2, 600), (1, 1), (700, 333)])
@pytest.mark.parametrize("name", ["entropy", "random"])
def test_suggestions_land_in_the_original_and_come_back(name, height, width):
    found = suggest(name, some_maps(shape=(256, 256)), 10, generator=generator())
    original = to_original(np.array(places(found)), image_h=height, image_w=width)
    assert (original >= 0).all()
    assert (original < [width, height]).all()
    back = to_low_res(original, image_h=height, image_w=width)
    assert (abs(back - places(found)) <= np.maximum(128 / np.array([width, height]), 0.5) + 1e-9).all()


def test_an_unknown_strategy_is_answered_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"^There is no strategy 'bold'\. Choose one of bald, bald_region, .*oracle\.$"
    ):
        suggest("bold", some_maps(), 1)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"entropy": np.full((4, 4), np.nan)}, "The map of entropy has 16 pixels that are not finite"),
        ({"variance": np.zeros((4, 5))}, r"The map of variance has shape \(4, 5\): give \(H, W\) maps of one shape"),
        ({"probability": np.full((4, 4), 1.5)}, r"leaves \[0, 1\]: give probabilities, not logits"),
        ({"truth": np.zeros((4, 5), dtype=bool)}, r"The truth is \(4, 5\), the maps are \(4, 4\)"),
        ({"truth": np.zeros((4, 4))}, "The truth is float64"),
    ],
)
def test_maps_check_themselves(change, text):
    fine = {name: np.zeros((4, 4)) for name in ("probability", "entropy", "mutual_information", "variance")}
    with pytest.raises(ValueError, match=text):
        Maps(**(fine | change))
