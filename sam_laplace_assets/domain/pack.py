"""Rows of a pack: the one way in which training, fitting and scoring read them.

A row is one prompt set of one image: what SAM said, where the points are, and the mask that would have been right.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sam_laplace_assets.domain.transfer import sent

Progress = Callable[[int, int], None]
"""Called with (rows done, rows in all)."""

READ_AHEAD = 2
HALF_EXPONENT = 0x7C00
"""Bits of a float16 that are all set where it is NaN or infinite, and never else."""


class Rows(Protocol):
    """N rows that can be read in any order; a pack on disk and arrays in memory look alike."""

    @property
    def images(self) -> npt.NDArray[np.int64]:
        """(N,) int64, which image (sample) each row belongs to."""
        ...

    def __len__(self) -> int: ...

    def read(self, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Inputs and masks of some rows, as stored.

        Args:
            rows: (B,) int64 row numbers, ascending.

        Returns:
            (B, 3, H, W) float16 [logits, pos_map, neg_map] and (B, H, W) bool masks; H = W = 256 in a pack.
        """
        ...


@dataclass(frozen=True)
class MemoryRows:
    """Rows that are tensors in memory.

    Attributes:
        inputs: (N, 3, H, W) float16 [logits, pos_map, neg_map].
        masks: (N, H, W) bool.
        images: (N,) int64, which image each row belongs to.
        checked: (N,) bool, rows whose inputs were found finite: a later epoch need not look again.
    """

    inputs: Tensor
    masks: Tensor
    images: npt.NDArray[np.int64]
    checked: npt.NDArray[np.bool_] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "checked", np.zeros(len(self.inputs), dtype=np.bool_))
        n, _, height, width = self.inputs.shape
        if self.masks.shape != (n, height, width) or self.images.shape != (n,):
            raise ValueError(
                f"Rows do not fit together: inputs {tuple(self.inputs.shape)}, masks {tuple(self.masks.shape)}, "
                f"images {self.images.shape}. Give (N, 3, H, W), (N, H, W) and (N,)."
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def read(self, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        # by NumPy: threads of PyTorch's own would take the cores from those that compute meanwhile
        inputs, masks = (one.numpy()[rows] for one in (self.inputs, self.masks))
        return torch.from_numpy(inputs), torch.from_numpy(masks)


@dataclass(frozen=True)
class Batch:
    """Some rows that were read together: their numbers (B,), inputs (B, 3, H, W) and masks (B, H, W)."""

    rows: npt.NDArray[np.int64]
    inputs: Tensor
    masks: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device."""
        there = torch.device(device)
        return Batch(self.rows, sent(self.inputs, there), sent(self.masks, there))


def batches(
    rows: Rows, *, batch_size: int, order: npt.NDArray[np.int64] | None = None, device: torch.device | str = "cpu"
) -> Iterator[Batch]:
    """Every row once, in batches; the next ones are read by a thread while the caller works on this one.

    Args:
        rows: N of them.
        batch_size: rows in a batch; the last batch holds what is left.
        order: (N,) which rows share a batch. Inside a batch they ascend, as storage likes it. None: 0, 1, 2...
        device: where they are to be worked on, and are sent by the thread that reads them.

    Yields:
        Batches whose masks are bool and whose inputs are finite; anything else is a ValueError that names the row.
    """
    order = np.arange(len(rows)) if order is None else order
    chunks = [np.sort(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as reader:
        ahead: deque[Future[Batch]] = deque(reader.submit(_read, rows, chunk, device) for chunk in chunks[:READ_AHEAD])
        for chunk in [*chunks[READ_AHEAD:], *[None] * len(ahead)]:
            batch = ahead.popleft().result()
            if chunk is not None:
                ahead.append(reader.submit(_read, rows, chunk, device))
            yield batch


def _read(rows: Rows, chunk: npt.NDArray[np.int64], device: torch.device | str) -> Batch:
    batch = Batch(chunk, *rows.read(chunk))
    if batch.masks.dtype != torch.bool:
        raise ValueError(f"Masks of a pack must be bool, found {batch.masks.dtype}. Threshold them before packing.")
    checked = rows.checked[chunk] if isinstance(rows, MemoryRows) else np.zeros(len(chunk), dtype=np.bool_)
    broken = [place for place in np.flatnonzero(~checked) if not _is_finite(batch.inputs[place])]
    if broken:
        row = int(chunk[broken[0]])
        raise ValueError(
            f"Row {row} (image {int(rows.images[row])}) holds NaN or infinite inputs. "
            "Compute its SAM outputs again, or drop it from the pack."
        )
    if isinstance(rows, MemoryRows):
        rows.checked[chunk] = True
    return batch.to(device)


def _is_finite(values: Tensor) -> bool:
    """Whether all values of a tensor on the CPU are; on one thread, so that who computes meanwhile keeps the others."""
    if values.dtype != torch.float16:
        return bool(torch.isfinite(values).all())
    bits = values.numpy().view(np.uint16)
    return bool(((bits & HALF_EXPONENT) != HALF_EXPONENT).all())
