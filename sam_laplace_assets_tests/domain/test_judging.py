"""Posteriors that are judged together come out as each does alone; what is not a number is refused by its row."""

import pytest
import torch

from sam_laplace_assets.domain.curvature import fit_curvature
from sam_laplace_assets.domain.evaluation import score
from sam_laplace_assets.domain.head import head_inputs
from sam_laplace_assets.domain.judging import Form, judge
from sam_laplace_assets.domain.posterior import build_laplace
from sam_laplace_assets.domain.predictive import predict
from sam_laplace_assets.domain.quantities import quantities
from sam_laplace_assets.domain.reliability import ProbabilityHistogram
from sam_laplace_assets.domain.scoring import Answers, Truth
from sam_laplace_assets_tests.domain.fitted_head import fitted_head
from sam_laplace_assets_tests.domain.some_rows import some_rows

ROWS, VALIDATION = some_rows(8), some_rows(5, seed=9)
HEAD = fitted_head(ROWS)
PASSES = {"logit_clip": 20.0, "batch_size": 3}
CURVATURES = {approx: fit_curvature(HEAD, ROWS, approx=approx, **PASSES) for approx in ("diagonal", "full")}
SETTINGS = [(1.0, 0.1), (5.0, 1.0), (200.0, 10.0)]


def judged(head=HEAD, validation=VALIDATION, **options):
    forms = [Form.of(curvature, SETTINGS) for curvature in CURVATURES.values()]
    return judge(head, CURVATURES["full"], forms, validation, **PASSES, **options)


def predictives():
    """Each posterior's predictive on the validation rows, by laplace-torch's own class."""
    x = head_inputs(VALIDATION.inputs, logit_clip=20.0)
    for curvature in CURVATURES.values():
        for temperature, precision in SETTINGS:
            laplace = build_laplace(HEAD, curvature, prior_precision=precision, temperature=temperature)
            yield laplace, predict(laplace, HEAD, x)


def test_each_posterior_is_judged_as_alone():
    found = judged(in_detail=True)
    truth = Truth.of(torch.arange(5).numpy(), VALIDATION.masks)
    for i, (laplace, alone) in enumerate(predictives()):
        assert found.nll[i] == pytest.approx(alone.nll(VALIDATION.masks).mean().item(), rel=2e-6)
        answers = Answers(truth, alone.logits, torch.sigmoid(alone.logits.double()), {})
        ece = ProbabilityHistogram.of(answers).foreground().error
        assert found.details.ece[i].item() == pytest.approx(ece, rel=1e-5)
        assert found.details.mean_variance[i].item() == pytest.approx(alone.variance.double().mean().item(), rel=1e-5)
        information = quantities(alone.mean, alone.variance).mutual_information.mean().item()
        assert found.details.mean_information[i].item() == pytest.approx(information, rel=1e-4)  # rows of 240 pixels
        scale = found.scale(i)
        scaled = score(HEAD, laplace, VALIDATION, logit_scale=scale.value, **PASSES)
        assert scale.nll_after == pytest.approx(scaled.posterior_nll.mean(), abs=5e-6)
        assert scale.nll_after <= found.nll[i]


def test_without_details_the_rest_is_the_same():
    assert judged().nll == judged(in_detail=True).nll
    assert len(judged().details.ece) == 0


def test_of_large_rows_the_same_pixels_are_drawn_for_information_every_time():
    rows = some_rows(2, height=32, width=32, seed=3)
    one, other = (judged(validation=rows, in_detail=True).details.mean_information for _ in range(2))
    assert torch.equal(one, other)


def test_a_head_whose_logits_overflow_is_refused_by_row():
    loud = fitted_head(ROWS)
    last = CURVATURES["full"].weights
    loud.conv2.weight.mul_(torch.tensor(1e30))
    loud.conv1.weight.mul_(torch.tensor(1e30))
    assert torch.equal(torch.nn.utils.parameters_to_vector(loud.final_conv.parameters()).double(), last)
    with pytest.raises(ValueError, match=r"^The head's logit of item 0 is (nan|inf|-inf) at pixel"):
        judged(loud)


def test_saturated_logits_without_curvature_are_judged_with_the_priors_variance():
    """float32 keeps p (1 - p) of logits near 100 above 0; beyond, H is 0 and the prior alone decides."""
    head = fitted_head(ROWS)
    head.final_conv.weight.mul_(1e4)
    curvature = fit_curvature(head, ROWS, **PASSES)
    found = judge(head, curvature, [Form.of(curvature, SETTINGS)], VALIDATION, in_detail=True, **PASSES)
    assert all(torch.isfinite(values).all() for values in vars(found.details).values())
    assert torch.isfinite(torch.tensor(found.nll)).all()


def test_no_variance_at_all_is_the_head_alone():
    found = judge(HEAD, CURVATURES["full"], [Form.of(CURVATURES["full"], [(1.0, 1e300)])], VALIDATION, in_detail=True,
                  **PASSES)  # fmt: skip
    assert 0 <= found.details.mean_variance.item() < 1e-290
    assert found.nll[0] == pytest.approx(found.map_nll, rel=1e-9)
