"""What SAM's encoder made of one image, as `<safe_id>/embedding.safetensors` beside its prompt sets. version 1

features    (1, C, h, w) float16 or float32
metadata    format, version, provenance (JSON: image digest, checkpoint, model type, precision, dtype) and SHA-256 of
            the features' bytes

Nothing depends on these files but time: one that is gone, damaged, of another version or of another provenance is made
again by the encoder.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sam_laplace_assets.storage import files

VERSION = 1
FORMAT = "embedding"
NAME = "embedding.safetensors"
FEATURES = "features"


@dataclass(frozen=True)
class EmbeddingCache:
    """The embeddings of one split.

    Attributes:
        folder: of the SAM cache of that split.
        dtype: `float16` or `float32`, of the features on disk.
    """

    folder: Path
    dtype: str

    def read(self, key: str, provenance: Mapping[str, Any]) -> np.ndarray | None:
        """Features (1, C, h, w) of a sample, of `dtype`; None where none of this provenance are whole."""
        try:
            content = (self.folder / key / NAME).read_bytes()
            note = _note(content)
        except (OSError, ValueError, KeyError):
            return None
        asked = {"format": FORMAT, "version": str(VERSION), "provenance": _canonical(provenance)}
        return _whole(content, note) if asked.items() <= note.items() else None


def embedding_bytes(features: np.ndarray, provenance: Mapping[str, Any]) -> bytes:
    """The file of one image's features."""
    from safetensors.numpy import save

    features = np.ascontiguousarray(features)
    note = {"format": FORMAT, "version": str(VERSION), "provenance": _canonical(provenance),
            "sha256": files.sha256(features.data)}  # fmt: skip
    return bytes(save({FEATURES: features}, metadata=note))


def _canonical(provenance: Mapping[str, Any]) -> str:
    return json.dumps(dict(provenance), sort_keys=True)


def _note(content: bytes) -> dict[str, str]:
    """The metadata in a safetensors file: 8 bytes that say how long its JSON header is, and that header."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return dict(header["__metadata__"])


def _whole(content: bytes, note: Mapping[str, str]) -> np.ndarray | None:
    """The features, if they are those that were written."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        features: np.ndarray = load(content)[FEATURES]
    except (SafetensorError, KeyError):
        return None
    return features if files.sha256(np.ascontiguousarray(features).data) == note.get("sha256") else None
