"""The curvature is the Hessian of the summed loss, and the image-clustered temperature is its formula."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from sam_laplace_assets.domain import curvature
from sam_laplace_assets.domain.curvature import (
    fit_curvature,
    ggn_diagonal,
    ggn_full,
    resolve_temperature,
    row_score,
    score_covariance,
)
from sam_laplace_assets.domain.head import head_inputs
from sam_laplace_assets.domain.last_layer import (
    features_and_logits,
    jacobian,
    last_layer,
    last_layer_weights,
    over_rows,
    pixel_features,
    quick_layout,
)
from sam_laplace_assets.domain.pack import MemoryRows
from sam_laplace_assets_tests.domain.some_rows import some_head, some_rows

ROWS, HEAD = some_rows(8), some_head()
SETTINGS = {"logit_clip": 20.0, "batch_size": 3}


def summed_loss(head, rows):
    """The loss of all pixels as a function of the last layer's parameters (P,), in float64 with torch's own BCE."""
    double = some_head(hidden_channels=head.final_conv.in_channels).double()
    double.load_state_dict(head.state_dict())
    x, targets = head_inputs(rows.inputs, logit_clip=20.0).double(), rows.masks.double()

    def loss(parameters):
        weights = {"final_conv.weight": parameters[:-1].reshape(1, -1, 1, 1), "final_conv.bias": parameters[-1:]}
        logits = torch.func.functional_call(double, weights, (x,))[:, 0]
        return functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")

    return loss


def of_images(rows, *images):
    chosen = np.isin(rows.images, images)
    return MemoryRows(rows.inputs[chosen], rows.masks[chosen], rows.images[chosen])


def repeated(rows, times):
    return MemoryRows(rows.inputs.repeat(times, 1, 1, 1), rows.masks.repeat(times, 1, 1), np.tile(rows.images, times))


@pytest.fixture(scope="module")
def hessian():
    return torch.func.hessian(summed_loss(HEAD, ROWS))(last_layer_weights(HEAD, target_layer="final_conv"))


def test_ggn_full_is_the_hessian_of_the_summed_loss(hessian):
    curvature = fit_curvature(HEAD, ROWS, approx="full", **SETTINGS)
    torch.testing.assert_close(curvature.hessian, hessian, rtol=2e-6, atol=1e-6)


def test_ggn_diagonal_is_the_hessian_diagonal_of_the_summed_loss(hessian):
    curvature = fit_curvature(HEAD, ROWS, **SETTINGS)
    torch.testing.assert_close(curvature.hessian, hessian.diagonal(), rtol=2e-6, atol=1e-6)


def test_curvature_of_a_trained_sized_head_is_the_hessian_to_5e_7():
    head = some_head(hidden_channels=16, seed=2)
    dense = torch.func.hessian(summed_loss(head, ROWS))(last_layer_weights(head, target_layer="final_conv"))
    full = fit_curvature(head, ROWS, approx="full", **SETTINGS).hessian
    assert full.shape == (17, 17)
    assert ((full - dense).norm() / dense.norm()).item() < 5e-7


def test_the_diagonal_is_the_diagonal_of_the_full_matrix():
    features, logits = torch.randn(2, 5, 6, 7), 4 * torch.randn(2, 6, 7)
    torch.testing.assert_close(ggn_diagonal(features, logits), ggn_full(features, logits).diagonal())


def test_saturated_pixels_keep_their_curvature():
    features, logits = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1), 30.0)
    expected = torch.full((2,), -30.0, dtype=torch.float64).exp()
    torch.testing.assert_close(ggn_diagonal(features, logits), expected, rtol=1e-6, atol=0)


def test_the_summed_nll_and_the_scores_are_the_loss_and_its_gradient():
    weights = last_layer_weights(HEAD, target_layer="final_conv")
    curvature = fit_curvature(HEAD, ROWS, **SETTINGS)
    assert curvature.nll == pytest.approx(summed_loss(HEAD, ROWS)(weights).item(), rel=1e-6)
    scores = torch.stack([torch.func.grad(summed_loss(HEAD, of_images(ROWS, i)))(weights) for i in range(4)])
    expected = 4 * torch.cov(scores.T, correction=1)
    torch.testing.assert_close(curvature.score_covariance, expected, rtol=1e-5, atol=1e-4)


def test_counts_are_rows_pixels_and_images():
    curvature = fit_curvature(HEAD, ROWS, **SETTINGS)
    assert (curvature.n_rows, curvature.n_pixels, curvature.n_images) == (8, 8 * 12 * 20, 4)


@pytest.mark.parametrize("approx", ["diagonal", "full"])
def test_batches_do_not_change_the_sums(approx):
    one = fit_curvature(HEAD, ROWS, approx=approx, logit_clip=20.0, batch_size=1)
    all_at_once = fit_curvature(HEAD, ROWS, approx=approx, logit_clip=20.0, batch_size=100)
    assert torch.equal(one.hessian, all_at_once.hessian)
    assert one.nll == all_at_once.nll


@pytest.mark.parametrize("approx", ["diagonal", "full"])
def test_image_cluster_is_the_mean_over_directions_of_score_spread_by_curvature(approx):
    curvature = fit_curvature(HEAD, ROWS, approx=approx, **SETTINGS)
    H = curvature.hessian if approx == "full" else torch.diag(curvature.hessian)
    expected = torch.trace(torch.linalg.inv(H) @ curvature.score_covariance) / 5
    assert resolve_temperature(curvature, "image_cluster") == pytest.approx(expected.item(), rel=1e-8)


@pytest.mark.parametrize("approx", ["diagonal", "full"])
def test_image_cluster_repeating_every_row_leaves_the_posterior_as_it_is(approx):
    once = fit_curvature(HEAD, ROWS, approx=approx, **SETTINGS)
    thrice = fit_curvature(HEAD, repeated(ROWS, 3), approx=approx, **SETTINGS)
    T_once, T_thrice = (resolve_temperature(curvature, "image_cluster") for curvature in (once, thrice))
    assert T_thrice == pytest.approx(3 * T_once, rel=1e-9)
    torch.testing.assert_close(thrice.hessian / T_thrice, once.hessian / T_once, rtol=1e-9, atol=0)


def test_image_cluster_of_independent_pixels_is_about_one():
    """Labels drawn pixel by pixel from the head's own probabilities: then pixels are all the units there are."""
    rows = some_rows(200, height=6, width=6, n_images=200)
    x = head_inputs(rows.inputs, logit_clip=20.0)
    drawn = torch.rand(rows.masks.shape, generator=torch.Generator().manual_seed(0)) < torch.sigmoid(HEAD(x)[:, 0])
    curvature = fit_curvature(HEAD, replace(rows, masks=drawn), approx="full", **SETTINGS)
    assert resolve_temperature(curvature, "image_cluster") == pytest.approx(1.0, abs=0.15)


def test_image_cluster_of_prompt_sets_that_repeat_an_image_is_how_often_they_do():
    rows = some_rows(200, height=6, width=6, n_images=200)
    x = head_inputs(rows.inputs, logit_clip=20.0)
    drawn = torch.rand(rows.masks.shape, generator=torch.Generator().manual_seed(0)) < torch.sigmoid(HEAD(x)[:, 0])
    curvature = fit_curvature(HEAD, repeated(replace(rows, masks=drawn), 4), approx="full", **SETTINGS)
    assert resolve_temperature(curvature, "image_cluster") == pytest.approx(4.0, abs=0.6)


@pytest.mark.parametrize("approx", ["diagonal", "full"])
def test_image_cluster_leaves_dead_channels_out(approx):
    dead = some_head()
    dead.conv2.weight[2], dead.conv2.bias[2] = 0, -1
    alive = fit_curvature(dead, ROWS, approx=approx, **SETTINGS)
    lesser = some_head(hidden_channels=3)
    keep = [0, 1, 3]
    state = dead.state_dict()
    lesser.conv1 = torch.nn.Conv2d(3, 4, 3, padding=1)
    lesser.conv2 = torch.nn.Conv2d(4, 3, 3, padding=1)
    lesser.load_state_dict(
        state
        | {"conv2.weight": state["conv2.weight"][keep], "conv2.bias": state["conv2.bias"][keep]}
        | {"final_conv.weight": state["final_conv.weight"][:, keep]}
    )
    without = fit_curvature(lesser, ROWS, approx=approx, **SETTINGS)
    found, expected = (resolve_temperature(curvature, "image_cluster") for curvature in (alive, without))
    assert found == pytest.approx(expected, rel=1e-4)


def test_score_covariance_of_a_single_image_is_zero():
    assert torch.equal(score_covariance(torch.randn(1, 3)), torch.zeros(3, 3))


def test_temperatures_that_are_numbers_are_taken_as_they_are_and_others_refused():
    curvature = fit_curvature(HEAD, ROWS, **SETTINGS)
    assert resolve_temperature(curvature, 1.0) == 1.0
    assert resolve_temperature(curvature, 862) == 862.0
    for wrong in (0, -1.0, float("inf"), float("nan"), "clustered"):
        with pytest.raises(ValueError, match="Give a positive number or image_cluster"):
            resolve_temperature(curvature, wrong)
    with pytest.raises(ValueError, match="the training pack has one"):
        resolve_temperature(fit_curvature(HEAD, of_images(ROWS, 0), **SETTINGS), "image_cluster")


def test_a_broken_row_is_refused_by_number():
    rows = some_rows(8)
    rows.inputs[5, 2, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"Row 5 \(image 1\) holds NaN"):
        fit_curvature(HEAD, rows, **SETTINGS)


def test_a_head_that_overflows_is_refused():
    head = some_head()
    head.final_conv.bias.fill_(float("inf"))
    with pytest.raises(ValueError, match="curvature is not finite"):
        fit_curvature(head, ROWS, **SETTINGS)


def test_settings_that_cannot_be_fitted_are_refused():
    with pytest.raises(ValueError, match=r"Unknown laplace.approx 'kron'. Choose one of \['diagonal', 'full'\]"):
        fit_curvature(HEAD, ROWS, approx="kron", **SETTINGS)
    with pytest.raises(ValueError, match="no layer 'last'"):
        fit_curvature(HEAD, ROWS, target_layer="last", **SETTINGS)
    with pytest.raises(ValueError, match="needs a 1x1 convolution to one channel"):
        fit_curvature(HEAD, ROWS, target_layer="conv2", **SETTINGS)


def test_the_head_is_left_as_it_was():
    head = some_head().requires_grad_(True).train()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    fit_curvature(head, ROWS, **SETTINGS)
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    assert head.training
    assert all(parameter.requires_grad for parameter in head.parameters())


def test_progress_counts_rows():
    seen = []
    fit_curvature(HEAD, ROWS, progress=lambda done, total: seen.append((done, total)), **SETTINGS)
    assert seen == [(3, 8), (6, 8), (8, 8)]


def test_features_are_what_the_last_layer_turns_into_logits():
    x = head_inputs(ROWS.inputs, logit_clip=20.0)
    features, logits = features_and_logits(HEAD, x, target_layer="final_conv")
    assert torch.equal(last_layer(HEAD, "final_conv")(features)[:, 0], logits)
    assert torch.equal(HEAD(x)[:, 0], logits)
    weights = last_layer_weights(HEAD, target_layer="final_conv")
    torch.testing.assert_close((weights @ jacobian(features)).float(), logits.flatten(), rtol=1e-5, atol=1e-5)


def test_rows_pass_in_their_order():
    passes = list(over_rows(HEAD, ROWS, lambda each: each, target_layer="final_conv", device="cpu", **SETTINGS))
    assert [each.row for each in passes] == list(range(8))
    assert torch.equal(torch.cat([each.masks for each in passes]), ROWS.masks)
    assert torch.equal(torch.cat([each.inputs for each in passes]), head_inputs(ROWS.inputs, logit_clip=20.0))


@pytest.mark.parametrize("approx", ["diagonal", "full"])
def test_the_number_of_threads_changes_no_bit_and_stays_as_it_was(approx, threads):
    found = []
    for number in (1, 2, 5):
        torch.set_num_threads(number)
        found.append(fit_curvature(HEAD, ROWS, approx=approx, **SETTINGS))
        assert torch.get_num_threads() == number
    for other in found[1:]:
        assert torch.equal(found[0].hessian, other.hessian)
        assert torch.equal(found[0].score_covariance, other.score_covariance)
        assert found[0].nll == other.nll


def test_a_row_that_fails_ends_the_pass_with_its_error_and_the_threads_as_they_were(threads):
    torch.set_num_threads(3)

    def fail_at_5(each):
        if each.row == 5:
            raise ValueError("row 5")
        return each.row

    seen = []
    with pytest.raises(ValueError, match="row 5"):
        seen.extend(over_rows(HEAD, ROWS, fail_at_5, target_layer="final_conv", device="cpu", **SETTINGS))
    assert torch.get_num_threads() == 3
    again = over_rows(HEAD, ROWS, lambda each: each.row, target_layer="final_conv", device="cpu", **SETTINGS)
    assert list(again) == list(range(8))


@pytest.fixture
def threads():
    """Whatever a test sets, others have as many as before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("approx", ["diagonal", "full"])
def test_the_pass_over_rows_in_chunks_sums_what_the_formulas_say_of_whole_rows(approx, monkeypatch):
    monkeypatch.setattr(curvature, "CHUNK_PIXELS", 100)  # of 240
    found = fit_curvature(HEAD, ROWS, approx=approx, **SETTINGS)
    features, logits = features_and_logits(HEAD, head_inputs(ROWS.inputs, logit_clip=20.0), target_layer="final_conv")
    formula = {"diagonal": ggn_diagonal, "full": ggn_full}[approx]
    torch.testing.assert_close(found.hessian, formula(features, logits), rtol=1e-6, atol=1e-9)
    per_row = [row_score(features[[i]], logits[[i]], ROWS.masks[[i]]) for i in range(len(ROWS))]
    scores = torch.stack([torch.stack(per_row)[ROWS.images == image].sum(0) for image in np.unique(ROWS.images)])
    torch.testing.assert_close(found.score_covariance, score_covariance(scores), rtol=1e-5, atol=1e-7)


def test_the_layout_in_which_channels_are_last_says_the_same():
    x = head_inputs(ROWS.inputs, logit_clip=20.0)
    features, logits = features_and_logits(HEAD, quick_layout(x), target_layer="final_conv")
    plain = HEAD(x)[:, 0]
    torch.testing.assert_close(logits, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pixel_features(features), jacobian(features)[:-1].T.float(), rtol=0, atol=0)
