"""Images and masks as people bring them: JPEG and PNG images, `.npy` and PNG masks, in folders that are classes.

Nothing here is written. What is read is one frame: EXIF orientation is applied, so that image and mask lie upright.
"""

import hashlib
import os
import struct
import tokenize
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sam_laplace_assets.domain.manifest import safe_id

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
MASK_SUFFIXES = (".npy", ".png")

# what damaged files make Pillow and NumPy raise
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, struct.error, zlib.error)


class UnreadableFile(ValueError):
    """A file that cannot be taken as an image or a mask."""


class UnusableMask(ValueError):
    """A mask on which no prompts can be drawn."""


def read_image(path: Path) -> NDArray[np.uint8]:
    """Image as (H, W, 3) uint8 RGB, upright.

    Grey, palette, CMYK and images with an alpha channel are converted; alpha is dropped, not blended.

    Raises:
        UnreadableFile: it is not a whole 8-bit JPEG or PNG.
    """
    image = _open_upright(path, ("JPEG", "PNG"))
    if image.mode.startswith(("I", "F")) or _png_depth(path) > 8:
        raise UnreadableFile(
            f"{path} has more than 8 bits a channel: how to scale them is not for us to guess. "
            "Convert it to 8-bit RGB or grey."
        )
    if image.mode == "P":
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Mask as (h, w) bool: where the file's values are above 0.

    A `.npy` holds a 2-D array of numbers, all finite. In a PNG, a pixel is foreground where any colour channel, or the
    palette index, is above 0; alpha says nothing.

    Raises:
        UnreadableFile: it is neither.
    """
    if path.suffix.lower() == ".npy":
        return _read_npy(path)
    if path.suffix.lower() != ".png":
        raise UnreadableFile(f"{path} is no mask: it must be a .npy or a .png file. Convert it.")
    image = _open_upright(path, ("PNG",))
    if not image.mode.startswith("I") and _png_depth(path) > 8:
        raise UnreadableFile(f"{path} is a 16-bit colour PNG, whose small values get lost. Save one 8-bit channel.")
    channels: NDArray[Any] = np.array(image)
    if channels.ndim == 2:
        return channels > 0
    colours = channels[..., :-1] if image.mode in ("LA", "PA", "RGBA") else channels
    foreground: NDArray[np.bool_] = np.logical_or.reduce(colours > 0, axis=2)
    return foreground


def _open_upright(path: Path, formats: tuple[str, ...]) -> "Image.Image":
    """Fully decoded picture with its EXIF orientation applied."""
    from PIL import Image, ImageOps

    _require_file(path)
    try:
        with Image.open(path, formats=formats) as image:
            _require_small(image)
            return ImageOps.exif_transpose(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableFile(f"{path} is too large: {error} Cut it into tiles or shrink it.") from error
    except _DECODING_ERRORS as error:
        wanted = " or ".join(formats)
        raise UnreadableFile(f"{path} is not a whole {wanted} file ({error}). Replace it or drop it.") from error


def _require_small(image: "Image.Image") -> None:
    """Make an error of what Pillow only warns of, up to twice its limit."""
    from PIL import Image

    pixels, limit = image.width * image.height, Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > limit:
        raise Image.DecompressionBombError(f"Image size ({pixels} pixels) exceeds limit of {limit} pixels.")


def _png_depth(path: Path) -> int:
    """Bits a channel that a PNG's header states, 8 for other files: Pillow drops the lower 8 of 16-bit colour."""
    with path.open("rb") as file:
        header = file.read(25)
    return header[24] if header.startswith(b"\x89PNG") else 8


def _require_file(path: Path) -> None:
    if not path.is_file():
        found = "not a regular file" if path.exists() else "not there"
        raise UnreadableFile(f"{path} is {found}. Put it back, or scan the samples again.")


def _read_npy(path: Path) -> NDArray[np.bool_]:
    _require_file(path)
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (*_DECODING_ERRORS, MemoryError, tokenize.TokenError) as error:
        raise UnreadableFile(f"{path} is not a whole .npy file of numbers ({error}). Save it again.") from error
    if array.dtype.kind not in "buif":
        raise UnreadableFile(f"{path} holds {array.dtype} values: a mask holds real numbers or booleans. Save those.")
    if array.ndim != 2 or array.size == 0:
        raise UnreadableFile(f"{path} has shape {array.shape}: a mask is 2-D, (height, width). Save one 2-D array.")
    if not np.isfinite(array).all():
        raise UnreadableFile(f"{path} holds values that are not finite: say which side they are on, as 0 or 1.")
    return array > 0


def check_mask(mask: NDArray[np.bool_]) -> None:
    """Refuse a mask without object or without background.

    Raises:
        UnusableMask: says which.
    """
    if not mask.any():
        raise UnusableMask(f"The mask has no foreground: none of its {mask.size} pixels is above 0. Redraw it.")
    if mask.all():
        raise UnusableMask(f"The mask is all foreground: each of its {mask.size} pixels is above 0. Redraw it.")


def pixel_digest(image: NDArray[np.uint8]) -> str:
    """SHA-256 of a decoded image's type, shape and pixels: encoding it anew without loss changes nothing."""
    return _array_digest(image)


def mask_digest(mask: NDArray[np.bool_]) -> str:
    """SHA-256 of a binarised mask's type, shape and pixels."""
    return _array_digest(mask)


def _array_digest(array: NDArray[np.generic]) -> str:
    digest = hashlib.sha256(f"{array.dtype.name} {' x '.join(map(str, array.shape))}\n".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Found:
    """A sample, or a file that is none.

    Attributes:
        sample_id: "<class>/<stem>", its characters composed (NFC); of a stray file its whole path.
        class_name: folder relative to the root, with slashes.
        image_path: relative to the images' root, with slashes; None where there is no image.
        mask_path: likewise of the mask.
        reason: why it is refused; None for a sample.
    """

    sample_id: str
    class_name: str
    image_path: str | None
    mask_path: str | None
    reason: str | None

    def __post_init__(self) -> None:
        if self.reason is None and (self.image_path is None or self.mask_path is None):
            raise ValueError(f"{self.sample_id} lacks its image or its mask: give the reason why it is refused.")


@dataclass(frozen=True)
class _File:
    sample_id: str
    path: str
    reason: str | None


def list_samples(
    images_root: Path,
    masks_root: Path,
    *,
    images_key: str = "data.images_root",
    masks_key: str = "data.masks_root",
) -> list[Found]:
    """Pairs of an image and a mask under two roots, and every other file with the reason why it is refused.

    Class folders nest to any depth. Hidden files and folders are passed over without a word. Links are followed as long
    as they stay in their root; a link that leads out of it, or back to a folder it stands in, is refused.

    Args:
        images_root: `<class>/<stem>.{jpg,jpeg,png}`, extensions in any case.
        masks_root: `<class>/<stem>.{npy,png}`.
        images_key: name of the setting that `images_root` comes from.
        masks_key: likewise of `masks_root`.

    Returns:
        Sorted by sample_id.

    Raises:
        FileNotFoundError: a root is not there.
    """
    for root, key in ((images_root, images_key), (masks_root, masks_key)):
        if not root.is_dir():
            raise FileNotFoundError(f"{key} is {root}, where there is no folder. Set {key} to the folder of classes.")
    images = _by_sample(_scan(images_root, IMAGE_SUFFIXES, "not an image: expected .jpg, .jpeg or .png"))
    masks = _by_sample(_scan(masks_root, MASK_SUFFIXES, "not a mask: expected .npy or .png"))
    found = [_pair(name, images.get(name, []), masks.get(name, [])) for name in sorted(images.keys() | masks.keys())]
    return _refuse_shared_safe_ids(found)


def _scan(root: Path, suffixes: tuple[str, ...], stray: str) -> Iterator[_File]:
    """Files below a root in the order of their paths."""
    home = root.resolve()
    for path, refusal in _walk(root, home, (home,)):
        name = path.relative_to(root).as_posix()
        readable = name.encode("utf-8", "backslashreplace").decode()
        composed = unicodedata.normalize("NFC", readable)
        if readable != name:
            yield _File(composed, readable, "its name is not valid UTF-8: rename it")
        elif path.suffix.lower() in suffixes:
            yield _File(composed[: -len(path.suffix)], name, refusal)
        else:
            yield _File(composed, name, refusal or stray)


def _walk(folder: Path, home: Path, above: tuple[Path, ...]) -> Iterator[tuple[Path, str | None]]:
    """Files below a folder, and folders not to be entered, each with the reason if it is refused.

    Args:
        folder: as it was reached.
        home: the root, resolved.
        above: the folders entered on the way, resolved.
    """
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        target = Path(os.path.realpath(path)) if path.is_symlink() else above[-1] / path.name
        if not target.is_relative_to(home):
            yield path, "a link out of the root: copy the file here, or set the root above both"
        elif target.is_dir():
            if target in above:
                yield path, "a link back to a folder it stands in: remove it"
            else:
                yield from _walk(path, home, (*above, target))
        else:
            yield path, None if target.is_file() else "no regular file, or a broken link: remove or restore it"


def _by_sample(files: Iterator[_File]) -> dict[str, list[_File]]:
    grouped: dict[str, list[_File]] = {}
    for file in files:
        grouped.setdefault(file.sample_id, []).append(file)
    return grouped


def _pair(sample_id: str, images: Sequence[_File], masks: Sequence[_File]) -> Found:
    class_name = sample_id.rpartition("/")[0]
    return Found(
        sample_id=sample_id,
        class_name=class_name,
        image_path=images[0].path if images else None,
        mask_path=masks[0].path if masks else None,
        reason=_why_refused(class_name, images, masks),
    )


def _why_refused(class_name: str, images: Sequence[_File], masks: Sequence[_File]) -> str | None:
    """First thing that is wrong with the files of one sample id."""
    for file in (*images, *masks):
        if file.reason:
            return file.reason
    if not class_name:
        return "stands in no class folder: move it to <class>/<stem>"
    for files, what in ((images, "images"), (masks, "masks")):
        if len(files) > 1:
            return f"two {what} of one stem: {', '.join(file.path for file in files)}"
    if not masks:
        return "image without mask: expected a .npy or .png of the same class and stem"
    if not images:
        return "mask without image: expected a .jpg, .jpeg or .png of the same class and stem"
    return None


def _refuse_shared_safe_ids(found: Sequence[Found]) -> list[Found]:
    """Two sample ids with one safe id would share their files: neither is taken."""
    by_safe_id: dict[str, list[str]] = {}
    for one in found:
        if one.reason is None:
            by_safe_id.setdefault(safe_id(one.sample_id), []).append(one.sample_id)
    reasons = {
        name: f"one safe id, {shared}, for {' and '.join(names)}: rename all but one"
        for shared, names in by_safe_id.items()
        if len(names) > 1
        for name in names
    }
    return [replace(one, reason=one.reason or reasons.get(one.sample_id)) for one in found]
