"""A posterior that comes back the same passes its probe; one that predicts otherwise does not."""

import copy
import json
from dataclasses import asdict, replace

import pytest
import torch

from sam_laplace_assets.domain.curvature import fit_curvature
from sam_laplace_assets.domain.posterior import build_laplace, restore_laplace
from sam_laplace_assets.domain.predictive import predict
from sam_laplace_assets.domain.probe import PIXELS, SEED, TOLERANCE, Probe, probe_difference, probe_input, take_probe
from sam_laplace_assets_tests.domain.some_rows import some_head, some_rows

ROWS, HEAD = some_rows(8), some_head()


@pytest.fixture(scope="module", params=["diagonal", "full"])
def curvature(request):
    return fit_curvature(HEAD, ROWS, approx=request.param, logit_clip=20.0, batch_size=4)


def posterior(curvature, *, temperature=1.0):
    return build_laplace(HEAD, curvature, prior_precision=0.1, temperature=temperature)


def test_a_probe_is_what_the_posterior_predicts_at_its_pixels(curvature):
    laplace = posterior(curvature)
    probe, predictive = take_probe(laplace, HEAD), predict(laplace, HEAD, probe_input(SEED))
    for at, (y, x) in enumerate(PIXELS):
        assert probe.mean[at] == predictive.mean[0, y, x]
        assert probe.variance[at] == predictive.variance[0, y, x] > 0


def test_a_posterior_that_is_read_back_passes_the_probe_that_was_written(curvature, tmp_path):
    laplace = posterior(curvature)
    written = json.dumps(asdict(take_probe(laplace, HEAD)))
    torch.save(laplace.state_dict(), tmp_path / "state.pt")
    restored = restore_laplace(HEAD, torch.load(tmp_path / "state.pt", weights_only=True))
    assert probe_difference(Probe(**json.loads(written)), restored, HEAD) == 0


def test_another_temperature_by_a_thousandth_does_not_pass(curvature):
    probe = take_probe(posterior(curvature), HEAD)
    assert probe_difference(probe, posterior(curvature, temperature=1.001), HEAD) > TOLERANCE


def test_a_head_with_the_same_last_layer_but_other_layers_before_it_does_not_pass(curvature):
    other = copy.deepcopy(HEAD)
    other.conv1.weight.mul_(1.01)
    laplace = posterior(curvature)
    assert probe_difference(take_probe(laplace, HEAD), laplace, other) > TOLERANCE


def test_a_probe_is_taken_where_it_was_recorded(curvature):
    laplace = posterior(curvature)
    elsewhere = take_probe(laplace, HEAD, seed=5, pixels=((1, 2), (3, 4)))
    assert probe_difference(elsewhere, laplace, HEAD) == 0
    assert probe_difference(replace(elsewhere, seed=6), laplace, HEAD) > TOLERANCE


@pytest.mark.parametrize("name", ["mean", "variance"])
def test_a_prediction_that_is_not_a_number_does_not_pass(curvature, name):
    laplace = posterior(curvature)
    broken = replace(take_probe(laplace, HEAD), **{name: [float("nan")] * len(PIXELS)})
    assert not probe_difference(broken, laplace, HEAD) <= TOLERANCE


def test_the_input_is_the_seeds_alone_and_within_what_a_head_sees():
    x = probe_input(0)
    assert torch.equal(x, probe_input(0))
    assert not torch.equal(x, probe_input(1))
    assert x[:, 1:].min() >= 0
    assert x[:, 1:].max() <= 1
    assert 7 < x[:, 0].abs().max() <= 8


def test_the_input_is_the_one_of_earlier_releases():
    torch.testing.assert_close(probe_input(0)[0, :, 0, 0], torch.tensor([2.1913869, 0.4180290, 0.2780281]))
