"""Files of the demo, left untouched where nothing changed."""

from pathlib import Path
from typing import TYPE_CHECKING

from sam_laplace_assets.storage import files, weights

if TYPE_CHECKING:
    import torch


def write_if_changed(path: Path, content: bytes) -> None:
    """Put bytes in place, whole or not at all; a file that already holds them is left alone."""
    if not (path.is_file() and path.read_bytes() == content):
        files.write_bytes(path, content)


def save_weights(path: Path, state: "dict[str, torch.Tensor]") -> None:
    """Write a state dict as float16; the bytes depend on the weights alone, not on the file's name."""
    write_if_changed(path, weights.dump({name: value.detach().half().contiguous() for name, value in state.items()}))
