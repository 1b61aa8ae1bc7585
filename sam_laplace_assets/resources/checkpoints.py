"""SAM checkpoints: which models there are, loading their weights without running any code, and the device to use."""

import pickle
from pathlib import Path
from typing import TYPE_CHECKING

from sam_laplace_assets.domain.sam import FrozenSam, Precision
from sam_laplace_assets.storage.weights import Damaged, require_unpacked

if TYPE_CHECKING:
    import torch
    from segment_anything.modeling import Sam

MODEL_TYPES = ("vit_h", "vit_l", "vit_b", "toy")

_PATCH_EMBEDDING = "image_encoder.patch_embed.proj.weight"
_WIDTHS = {"vit_h": 1280, "vit_l": 1024, "vit_b": 768, "toy": 160}
_SAVE_WEIGHTS = "Save `model.state_dict()` alone and set sam.checkpoint to that."
_UNPICKLING_ERRORS = (
    pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError
)  # fmt: skip  # what bytes that are no checkpoint were seen to raise, and what an unpickler may


class CheckpointRefused(ValueError):
    """A file that does not hold the weights of the SAM it was given for."""


def resolve_device(device: str) -> "torch.device":
    """PyTorch device of a setting: auto is a GPU where there is one, whose float32 is float32 from then on.

    Raises:
        ValueError: the GPU asked for is not there, or the word is unknown.
    """
    import torch

    if device not in ("auto", "cuda", "cpu"):
        raise ValueError(f"Device {device!r} is not known: set device to auto, cuda or cpu.")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device: cuda was asked for, but PyTorch sees no GPU here. Set device to auto or cpu, or check the GPU's "
            "driver and that PyTorch is a CUDA build."
        )
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = False  # convolutions would be rounded to ten bits
    return torch.device("cuda")


def build_model(model_type: str) -> "Sam":
    """SAM of a model type, with whatever weights it is born with."""
    if model_type not in MODEL_TYPES:
        raise ValueError(f"Model type {model_type!r} is not known: set sam.model_type to {', '.join(MODEL_TYPES)}.")
    if model_type == "toy":
        from sam_laplace_assets.demo.toy_sam import build_toy_sam

        return build_toy_sam()
    from segment_anything import sam_model_registry

    return sam_model_registry[model_type](checkpoint=None)


def load_frozen_sam(
    model_type: str, checkpoint: Path, *, device: "str | torch.device", precision: Precision = "float32",
    compile: bool = False, images_at_once: int | None = None,
) -> FrozenSam:  # fmt: skip
    """SAM with the weights of a checkpoint, as float32.

    The model is laid out without memory first, so that no random weights are drawn only to be replaced.

    Args:
        model_type: one of `MODEL_TYPES`.
        checkpoint: a state dict saved by PyTorch, in any float precision.
        device: where it shall compute: what `resolve_device` takes, or a PyTorch device.
        precision: what it shall compute in, as in `FrozenSam`.
        compile: whether PyTorch compiles the encoder where it is on a GPU; on a CPU nothing is gained.
        images_at_once: as in `FrozenSam`.

    Raises:
        CheckpointRefused: the file is absent, unreadable, more than plain weights, or of another model.
    """
    import torch

    target = resolve_device(device) if isinstance(device, str) else device
    with torch.device("meta"):
        model = build_model(model_type)
    weights = read_weights(checkpoint)
    _require_fit(weights, model.state_dict(), model_type, checkpoint)
    model.load_state_dict({name: weight.float() for name, weight in weights.items()}, assign=True)
    compile = compile and target.type == "cuda"
    return FrozenSam(model.to(target), precision=precision, compile=compile, images_at_once=images_at_once)


def read_weights(checkpoint: Path) -> "dict[str, torch.Tensor]":
    """State dict of a checkpoint, on the CPU; nothing but tensors is unpickled."""
    import torch

    if not checkpoint.is_file():
        found = "it is a folder" if checkpoint.is_dir() else "there is no such file"
        raise CheckpointRefused(f"Cannot load {checkpoint}: {found}. Set sam.checkpoint to a file of SAM's weights.")
    try:
        require_unpacked(checkpoint, checkpoint.stat().st_size)
        weights = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=False)
    except Damaged as error:
        raise CheckpointRefused(f"Cannot load {checkpoint}: {error}") from error
    except _UNPICKLING_ERRORS as error:
        raise CheckpointRefused(f"Cannot load {checkpoint}: {_why_unreadable(checkpoint, error)}") from error
    if not isinstance(weights, dict) or not all(isinstance(weight, torch.Tensor) for weight in weights.values()):
        keys = f" of {', '.join(map(str, list(weights)[:5]))}" if isinstance(weights, dict) else ""
        found = f"a {type(weights).__name__}{keys}"
        raise CheckpointRefused(f"Cannot load {checkpoint}: it holds {found}, not a state dict. {_SAVE_WEIGHTS}")
    return dict(weights)


def _why_unreadable(checkpoint: Path, error: Exception) -> str:
    """Objects beside the weights, or no whole file of PyTorch's: only its unpickler's words tell the two apart."""
    if "GLOBAL" in str(error) or "TorchScript" in str(error):
        return f"it holds pickled objects, which could run code, not plain weights. {_SAVE_WEIGHTS}"
    size = checkpoint.stat().st_size
    return f"it is cut short or no PyTorch file, at {size:,} bytes. Fetch it again and compare its size or SHA-256."


def _require_fit(
    weights: "dict[str, torch.Tensor]", expected: "dict[str, torch.Tensor]", model_type: str, checkpoint: Path
) -> None:
    missing, unexpected = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys(), key=str)
    reshaped = [name for name in expected if name in weights and weights[name].shape != expected[name].shape]
    if missing or unexpected or reshaped:
        examples = ", ".join(str(name) for name in (*reshaped[:1], *missing[:1], *unexpected[:1]))
        raise CheckpointRefused(
            f"{checkpoint} does not fit model type {model_type}: {len(missing)} weights are missing, {len(unexpected)} "
            f"unexpected and {len(reshaped)} of another shape, such as {examples}. {_advice(weights, model_type)}"
        )


def _advice(weights: "dict[str, torch.Tensor]", model_type: str) -> str:
    """Which model type the width of the patch embedding speaks for."""
    width = weights[_PATCH_EMBEDDING].shape[0] if _PATCH_EMBEDDING in weights else None
    fitting = [name for name, its_width in _WIDTHS.items() if its_width == width and name != model_type]
    if fitting:
        return f"Its patch embedding is {width} wide, as that of {fitting[0]}: set sam.model_type to {fitting[0]}."
    return f"Use weights of the original Segment Anything, one of {', '.join(MODEL_TYPES)}."
