"""Reading a pack's rows: as they lie on disk, or once into memory."""

from functools import cached_property

import h5py
import numpy as np
import torch
from torch import Tensor

from sam_laplace_assets.domain.pack import MemoryRows
from sam_laplace_assets.storage.pack import Pack, PackRefused, open_pack
from sam_laplace_assets.storage.shards import ARRAYS, SHAPE

BLOCK = 64


def load_rows(pack: Pack) -> MemoryRows:
    """All rows of a pack, in memory."""
    file = StreamedRows(pack).file
    inputs = torch.empty((len(pack), len(ARRAYS), *SHAPE), dtype=torch.float16)
    masks = np.empty((len(pack.safe_ids), *SHAPE), dtype=bool)
    masks[:] = file["mask"][:]
    for start in range(0, len(pack), BLOCK):
        stop = min(start + BLOCK, len(pack))
        for channel, name in enumerate(ARRAYS):
            inputs[start:stop, channel] = torch.from_numpy(file[name][start:stop])
    return MemoryRows(inputs, torch.from_numpy(masks)[torch.from_numpy(pack.images)], pack.images)


class StreamedRows:
    """Rows read from the pack that was opened, one row a read; the file is opened once a process."""

    def __init__(self, pack: Pack) -> None:
        self._pack, self.images = pack, pack.images

    def __len__(self) -> int:
        return len(self.images)

    def __reduce__(self) -> tuple[type, tuple[Pack]]:
        return type(self), (self._pack,)

    @cached_property
    def file(self) -> h5py.File:
        """The open file. Raises `PackRefused` where another pack has taken its place since."""
        file = open_pack(self._pack.path)
        if file.attrs["data_version"] == self._pack.data_version:
            return file
        file.close()
        raise PackRefused(f"{self._pack.path} was replaced after it was opened by this run. Run again.")

    def read(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """(B, 3, 256, 256) float16 inputs and (B, 256, 256) bool masks of some rows."""
        inputs = np.empty((len(rows), len(ARRAYS), *SHAPE), dtype=np.float16)
        masks = np.empty((len(rows), *SHAPE), dtype=bool)
        for at, row in enumerate(rows.tolist()):
            for channel, name in enumerate(ARRAYS):
                inputs[at, channel] = self.file[name][row]
            masks[at] = self.file["mask"][int(self.images[row])] > 0
        return torch.from_numpy(inputs), torch.from_numpy(masks)
