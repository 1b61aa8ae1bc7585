"""State dicts as files: plain tensors and numbers, read with `weights_only=True`, checked against a SHA-256."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sam_laplace_assets.storage import files


class Damaged(ValueError):
    """A file of a finished run is missing or not the one that was stored."""


def dump(state: Mapping[str, Any]) -> bytes:
    """A state dict as the bytes of its file; equal states, equal bytes."""
    import torch

    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def load(content: bytes) -> Any:
    """The state dict in the bytes of a file, on the CPU; no code in them is run."""
    import torch

    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def verified(places: Sequence[Path], sha256: str, *, named_by: str) -> bytes:
    """The bytes of the first file that has this SHA-256.

    Raises:
        Damaged: none has; names the first place, what was found and what to do.
    """
    for path in places:
        if path.exists() and files.sha256(content := path.read_bytes()) == sha256:
            return content
    found = "is not the one that was stored" if places[0].exists() else "is missing"
    raise Damaged(
        f"{places[0]} {found}: {named_by} names SHA-256 {sha256[:12]}. Put it back, or delete the folder "
        f"{places[0].parent.name} and materialise again."
    )


def read_versioned(path: Path, *, version: int) -> dict[str, Any]:
    """A JSON file that says its format version. Raises `NewerFormat`, or `Damaged` if it is not there."""
    if not path.exists():
        raise Damaged(f"{path} is missing. Put it back, or materialise again.")
    document = dict(files.read_json(path))
    files.refuse_newer(path, document["version"], version=version)
    return document
