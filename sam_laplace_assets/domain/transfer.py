"""Tensors on their way to a GPU and back, while it computes on; on a CPU they stay where they are."""

from collections.abc import Sequence

import torch
from torch import Tensor


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor in memory that a GPU fetches by itself, if it is on the CPU and to go to one; any thread may ask."""
    return tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. Nothing waits for it: what a GPU is asked for next finds it there."""
    return pinned(tensor, device).to(device, non_blocking=True)


class Fetched:
    """Tensors that come to the CPU once all that was asked of their device so far is done.

    Args:
        tensors: on any device.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = [_on_the_way(tensor) for tensor in tensors]
        devices = {tensor.device for tensor in tensors if tensor.is_cuda}
        self._there = [torch.cuda.current_stream(device).record_event(_whose_waiting_sleeps()) for device in devices]

    def wait(self) -> list[Tensor]:
        """The tensors on the CPU, once they are there."""
        for event in self._there:
            event.synchronize()
        return self._tensors


def _on_the_way(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor
    here = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return here.copy_(tensor, non_blocking=True)


def _whose_waiting_sleeps() -> torch.cuda.Event:
    """An event that takes no core while it is waited for."""
    return torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
