"""The head's last layer, a 1x1 convolution: its weights, its inputs, and every row of a pack on its way through it."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from sam_laplace_assets.domain.ahead import ahead
from sam_laplace_assets.domain.head import frozen_copy, head_inputs
from sam_laplace_assets.domain.pack import Progress, Rows, batches

Result = TypeVar("Result")


@dataclass(frozen=True)
class RowPass:
    """One row on its way through the head; batch size 1 is kept.

    Attributes:
        row: its number.
        inputs: (1, 3, H, W) float32, clipped, in `quick_layout`.
        features: (1, C, H, W) inputs of the last layer.
        logits: (1, H, W) its outputs.
        masks: (1, H, W) bool.
    """

    row: int
    inputs: Tensor
    features: Tensor
    logits: Tensor
    masks: Tensor


def last_layer(head: nn.Module, target_layer: str) -> nn.Conv2d:
    """The layer of that name, if it is one that the posterior can be put on."""
    try:
        layer = head.get_submodule(target_layer)
    except AttributeError:
        names = [name for name, _ in head.named_children()]
        raise ValueError(
            f"The head has no layer {target_layer!r}, only {names}. Set laplace.target_layer to one of them."
        ) from None
    if not isinstance(layer, nn.Conv2d) or layer.kernel_size != (1, 1) or layer.out_channels != 1 or layer.bias is None:
        raise ValueError(
            f"Layer {target_layer!r} is {layer}. The posterior needs a 1x1 convolution to one channel with a bias: "
            "set laplace.target_layer to final_conv."
        )
    return layer


def last_layer_weights(head: nn.Module, *, target_layer: str) -> Tensor:
    """(P,) float64 on the CPU: the weights, then the bias; a copy."""
    return nn.utils.parameters_to_vector(last_layer(head, target_layer).parameters()).detach().double().cpu()


def features_and_logits(head: nn.Module, x: Tensor, *, target_layer: str) -> tuple[Tensor, Tensor]:
    """Inputs (B, C, H, W) and outputs (B, H, W) of the last layer for head inputs (B, 3, H, W)."""
    captured: list[Tensor] = []
    layer = last_layer(head, target_layer)
    handle = layer.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    try:
        logits = head(x)[:, 0]
    finally:
        handle.remove()
    return captured[0], logits


def quick_layout(x: Tensor) -> Tensor:
    """The same values as a CPU convolves them fastest: float32 with the channels last."""
    quick = x.device.type == "cpu" and x.dtype == torch.float32
    return x.contiguous(memory_format=torch.channels_last) if quick else x


def over_rows(
    head: nn.Module,
    rows: Rows,
    work: Callable[[RowPass], Result],
    *,
    target_layer: str,
    logit_clip: float,
    batch_size: int,
    device: torch.device | str,
    progress: Progress | None = None,
) -> Iterator[Result]:
    """What `work` makes of each row of a pack, in their order, on its way through a frozen copy of the head.

    Rows go one at a time, as feature maps of one fit a core's cache; on a CPU several rows at once, each on one of the
    threads that PyTorch may use, where `work` is called, too. What it makes does not depend on how many these are.
    """
    cores = torch.get_num_threads()
    threads = cores if torch.device(device).type == "cpu" else 1
    here = threading.local()

    def begin() -> None:
        here.head = frozen_copy(head, device=device)
        torch.set_num_threads(max(1, cores // threads))

    def made_of(row: _Row) -> Result:
        x = quick_layout(head_inputs(row.stored.to(device), logit_clip=logit_clip))
        features, logits = features_and_logits(here.head, x, target_layer=target_layer)
        return work(RowPass(row.number, x, features, logits, row.masks.to(device)))

    results = ahead(made_of, _one_by_one(rows, batch_size), depth=2 * threads, threads=threads, begin=begin)
    try:
        for done, result in enumerate(results, start=1):
            yield result
            if progress is not None and (done % batch_size == 0 or done == len(rows)):
                progress(done, len(rows))
    finally:
        torch.set_num_threads(cores)


@dataclass(frozen=True)
class _Row:
    """A row as it is stored: inputs (1, 3, H, W) and masks (1, H, W)."""

    number: int
    stored: Tensor
    masks: Tensor


def _one_by_one(rows: Rows, batch_size: int) -> Iterator[_Row]:
    for batch in batches(rows, batch_size=batch_size):
        for i, number in enumerate(batch.rows):
            yield _Row(int(number), batch.inputs[i : i + 1], batch.masks[i : i + 1])


def pixel_features(features: Tensor) -> Tensor:
    """(B, C, H, W) to (B * H * W, C); nothing is copied where the channels are last, as `over_rows` gives them."""
    return features.movedim(1, -1).flatten(0, -2)


def jacobian(features: Tensor) -> Tensor:
    """Derivative of each pixel's logit by the last layer's parameters: its features, then 1.

    Args:
        features: (B, C, H, W).

    Returns:
        (P, B * H * W) float64.
    """
    flat = features.movedim(1, 0).flatten(1).double()
    return torch.cat([flat, flat.new_ones(1, flat.shape[1])])
