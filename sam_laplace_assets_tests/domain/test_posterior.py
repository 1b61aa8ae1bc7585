"""The posterior that laplace-torch holds is the one that the curvature describes, and a wrong one is refused."""

import math
import warnings

import pytest
import torch
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader, TensorDataset

from sam_laplace_assets.domain.curvature import fit_curvature
from sam_laplace_assets.domain.head import head_inputs
from sam_laplace_assets.domain.posterior import PixelLogits, PosteriorRefused, build_laplace, restore_laplace
from sam_laplace_assets_tests.domain.some_rows import some_head, some_rows

ROWS, HEAD = some_rows(8), some_head()
APPROX = ["diagonal", "full"]
CURVATURES = {approx: fit_curvature(HEAD, ROWS, approx=approx, logit_clip=20.0, batch_size=4) for approx in APPROX}


def posterior(approx, *, prior_precision=0.1, temperature=1.0):
    return build_laplace(HEAD, CURVATURES[approx], prior_precision=prior_precision, temperature=temperature)


def dense(approx):
    H = CURVATURES[approx].hessian
    return torch.diag(H) if approx == "diagonal" else H


def reloaded(state, path):
    torch.save(state, path / "state.pt")
    return torch.load(path / "state.pt", weights_only=True)


@pytest.mark.parametrize("approx", APPROX)
def test_the_librarys_own_fit_over_batches_gives_the_same_posterior(approx):
    ours, theirs = posterior(approx), posterior(approx)
    inputs = head_inputs(ROWS.inputs, logit_clip=20.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.fit(DataLoader(TensorDataset(inputs, ROWS.masks), batch_size=3))
    torch.testing.assert_close(theirs.H, ours.H, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(theirs.log_marginal_likelihood(), ours.log_marginal_likelihood(), rtol=1e-6, atol=0)
    assert torch.equal(theirs.mean, ours.mean)


@pytest.mark.parametrize("approx", APPROX)
@pytest.mark.parametrize("temperature", [1.0, 50.0])
def test_the_precision_is_curvature_over_temperature_plus_prior(approx, temperature):
    found = posterior(approx, temperature=temperature).posterior_precision
    expected = dense(approx) / temperature + 0.1 * torch.eye(5)
    torch.testing.assert_close(torch.diag(found) if found.ndim == 1 else found, expected)


@pytest.mark.parametrize("approx", APPROX)
@pytest.mark.parametrize("temperature", [1.0, 50.0])
def test_samples_have_the_posteriors_mean_and_covariance(approx, temperature):
    laplace = posterior(approx, temperature=temperature)
    samples = laplace.sample(200_000, generator=torch.Generator().manual_seed(0))
    covariance = torch.linalg.inv(dense(approx) / temperature + 0.1 * torch.eye(5))
    deviations = covariance.diagonal().sqrt()
    torch.testing.assert_close(
        (samples.mean(0) - laplace.mean) / deviations, torch.zeros(5).double(), rtol=0, atol=0.02
    )
    correlation = (torch.cov(samples.T) - covariance) / deviations / deviations[:, None]
    torch.testing.assert_close(correlation, torch.zeros(5, 5).double(), rtol=0, atol=0.02)


@pytest.mark.parametrize("approx", APPROX)
def test_the_marginal_likelihood_is_the_laplace_formula(approx):
    laplace, curvature, T = posterior(approx, temperature=7.0), CURVATURES[approx], 7.0
    precision = dense(approx) / T + 0.1 * torch.eye(5)
    expected = (
        -curvature.nll / T
        - 0.5 * 0.1 * curvature.weights.square().sum()
        - 0.5 * (torch.logdet(precision) - 5 * math.log(0.1))
    )
    torch.testing.assert_close(laplace.log_marginal_likelihood(), expected)


def test_the_marginal_likelihood_approximates_the_integral_over_the_bias():
    """By a fine grid over the one parameter that is left when the features are dead."""
    head = some_head()
    head.conv2.weight.zero_()
    head.conv2.bias.fill_(-1.0)
    share = ROWS.masks.double().mean().item()
    head.final_conv.bias.fill_(math.log(share / (1 - share)))
    head.final_conv.weight.zero_()
    curvature = fit_curvature(head, ROWS, logit_clip=20.0, batch_size=4)
    found = build_laplace(head, curvature, prior_precision=1e-6).log_marginal_likelihood()
    bias = torch.linspace(-3, 3, 20001, dtype=torch.float64)
    n = ROWS.masks.numel()
    likelihood = n * (
        share * torch.nn.functional.logsigmoid(bias) + (1 - share) * torch.nn.functional.logsigmoid(-bias)
    )
    prior = -0.5e-6 * bias.square() + 0.5 * math.log(1e-6 / (2 * math.pi))
    integral = torch.logsumexp(likelihood + prior, 0) + math.log(bias[1] - bias[0])
    assert found.item() == pytest.approx(integral.item(), abs=1e-2)


@pytest.mark.parametrize("approx", APPROX)
def test_the_librarys_own_probit_predictive_works(approx):
    laplace = posterior(approx)
    x = head_inputs(ROWS.inputs[:2], logit_clip=20.0)
    probabilities = laplace(x, link_approx="probit")
    assert probabilities.shape == (2 * 12 * 20, 2)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(480).double())


@pytest.mark.parametrize("approx", APPROX)
@pytest.mark.parametrize("temperature", [1.0, 50.0])
def test_a_reloaded_posterior_samples_bit_by_bit_as_before(approx, temperature, tmp_path):
    laplace = posterior(approx, temperature=temperature)
    restored = restore_laplace(HEAD, reloaded(laplace.state_dict(), tmp_path))
    assert type(restored) is type(laplace)
    one, two = (each.sample(50, generator=torch.Generator().manual_seed(3)) for each in (laplace, restored))
    assert torch.equal(one, two)
    assert torch.equal(laplace.log_marginal_likelihood(), restored.log_marginal_likelihood())


def test_a_small_prior_beside_a_huge_curvature_survives():
    """In float32 the sum of H = 1e9 and a prior of 1e-4 would have lost the prior."""
    curvature = CURVATURES["full"]
    vector = torch.ones(5, dtype=torch.float64)
    object.__setattr__(huge := type(curvature)(**vars(curvature)), "hessian", 1e9 * torch.outer(vector, vector))
    laplace = build_laplace(HEAD, huge, prior_precision=1e-4)
    across = torch.tensor([1.0, -1.0, 0, 0, 0], dtype=torch.float64)
    assert (across @ laplace.posterior_covariance @ across).item() == pytest.approx(2e4, rel=1e-2)


def test_n_data_counts_the_terms_of_the_likelihood():
    assert posterior("diagonal").n_data == 8 * 12 * 20


def test_the_posterior_owns_its_head():
    head = some_head()
    laplace = build_laplace(head, CURVATURES["diagonal"], prior_precision=1.0)
    before = parameters_to_vector(head.parameters()).clone()
    laplace(head_inputs(ROWS.inputs[:1], logit_clip=20.0), pred_type="nn", link_approx="mc", n_samples=2)
    assert torch.equal(parameters_to_vector(head.parameters()), before)


def test_pixel_logits_are_zero_and_the_heads():
    x = head_inputs(ROWS.inputs, logit_clip=20.0)
    logits = PixelLogits(HEAD, target_layer="final_conv")(x)
    assert logits.shape == (8 * 12 * 20, 2)
    assert not logits[:, 0].any()
    torch.testing.assert_close(logits[:, 1].float(), HEAD(x).flatten(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("approx", APPROX)
def test_a_posterior_of_another_head_is_refused(approx):
    other, state = some_head(seed=1), posterior(approx).state_dict()
    with pytest.raises(PosteriorRefused, match="belongs to another head: its mean is not this head's final_conv"):
        restore_laplace(other, state)
    with pytest.raises(PosteriorRefused, match="belongs to another head"):
        build_laplace(other, CURVATURES[approx], prior_precision=1.0)


def test_a_head_that_moved_by_one_ulp_is_another_head():
    moved = some_head()
    moved.final_conv.bias.copy_(torch.nextafter(moved.final_conv.bias, torch.tensor(9.0)))
    with pytest.raises(PosteriorRefused, match="another head"):
        restore_laplace(moved, posterior("diagonal").state_dict())


@pytest.mark.parametrize("approx", APPROX)
@pytest.mark.parametrize("name", ["mean", "H", "prior_precision", "loss"])
def test_a_state_that_is_not_finite_is_refused(approx, name):
    state = posterior(approx).state_dict()
    broken = torch.as_tensor(state[name], dtype=torch.float64).clone()
    broken.view(-1)[0] = float("nan")
    with pytest.raises(PosteriorRefused, match=f"posterior's {name} is not finite"):
        restore_laplace(HEAD, state | {name: broken})


def test_negative_curvature_is_refused():
    state = posterior("diagonal").state_dict()
    with pytest.raises(PosteriorRefused, match=r"H is no curvature: its lowest value is -1\b"):
        restore_laplace(HEAD, state | {"H": torch.tensor([3.0, -1, 2, 2, 2], dtype=torch.float64)})
    state = posterior("full").state_dict()
    indefinite = torch.eye(5, dtype=torch.float64)
    indefinite[0, 1] = indefinite[1, 0] = 2
    with pytest.raises(PosteriorRefused, match=r"lowest value is -1\b"):
        restore_laplace(HEAD, state | {"H": indefinite})
    with pytest.raises(PosteriorRefused, match="not symmetric"):
        restore_laplace(HEAD, state | {"H": torch.eye(5).double() + torch.diag(torch.full((4,), 0.1), 1)})


def test_a_singular_curvature_is_a_curvature():
    state = posterior("full").state_dict()
    ones = torch.ones(5, 5, dtype=torch.float64)
    assert torch.equal(restore_laplace(HEAD, state | {"H": 1e7 * ones}).H, 1e7 * ones)


def test_states_that_are_no_posterior_of_ours_are_refused():
    state = posterior("diagonal").state_dict()
    with pytest.raises(PosteriorRefused, match=r"it lacks \['H'\]"):
        restore_laplace(HEAD, {name: value for name, value in state.items() if name != "H"})
    with pytest.raises(PosteriorRefused, match="it is a KronLaplace"):
        restore_laplace(HEAD, state | {"cls_name": "KronLaplace"})
    with pytest.raises(PosteriorRefused, match=r"H is \(5,\), not \(5, 5\)"):
        restore_laplace(HEAD, state | {"cls_name": "FullLaplace"})
    with pytest.raises(PosteriorRefused, match="temperature or prior precision is not positive"):
        restore_laplace(HEAD, state | {"temperature": 0.0})


def test_a_prior_without_precision_is_refused():
    with pytest.raises(ValueError, match="A posterior needs a positive one"):
        posterior("diagonal", prior_precision=0.0)
