"""The prompt-aware head: a small convolutional network that refines what SAM said, given where the points are."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional


class PromptHead(nn.Module):
    """Conv 3x3, ReLU, Conv 3x3, ReLU, Conv 1x1 (`final_conv`, which carries the posterior)."""

    def __init__(self, *, channels_in: int = 3, hidden_channels: int = 16) -> None:
        super().__init__()
        if min(channels_in, hidden_channels) < 1:
            raise ValueError(
                f"A head needs at least one channel, found channels_in={channels_in}, "
                f"hidden_channels={hidden_channels}. The usual sizes are 3 and 16."
            )
        self.conv1 = nn.Conv2d(channels_in, hidden_channels, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(hidden_channels, hidden_channels, kernel_size=3, padding=1)
        self.final_conv = nn.Conv2d(hidden_channels, 1, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Refined mask logits.

        Args:
            x: (B, 3, H, W) float, as `head_inputs` makes it.

        Returns:
            (B, 1, H, W) logits.
        """
        hidden = functional.relu(self.conv1(x), inplace=True)
        hidden = functional.relu(self.conv2(hidden), inplace=True)
        return self.final_conv(hidden)  # type: ignore[no-any-return]


def head_inputs(x: Tensor, *, logit_clip: float) -> Tensor:
    """What the head sees of stored rows: SAM's logits clipped, the maps as they are.

    Args:
        x: (B, 3, H, W) [logits, pos_map, neg_map], float16 as stored; left untouched.
        logit_clip: bound on the logits' magnitude.

    Returns:
        (B, 3, H, W) float32.
    """
    inputs = x.to(torch.float32, copy=True)
    inputs[:, 0].clamp_(-logit_clip, logit_clip)
    return inputs


def build_head(*, channels_in: int, hidden_channels: int, seed: int) -> PromptHead:
    """A head with fresh weights that depend on the seed alone; torch's global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return PromptHead(channels_in=channels_in, hidden_channels=hidden_channels)


def restore_head(state: Mapping[str, Tensor]) -> PromptHead:
    """The head that a state dict was taken from; its sizes are read off the weights."""
    weight = state.get("conv1.weight")
    if weight is None or weight.ndim != 4:
        raise ValueError(f"Not the state of a prompt head: no 4-d conv1.weight among {sorted(state)}. Train one first.")
    head = build_head(channels_in=weight.shape[1], hidden_channels=weight.shape[0], seed=0)
    try:
        head.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"Not the state of a prompt head: {error}") from error
    if not is_finite(head):
        raise ValueError("The head's weights are not finite. Take an earlier checkpoint, or train it again.")
    return head


def frozen_copy(head: nn.Module, *, device: torch.device | str) -> nn.Module:
    """The head on a device, in evaluation mode and without gradients; the original is left untouched."""
    return copy.deepcopy(head).to(device).eval().requires_grad_(False)


def is_finite(head: nn.Module) -> bool:
    """Whether every weight is a finite number."""
    return all(bool(torch.isfinite(weight).all()) for weight in head.parameters())
