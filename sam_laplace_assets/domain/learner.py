"""One step, one epoch, one validation of the head: what training repeats."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sam_laplace_assets.domain.head import PromptHead, head_inputs
from sam_laplace_assets.domain.metrics import binary_nll, dice, iou, soft_dice_loss
from sam_laplace_assets.domain.pack import Batch

HISTOGRAM_BINS = 64


@dataclass(frozen=True)
class Histogram:
    """Counts (bins,) int64 between edges (bins + 1,) float64, of the finite values."""

    counts: npt.NDArray[np.int64]
    edges: npt.NDArray[np.float64]


def row_losses(logits: Tensor, masks: Tensor, *, dice_lambda: float) -> Tensor:
    """Binary cross-entropy, a mean over pixels, plus dice_lambda times the soft Dice loss, of each row.

    Args:
        logits: (B, H, W) float32.
        masks: (B, H, W) bool.

    Returns:
        (B,) losses; training minimises their mean.
    """
    return binary_nll(logits, masks).flatten(1).mean(1) + dice_lambda * soft_dice_loss(logits, masks)


class Learner:
    """A head with its AdamW optimizer and its gradient scaler, on the head's device."""

    def __init__(
        self, head: PromptHead, *, lr: float, weight_decay: float, dice_lambda: float, amp: bool, logit_clip: float
    ) -> None:
        self.head = head
        self.device = next(head.parameters()).device
        self.dice_lambda, self.logit_clip = dice_lambda, logit_clip
        self.amp = amp and self.device.type == "cuda"
        fused = True if self.device.type == "cuda" else None  # else the scaler waits for the GPU at each step
        self.optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=weight_decay, fused=fused)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp)

    def load(self, *, head: dict[str, Tensor], optimizer: dict[str, Any], scaler: dict[str, Any]) -> None:
        """Take up the weights and states that `snapshot` kept; an empty scaler state starts a new one."""
        self.head.load_state_dict(head)
        state = copy.deepcopy(optimizer)
        for group in state["param_groups"]:
            group["fused"] = self.optimizer.defaults["fused"]  # of this device, whichever the state was saved on
        self.optimizer.load_state_dict(state)
        if scaler:
            self.scaler.load_state_dict(scaler)

    def epoch(self, batches: Iterator[Batch], *, report: Callable[[int], None]) -> Tensor:
        """A step a batch; `report` is told how many rows each had.

        Returns:
            (N,) float64 on the CPU, the loss of each row as it was met.
        """
        self.head.train()
        losses = []
        for batch in batches:
            losses.append(self.step(batch))
            report(len(batch.rows))
        return torch.cat(losses).double().cpu()

    def step(self, batch: Batch) -> Tensor:
        """One step down the mean loss of a batch; returns the losses before it, (B,)."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for x, masks in self._parts(batch):
            with torch.autocast(self.device.type, dtype=torch.float16, enabled=self.amp):
                logits = self.head(x)[:, 0]
            part = row_losses(logits.float(), masks, dice_lambda=self.dice_lambda)
            self.scaler.scale(part.sum() / len(batch.rows)).backward()  # type: ignore[no-untyped-call]
            losses.append(part.detach())
        self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return torch.cat(losses)

    @torch.no_grad()
    def validate(self, batches: Iterator[Batch]) -> dict[str, float]:
        """Means over rows of the loss, the IoU and the Dice coefficient, in float32 always."""
        self.head.eval()
        scores = []
        for batch in batches:
            for x, masks in self._parts(batch):
                logits = self.head(x)[:, 0]
                losses = row_losses(logits, masks, dice_lambda=self.dice_lambda).double()
                scores.append(torch.stack([losses, iou(logits, masks), dice(logits, masks)]))
        means = torch.cat(scores, dim=1).mean(1).tolist()
        return dict(zip(("val_loss", "val_iou", "val_dice"), means, strict=True))

    def _parts(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """A batch on the device, clipped, channels last, in parts whose feature maps stay in a CPU's cache.

        On a CPU, both together take a third of the time of a whole batch in the default layout.
        """
        batch = batch.to(self.device)
        size = 1 if self.device.type == "cpu" else len(batch.rows)
        inputs = head_inputs(batch.inputs, logit_clip=self.logit_clip).contiguous(memory_format=torch.channels_last)
        yield from zip(torch.split(inputs, size), torch.split(batch.masks, size), strict=True)

    def histograms(self) -> dict[str, Histogram]:
        """Of `weights/<name>` and of `gradients/<name>` at the last step, for every parameter."""
        named = list(self.head.named_parameters())
        weights = {f"weights/{name}": _histogram(weight.detach()) for name, weight in named}
        return weights | {f"gradients/{name}": _histogram(w.grad) for name, w in named if w.grad is not None}


def snapshot(value: Any) -> Any:
    """A copy of a nested state whose tensors are on the CPU and share no memory with the original."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: snapshot(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(snapshot(item) for item in value)
    return value


def _histogram(values: Tensor) -> Histogram:
    flat = values.flatten().double().cpu().numpy()
    counts, edges = np.histogram(flat[np.isfinite(flat)], bins=HISTOGRAM_BINS)
    return Histogram(counts.astype(np.int64), edges)
