"""Images and masks as people bring them: JPEG and PNG images, `.npy` and PNG masks.

Nothing here is written. What is read is one frame: EXIF orientation is applied, so that image and mask lie upright.
"""

import hashlib
import math
import os
import stat
import struct
import tokenize
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
MASK_SUFFIXES = (".npy", ".png")

# what damaged files make Pillow and NumPy raise
_DECODING_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError, struct.error,
    zlib.error,
)  # fmt: skip

_ORIENTATION = 0x0112
_TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270",
          7: "TRANSVERSE", 8: "ROTATE_90"}  # fmt: skip
"""EXIF orientation -> what `Image.Transpose` calls the way back."""


class UnreadableFile(ValueError):
    """A file that cannot be taken as an image or a mask."""


class FileGone(UnreadableFile):
    """A file that went away, or that the system failed to read: it may come back just as it was."""


class UnusableMask(ValueError):
    """A mask on which no prompts can be drawn."""


def read_image(path: Path) -> NDArray[np.uint8]:
    """Image as (H, W, 3) uint8 RGB, upright.

    Grey, palette, CMYK and images with an alpha channel are converted; alpha is dropped, not blended.

    Raises:
        UnreadableFile: it is not a whole 8-bit JPEG or PNG.
    """
    image, depth = _open_upright(path, ("JPEG", "PNG"))
    if image.mode.startswith(("I", "F")) or depth > 8:
        raise UnreadableFile(
            f"{path} has more than 8 bits a channel: how to scale them is not for us to guess. "
            "Convert it to 8-bit RGB or grey."
        )
    if image.mode == "P":
        image = image.convert("RGBA")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


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
    image, depth = _open_upright(path, ("PNG",))
    if not image.mode.startswith("I") and depth > 8:
        raise UnreadableFile(f"{path} is a 16-bit colour PNG, whose small values get lost. Save one 8-bit channel.")
    channels: NDArray[Any] = np.array(image)
    if channels.ndim == 2:
        return channels > 0
    colours = channels[..., :-1] if image.mode in ("LA", "PA", "RGBA") else channels
    foreground: NDArray[np.bool_] = np.logical_or.reduce(colours > 0, axis=2)
    return foreground


def _open_upright(path: Path, formats: tuple[str, ...]) -> tuple["Image.Image", int]:
    """Fully decoded picture with its EXIF orientation applied, and its bits a channel as a PNG's header states them."""
    from PIL import Image, UnidentifiedImageError

    wanted = " or ".join(formats)
    with _opened(path) as file:
        try:
            depth = _png_depth(file)
            with Image.open(file, formats=formats) as image:
                _require_small(path, image.width * image.height)
                return _upright(image), depth
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise UnreadableFile(f"{path} is too large: {error} Cut it into tiles or shrink it.") from error
        except UnreadableFile:
            raise
        except _DECODING_ERRORS as error:
            _leave_to_the_system(error)
            why = f"it does not begin as {wanted}" if isinstance(error, UnidentifiedImageError) else error
            raise UnreadableFile(f"{path} is not a whole {wanted} file ({why}). Replace it or drop it.") from error


def _upright(image: "Image.Image") -> "Image.Image":
    """What `ImageOps.exif_transpose` gives, which writes the EXIF data anew and fails where a camera's is odd."""
    from PIL import Image

    image.load()
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    return image.copy() if turn is None else image.transpose(Image.Transpose[turn])


def _require_small(path: Path, pixels: int) -> None:
    """Make an error of what Pillow only warns of, up to twice its limit; the limit holds for every kind of file."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > limit:
        raise UnreadableFile(
            f"{path} is too large: Image size ({pixels} pixels) exceeds limit of {limit} pixels. "
            "Cut it into tiles or shrink it."
        )


def _png_depth(file: IO[bytes]) -> int:
    """Bits a channel that a PNG's header states, 8 for other files: Pillow drops the lower 8 of 16-bit colour."""
    header = file.read(25)
    file.seek(0)
    return header[24] if header.startswith(b"\x89PNG") and len(header) == 25 else 8


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """A regular file, open for reading. Nothing is waited for, should a pipe have taken its place meanwhile.

    Raises:
        FileGone: it is none, or the system fails to read it.
        UnreadableFile: it may not be read.
    """
    try:
        if not path.is_file():
            found = "not a regular file" if path.exists() else "not there"
            raise FileGone(f"{path} is {found}. Put it back, or scan the samples again.")
        with open(path, "rb", opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise FileGone(f"{path} is not a regular file. Put it back, or scan the samples again.")
            yield file
    except OSError as error:
        refused = UnreadableFile if isinstance(error, PermissionError) else FileGone
        raise refused(f"{path} cannot be read ({error.strerror}). Mend that, then scan the samples again.") from error


def _leave_to_the_system(error: BaseException) -> None:
    """Raise again what the system says of a file; what its content makes a decoder say has no number."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _read_npy(path: Path) -> NDArray[np.bool_]:
    with _opened(path) as file:
        array = _read_array(path, file)
    if not np.isfinite(array).all():
        raise UnreadableFile(f"{path} holds values that are not finite: say which side they are on, as 0 or 1.")
    return array > 0


def _read_array(path: Path, file: IO[bytes]) -> NDArray[Any]:
    """The array in a .npy file. Its header is believed only as far as the file reaches, and only within the limit."""
    try:
        shape, by_columns, dtype = _npy_header(file)
    except (*_DECODING_ERRORS, MemoryError, RecursionError, tokenize.TokenError) as error:
        _leave_to_the_system(error)
        why = str(error).partition("\n")[0]  # what follows would have one load it as a pickle
        raise UnreadableFile(f"{path} is not a whole .npy file of numbers ({why}). Save it again.") from error
    if dtype.kind not in "buif":
        raise UnreadableFile(f"{path} holds {dtype} values: a mask holds real numbers or booleans. Save those.")
    if len(shape) != 2 or min(shape) < 1:
        raise UnreadableFile(f"{path} has shape {shape}: a mask is 2-D, (height, width). Save one 2-D array.")
    _require_small(path, math.prod(shape))
    wanted, there = math.prod(shape) * dtype.itemsize, os.fstat(file.fileno()).st_size - file.tell()
    content = file.read(wanted) if wanted <= there else b""
    if len(content) < wanted:
        raise UnreadableFile(
            f"{path} is not a whole .npy file of numbers ({there} of {wanted} bytes are there). Save it again."
        )
    return np.frombuffer(content, dtype).reshape(shape, order="F" if by_columns else "C")


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and type, of a .npy file of numbers. Raises ValueError and others."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"its format is {version[0]}.{version[1]}, which no array of numbers needs")


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
