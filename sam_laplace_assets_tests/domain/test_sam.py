import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch.nn import functional

from sam_laplace_assets.domain import sam as sam_module
from sam_laplace_assets.domain.prompts import PromptSet
from sam_laplace_assets.domain.sam import (
    CheckpointRefused,
    Embedding,
    FrozenSam,
    SamAnswer,
    build_model,
    load_frozen_sam,
    resolve_device,
)

SIDE, WIDTH = 256, 32
SIZES = [(256, 256), (100, 150), (61, 47), (480, 640), (333, 999), (1300, 700), (3, 300)]
NEAR_TIE = 1e-5


def small_sam(width=WIDTH):
    """Segment Anything at 256 pixels, with seeded random weights scaled so that its logits reach tens."""
    torch.manual_seed(0)
    model = Sam(
        image_encoder=ImageEncoderViT(
            img_size=SIDE,
            patch_size=16,
            embed_dim=width,
            depth=2,
            num_heads=2,
            out_chans=WIDTH,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=8,
            global_attn_indexes=(1,),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=WIDTH, image_embedding_size=(16, 16), input_image_size=(SIDE, SIDE), mask_in_chans=16
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=64, num_heads=2),
            transformer_dim=WIDTH,
            iou_head_depth=3,
            iou_head_hidden_dim=32,
        ),
    )
    with torch.no_grad():
        for mlp in model.mask_decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight.mul_(300)
        model.mask_decoder.iou_prediction_head.layers[-1].weight.mul_(10)
    return model.eval()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small matrices are slower on several threads, far more so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model():
    return small_sam()


@pytest.fixture(scope="module")
def frozen(model):
    return FrozenSam(model)


def picture(size, seed=0):
    """Smooth colours with noise on them, (H, W, 3) uint8."""
    stream = np.random.default_rng(seed)
    coarse = torch.as_tensor(stream.random((1, 3, 5, 5)))
    smooth = functional.interpolate(coarse, size, mode="bilinear")[0].permute(1, 2, 0).numpy()
    return (255 * np.clip(smooth + 0.1 * stream.standard_normal((*size, 3)), 0, 1)).astype(np.uint8)


def prompts(size, pairs=range(1, 11)):
    stream = np.random.default_rng(1)

    def points(k):
        return tuple((int(stream.integers(size[1])), int(stream.integers(size[0]))) for _ in range(k))

    return [PromptSet(index, points(k), points(k)) for index, k in enumerate(pairs)]


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


# Loading


@pytest.fixture
def registry(monkeypatch):
    """The small model in place of the toy's, so that loading it takes no time."""
    monkeypatch.setattr(sam_module, "build_model", lambda model_type: small_sam())


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_load_as_float32(registry, tmp_path, model, dtype):
    path = saved(tmp_path / "sam.pt", {name: weight.to(dtype) for name, weight in model.state_dict().items()})
    loaded = load_frozen_sam("toy", path, device="cpu")
    assert {weight.dtype for weight in loaded._model.state_dict().values()} == {torch.float32}
    tensors = [*loaded._model.parameters(), *loaded._model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"cpu"}, "nothing may be left without memory"


def test_a_loaded_model_answers_as_the_saved_one(registry, tmp_path, model, frozen):
    loaded = load_frozen_sam("toy", saved(tmp_path / "sam.pt", model.state_dict()), device=torch.device("cpu"))
    image, prompt_sets = picture((90, 120)), prompts((90, 120), [1, 2])
    for one, other in zip(
        loaded.answer(loaded.embed(image), prompt_sets), frozen.answer(frozen.embed(image), prompt_sets), strict=True
    ):
        np.testing.assert_array_equal(one.logits_256, other.logits_256)


def refusal(path, model_type="toy"):
    with pytest.raises(CheckpointRefused) as refused:
        load_frozen_sam(model_type, path, device="cpu")
    assert str(path) in str(refused.value)
    return str(refused.value)


def test_an_absent_checkpoint_names_the_setting(registry, tmp_path):
    expected = ". Set sam.checkpoint to a file of SAM's weights."
    assert refusal(tmp_path / "sam.pth").endswith("there is no such file" + expected)
    assert refusal(tmp_path).endswith("it is a folder" + expected)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_checkpoint_is_refused(registry, tmp_path, model, kept, legacy):
    path = saved(tmp_path / "sam.pt", model.state_dict(), _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    assert "it is cut short or no PyTorch file" in refusal(path)


@pytest.mark.parametrize("content", [b"<!DOCTYPE html>", b"version https://git-lfs.github.com/spec\n", bytes(256) * 9])
def test_a_file_that_is_no_checkpoint_is_refused(registry, tmp_path, content):
    path = tmp_path / "sam.pt"
    path.write_bytes(content)
    assert f"at {len(content):,} bytes. Fetch it again" in refusal(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_objects_are_refused_and_not_run(registry, tmp_path, legacy):
    ran = tmp_path / "ran"
    path = saved(tmp_path / "sam.pt", {"model": Touch(ran)}, _use_new_zipfile_serialization=not legacy)
    assert "it holds pickled objects, which could run code, not plain weights" in refusal(path)
    assert not ran.exists()


class Touch:
    """Pickles as a call that leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w')",)


def test_what_is_no_state_dict_is_refused(registry, tmp_path, model):
    path = saved(tmp_path / "sam.pt", {"epoch": 3, "model": model.state_dict()})
    assert "it holds a dict of epoch, model, not a state dict. Save `model.state_dict()` alone" in refusal(path)
    assert "it holds a Tensor, not a state dict" in refusal(saved(path, torch.zeros(3)))


@pytest.mark.parametrize(("width", "fits"), [(768, "vit_b"), (1024, "vit_l"), (1280, "vit_h"), (160, "toy")])
def test_weights_of_another_model_type_say_which(tmp_path, width, fits):
    patch_embedding = {"image_encoder.patch_embed.proj.weight": torch.zeros(width, 3, 16, 16)}
    model_type = "vit_h" if fits != "vit_h" else "vit_b"
    text = refusal(saved(tmp_path / "sam.pth", patch_embedding), model_type)
    assert f"does not fit model type {model_type}" in text
    assert text.endswith(f"Its patch embedding is {width} wide, as that of {fits}: set sam.model_type to {fits}.")


def test_weights_that_fit_nothing_say_what_differs(registry, tmp_path, model):
    weights = dict(model.state_dict())
    del weights["mask_decoder.iou_token.weight"]
    weights["hq_token.weight"] = torch.zeros(1)
    weights["prompt_encoder.no_mask_embed.weight"] = torch.zeros(1, 7)
    text = refusal(saved(tmp_path / "sam.pt", weights))
    assert "1 weights are missing, 1 unexpected and 1 of another shape" in text
    for name in ("mask_decoder.iou_token.weight", "hq_token.weight", "prompt_encoder.no_mask_embed.weight"):
        assert name in text
    assert text.endswith("Use weights of the original Segment Anything, one of vit_h, vit_l, vit_b, toy.")


def test_an_unknown_model_type_is_refused():
    with pytest.raises(ValueError, match=r"'vit_x' is not known: set sam\.model_type to vit_h, vit_l, vit_b, toy"):
        build_model("vit_x")


@pytest.mark.parametrize(("model_type", "width"), [("vit_h", 1280), ("vit_l", 1024), ("vit_b", 768), ("toy", 160)])
def test_each_model_type_has_the_width_that_tells_it(model_type, width):
    with torch.device("meta"):
        weight = build_model(model_type).state_dict()["image_encoder.patch_embed.proj.weight"]
    assert weight.shape[0] == width


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"device: cuda .* PyTorch sees no GPU here\. Set device to auto"):
        resolve_device("cuda")
    with pytest.raises(ValueError, match="Device 'gpu' is not known: set device to auto, cuda or cpu"):
        resolve_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda")
    assert resolve_device("cpu") == torch.device("cpu")


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
