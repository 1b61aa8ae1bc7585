"""Quantities against adaptive integration, Monte Carlo, the small-variance limit, and what must not change them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from sam_laplace_assets.domain.metrics import bernoulli_variance, binary_entropy
from sam_laplace_assets.domain.quantities import HERMITE_NODES, LOG_2, Quantities, quantities

NAMES = ["probability", "predictive_entropy", "expected_entropy", "mutual_information"]
MEANS = [0.0, 0.3, -1.0, 2.5, -5.0, 10.0, -20.0]
DEVIATIONS = [0.01, 0.3, 0.99, 1.0, 1.01, 2.0, 4.0, 8.0, 30.0, 100.0]
GRID = torch.cartesian_prod(torch.tensor(MEANS).double(), torch.tensor(DEVIATIONS).double())


def of(mean, variance, dtype=torch.float64, **options):
    return quantities(torch.as_tensor(mean, dtype=dtype), torch.as_tensor(variance, dtype=dtype), **options)


def table(found):
    return torch.stack([getattr(found, name) for name in NAMES])


def some_pixels(n=3000, seed=0):
    """Means and variances of which some are saturated, some certain, some wide."""
    generator = torch.Generator().manual_seed(seed)
    mean = 8 * torch.randn(n, generator=generator).double()
    variance = torch.exp(6 * torch.randn(n, generator=generator).double())
    return mean, variance


def sigmoid(z):
    return 1 / (1 + math.exp(-z)) if z > 0 else math.exp(z) / (1 + math.exp(z))


def entropy(z):
    e = math.exp(-abs(z))
    return math.log1p(e) + abs(z) * e / (1 + e)


def integrated(function, mean, deviation):
    """E[function(f)] by scipy's adaptive rule, piece by piece around the normal's bulk and around f = 0."""

    def integrand(z):
        return function(z) * math.exp(-(((z - mean) / deviation) ** 2) / 2) / deviation / math.sqrt(2 * math.pi)

    edges = {mean + k * deviation for k in (-12, -6, -3, -1, 0, 1, 3, 6, 12)}
    edges |= {float(k) for k in (-40, -10, -3, 0, 3, 10, 40) if abs(k - mean) < 12 * deviation}
    pieces = zip(sorted(edges)[:-1], sorted(edges)[1:], strict=True)
    return sum(quad(integrand, *piece, epsabs=1e-14, epsrel=1e-12)[0] for piece in pieces)


def test_all_quantities_are_the_integrals_at_every_mean_and_deviation():
    found = table(of(GRID[:, 0], GRID[:, 1].square()))
    p = np.array([integrated(sigmoid, *pair) for pair in GRID.tolist()])
    expected = np.array([integrated(entropy, *pair) for pair in GRID.tolist()])
    predictive = -p * np.log(p) - (1 - p) * np.log1p(-p)
    oracle = np.stack([p, predictive, expected, predictive - expected])
    np.testing.assert_allclose(found.numpy(), oracle, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("mean", "deviation"), [(-35.0, 0.5), (-20.0, 1.5), (-30.0, 2.0), (-35.0, 4.0), (-45.0, 6.0), (-400.0, 80.0)]
)
def test_saturated_pixels_keep_their_relative_precision(mean, deviation):
    """Against a dense trapezoid, whose terms are all positive and whose error falls like exp(-(deviation / step)^2)."""
    step = 0.02
    z = torch.arange(mean - 12 * deviation, mean + deviation**2 + 12 * deviation, step, dtype=torch.float64)
    density = torch.exp(-((z - mean) / deviation).square() / 2) * step / deviation / math.sqrt(2 * math.pi)
    p, expected = (density * torch.sigmoid(z)).sum(), (density * binary_entropy(z)).sum()
    information = -torch.xlogy(p, p) - (1 - p) * torch.log1p(-p) - expected
    found = of([mean], [deviation**2])
    torch.testing.assert_close(found.probability, p[None], rtol=1e-8, atol=0)
    torch.testing.assert_close(found.expected_entropy, expected[None], rtol=1e-8, atol=0)
    torch.testing.assert_close(found.mutual_information, information[None], rtol=1e-6, atol=0)


def test_mi_is_not_negative_where_probabilities_vanish_from_float64():
    mean = torch.linspace(-712, -705, 10_000).double()
    for variance in (2e-7, 1e-5, 1e-2, 0.5, 2.0, 1e3):
        assert (of(mean, torch.full_like(mean, variance)).mutual_information >= 0).all()


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 0.5), (1.5, 1.0), (-3.0, 2.5), (4.0, 8.0), (0.5, 100.0)])
def test_probability_and_expected_entropy_are_the_means_of_a_million_draws(mean, deviation):
    logits = mean + deviation * torch.randn(1_000_000, generator=torch.Generator().manual_seed(0)).double()
    found = of([mean], [deviation**2])
    for draws, value in (
        (torch.sigmoid(logits), found.probability),
        (binary_entropy(logits), found.expected_entropy),
    ):
        assert abs(draws.mean() - value).item() < 4 * (draws.std() / 1000).item()


def test_mi_of_a_tiny_variance_is_p_times_one_minus_p_times_half_the_variance():
    mean = torch.tensor([0.0, 1.0, -4.0, 12.0, -30.0], dtype=torch.float64)
    for variance in (1e-300, 1e-30, 1e-12, 0.99e-7, 1.01e-7, 1e-5, 1e-4):
        found = of(mean, torch.full_like(mean, variance)).mutual_information
        torch.testing.assert_close(found, bernoulli_variance(mean) * variance / 2, rtol=1e-3, atol=0)


@pytest.mark.parametrize("deviation", [edge for edge, _ in HERMITE_NODES])
def test_few_nodes_are_as_good_as_64_at_the_widest_logit_that_they_are_used_for(deviation):
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    weights = torch.tensor(weights / weights.sum())
    mean = torch.linspace(-30, 0, 301).double()
    logits = mean[:, None] + deviation * torch.tensor(nodes)
    p, expected = torch.sigmoid(logits) @ weights, binary_entropy(logits) @ weights
    found = of(mean, torch.full_like(mean, deviation**2))
    torch.testing.assert_close(found.probability, p, rtol=2e-12, atol=0)
    torch.testing.assert_close(found.expected_entropy, expected, rtol=2e-12, atol=0)
    information = -torch.xlogy(p, p) - (1 - p) * torch.log1p(-p) - expected
    torch.testing.assert_close(found.mutual_information, information, rtol=1e-10, atol=1e-15)


def test_mi_is_continuous_where_the_rules_change():
    for variance, tolerance in ((1e-7, 1e-5), *((edge**2, 1e-5) for edge, _ in HERMITE_NODES)):
        below, above = (of(MEANS, [variance * (1 + d)] * len(MEANS)).mutual_information for d in (-1e-6, 1e-6))
        torch.testing.assert_close(below, above, rtol=tolerance, atol=1e-12)


def test_mi_without_variance_is_zero_and_the_entropies_are_those_of_the_logit():
    mean = torch.tensor([0.0, -3.0, 17.0, 800.0, -1e4], dtype=torch.float64)
    found = of(mean, torch.zeros(5))
    assert not found.mutual_information.any()
    torch.testing.assert_close(found.probability, torch.sigmoid(mean), rtol=1e-14, atol=0)
    for entropies in (found.predictive_entropy, found.expected_entropy):
        torch.testing.assert_close(entropies, binary_entropy(mean), rtol=1e-12, atol=1e-320)


def test_an_endless_variance_is_a_coin_whose_label_says_everything():
    found = of([3.0], [1e30])
    assert found.probability.item() == pytest.approx(0.5)
    assert found.expected_entropy.item() == pytest.approx(0, abs=1e-12)
    assert found.mutual_information.item() == pytest.approx(LOG_2)


@given(
    st.floats(-1e4, 1e4) | st.sampled_from([1e4, -1e4, 0.0, 1e300]),
    st.floats(0, 1e5) | st.sampled_from([0.0, 5e-324, 1.0, 4.0, 1e4, 1e300]),
)
def test_no_mean_and_no_variance_leaves_the_range_of_an_entropy(mean, variance):
    found = table(of([mean], [variance]))
    assert torch.isfinite(found).all()
    assert (found >= 0).all()
    assert found[0] <= 1
    assert (found[1:] <= LOG_2).all()


@given(st.floats(-50, 50), st.floats(0, 1e4))
def test_the_difference_of_the_entropies_is_mi(mean, variance):
    found = of([mean], [variance])
    difference = (found.predictive_entropy - found.expected_entropy).item()
    assert difference == pytest.approx(found.mutual_information.item(), abs=1e-10)


def test_the_sign_of_the_mean_mirrors_the_probability_and_nothing_else():
    mean, variance = some_pixels()
    found, mirrored = quantities(mean, variance), quantities(-mean, variance)
    assert torch.equal(table(found)[1:], table(mirrored)[1:])
    torch.testing.assert_close(found.probability, 1 - mirrored.probability, rtol=0, atol=2e-16)


@pytest.mark.parametrize("chunk_pixels", [1, 7, 1000, 1 << 20])
def test_the_size_of_a_chunk_changes_nothing(chunk_pixels):
    mean, variance = some_pixels(200)
    found = quantities(mean, variance, chunk_pixels=chunk_pixels)
    torch.testing.assert_close(table(found), table(quantities(mean, variance)), rtol=0, atol=5e-15)


def test_pixels_do_not_know_of_each_other():
    mean, variance = some_pixels()
    order = torch.randperm(len(mean), generator=torch.Generator().manual_seed(1))
    permuted = quantities(mean[order], variance[order])
    torch.testing.assert_close(table(permuted), table(quantities(mean, variance))[:, order], rtol=0, atol=5e-15)


def test_an_item_whose_pixels_fill_whole_chunks_is_bit_by_bit_the_same_in_a_batch():
    mean, variance = (each.reshape(3, -1) for each in some_pixels(3 * 1024))
    whole = table(quantities(mean, variance, chunk_pixels=512))
    alone = [table(quantities(mean[i], variance[i], chunk_pixels=512)) for i in range(3)]
    assert torch.equal(torch.stack(alone, 1), whole)


def test_any_shape_comes_back_in_float64():
    mean, variance = some_pixels(24)
    flat = table(quantities(mean, variance))
    shaped = quantities(mean.reshape(2, 3, 4), variance.reshape(2, 3, 4))
    assert isinstance(shaped, Quantities)
    assert torch.equal(table(shaped), flat.reshape(4, 2, 3, 4))
    assert table(quantities(mean[0], variance[0])).tolist() == flat[:, 0].tolist()
    assert quantities(torch.zeros(0, 5), torch.zeros(0, 5)).probability.shape == (0, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_lower_precision_is_only_that_of_the_input(dtype):
    mean, variance = (each.clamp(-1e4, 1e4).to(dtype) for each in some_pixels())
    assert torch.equal(table(quantities(mean, variance)), table(quantities(mean.double(), variance.double())))


def test_inputs_keep_their_values():
    mean, variance = some_pixels(10)
    before = mean.clone(), variance.clone()
    quantities(mean, variance)
    assert torch.equal(mean, before[0])
    assert torch.equal(variance, before[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_an_error_names_the_quantity_the_item_and_the_pixel(dtype):
    good, broken = torch.ones(3, 4, 5, dtype=dtype), torch.ones(3, 4, 5, dtype=dtype)
    broken[1, 2, 3] = float("nan")
    with pytest.raises(ValueError, match=r"^The mean logit of item 1 is nan at pixel \(2, 3\)\. Look at"):
        quantities(broken, good)
    broken[2, 0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"variance of item 1 is nan at pixel \(2, 3\) \(2 such pixels in all\)\."):
        quantities(good, broken)
    broken[1, 2, 3], broken[2, 0, 0] = 0, -0.5
    with pytest.raises(ValueError, match=r"variance of item 2 is -0.5 at pixel \(0, 0\)\. A variance is not negative"):
        quantities(good, broken)


def test_a_single_number_and_a_wrong_shape_are_refused_too():
    with pytest.raises(ValueError, match=r"The mean logit of item 0 is inf\. Look at"):
        quantities(torch.tensor(float("inf")), torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"Means are \(2,\) and variances \(3,\)"):
        quantities(torch.zeros(2), torch.zeros(3))


def test_large_finite_values_are_finite():
    assert torch.isfinite(table(of([1e308, 1e308, 1e308], [1e308, 1e308, 1e308]))).all()
