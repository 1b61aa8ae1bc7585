"""Predictions on images without masks, in a folder of the reader's choice. version 1

<name>_mask.png                     (H, W), 0 or 255, at the original size
<name>_probability.npy              (H, W) float32; or .png, 16 bits: probability * 65535, rounded
<name>_mutual_information.npy       (H, W) float32, nats; or .png, 16 bits: nats / log 2 * 65535, rounded
<name>_picture.png                  the image with clicks, outline and suggestions, probability and mutual information
predictions.json                    written last: format, version, posterior, sam, gaussian_sigma, rule; `images`, each
                                    with its path, content digest, size, points, next points and the SHA-256 of its
                                    files; `failed`, each with its path and the reason

`<name>` is the image's file name without its ending, with a number where two images share it.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sam_laplace_assets.storage import files

if TYPE_CHECKING:
    from sam_laplace_assets.domain.prediction import Prediction

VERSION = 1
SUMMARY = "predictions.json"
MapFormat = Literal["npy", "png"]
DEEPEST = 65_535


def write_prediction(
    folder: Path, name: str, prediction: "Prediction", picture: bytes, *, map_format: MapFormat
) -> dict[str, str]:
    """Put the files of one image in place; file name -> SHA-256."""
    maps = {"probability": (prediction.probability, 1.0),
            "mutual_information": (prediction.mutual_information, math.log(2))}  # fmt: skip
    contents = {f"{name}_mask.png": _png(prediction.mask.astype(np.uint8) * 255)}
    contents |= {f"{name}_{key}.{map_format}": _map_bytes(values, largest, map_format)
                 for key, (values, largest) in maps.items()}  # fmt: skip
    contents[f"{name}_picture.png"] = picture
    files.write_set({folder / file: content for file, content in contents.items()})
    return {file: files.sha256(content) for file, content in contents.items()}


def write_summary(
    folder: Path, used: Mapping[str, Any], found: Sequence[Mapping[str, Any]], failed: Sequence[Mapping[str, str]]
) -> None:
    """Say what was predicted, from what, and what could not be."""
    head = {"format": "predictions", "version": VERSION, **used}
    files.write_json(folder / SUMMARY, {**head, "images": list(found), "failed": list(failed)})


def names_of(paths: Sequence[Path]) -> list[str]:
    """A name for the files of each image, no two alike: its stem, with a number from the second of a stem on."""
    stems, taken, names = {path.stem for path in paths}, set[str](), []
    for path in paths:
        name, number = path.stem, 1
        while name in taken or (number > 1 and name in stems):
            number += 1
            name = f"{path.stem}-{number}"
        taken.add(name)
        names.append(name)
    return names


def _map_bytes(values: NDArray[np.float32], largest: float, map_format: MapFormat) -> bytes:
    if map_format == "npy":
        return files.array_bytes(values)
    return _png(np.rint(np.clip(values / largest, 0, 1) * DEEPEST).astype(np.uint16))


def _png(array: NDArray[Any]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()
