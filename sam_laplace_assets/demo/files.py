"""Files that appear whole or not at all, and that stay untouched where nothing changed."""

import io
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def write_if_changed(path: Path, content: bytes) -> None:
    """Write bytes beside their place, sync them and rename; a file that already holds them is left alone."""
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
            os.fchmod(stream.fileno(), 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def save_weights(path: Path, state: "dict[str, torch.Tensor]") -> None:
    """Write a state dict as float16; the bytes depend on the weights alone, not on the file's name."""
    import torch

    buffer = io.BytesIO()
    torch.save({name: value.detach().half().contiguous() for name, value in state.items()}, buffer)
    write_if_changed(path, buffer.getvalue())
