"""The experiment on a predictor whose answer is known: `NearestClick` stands for SAM, head and posterior."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from sam_laplace_assets.domain.acquisition import STRATEGIES, Maps, suggest
from sam_laplace_assets.domain.answering import Answer
from sam_laplace_assets.domain.clicks import best, depth
from sam_laplace_assets.domain.experiment import (
    AnswerMaps,
    Design,
    Run,
    play,
    prompt_set_of,
    start,
    trace_from_json,
    trace_to_json,
)
from sam_laplace_assets.domain.geometry import to_low_res
from sam_laplace_assets.domain.interaction import Protocol, mask_iou
from sam_laplace_assets.domain.sam import Embedding

ALL = list(STRATEGIES)
READS_NO_QUANTITY = ("variance", "random", "foreground_random", "balanced_random", "oracle")
SIZE = (120, 90)
Y, X = np.mgrid[:256, :256]


@dataclass
class NearestClick:
    """Fake: each pixel takes the label of its nearest click; SAM's mask lacks its first row of pixels."""

    calls: tuple = ()

    def answer(self, embedding, prompt_sets):
        self.calls += (list(prompt_sets),)
        return [self._one(one) for one in prompt_sets]

    def _one(self, prompt_set):
        off, on = (self._distance(points) for points in (prompt_set.neg, prompt_set.pos))
        logits = ((off - on) / 10).astype(np.float32)
        variance = np.minimum(np.minimum(off, on), 100).astype(np.float32) / 100
        return Answer(np.where(Y == 0, -1, logits).astype(np.float16), logits, variance)

    def _distance(self, points):
        low_res = to_low_res(np.array(points).reshape(-1, 2), image_h=SIZE[0], image_w=SIZE[1])
        return np.min([np.hypot(X - x, Y - y) for x, y in low_res], axis=0, initial=400.0)


@dataclass
class Perfect:
    """Fake: knows the truth from the second click on; before, a drawn error is in its answer."""

    truth: np.ndarray
    error: np.ndarray

    def answer(self, embedding, prompt_sets):
        masks = [self.truth if len(one.pos + one.neg) > 1 else self.truth ^ self.error for one in prompt_sets]
        return [Answer(np.where(mask, 1, -1).astype(np.float16), np.where(mask, 1, -1).astype(np.float32),
                       np.ones((256, 256), np.float32)) for mask in masks]  # fmt: skip


def embedding():
    return Embedding(torch.zeros(1, 1, 1, 1), SIZE, SIZE)


def blob():
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.hypot(y - 60, 1.4 * (x - 40)) < 25 + 8 * np.sin(3 * np.arctan2(y - 60, x - 40))


def runs(*strategies, seeds=(0,)):
    return [Run(strategy, seed) for strategy in strategies or ALL for seed in seeds]


def played(some_runs, *, answerer=None, sample_id="cat/1", jitter=2.0, first_click_jitter=3.0, clicks=5, mask=None):
    design = Design(Protocol(clicks=clicks, jitter=jitter), first_click_jitter)
    mask = blob() if mask is None else mask
    return play(answerer or NearestClick(), embedding(), mask, some_runs, sample_id=sample_id, design=design)


def as_json(traces):
    return {run.name: trace_to_json(trace) for run, trace in traces.items()}


@pytest.fixture(scope="module")
def together():
    return as_json(played(runs(seeds=(0, 1))))


@pytest.mark.parametrize("name", ALL)
def test_a_run_alone_does_what_it_does_among_all_others(together, name):
    for run in runs(name, seeds=(1, 0)):
        assert as_json(played([run]))[run.name] == together[run.name]


def test_another_sample_or_seed_draws_otherwise(together):
    other = as_json(played(runs("random"), sample_id="cat/2"))["random/0"]
    assert len({str(one["points"]) for one in (other, together["random/0"], together["random/1"])}) == 3


def test_all_strategies_of_a_seed_share_the_first_click_and_its_answer_is_asked_for_once():
    answerer = NearestClick()
    traces = played(runs(seeds=(0, 1)), answerer=answerer)
    for seed in (0, 1):
        firsts = [trace for run, trace in traces.items() if run.seed == seed]
        assert len({tuple(trace.points[0]) for trace in firsts}) == 1
        assert len({(trace.ious[0], trace.sam_ious[0]) for trace in firsts}) == 1
    assert len(answerer.calls[0]) == 2
    assert len(answerer.calls) == 5
    assert all(len(set(asked)) == len(asked) <= 2 * len(ALL) for asked in answerer.calls)


def test_without_jitter_the_first_click_is_the_deepest_point_whatever_the_seed():
    traces = played(runs("entropy", seeds=(0, 7)), jitter=0, first_click_jitter=0)
    one, other = traces.values()
    np.testing.assert_array_equal(one.points, other.points)


def test_the_oracle_asks_at_the_drawn_error_and_a_perfect_answer_then_ends_it():
    truth = (abs(X - 120) < 60) & (abs(Y - 130) < 50)
    error = np.hypot(X - 150, Y - 110) < 12.5
    (trace,) = played(runs("oracle"), answerer=Perfect(truth, error), jitter=0, first_click_jitter=0, mask=truth,
                      clicks=20).values()  # fmt: skip
    np.testing.assert_array_equal(trace.points, [best(depth(truth)), (150, 110)])
    np.testing.assert_array_equal(trace.ious, [mask_iou(truth ^ error, truth), 1])
    np.testing.assert_array_equal(trace.curve(20), [trace.ious[0], *[1] * 19])
    np.testing.assert_array_equal(trace.curve(20, source="sam"), trace.curve(20))


@pytest.mark.parametrize("name", ["entropy", "balanced_random"])
def test_both_masks_are_scored_on_the_clicks_so_far(name):
    (trace,) = played(runs(name)).values()
    truth = start_truth()
    for k in range(1, 6):
        (answer,) = NearestClick().answer(None, [prompt_set_of(trace.points[:k], trace.labels[:k], original_size=SIZE)])
        assert trace.ious[k - 1] == mask_iou(answer.mask, truth)
        assert trace.sam_ious[k - 1] == mask_iou(answer.sam_mask, truth)


def start_truth():
    from sam_laplace_assets.domain.geometry import resize_nearest

    return resize_nearest(blob(), 256, 256)


def test_clicks_land_in_the_original_on_pixels_of_their_label():
    (trace,) = played(runs("random"), clicks=20).values()
    prompts = prompt_set_of(trace.points, trace.labels, original_size=SIZE)
    assert all(blob()[y, x] for x, y in prompts.pos)
    assert not any(blob()[y, x] for x, y in prompts.neg)
    assert len(prompts.pos) == trace.labels.sum()


@pytest.mark.parametrize("name", ALL)
def test_maps_that_are_computed_when_read_give_the_suggestions_of_those_that_are_given(name):
    (answer,) = NearestClick().answer(None, [prompt_set_of(np.array([[90, 110], [30, 30]]), np.array([True, False]),
                                                           original_size=SIZE)])  # fmt: skip
    found = answer.quantities
    given = Maps(found.probability.numpy(), found.predictive_entropy.numpy(), found.mutual_information.numpy(),
                 answer.variance)  # fmt: skip
    lazy, eager = (suggest(name, maps.showing(start_truth()), 4, generator=np.random.default_rng(1))
                   for maps in (AnswerMaps(answer), given))  # fmt: skip
    assert lazy == eager


@pytest.mark.parametrize("name", READS_NO_QUANTITY)
def test_strategies_that_read_the_mask_alone_compute_no_quantity(name, monkeypatch):
    def refuse(mean, variance):
        raise AssertionError("quantities were computed")

    monkeypatch.setattr("sam_laplace_assets.domain.quantities.quantities", refuse)
    assert len(next(iter(played(runs(name)).values())).ious) == 5


def test_quantities_of_an_answer_are_computed_once(monkeypatch):
    from sam_laplace_assets.domain import quantities

    calls, original = [], quantities.quantities
    monkeypatch.setattr(quantities, "quantities", lambda *given: calls.append(given) or original(*given))
    played(runs("entropy", "bald", "entropy_interior", "bald_region"), clicks=2)
    assert len(calls) == 1


def test_an_empty_mask_is_refused_by_name():
    with pytest.raises(
        ValueError, match=r"^The mask of cat/1 is empty at 256x256, so there is nothing to click on: drop"
    ):
        played(runs("entropy"), mask=np.zeros((40, 30), dtype=bool))
    speck = np.zeros((600, 600), dtype=bool)
    speck[0, 0] = True
    with pytest.raises(ValueError, match="empty at 256x256"):
        played(runs("entropy"), mask=speck)


def test_a_trace_survives_json(together):
    (trace,) = played(runs("entropy")).values()
    assert trace_to_json(trace_from_json(json.loads(json.dumps(trace_to_json(trace))))) == together["entropy/0"]


def test_a_run_is_told_from_its_name():
    assert Run.of("entropy_interior/12") == Run("entropy_interior", 12)
    with pytest.raises(ValueError, match="There is no strategy 'bold'"):
        Run.of("bold/0")


def test_a_design_checks_itself():
    with pytest.raises(ValueError, match="first_click_jitter is -1: give 0 or more"):
        Design(first_click_jitter=-1)


def test_the_first_click_depends_on_seed_and_sample_alone():
    design = Design(Protocol(clicks=3), 30.0)
    firsts = {name: start(start_truth(), Run(name, 3), sample_id="a", design=design).points[0] for name in ALL}
    assert len({tuple(point) for point in firsts.values()}) == 1
    others = {
        tuple(start(start_truth(), Run("entropy", 3), sample_id=str(n), design=design).points[0]) for n in range(9)
    }
    assert len(others) > 3
