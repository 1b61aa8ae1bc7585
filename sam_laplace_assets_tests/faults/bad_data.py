"""Files as people have them: what is no sample, and what is an odd one; each kind by its name, put below two roots."""

import contextlib
import os
import re
import shutil
import socket
import stat
import struct
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from sam_laplace_assets_tests.small_project import draw

ORIENTATION = 0x0112
UNDO = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
"""EXIF orientation -> the transposition that an upright picture is stored with under that tag."""
OUT = "allow it with data.allow_links_out"
NO_IMAGE, NO_MASK, NO_NPY = "is not a whole JPEG or PNG file", "is not a whole PNG file", "is not a whole .npy file"


@dataclass(frozen=True)
class Spot:
    """Where the files of one kind go: a class of its own below a folder's images/ and masks/."""

    folder: Path
    name: str

    def image(self, file="x.png"):
        """Path of an image, its folder made."""
        return _made(self.folder / "images" / self.name / file)

    def mask(self, file="x.npy"):
        """Path of a mask, its folder made."""
        return _made(self.folder / "masks" / self.name / file)

    def drawn(self, stem="x"):
        """The image and mask that belong there: others for every kind and stem."""
        return draw(zlib.crc32(f"{self.name}/{stem}".encode("utf-8", "replace")), size=(24, 32))

    def sample(self, stem="x", *, image=None, mask=None, picture=None, suffix=".png", **options):
        """Write a sample: its image, as an array or as a picture, and its mask."""
        drawn, its_mask = self.drawn(stem)
        picture = Image.fromarray(drawn if image is None else image) if picture is None else picture
        with self.image(f"{stem}{suffix}").open("wb") as file:
            picture.save(file, "JPEG" if suffix == ".jpg" else "PNG", **options)
        with self.mask(f"{stem}.npy").open("wb") as file:
            np.save(file, its_mask if mask is None else mask)

    def outside(self, name=""):
        """A folder of this kind that lies beside the roots."""
        folder = self.folder / "elsewhere" / self.name / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _made(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def always():
    """Nothing is needed."""
    return ""


@dataclass(frozen=True)
class Bad:
    """A kind of file that a scan must put up with.

    Attributes:
        put: writes it into a `Spot`.
        says: file, relative to its class -> text that the reason of its row holds; None where the sample is a good one.
        needs: why this machine cannot have it; empty where it can.
    """

    put: Callable[[Spot], None]
    says: Mapping[str, str | None] = field(default_factory=dict)
    needs: Callable[[], str] = always


KINDS: dict[str, Bad] = {}


def kind(name, says=None, *, needs=always, **files):
    """Take a function as what puts a kind of files; `says` is of x.png, `files` of others."""
    told = {"x.png": says} if says is not None or not files else {}

    def take(put):
        KINDS[name] = Bad(put, told | files.get("files", {}), needs)
        return put

    return take


def spot_of(folder, name):
    """Where the files of a kind go."""
    return Spot(folder, f"{re.sub(r'[^a-z0-9]+', '_', name.lower())}_{list(KINDS).index(name)}")


# Images that are none


def _bytes(name, content, says=NO_IMAGE, file="x.png"):
    def put(spot):
        spot.sample()
        spot.image().unlink()
        spot.image(file).write_bytes(content(spot) if callable(content) else content)

    kind(name, files={file: says})(put)


def _encoded(spot, encoding):
    path = spot.outside() / "picture"
    with path.open("wb") as file:
        Image.fromarray(spot.drawn()[0]).save(file, encoding)
    return path.read_bytes()


def _half(spot, encoding):
    whole = _encoded(spot, encoding)
    return whole[: len(whole) // 2]


_bytes("image of no bytes", b"")
_bytes("PNG cut short", lambda spot: _half(spot, "PNG"))
_bytes("JPEG cut short", lambda spot: _half(spot, "JPEG"), file="x.jpg")
_bytes("JPEG without its end", lambda spot: _encoded(spot, "JPEG")[:-40], file="x.jpeg")
for encoding in ("GIF", "BMP", "TIFF", "WEBP", "ICO"):
    _bytes(f"{encoding} behind png", lambda spot, encoding=encoding: _encoded(spot, encoding))
_bytes("page behind jpg", b"<!DOCTYPE html><html><body>404 Not Found</body></html>", file="x.jpg")
_bytes("text behind png", "größe,1\n".encode() * 50)
_bytes("pointer behind png", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
_bytes("zeros behind png", bytes(4096))
_bytes("PNG signature alone", b"\x89PNG\r\n\x1a\n")
_bytes("PNG behind jpg", lambda spot: _encoded(spot, "PNG"), None, "x.jpg")
_bytes("JPEG behind png", lambda spot: _encoded(spot, "JPEG"), None)
_bytes("PNG with a tail", lambda spot: _encoded(spot, "PNG") + b"tail" * 9, None)


def _flipped(spot):
    whole = bytearray(_encoded(spot, "PNG"))
    whole[len(whole) // 2] ^= 8
    return bytes(whole)


_bytes("PNG with a flipped bit", _flipped)


def png(width, height, rows, *, depth=1, colour_type=0, more=b""):
    """A PNG written by hand; `rows` are its uncompressed rows."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    body = _chunk(b"IHDR", header) + more + _chunk(b"IDAT", zlib.compress(rows, 1)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


_bytes("PNG that claims 60000x60000", png(60_000, 60_000, b""), "is too large")
_bytes("PNG that claims no pixel", png(0, 0, b""))
_bytes("PNG that unpacks to 12000x12000", lambda spot: png(12_000, 12_000, bytes(12_000 * 1501)), "is too large")
_bytes("PNG with a bomb of text", lambda spot: png(2, 2, bytes(4), more=_chunk(
    b"zTXt", b"Comment\0\0" + zlib.compress(bytes(20_000_000), 1))))  # fmt: skip
_bytes("16-bit grey PNG", lambda spot: png(2, 2, bytes(10), depth=16), "more than 8 bits a channel")
_bytes("16-bit colour PNG", lambda spot: png(2, 2, bytes(26), depth=16, colour_type=2), "more than 8 bits a channel")


# Images that are odd, and good


def _picture(name, convert, suffix=".png", **options):
    def put(spot):
        spot.sample(picture=convert(Image.fromarray(spot.drawn()[0])), suffix=suffix, **options)

    kind(name, files={f"x{suffix}": None})(put)


for mode in ("1", "L", "P", "LA", "RGBA"):
    _picture(f"PNG of mode {mode}", lambda picture, mode=mode: picture.convert(mode))
_picture("palette with transparency", lambda picture: picture.quantize(8), transparency=bytes(range(8)))
_picture("CMYK JPEG", lambda picture: picture.convert("CMYK"), ".jpg")
_picture("grey JPEG", lambda picture: picture.convert("L"), ".jpg")
_picture("progressive JPEG", lambda picture: picture, ".jpg", progressive=True)
_picture("PNG that moves", lambda picture: picture, save_all=True, append_images=[Image.new("RGB", (32, 24))])


def tag(orientation):
    """EXIF data with an orientation."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def turned(picture, orientation):
    """An upright picture as it is stored under an EXIF orientation."""
    return picture.transpose(Image.Transpose(UNDO[orientation]))


for orientation in UNDO:
    _picture(f"EXIF orientation {orientation}", lambda picture, orientation=orientation: turned(picture, orientation),
             exif=tag(orientation))  # fmt: skip
_picture("EXIF orientation that is none", lambda picture: picture, exif=tag(77))
_picture("EXIF data of noise", lambda picture: picture, ".jpg", exif=b"Exif\0\0" + bytes(range(200)))


def _unwritable():
    """A turned picture's EXIF data with a number for a description, which Pillow reads and cannot write."""
    entries = struct.pack(">HHIf", 0x010E, 11, 1, 1.5) + struct.pack(">HHIHH", ORIENTATION, 3, 1, 6, 0)
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 2) + entries + bytes(4)


_picture("EXIF data that is not to norm", lambda picture: turned(picture, 6), ".jpg", exif=_unwritable())

# Masks that are none


def _mask(name, write, says=None, file="x.npy"):
    """`write` gives an array or bytes, from the mask as it should be."""

    def put(spot):
        spot.sample()
        spot.mask().unlink()
        value = write(spot.drawn()[1])
        if isinstance(value, bytes):
            spot.mask(file).write_bytes(value)
        elif file.endswith(".png"):
            value.save(spot.mask(file))
        else:
            np.save(spot.mask(file), value, allow_pickle=True)

    kind(name, says)(put)


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (MARKER,)


MARKER = Path(tempfile.gettempdir(), f"unpickled-{os.getpid()}")


def _npy(header, content=b""):
    text = header.encode() + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def _header(shape, dtype="|b1", by_columns=False):
    return f"{{'descr': '{dtype}', 'fortran_order': {by_columns}, 'shape': {shape}, }}"


def _file_of(mask):
    return _npy(_header(mask.shape), mask.tobytes())


FLAT = "a mask is 2-D"
_mask("mask of one axis", lambda mask: mask.ravel(), FLAT)
_mask("mask of three axes", lambda mask: mask[..., None], FLAT)
_mask("mask without axes", lambda mask: np.array(True), FLAT)
_mask("mask without pixels", lambda mask: mask[:0], FLAT)
_mask("mask of a negative side", lambda mask: _npy(_header((-4, 4)), bytes(16)), FLAT)
_mask("mask all background", np.zeros_like, "has no foreground")
_mask("mask all foreground", np.ones_like, "is all foreground")
_mask("mask below zero", lambda mask: -1.0 * mask, "has no foreground")
_mask("mask of NaN", lambda mask: np.where(mask, np.nan, 0), "not finite")
_mask("mask of infinity", lambda mask: np.where(mask, np.inf, 0).astype(np.float16), "not finite")
_mask("mask of complex", lambda mask: mask * 1j, "holds complex128 values")
_mask("mask of strings", lambda mask: np.where(mask, "a", ""), "holds <U1 values")
_mask("mask of bytes", lambda mask: np.where(mask, b"a", b""), "holds |S1 values")
_mask("mask of dates", lambda mask: mask.astype("datetime64[s]"), "holds datetime64[s] values")
_mask("mask of objects", lambda mask: np.where(mask, 1, None), "holds object values")
_mask("mask of a pickle", lambda mask: np.array([[Payload()] * 4] * 4, dtype=object), "holds object values")
_mask("mask of records", lambda mask: mask.astype([("a", bool), ("b", "<f4")]), "a mask holds real numbers")
_mask("mask of records of objects", lambda mask: np.zeros((4, 4), [("a", object)]), "a mask holds real numbers")
_mask("npy of no bytes", lambda mask: b"", NO_NPY)
_mask("npy cut short", lambda mask: _file_of(mask)[:-9], "bytes are there")
_mask("npy cut in its header", lambda mask: _file_of(mask)[:40], NO_NPY)
_mask("npy that claims 10^12 pixels", lambda mask: _npy(_header((10**6, 10**6)), bytes(9)), "is too large")
_mask("npy that claims 10^40 pixels", lambda mask: _npy(_header((10**20, 10**20)), bytes(9)), "is too large")
_mask("npy that claims a side of 2^32", lambda mask: _npy(_header((2**32, 2**32)), bytes(9)), "is too large")
_mask("npy that claims 8000x8000", lambda mask: _npy(_header((8000, 8000), "<f8"), bytes(9)), "9 of 512000000 bytes")
_mask("npy with code in its header", lambda mask: _npy(f"__import__('pathlib').Path('{MARKER}').touch()"), NO_NPY)
_mask("npy with a long header", lambda mask: _npy(_header((4, 4)) + " " * 30_000, bytes(16)), NO_NPY)
_mask("npy with brackets in its header", lambda mask: _npy("(" * 9000, bytes(16)), NO_NPY)
_mask("npy of another version", lambda mask: _file_of(mask).replace(b"Y\x01", b"Y\x09", 1), NO_NPY)
_mask("text behind npy", lambda mask: b"0 1\n1 0\n", NO_NPY)
_mask("pickle behind npy", lambda mask: b"\x80\x04N.", NO_NPY)
_mask("mask PNG of no bytes", lambda mask: b"", NO_MASK, "x.png")
_mask("JPEG behind mask png", lambda mask: b"\xff\xd8\xff\xe0" + bytes(50), NO_MASK, "x.png")
_mask("mask PNG of 60000x60000", lambda mask: png(60_000, 60_000, b""), "is too large", "x.png")
_mask("mask PNG of 16-bit colour", lambda mask: png(2, 2, bytes(26), depth=16, colour_type=2), "16-bit colour", "x.png")
_mask("mask PNG without foreground", lambda mask: Image.new("L", (32, 24)), "has no foreground", "x.png")


@kind("npz behind npy", NO_NPY)
def _archive(spot):
    spot.sample()
    np.savez(spot.outside() / "x.npz", mask=spot.drawn()[1])
    spot.mask().write_bytes((spot.outside() / "x.npz").read_bytes())


def _no_sparse_files():
    return "" if os.name == "posix" and os.uname().sysname == "Linux" else "files of 10^12 bytes take their room here"


@kind("npy of 10^12 zeros", "is too large", needs=_no_sparse_files)
def _sparse(spot):
    spot.sample()
    head = _npy(_header((10**6, 10**6)))
    spot.mask().write_bytes(head)
    os.truncate(spot.mask(), len(head) + 10**12)


# Masks that are odd, and good

_mask("mask by columns", np.asfortranarray)
for dtype in ("<f2", ">f4", ">i8", "<u2", "|i1", "<f8"):
    _mask(f"mask of {dtype}", lambda mask, dtype=dtype: mask.astype(dtype))
_mask("mask of longdouble", lambda mask: mask.astype(np.longdouble))
_mask("mask of 0 and 255", lambda mask: mask * np.uint8(255))
_mask("mask with a tail", lambda mask: _file_of(mask) + b"tail")
_mask("npy of version 2", lambda mask: _file_of(mask).replace(b"\x01\x00v\x00", b"\x02\x00v\x00\x00\x00", 1))
_mask("mask of another size", lambda mask: np.kron(mask, np.ones((3, 2), bool)))
for mode in ("1", "L", "P", "RGB", "RGBA"):
    _mask(f"mask PNG of mode {mode}", lambda mask, mode=mode: Image.fromarray(mask * np.uint8(255)).convert(mode),
          file="x.png")  # fmt: skip


# Sizes


def _sized(name, height, width, says=None, *, on=None):
    def put(spot):
        stream = np.random.default_rng(zlib.crc32(spot.name.encode()))
        mask = np.zeros((height, width), bool)
        mask.flat[: height * width // 2 if on is None else on] = True
        spot.sample(image=stream.integers(0, 256, (height, width, 3), dtype=np.uint8), mask=mask)

    kind(name, says)(put)


_sized("image of one pixel", 1, 1, "has no foreground")
_sized("image of 3x3", 3, 3)
_sized("image of 2x600", 2, 600)
_sized("image of 600x2", 600, 2)
_sized("image of 1x40", 1, 40)
_sized("image of 1x3000", 1, 3000)
_sized("object of one pixel", 24, 32, on=1)
_sized("background of one pixel", 24, 32, on=24 * 32 - 1)


@kind("object that is lost at the size of the image")
def _lost(spot):
    mask = np.zeros((240, 320), bool)
    mask[0, 0] = True
    spot.sample(mask=mask)


# Files without their like, and too many of one


@kind("image without mask", "image without mask")
def _alone(spot):
    spot.sample()
    spot.mask().unlink()


@kind("mask without image", files={"x.npy": "mask without image"})
def _orphan(spot):
    spot.sample()
    spot.image().unlink()


@kind("mask that is a JPEG", "image without mask", files={"x.jpg": "not a mask"})
def _jpeg_mask(spot):
    spot.sample()
    spot.mask().unlink()
    Image.fromarray(spot.drawn()[1]).convert("L").save(spot.mask("x.jpg"))


@kind("two images of one stem", files={"x.jpg": "two images of one stem"})
def _two_images(spot):
    spot.sample()
    shutil.copy(spot.image(), spot.image("x.jpg"))


@kind("two images and two masks", files={"x.JPG": "two masks of one stem"})
def _two_of_both(spot):
    spot.sample()
    shutil.copy(spot.image(), spot.image("x.JPG"))
    Image.fromarray(spot.drawn()[1]).save(spot.mask("x.png"))


@kind("two samples of one safe id", files=dict.fromkeys(("a/b.png", "a__b.png"), "one safe id"))
def _one_safe_id(spot):
    spot.sample("a/b")
    spot.sample("a__b")


def _case_is_ignored():
    here = Path(__file__)
    return "file names that differ only in case are one here" if here.with_name(here.name.upper()).exists() else ""


@kind("samples that differ in case", files=dict.fromkeys(("A.png", "a.png"), "where case is ignored"),
      needs=_case_is_ignored)  # fmt: skip
def _cases(spot):
    spot.sample("A")
    spot.sample("a")


@kind("accents composed and not", files={"e\u0301.png": "two images of one stem"})
def _accents(spot):
    spot.sample("\u00e9")
    spot.sample("e\u0301")


@kind("accents of image and mask composed otherwise", files={"e\u0301.png": None})
def _accents_apart(spot):
    spot.sample("e\u0301")
    spot.mask("e\u0301.npy").rename(spot.mask("\u00e9.npy"))


@kind("stray file of a good sample's stem", files={"x": "not an image", "x.png": None})
def _stray_beside(spot):
    spot.sample()
    spot.image("x").write_bytes(b"")


@kind("two broken links beside a good sample", files={"x.jpg": "two images of one stem"})
def _broken_beside(spot):
    spot.sample()
    spot.image("x.jpg").symlink_to("nothing.jpg")


@kind("a class of one sample")
def _one_of_its_class(spot):
    spot.sample()


# Names

GOOD_NAMES = (
    "two words", "a..b", "scan.v1.2", "-rf", "--", "ünï", "emoji 🐟🏽‍♂️", "con", "%2e%2e", "quote'\"", "a,b", "a;b",
    "a|b", "$(touch x)", "`id`", "<b>x<br>", "{x}", "[x]*?", "NA", "null", "007", "=1+1", "x.", "x ", " x", "\u202ex",
    "#", "~", "None", "data:x", "x" * 180,
)  # fmt: skip
for stem in GOOD_NAMES:
    kind(f"named {stem[:20]}", files={f"{stem}.png": None})(lambda spot, stem=stem: spot.sample(stem))

CONTROL = "its name holds control characters"
for stem in ("a\nb", "a\tb", "\x1b[2Jx", "a\rb", "\u2028", "\x7f"):
    shown = stem.encode("unicode_escape").decode()
    kind(f"named {shown}", files={f"{shown}.png": CONTROL, f"{shown}.npy": CONTROL})(
        lambda spot, stem=stem: spot.sample(stem)
    )
kind("named a backslash b", files=dict.fromkeys(("a\\\\b.png", "a\\\\b.npy"), "its name holds a backslash"))(
    lambda spot: spot.sample("a\\b")
)
kind("named with 245 bytes", files={f"{'é' * 122}x.png": "240 at most can be stored"})(
    lambda spot: spot.sample(f"{'é' * 122}x")
)
kind("named too long with its class", files={f"{'d' * 200}/{'x' * 60}.png": "240 at most can be stored"})(
    lambda spot: spot.sample(f"{'d' * 200}/{'x' * 60}")
)


def _only_utf8():
    return "" if os.name == "posix" and os.uname().sysname == "Linux" else "names here are Unicode"


@kind("named with bytes that are no text", needs=_only_utf8,
      files=dict.fromkeys(("\\udcff.png", "\\udcff.npy"), "not valid UTF-8"))  # fmt: skip
def _no_text(spot):
    spot.sample(os.fsdecode(b"\xff"))


@kind("named as the words for bytes that are no text", needs=_only_utf8, files={
    "\\udcff.png": "not valid UTF-8", "\\udcff.npy": "not valid UTF-8",
    "\\\\udcff.png": "a backslash", "\\\\udcff.npy": "a backslash"})  # fmt: skip
def _no_text_twice(spot):
    spot.sample(os.fsdecode(b"\xff"))
    spot.sample("\\udcff")


@kind("files that are hidden", files={"x.png": None})
def _hidden(spot):
    spot.sample()
    for stem in ("._x", ".x", "..x", ".hidden/x", "..."):
        spot.sample(stem)
    spot.image(".DS_Store").write_bytes(b"\0")


kind("files that systems leave", files={"x.png": None, "Thumbs.db": "not an image", "desktop.ini": "not an image"})(
    lambda spot: (spot.sample(), spot.image("Thumbs.db").touch(), spot.image("desktop.ini").touch())
)

# Links, and what is no regular file

kind("link to an image of its class", files={"x.png": None, "y.png": None})(
    lambda spot: (spot.sample(), spot.image("y.png").symlink_to("x.png"), spot.mask("y.npy").symlink_to("x.npy"))
)


@kind("link to a folder of its class", files={"a/x.png": None, "b/x.png": None})
def _linked_folder(spot):
    spot.sample("a/x")
    spot.image("b").symlink_to("a")
    spot.mask("b").symlink_to("a")


@kind("link to an image elsewhere", OUT)
def _out(spot):
    spot.sample()
    spot.image().rename(spot.outside() / "x.png")
    spot.image().symlink_to(spot.outside() / "x.png")


@kind("link to a folder elsewhere", files={"out": OUT})
def _out_folder(spot):
    spot.sample()
    spot.image().rename(spot.outside() / "x.png")
    spot.mask().unlink()
    spot.image("out").symlink_to(spot.outside())


@kind("link to passwords", files={"x.png": OUT, "y.png": OUT})
def _passwords(spot):
    for stem in ("x", "y"):
        spot.sample(stem)
        (spot.image() if stem == "x" else spot.mask("y.npy")).unlink()
    spot.image().symlink_to("/etc/passwd")
    spot.mask("y.npy").symlink_to("/dev/zero")


NOTHING = "no regular file, or a broken link"


def _instead(name, put, says=NOTHING, needs=always):
    """Something else in the place of an image of one sample, and of a mask of another."""

    def place(spot):
        for path in (spot.image("x.png"), spot.mask("y.npy")):
            spot.sample(path.stem)
            path.unlink()
            put(path)

    kind(name, files={"x.png": says, "y.png": says}, needs=needs)(place)


def _socket(path):
    folder = Path.cwd()
    with socket.socket(socket.AF_UNIX) as one:
        os.chdir(path.parent)  # its name may be 107 bytes long
        try:
            one.bind(path.name)
        finally:
            os.chdir(folder)


def _each_other(one, other):
    one.symlink_to(other.name)
    other.symlink_to(one.name)


def _no_nodes():
    return "" if os.geteuid() == 0 and os.name == "posix" else "only root makes device nodes"


_instead("broken link", lambda path: path.symlink_to("nothing"))
_instead("link to itself", lambda path: path.symlink_to(path.name))
_instead("two links to each other", lambda path: _each_other(path, path.with_stem("z")))
KINDS["two links to each other"].says["z.png"] = NOTHING
_instead("pipe", os.mkfifo)
_instead("socket", _socket)
_instead("device", lambda path: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5)), needs=_no_nodes)
_instead("link to a pipe", lambda path: (os.mkfifo(path.with_name(".pipe")), path.symlink_to(".pipe")))


@kind("folders where files should be", files={"x.npy": "mask without image", "y.png": "image without mask"})
def _folders(spot):
    spot.sample()
    spot.sample("y")
    for path in (spot.image(), spot.mask("y.npy")):
        path.unlink()
        path.mkdir()


@kind("sample in a folder that is named as an image", files={"x.png/y.png": None})
def _in_a_named_folder(spot):
    spot.sample("x.png/y")


@kind("file where a class should be", files={"": "not an image", "x.npy": "mask without image"})
def _no_class(spot):
    spot.mask().parent.mkdir(parents=True, exist_ok=True)
    np.save(spot.mask(), spot.drawn()[1])
    (spot.folder / "images").mkdir(exist_ok=True)
    (spot.folder / "images" / spot.name).write_bytes(b"class")


LOOP = "a link back to a folder it stands in"


@kind("links that go round", files={"x.png": None, "here": LOOP, "up": LOOP, "deep/top": LOOP})
def _loops(spot):
    spot.sample()
    spot.image("here").symlink_to(".")
    spot.image("up").symlink_to(spot.folder / "images")
    spot.image("deep/top").symlink_to("..")


DEEP = "d/" * 99


@kind("folders without end", files={f"{DEEP}d": "stands more than 100 folders deep"})
def _deep(spot):
    spot.image(f"{'d/' * 150}x.png").touch()


kind("files in folders that are deep", files={f"{'d/' * 60}x.png": None})(lambda spot: spot.sample(f"{'d/' * 60}x"))


@contextlib.contextmanager
def unlinked(path):
    """Remove a file that code in bad data would make, before and after; tells whether it was there."""
    path.unlink(missing_ok=True)
    yield path.exists
    path.unlink(missing_ok=True)
