"""Calibration read from the histogram against all pixels sorted, and against what is known in closed form."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_laplace_assets.domain import reliability
from sam_laplace_assets.domain.reliability import ProbabilityHistogram
from sam_laplace_assets.domain.scoring import Answers, Truth
from sam_laplace_assets_tests.domain.some_answers import pixels_of, some_answers

EDGES = np.linspace(0, 1, 16)


def binned_error(said, true):
    """ECE by a loop over 15 bins (a, b], the first one with its 0."""
    error = 0.0
    for low, high in itertools.pairwise(EDGES):
        inside = (said > low) & (said <= high) | (said == 0) & (low == 0)
        if inside.any():
            error += inside.mean() * abs(said[inside].mean() - true[inside].mean())
    return error


def equal_mass_error(p, y, bins=15):
    """Sort, cut into equal parts, share equal probabilities in proportion."""
    values, group, counts = np.unique(p, return_inverse=True, return_counts=True)
    labels = np.bincount(group, weights=y) / counts
    order = np.repeat(np.arange(len(values)), counts)
    parts = np.array_split(values[order] - labels[order], bins)
    return sum(abs(part.sum()) for part in parts) / len(p)


def answers_of(p, y, *, logits=False):
    """One row of pixels p (n,) with labels y (n,); their band is empty."""
    masks = torch.from_numpy(np.asarray(y, dtype=bool))[None, None]
    truth = Truth(np.array([0]), masks, torch.zeros_like(masks))
    values = torch.from_numpy(np.asarray(p, dtype=np.float64))[None, None]
    return Answers.from_logits(truth, values) if logits else Answers.from_probabilities(truth, values)


def histogram_of(p, y):
    return ProbabilityHistogram.of(answers_of(p, y))


@pytest.mark.parametrize("band", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_ece_of_foreground_and_of_confidence_are_those_of_all_pixels(seed, band):
    answers = some_answers(8, seed=seed)
    histogram, (p, y) = ProbabilityHistogram.of(answers), pixels_of(answers, band=band)
    assert histogram.foreground(band=band).error == pytest.approx(binned_error(p, y), rel=1e-12)
    confidence, right = np.maximum(p, 1 - p), (p > 0.5) == y
    assert histogram.confidence(band=band).error == pytest.approx(binned_error(confidence, right), rel=1e-12)
    assert histogram.error_rate(band=band) == pytest.approx(1 - right.mean(), rel=1e-12)


def test_the_diagram_holds_every_pixel_once_and_its_bins_mean_what_they_hold():
    answers = some_answers(8)
    diagram, (p, y) = ProbabilityHistogram.of(answers).foreground(), pixels_of(answers)
    assert diagram.counts.sum() == len(p)
    assert (np.abs(diagram.means - diagram.centres) <= 1 / 30 + 1e-12).all()
    inside = (p > 7 / 15) & (p <= 8 / 15)
    middle = np.flatnonzero(np.isclose(diagram.centres, 0.5))[0]
    assert diagram.counts[middle] == inside.sum()
    assert diagram.means[middle] == pytest.approx(p[inside].mean(), rel=1e-12)
    assert diagram.frequencies[middle] == pytest.approx(y[inside].mean(), rel=1e-12)


@pytest.mark.parametrize("band", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_adaptive_ece_is_within_its_bound_of_the_sorted_one(seed, band):
    answers = some_answers(60, seed=seed, scale=1 + seed)
    p, y = pixels_of(answers, band=band)
    whole = len(p) - len(p) % 15  # where all parts have the same size, array_split is the definition
    p, y = p[:whole], y[:whole]
    found = histogram_of(p, y).adaptive_error()
    assert abs(found.value - equal_mass_error(p, y)) <= found.bound < 0.01


def test_adaptive_ece_of_the_band_is_that_of_its_pixels():
    answers = some_answers(20)
    alone = histogram_of(*pixels_of(answers, band=True)).adaptive_error()
    found = ProbabilityHistogram.of(answers).adaptive_error(band=True)
    assert abs(found.value - alone.value) <= found.bound + alone.bound


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.floats(0.01, 8))
def test_the_bound_of_adaptive_ece_holds_when_probabilities_crowd_into_few_bins(seed, levels, scale):
    rng = np.random.default_rng(seed)
    n = 15 * int(rng.integers(1, 40))
    p = 1 / (1 + np.exp(-scale * rng.integers(-levels, levels + 1, size=n) - rng.uniform(0, 1e-3, size=n)))
    y = rng.random(n) < rng.random()
    found = histogram_of(p, y).adaptive_error()
    assert abs(found.value - equal_mass_error(p, y)) <= found.bound


def test_the_bound_counts_no_equal_probabilities():
    p, y = np.repeat([1e-9, 0.2, 0.9], [500, 300, 100]), np.arange(900) % 3 == 0
    found = histogram_of(p, y).adaptive_error()
    assert found.value == pytest.approx(equal_mass_error(p, y), rel=1e-9)
    assert found.bound < 1e-9


def test_equal_probabilities_need_no_order():
    p, y = np.full(300, 0.3), np.arange(300) < 120
    assert histogram_of(p, y).adaptive_error().value == pytest.approx(0.1, rel=1e-9)
    assert histogram_of(p, y[::-1].copy()).adaptive_error().value == pytest.approx(0.1, rel=1e-9)


def test_calibrated_pixels_have_an_ece_within_its_sampling_error():
    rng = np.random.default_rng(0)
    n = 300_000
    p = rng.beta(0.5, 0.8, size=n)
    histogram = histogram_of(p, rng.random(n) < p)
    # In expectation at most the sum over bins of sqrt(p (1 - p) n_b) / n, below 15 sqrt(n / 15 / 4) / n.
    limit = 0.5 * np.sqrt(15 / n)
    assert histogram.foreground().error < limit
    assert histogram.confidence().error < limit
    assert histogram.adaptive_error().value < limit


def test_a_constant_prediction_is_off_by_its_distance_from_the_frequency():
    y = np.arange(1000) < 250
    for p in (0.0, 1e-9, 0.1, 0.7, 1.0):
        histogram = histogram_of(np.full(1000, p), y)
        assert histogram.foreground().error == pytest.approx(abs(p - 0.25), abs=1e-12)
        assert histogram.adaptive_error().value == pytest.approx(abs(p - 0.25), abs=1e-12)


def test_too_much_and_too_little_foreground_cancel_in_confidence_only():
    p = np.repeat([0.1, 0.9], 500)
    y = np.concatenate([np.arange(500) < 100, np.arange(500) < 500])  # 0.2 where 0.1 was said, 1.0 where 0.9 was
    histogram = histogram_of(p, y)
    assert histogram.foreground().error == pytest.approx(0.1)
    assert histogram.confidence().error == pytest.approx(0.0, abs=1e-12)


def test_calling_foreground_background_changes_no_error():
    answers = some_answers(5)
    other = Answers.from_logits(replace(answers.truth, masks=~answers.truth.masks), -answers.logits)
    one, two = ProbabilityHistogram.of(answers), ProbabilityHistogram.of(other)
    assert one.confidence().error == pytest.approx(two.confidence().error, rel=1e-9)
    assert one.foreground().error == pytest.approx(two.foreground().error, rel=1e-9)
    bound = one.adaptive_error().bound + two.adaptive_error().bound
    assert one.adaptive_error().value == pytest.approx(two.adaptive_error().value, abs=bound)


def test_the_fine_bins_are_ordered_and_know_their_wide_bin_and_their_side():
    logits = np.unique(np.concatenate([np.linspace(-40, 40, 200_001), np.linspace(-3, 3, 100_001), [1e-30, -1e-30]]))
    values = torch.from_numpy(logits)
    bins = reliability._bins(values, torch.sigmoid(values)).numpy()
    assert (np.diff(bins) >= 0).all()
    assert (bins.min(), bins.max()) == (0, reliability.FINE - 1)
    p = torch.sigmoid(values).numpy()
    np.testing.assert_array_equal(reliability._wide_bins()[bins], np.searchsorted(EDGES, p, side="left") - 1)
    np.testing.assert_array_equal(reliability._is_foreground()[bins], logits > 0)
    histogram = ProbabilityHistogram.of(answers_of(logits, logits > 0, logits=True))
    assert (histogram.most - histogram.least).max() < 2.5e-4


def test_no_edge_of_a_wide_bin_is_so_near_an_edge_of_a_step_that_rounding_could_part_them():
    edges = np.arange(1, 15)
    places = np.log(edges / (15 - edges)) * reliability.STEPS
    assert np.abs(places - np.round(places)).min() > 1e-3


def test_a_band_without_pixels_has_no_error():
    histogram = histogram_of([0.2, 0.4], [False, True])
    assert histogram.foreground(band=True).error is None
    assert histogram.confidence(band=True).error is None
    assert histogram.adaptive_error(band=True) is None
    assert histogram.error_rate(band=True) is None


def test_histograms_add_up():
    one, two = some_answers(3, seed=1), some_answers(4, seed=2)
    truth = Truth.of(np.arange(7), torch.cat([one.truth.masks, two.truth.masks]))
    together = ProbabilityHistogram.of(Answers.from_logits(truth, torch.cat([one.logits, two.logits])))
    both = ProbabilityHistogram.of(one) + ProbabilityHistogram.of(two)
    np.testing.assert_array_equal(both.counts, together.counts)
    np.testing.assert_allclose(both.sums, together.sums, rtol=1e-12)
