"""The predictor against explicit weights on a few pixels, its own samples, and inputs that it must refuse."""

import functools

import pytest
import torch

from sam_laplace_assets.domain.curvature import fit_curvature
from sam_laplace_assets.domain.head import head_inputs
from sam_laplace_assets.domain.last_layer import quick_layout
from sam_laplace_assets.domain.metrics import binary_entropy
from sam_laplace_assets.domain.posterior import PosteriorRefused, build_laplace
from sam_laplace_assets.domain.predictive import predict
from sam_laplace_assets.domain.predictor import Predictor
from sam_laplace_assets.domain.quantities import quantities
from sam_laplace_assets.domain.weight_posterior import WeightPosterior
from sam_laplace_assets_tests.domain.some_rows import some_head, some_rows

HEAD = some_head()
X = some_rows(3, height=256, width=256).inputs
PIXELS = ((0, 0), (3, 250), (100, 130), (128, 128), (255, 17))
Y, XS = torch.tensor(PIXELS).T
APPROX = ["diagonal", "full"]


@functools.cache
def posterior(approx):
    """Wide enough that sampling and quadrature have something to say."""
    curvature = fit_curvature(HEAD, some_rows(8), approx=approx, logit_clip=20.0, batch_size=4)
    return build_laplace(HEAD, curvature, prior_precision=0.1, temperature=20.0)


def predictor(approx="diagonal", **options):
    return Predictor(HEAD, posterior(approx), **{"logit_clip": 20.0} | options)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def features_at_pixels():
    """(3, pixels, P) float64, the inputs of the last layer by its definition, then 1."""
    double = some_head().double()
    hidden = torch.relu(double.conv2(torch.relu(double.conv1(head_inputs(X, logit_clip=20.0).double()))))
    phi = hidden[:, :, Y, XS].movedim(1, -1)
    return torch.cat([phi, torch.ones_like(phi[..., :1])], dim=-1)


@pytest.mark.parametrize("approx", APPROX)
def test_mean_and_variance_are_phi_mean_and_phi_covariance_phi(approx):
    phi, laplace = features_at_pixels(), posterior(approx)
    precision = laplace.posterior_precision
    covariance = torch.linalg.inv(torch.diag(precision) if precision.ndim == 1 else precision)
    mean, variance = predictor(approx).logits(X)
    assert mean.shape == variance.shape == (3, 256, 256)
    torch.testing.assert_close(mean[:, Y, XS].double(), phi @ laplace.mean, rtol=1e-5, atol=1e-5)
    expected = torch.einsum("bnp,pq,bnq->bn", phi, covariance, phi)
    torch.testing.assert_close(variance[:, Y, XS].double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("approx", APPROX)
def test_a_covariance_predicts_as_the_posterior_that_it_is_of(approx):
    laplace = posterior(approx)
    covariance = laplace.posterior_variance if approx == "diagonal" else laplace.posterior_covariance
    weights = WeightPosterior.from_covariance(laplace.mean, covariance)
    found, expected = Predictor(HEAD, weights, logit_clip=20.0).logits(X[:1]), predictor(approx).logits(X[:1])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_logits_are_those_that_the_evaluation_scores():
    predictive = predict(posterior("full"), HEAD, quick_layout(head_inputs(X[:1], logit_clip=20.0)))
    mean, variance = predictor("full").logits(X[:1])
    assert torch.equal(mean, predictive.mean)
    assert torch.equal(variance, predictive.variance)


@pytest.mark.parametrize("approx", APPROX)
def test_an_item_is_answered_alone_as_in_a_batch(approx):
    ours = predictor(approx)
    whole = [*ours.logits(X), ours.probability(X), *ours.sample(X, 2, seeded())]
    for i in range(3):
        one = X[i : i + 1]
        alone = [*ours.logits(one), ours.probability(one), *ours.sample(one, 2, seeded())]
        assert all(torch.equal(a[0], b[i]) for a, b in zip(alone[:3], whole[:3], strict=True))
        assert all(torch.equal(a[0], b[i]) for a, b in zip(alone[3:], whole[3:], strict=True))


def test_float16_and_float32_inputs_of_one_value_say_the_same():
    ours = predictor()
    assert torch.equal(ours.probability(X[:1]), ours.probability(X[:1].float()))


def test_sams_logits_are_clipped_inside_and_x_stays_as_it_was():
    loud = X[:1].clone()
    loud[:, 0] *= 50
    before, ours = loud.clone(), predictor(logit_clip=3.0)
    assert torch.equal(ours.probability(loud), ours.probability(head_inputs(loud, logit_clip=3.0)))
    assert not torch.equal(ours.logits(loud)[0], predictor().logits(loud)[0])
    assert torch.equal(loud, before)


@pytest.mark.parametrize("approx", APPROX)
def test_samples_are_the_heads_under_the_librarys_weights(approx):
    drawn = posterior(approx).sample(4, generator=seeded(9))
    found = predictor(approx).sample(X, 4, seeded(9))
    assert found.shape == (4, 3, 256, 256)
    assert found.dtype == torch.float32
    expected = torch.einsum("bnp,sp->sbn", features_at_pixels(), drawn)
    torch.testing.assert_close(found[:, :, Y, XS].double(), expected, rtol=1e-5, atol=1e-5)


def test_the_generators_state_decides_the_samples_and_the_global_one_nothing():
    ours, generator = predictor("full"), seeded(4)
    state = generator.get_state()
    first, following = (ours.sample(X[:1], 2, generator) for _ in range(2))
    torch.manual_seed(123)
    generator.set_state(state)
    assert torch.equal(ours.sample(X[:1], 2, generator), first)
    assert not torch.equal(first, following)


@pytest.mark.parametrize("approx", APPROX)
def test_moments_of_samples_are_mean_and_variance(approx):
    n = 2000
    ours = predictor(approx)
    mean, variance = (each[0, Y, XS].double() for each in ours.logits(X[:1]))
    parts, generator = [], seeded(1)
    for _ in range(20):
        parts.append(ours.sample(X[:1], n // 20, generator)[:, 0, Y, XS].double())
    samples = torch.cat(parts)
    assert ((samples.mean(0) - mean).abs() < 4 * (variance / n).sqrt()).all()
    assert ((samples.var(0) / variance - 1).abs() < 4 * (2 / n) ** 0.5).all()


def test_pixels_of_a_sample_vary_together_as_their_features_say():
    phi, laplace = features_at_pixels()[0], posterior("full")
    samples = torch.cat([predictor("full").sample(X[:1], 100, seeded(i))[:, 0, Y, XS] for i in range(20)])
    expected = phi @ laplace.posterior_covariance @ phi.T
    scale = expected.diagonal().sqrt()
    difference = (torch.cov(samples.double().T) - expected) / scale / scale[:, None]
    assert difference.abs().max() < 4 * (2 / 2000) ** 0.5


def test_the_entropies_of_samples_approach_the_quadrature():
    ours, n = predictor("full"), 2000
    found = ours.quantities(X[:1])
    logits = torch.cat([ours.sample(X[:1], 100, seeded(i))[:, 0, ::16, ::16] for i in range(20)]).double()
    p, entropies = torch.sigmoid(logits), binary_entropy(logits)
    at_pixels = {name: getattr(found, name)[0, ::16, ::16] for name in ("probability", "expected_entropy")}
    for draws, value in ((p, at_pixels["probability"]), (entropies, at_pixels["expected_entropy"])):
        assert ((draws.mean(0) - value).abs() <= 5 * draws.std(0) / n**0.5 + 1e-7).all()
    sampled = binary_entropy(torch.logit(p.mean(0))) - entropies.mean(0)
    exact = found.mutual_information[0, ::16, ::16]
    assert (sampled - exact).abs().mean() < 0.05 * exact.mean()


def test_probability_is_that_of_the_quantities_and_near_the_probit():
    ours = predictor()
    probability = ours.probability(X[:1])
    assert torch.equal(probability, ours.quantities(X[:1]).probability)
    probit = predict(posterior("diagonal"), HEAD, head_inputs(X[:1], logit_clip=20.0)).probabilities
    assert (probability - probit).abs().max() < 0.02


def test_a_dead_channel_leaves_every_quantity_a_number():
    head = some_head()
    head.conv2.weight[0], head.conv2.bias[0] = 0, -1
    curvature = fit_curvature(head, some_rows(8), logit_clip=20.0, batch_size=4)
    assert curvature.n_dead == 1
    laplace = build_laplace(head, curvature, prior_precision=1e-4)
    asleep = Predictor(head, laplace, logit_clip=20.0)
    found = asleep.quantities(X[:1])
    assert all(torch.isfinite(values).all() for values in vars(found).values())
    awake = Predictor(head, laplace, logit_clip=20.0)
    awake.head.conv2.bias[0] = 1
    assert awake.logits(X[:1])[1].min() > 9e3  # the prior alone decides: a variance of 1 / 1e-4
    assert all(torch.isfinite(values).all() for values in vars(awake.quantities(X[:1])).values())


@pytest.mark.parametrize("approx", APPROX)
def test_a_logit_scale_multiplies_means_and_samples_and_variances_by_its_square(approx):
    plain, scaled = predictor(approx), predictor(approx, logit_scale=0.3)
    (mean, variance), found = plain.logits(X), scaled.logits(X)
    torch.testing.assert_close(found, (0.3 * mean, 0.09 * variance))
    torch.testing.assert_close(scaled.sample(X, 2, seeded()), 0.3 * plain.sample(X, 2, seeded()))
    for name, values in vars(quantities(0.3 * mean, 0.09 * variance)).items():
        torch.testing.assert_close(getattr(scaled.quantities(X), name), values, rtol=1e-4, atol=1e-7)
    assert torch.equal(scaled.probability(X), scaled.quantities(X).probability)


def test_a_logit_scale_of_one_changes_no_bit():
    found, expected = predictor(logit_scale=1.0), predictor()
    assert all(torch.equal(a, b) for a, b in zip(found.logits(X), expected.logits(X), strict=True))
    assert torch.equal(found.sample(X, 2, seeded()), expected.sample(X, 2, seeded()))


def test_the_predictor_owns_its_head():
    head = some_head()
    ours = Predictor(head, posterior("diagonal"), logit_clip=20.0)
    before = ours.probability(X[:1])
    head.conv1.weight.zero_()
    assert torch.equal(ours.probability(X[:1]), before)


@pytest.mark.parametrize("call", ["logits", "quantities", "probability", "sample"])
def test_inputs_of_another_shape_or_dtype_are_refused_by_every_method(call):
    def answer(x):
        return predictor().sample(x, 1, seeded()) if call == "sample" else getattr(predictor(), call)(x)

    for shape in (3, 256, 256), (1, 2, 256, 256), (1, 3, 128, 256), (0, 3, 256, 256):
        with pytest.raises(ValueError, match=r"x is \(.*\)\. Give \(B, 3, 256, 256\) with one item or more"):
            answer(torch.zeros(shape))
    for dtype in torch.float64, torch.uint8, torch.bfloat16:
        with pytest.raises(ValueError, match=rf"x is {dtype}\. Give float16 or float32"):
            answer(torch.zeros(1, 3, 256, 256, dtype=dtype))
    with pytest.raises(ValueError, match="x is on meta, the predictor on cpu"):
        answer(torch.zeros(1, 3, 256, 256, device="meta"))


def test_inputs_that_are_not_finite_are_refused_by_item_channel_and_pixel():
    for channel, what in enumerate(["SAM's logit", "The positive map", "The negative map"]):
        for value in "nan", "inf", "-inf":
            broken = X.clone()
            broken[2, channel, 7, 200] = float(value)
            with pytest.raises(ValueError, match=rf"^{what} of item 2 is {value} at pixel \(7, 200\)\. Compute"):
                predictor().probability(broken)


def test_nothing_is_drawn_for_an_input_that_is_refused():
    generator = seeded()
    with pytest.raises(ValueError, match="x is"):
        predictor().sample(torch.zeros(1), 5, generator)
    assert torch.equal(generator.get_state(), seeded().get_state())


def test_a_predictor_that_cannot_be_is_refused():
    with pytest.raises(PosteriorRefused, match="belongs to another head"):
        Predictor(some_head(seed=1), posterior("diagonal"), logit_clip=20.0)
    for logit_clip in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="logit_clip is"):
            predictor(logit_clip=logit_clip)
    for logit_scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="logit_scale is"):
            predictor(logit_scale=logit_scale)
    with pytest.raises(ValueError, match="Cannot draw 0 samples"):
        predictor().sample(X, 0, seeded())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_says_the_same_and_draws_the_same_weights():
    there = predictor("full", device="cuda")
    torch.testing.assert_close(there.probability(X.cuda()).cpu(), predictor("full").probability(X), rtol=0, atol=1e-4)
    here = predictor("full").sample(X, 2, seeded())
    torch.testing.assert_close(there.sample(X.cuda(), 2, seeded()).cpu(), here, rtol=1e-3, atol=1e-3)
