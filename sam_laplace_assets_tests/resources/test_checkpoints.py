import numpy as np
import pytest
import torch

from sam_laplace_assets.resources import checkpoints as sam_module
from sam_laplace_assets.resources.checkpoints import CheckpointRefused, build_model, load_frozen_sam, resolve_device
from sam_laplace_assets_tests.faults.hostile import Touch, bomb
from sam_laplace_assets_tests.small_sam import picture, prompts, small_sam


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


def test_a_checkpoint_that_would_unpack_to_far_more_than_it_is_is_refused(registry, tmp_path):
    path = tmp_path / "sam.pt"
    path.write_bytes(bomb(50_000_000))
    assert "would unpack to 50,0" in refusal(path)


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
