import json
import subprocess
import sys
from itertools import chain

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from torch.nn import functional

from sam_laplace_assets.demo.evaluate_toy_sam import held_out_samples
from sam_laplace_assets.demo.toy_sam import load_toy_sam
from sam_laplace_assets.domain.geometry import resize_nearest
from sam_laplace_assets.domain.prompts import PromptSet, draw_prompt_sets
from sam_laplace_assets.domain.sam import Embedding, FrozenSam, Prepared, SamAnswer
from sam_laplace_assets_tests.domain.shrunken_sam import shrunken_sam
from sam_laplace_assets_tests.small_sam import picture, prompts, small_sam

SIZES = [(256, 256), (100, 150), (61, 47), (480, 640), (333, 999), (1300, 700), (3, 300), (1, 200), (2100, 1500)]
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


def clicks(size):
    """Prompt sets of all numbers of pairs and of other balances, mixed."""
    pairs = prompts(size, [10, 1, *range(2, 10), 3, 3])
    (many,) = prompts(size, [10])
    unbalanced = [PromptSet(90, many.pos[:1], ()), PromptSet(91, many.pos, ()), PromptSet(92, (), many.neg[:2])]
    return [*unbalanced[:1], *pairs, *unbalanced[1:], PromptSet(93, many.pos + many.neg[:3], many.neg[3:])]


@pytest.fixture(scope="module", params=["small", "toy", "shrunken"])
def any_model(request):
    """Random weights; weights trained on shapes; random ones with windows that stand out over the image."""
    return {"small": small_sam, "toy": load_toy_sam, "shrunken": shrunken_sam}[request.param]()


@pytest.mark.parametrize("size", SIZES)
def test_answers_are_those_of_the_predictor(any_model, size):
    """The contract: the same branch, and its logits within 0.02. A branch may differ only at a tie of IoUs."""
    image, prompt_sets, frozen = picture(size), clicks(size), FrozenSam(any_model)
    predictor = SamPredictor(any_model)
    predictor.set_image(image)
    answers = frozen.answer(frozen.embed(image), prompt_sets)
    assert len(answers) == len(prompt_sets)
    for answer, prompt_set in zip(answers, prompt_sets, strict=True):
        logits, branch, ious = plain_answer(predictor, prompt_set)
        first, second = np.sort(ious)[:-3:-1]
        np.testing.assert_allclose(answer.predicted_ious, ious, atol=2e-5)
        assert first - second > NEAR_TIE, "the test's own prompts tie: branches cannot be compared"
        assert answer.branch == branch
        assert answer.logits_256.dtype == np.float16
        np.testing.assert_allclose(answer.logits_256.astype(np.float64), logits, atol=0.02, rtol=0)


def test_the_random_model_is_worth_comparing(frozen):
    """Logits of a size that matters, both signs, and more than one branch chosen."""
    answers = [one for size in SIZES[:3] for one in frozen.answer(frozen.embed(picture(size)), prompts(size))]
    logits = np.stack([one.logits_256 for one in answers])
    assert np.abs(logits).max() > 5
    assert logits.min() < 0 < logits.max()
    assert len({one.branch for one in answers}) > 1


@pytest.mark.parametrize("size", SIZES)
def test_the_embedding_is_the_predictors_but_for_rounding(any_model, size):
    image = picture(size)
    predictor = SamPredictor(any_model)
    predictor.set_image(image)
    embedding = FrozenSam(any_model).embed(image)
    torch.testing.assert_close(embedding.features, predictor.features, atol=2e-5, rtol=0)
    assert embedding.original_size == predictor.original_size
    assert embedding.input_size == predictor.input_size


def test_images_are_embedded_together_as_each_alone(frozen, model):
    images = [picture(size, seed) for seed, size in enumerate(SIZES)]
    alone = [frozen.embed(image) for image in images]
    for at_once in (None, 1, 4, 100):
        together = FrozenSam(model, images_at_once=at_once).embed_batch(images)
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one.features, other.features, atol=1e-5, rtol=0)
            assert (one.original_size, one.input_size) == (other.original_size, other.input_size)
    assert frozen.embed_batch([]) == []


def test_an_image_may_be_prepared_elsewhere(frozen):
    for image in (picture((480, 640)), picture((61, 47))):
        prepared = frozen.prepare(image)
        assert isinstance(prepared, Prepared)
        assert prepared.pixels.dtype == torch.uint8
        assert max(prepared.input_size) == frozen.image_size
        assert torch.equal(frozen.embed(prepared).features, frozen.embed(image).features)


def test_a_stored_embedding_is_taken_up_again(frozen):
    embedding = frozen.embed(picture((61, 47)))
    again = frozen.embedding(embedding.features.half(), (61, 47))
    assert again.features.dtype == torch.float32
    assert (again.original_size, again.input_size) == (embedding.original_size, embedding.input_size)


def test_answers_do_not_depend_on_what_is_asked_together(any_model):
    """Several images, one without a question, in calls of the decoder that cut through their prompt sets."""
    frozen, sizes = FrozenSam(any_model), [(480, 640), (64, 64), (700, 500), (61, 200)]
    asked = [(frozen.embed(picture(size)), [] if size == (64, 64) else clicks(size)) for size in sizes]
    alone = [frozen.answer(*one) for one in asked]
    for max_batch in (None, 1, 5, 1000):
        together = frozen.ask_many(asked, max_batch=max_batch).wait()
        assert [len(answers) for answers in together] == [len(answers) for answers in alone]
        for one, other in zip(chain(*together), chain(*alone), strict=True):
            assert one.branch == other.branch
            np.testing.assert_allclose(one.predicted_ious, other.predicted_ious, atol=2e-5)
            np.testing.assert_allclose(one.logits_256, other.logits_256, atol=0.02)


def test_answers_may_be_waited_for_in_any_order(frozen):
    asked = [(frozen.embed(picture((480, 640))), clicks((480, 640))), (frozen.embed(picture((61, 200))), [])]
    first, second = frozen.ask_many(asked), frozen.ask_many(asked[::-1])
    expected = [frozen.answer(*one) for one in asked]
    for found in (second.wait()[::-1], first.wait()):
        assert [len(answers) for answers in found] == [len(answers) for answers in expected]
        for one, other in zip(chain(*found), chain(*expected), strict=True):
            np.testing.assert_array_equal(one.logits_256, other.logits_256)
            assert (one.branch, one.predicted_ious) == (other.branch, other.predicted_ious)


def test_an_image_costs_one_encoder_pass_and_its_side_of_the_decoder_once(any_model, monkeypatch):
    from sam_laplace_assets.domain.sam_decoder import FastDecoder
    from sam_laplace_assets.domain.sam_encoder import FastEncoder

    calls = []
    for owner, name in ((FastEncoder, "__call__"), (FastDecoder, "image_side"), (FastDecoder, "__call__")):
        monkeypatch.setattr(owner, name, recorded(calls, f"{owner.__name__}.{name}", getattr(owner, name)))
    frozen = FrozenSam(any_model)
    asked = [(embedding, prompts((64, 64), [1, 2, 1])) for embedding in frozen.embed_batch([picture((64, 64))] * 2)]
    frozen.ask_many(asked, max_batch=2).wait()
    assert calls.count("FastEncoder.__call__") == 2
    assert calls.count("FastDecoder.image_side") == 2
    assert calls.count("FastDecoder.__call__") == 3


def recorded(calls, name, function):
    def record(*arguments, **options):
        calls.append(name)
        return function(*arguments, **options)

    return record


def test_the_positional_encoding_is_computed_once(model, frozen, monkeypatch):
    monkeypatch.setattr(model.prompt_encoder, "get_dense_pe", lambda: pytest.fail("computed again"))
    frozen.answer(frozen.embed(picture((64, 64))), prompts((64, 64), [1, 2]))


def test_a_set_is_answered_the_same_alone_and_among_others(frozen):
    embedding, prompt_sets = frozen.embed(picture((90, 120))), prompts((90, 120), [3] * 7 + [1, 2])
    together = frozen.answer(embedding, prompt_sets)
    (in_twos,) = frozen.ask_many([(embedding, prompt_sets)], max_batch=2).wait()
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


def iou(mask, other):
    return (mask & other).sum() / (mask | other).sum()


def test_bf16_keeps_the_toys_masks(record_property):
    """On scenes the toy never saw: IoU with the true masks, and of float32's masks with bf16's."""
    exact, rounded = FrozenSam(load_toy_sam()), FrozenSam(load_toy_sam(), precision="bf16")
    assert (exact.precision, rounded.precision) == ("float32", "bf16")
    found = []
    for index, scene in enumerate(held_out_samples(15)):
        sets = draw_prompt_sets(scene.mask, sample_id=f"a/{index}", count=3, min_pairs=1, max_pairs=10, prompt_seed=0)
        truth = resize_nearest(scene.mask, 256, 256)
        pairs = zip(*(sam.answer(sam.embed(scene.image), sets) for sam in (exact, rounded)), strict=True)
        masks = [[one.logits_256 > 0 for one in pair] for pair in pairs]
        found += [(iou(mine, truth), iou(other, truth), iou(mine, other)) for mine, other in masks]
    of_exact, of_rounded, between = np.mean(found, axis=0)
    record_property("IoU in float32, in bf16, between them", [float(one) for one in (of_exact, of_rounded, between)])
    assert rounded.embed(picture((64, 64))).features.dtype == torch.float32
    assert abs(of_exact - of_rounded) < 0.005
    assert between > 0.99


@pytest.mark.parametrize("size", SIZES)
def test_bf16_answers_are_finite_whatever_the_image(any_model, size):
    frozen = FrozenSam(any_model, precision="bf16")
    assert all(np.isfinite(one.logits_256).all() for one in frozen.answer(frozen.embed(picture(size)), clicks(size)))


def test_another_precision_is_refused(model):
    with pytest.raises(ValueError, match=r"SAM does not compute in 'float16': give one of float32, bf16"):
        FrozenSam(model, precision="float16")


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("build", [small_sam, load_toy_sam, shrunken_sam])
def test_a_gpu_answers_as_the_predictor_on_it(build):
    model, size = build().cuda(), (480, 640)
    frozen, predictor = FrozenSam(model), SamPredictor(model)
    predictor.set_image(picture(size))
    for answer, prompt_set in zip(frozen.answer(frozen.embed(picture(size)), clicks(size)), clicks(size), strict=True):
        logits, branch, _ = plain_answer(predictor, prompt_set)
        assert answer.branch == branch
        np.testing.assert_allclose(answer.logits_256.astype(np.float64), logits, atol=0.02)


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_keeps_the_toys_masks_in_bf16():
    exact, rounded = FrozenSam(load_toy_sam().cuda()), FrozenSam(load_toy_sam().cuda(), precision="bf16")
    for index, scene in enumerate(held_out_samples(5)):
        sets = draw_prompt_sets(scene.mask, sample_id=f"a/{index}", count=5, min_pairs=1, max_pairs=10, prompt_seed=0)
        pairs = zip(*(sam.answer(sam.embed(scene.image), sets) for sam in (exact, rounded)), strict=True)
        assert np.mean([iou(*(one.logits_256 > 0 for one in pair)) for pair in pairs]) > 0.95


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_gpu_is_asked_without_waiting_for_it(precision):
    frozen = FrozenSam(load_toy_sam().cuda(), precision=precision, images_at_once=3)
    sizes = [(480, 640), (61, 200), (300, 300)]
    prepared = [frozen.prepare(picture(size)) for size in sizes]

    def ask():
        asked = zip(frozen.embed_batch(prepared), map(clicks, sizes), strict=True)
        return frozen.ask_many(list(asked), max_batch=10)

    ask().wait()
    torch.cuda.set_sync_debug_mode("error")
    try:
        under_way = ask()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [len(answers) for answers in under_way.wait()] == [len(clicks(size)) for size in sizes]


def test_importing_the_domain_loads_no_heavy_library():
    code = (
        "import sys, json; import sam_laplace_assets.domain.sam, sam_laplace_assets.domain.manifest;"
        "import sam_laplace_assets.storage.images; print(json.dumps(sorted(sys.modules)))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "torchvision", "segment_anything", "PIL", "pandas"} & set(json.loads(loaded))
