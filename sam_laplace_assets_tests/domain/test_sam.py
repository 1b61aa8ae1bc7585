import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from torch.nn import functional

from sam_laplace_assets.domain.prompts import PromptSet
from sam_laplace_assets.domain.sam import Embedding, FrozenSam, SamAnswer
from sam_laplace_assets_tests.small_sam import picture, prompts, small_sam

SIZES = [(256, 256), (100, 150), (61, 47), (480, 640), (333, 999), (1300, 700), (3, 300)]
NEAR_TIE = 1e-5


def plain_answer(predictor, prompt_set):
    """SamPredictor's logits of its best branch at full size, then at 256x256; its branch; its predicted IoUs."""
    masks, ious, _ = predictor.predict(
        point_coords=np.array(prompt_set.pos + prompt_set.neg),
        point_labels=np.array([1] * len(prompt_set.pos) + [0] * len(prompt_set.neg)),
        multimask_output=True,
        return_logits=True,
    )
    branch = int(np.argmax(ious))
    logits = functional.interpolate(
        torch.as_tensor(masks[branch])[None, None], (256, 256), mode="bilinear", align_corners=False, antialias=False
    )
    return logits[0, 0].numpy(), branch, ious


@pytest.mark.parametrize("size", SIZES)
def test_answers_are_those_of_the_predictor(model, frozen, size):
    """The contract: the same branch, and its logits within 0.02. A branch may differ only at a tie of IoUs."""
    image, prompt_sets = picture(size), prompts(size, [*range(1, 11), 3, 3, 10])
    predictor = SamPredictor(model)
    predictor.set_image(image)
    answers = frozen.answer(frozen.embed(image), prompt_sets)
    assert len(answers) == len(prompt_sets)
    for answer, prompt_set in zip(answers, prompt_sets, strict=True):
        logits, branch, ious = plain_answer(predictor, prompt_set)
        first, second = np.sort(ious)[:-3:-1]
        assert first - second > NEAR_TIE, "the test's own prompts tie: branches cannot be compared"
        assert answer.branch == branch
        assert answer.logits_256.dtype == np.float16
        np.testing.assert_allclose(answer.predicted_ious, ious, atol=1e-5)
        np.testing.assert_allclose(answer.logits_256.astype(np.float64), logits, atol=0.02, rtol=0)


def test_the_random_model_is_worth_comparing(frozen):
    """Logits of a size that matters, both signs, and more than one branch chosen."""
    answers = [one for size in SIZES[:3] for one in frozen.answer(frozen.embed(picture(size)), prompts(size))]
    logits = np.stack([one.logits_256 for one in answers])
    assert np.abs(logits).max() > 5
    assert logits.min() < 0 < logits.max()
    assert len({one.branch for one in answers}) > 1


@pytest.mark.parametrize("size", SIZES)
def test_the_embedding_is_the_predictors_bit_for_bit(model, frozen, size):
    image = picture(size)
    predictor = SamPredictor(model)
    predictor.set_image(image)
    embedding = frozen.embed(image)
    assert torch.equal(embedding.features, predictor.features)
    assert embedding.original_size == predictor.original_size
    assert embedding.input_size == predictor.input_size


def test_an_image_costs_one_encoder_pass_and_each_number_of_points_one_decoder_call(model, frozen):
    calls = []
    hooks = [
        part.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, part in (("encoder", model.image_encoder), ("decoder", model.mask_decoder))
    ]
    frozen.answer(frozen.embed(picture((64, 64))), prompts((64, 64), [1, 2, 1, 3, 2, 1]))
    for hook in hooks:
        hook.remove()
    assert calls == ["encoder"] + ["decoder"] * 3


def test_the_positional_encoding_is_computed_once(model, frozen, monkeypatch):
    monkeypatch.setattr(model.prompt_encoder, "get_dense_pe", lambda: pytest.fail("computed again"))
    frozen.answer(frozen.embed(picture((64, 64))), prompts((64, 64), [1, 2]))


def test_a_set_is_answered_the_same_alone_and_among_others(frozen):
    embedding, prompt_sets = frozen.embed(picture((90, 120))), prompts((90, 120), [3] * 7 + [1, 2])
    together = frozen.answer(embedding, prompt_sets)
    in_twos = frozen.answer(embedding, prompt_sets, max_batch=2)
    for one, other, prompt_set in zip(together, in_twos, prompt_sets, strict=True):
        (alone,) = frozen.answer(embedding, [prompt_set])
        assert one.branch == other.branch == alone.branch
        np.testing.assert_allclose(one.logits_256, alone.logits_256, atol=0.02)
        np.testing.assert_allclose(one.logits_256, other.logits_256, atol=0.02)


def test_the_first_of_equal_branches_is_chosen():
    model = small_sam()
    with torch.no_grad():
        last = model.mask_decoder.iou_prediction_head.layers[-1]
        last.weight.zero_()
        last.bias.copy_(torch.tensor([9.0, 0.5, 0.7, 0.7]))
    frozen = FrozenSam(model)
    (answer,) = frozen.answer(frozen.embed(picture((64, 64))), prompts((64, 64), [1]))
    assert answer.branch == 1
    assert answer.predicted_ious == pytest.approx((0.5, 0.7, 0.7))


def test_clicks_need_not_come_in_pairs(model, frozen):
    image, prompt_set = picture((90, 120)), PromptSet(0, ((10, 20), (50, 60)), ())
    predictor = SamPredictor(model)
    predictor.set_image(image)
    (answer,) = frozen.answer(frozen.embed(image), [prompt_set])
    logits, branch, _ = plain_answer(predictor, prompt_set)
    assert answer.branch == branch
    np.testing.assert_allclose(answer.logits_256.astype(np.float64), logits, atol=0.02)


def test_no_prompt_sets_have_no_answers(frozen):
    assert frozen.answer(frozen.embed(picture((64, 64))), []) == []


def test_a_frozen_sam_learns_nothing(frozen, model):
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not frozen.embed(picture((64, 64))).features.requires_grad


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
)
def test_an_image_of_other_shape_or_type_is_refused(frozen, image):
    with pytest.raises(ValueError, match=r"SAM takes \(H, W, 3\) uint8 RGB images, not \w+ of shape"):
        frozen.embed(image)


def test_an_image_too_thin_for_sam_is_refused(frozen):
    with pytest.raises(ValueError, match=r"An image of 1 x 3000 pixels \(H x W\) is too thin for SAM"):
        frozen.embed(np.zeros((1, 3000, 3), np.uint8))


def test_a_point_outside_the_image_is_refused(frozen):
    embedding = frozen.embed(picture((40, 60)))
    with pytest.raises(ValueError, match=r"Prompt set 5 has points outside .* 40 x 60 .* \(x, y\) = \(10, 40\)"):
        frozen.answer(embedding, [PromptSet(5, ((10, 40),), ((0, 0),))])


def test_damaged_weights_do_not_become_answers():
    model = small_sam()
    with torch.no_grad():
        model.mask_decoder.mask_tokens.weight[2] = torch.nan
    frozen = FrozenSam(model)
    with pytest.raises(ValueError, match="SAM's logits are not finite: the checkpoint's weights may be damaged"):
        frozen.answer(frozen.embed(picture((64, 64))), prompts((64, 64), [1]))


def test_values_check_themselves():
    with pytest.raises(ValueError, match=r"An image embedding is \(1, C, h, w\), not \(2, 3, 4, 4\)"):
        Embedding(torch.zeros(2, 3, 4, 4), (1, 1), (1, 1))
    with pytest.raises(ValueError, match=r"not float32 of shape \(256, 256\)"):
        SamAnswer(np.zeros((256, 256), np.float32), 0, (1.0,))
    with pytest.raises(ValueError, match="Branch 0 is not the first of highest IoU"):
        SamAnswer(np.zeros((256, 256), np.float16), 0, (0.1, 0.2, 0.3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_answers_as_the_predictor_on_it():
    model = small_sam().cuda()
    frozen, predictor, size = FrozenSam(model), SamPredictor(model), (480, 640)
    predictor.set_image(picture(size))
    for answer, prompt_set in zip(
        frozen.answer(frozen.embed(picture(size)), prompts(size)), prompts(size), strict=True
    ):
        logits, branch, _ = plain_answer(predictor, prompt_set)
        assert answer.branch == branch
        np.testing.assert_allclose(answer.logits_256.astype(np.float64), logits, atol=0.02)


def test_importing_the_domain_loads_no_heavy_library():
    code = (
        "import sys, json; import sam_laplace_assets.domain.sam, sam_laplace_assets.domain.manifest;"
        "import sam_laplace_assets.storage.images; print(json.dumps(sorted(sys.modules)))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "torchvision", "segment_anything", "PIL", "pandas"} & set(json.loads(loaded))
