import contextlib
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from sam_laplace_assets.storage import images
from sam_laplace_assets.storage.images import (
    UnreadableFile,
    UnusableMask,
    check_mask,
    mask_digest,
    pixel_digest,
    read_image,
    read_mask,
)
from sam_laplace_assets_tests.faults.bad_data import KINDS, Spot

ORIENTATION = 0x0112


def colours(height=6, width=9):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(path, picture, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    picture.save(path, **options)
    return path


def png_of(path, depth, colour_type, samples):
    """PNG written by hand, for what Pillow does not write: `samples` is (H, W, C) big-endian."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], depth, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


# Images


def test_an_rgb_image_is_read_as_it_is(tmp_path):
    image = read_image(saved(tmp_path / "a.png", colours()))
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, colours())


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA"])
def test_other_modes_become_rgb(tmp_path, mode):
    picture = Image.fromarray(colours()).convert(mode)
    image = read_image(saved(tmp_path / "a.png", picture))
    np.testing.assert_array_equal(image, np.array(picture.convert("RGB")))


def test_a_cmyk_jpeg_becomes_rgb(tmp_path):
    flat = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    image = read_image(saved(tmp_path / "a.jpg", flat, quality=95))
    np.testing.assert_allclose(image.astype(int), np.full((16, 16, 3), (255, 0, 0)), atol=3)


def test_alpha_and_palette_transparency_are_dropped_without_a_word(tmp_path):
    clear = Image.fromarray(np.dstack([colours(), np.zeros((6, 9), np.uint8)]), "RGBA")
    palette = Image.fromarray(colours()).quantize(8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_image(saved(tmp_path / "a.png", clear)), colours())
        found = read_image(saved(tmp_path / "b.png", palette, transparency=bytes(range(8))))
    np.testing.assert_array_equal(found, np.array(palette.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_an_image_lies_upright_as_its_mask_does(tmp_path, orientation, suffix):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = 255
    stored = Image.fromarray(upright)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    if orientation in undo:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = saved(tmp_path / f"a.{suffix}", stored, exif=exif)
    assert ImageOps.exif_transpose(Image.open(path)).size == (32, 16)
    np.testing.assert_array_equal(read_image(path) > 127, upright > 127)


def test_a_turned_image_is_taken_whatever_else_its_camera_wrote(tmp_path):
    (folder := tmp_path / "images").mkdir()
    KINDS["EXIF data that is not to norm"].put(Spot(tmp_path, "a"))
    with Image.open(folder / "a" / "x.jpg") as stored:
        assert stored.size == (24, 32)
        with pytest.raises(AttributeError):
            ImageOps.exif_transpose(stored)
    np.testing.assert_allclose(
        read_image(folder / "a" / "x.jpg").astype(int).mean((0, 1)), Spot(tmp_path, "a").drawn()[0].mean((0, 1)), atol=3
    )
    assert read_image(folder / "a" / "x.jpg").shape == (24, 32, 3)


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_more_than_8_bits_are_refused(tmp_path, colour_type, channels):
    path = png_of(tmp_path / "a.png", 16, colour_type, np.full((4, 5, channels), 300, dtype=">u2"))
    with pytest.raises(UnreadableFile, match=r"a\.png has more than 8 bits a channel: .* Convert it to 8-bit RGB"):
        read_image(path)


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_image_is_refused(tmp_path, suffix, kept):
    path = saved(tmp_path / f"a.{suffix}", colours(64, 64))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(UnreadableFile, match=rf"a\.{suffix} is not a whole JPEG or PNG file \(.*\)\. Replace it"):
        read_image(path)


def test_another_format_behind_the_name_is_refused(tmp_path):
    with pytest.raises(UnreadableFile, match="is not a whole JPEG or PNG file"):
        read_image(saved(tmp_path / "a.png", colours(), format="BMP"))


@pytest.mark.parametrize("limit", [60, 30, 20])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch, limit):
    """6 x 9 pixels: within the limit, above it where Pillow warns, and above twice of it where it raises."""
    path = saved(tmp_path / "a.png", colours())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    if limit == 60:
        assert read_image(path).shape == (6, 9, 3)
        return
    with pytest.raises(UnreadableFile, match=r"a\.png is too large: Image size \(54 pixels\) exceeds limit"):
        read_image(path)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(UnreadableFile, match=r"a\.png is not there\. Put it back, or scan the samples again"):
        read_image(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UnreadableFile, match=r"pipe\.png is not a regular file"):
        read_image(tmp_path / "pipe.png")


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["jpg", "png"]), st.data())
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_give_an_image_or_the_named_error(tmp_path, suffix, data):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    damaged = bytearray(saved(tmp_path / f"a.{suffix}", colours(), exif=exif).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / f"b.{suffix}").write_bytes(damaged)
    with contextlib.suppress(UnreadableFile):
        assert read_image(tmp_path / f"b.{suffix}").shape[2] == 3


# Masks


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int16, np.uint16, np.int64, np.float16, np.float64, ">i4"])
def test_a_mask_is_what_is_above_zero(tmp_path, dtype):
    values = np.array([[0, 1, 2], [3, 0, 1]]).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    mask = read_mask(tmp_path / "a.npy")
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, [[False, True, True], [True, False, True]])


def test_negative_values_are_background(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[-1.5, 0.1], [0, -0.0]]))
    np.testing.assert_array_equal(read_mask(tmp_path / "a.npy"), [[False, True], [False, False]])


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (np.zeros(5), r"has shape \(5,\): a mask is 2-D, \(height, width\)"),
        (np.zeros((2, 3, 1)), r"has shape \(2, 3, 1\): a mask is 2-D"),
        (np.zeros((0, 3)), r"has shape \(0, 3\): a mask is 2-D"),
        (np.array([[1.0, np.nan]]), "holds values that are not finite"),
        (np.array([[1.0, -np.inf]]), "holds values that are not finite"),
        (np.array([[1j]]), "holds complex128 values: a mask holds real numbers or booleans"),
        (np.array([["a"]]), "holds <U1 values"),
        (np.array([[None]]), "holds object values"),
    ],
)
def test_an_array_that_is_no_mask_is_refused(tmp_path, values, text):
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(UnreadableFile, match=r"a\.npy " + text):
        read_mask(tmp_path / "a.npy")


def test_a_damaged_npy_is_refused(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.ones((50, 50)))
    whole = path.read_bytes()
    for content in (b"", whole[:5], whole[:60], whole[:-1], b"PK\x03\x04", b"text", whole.replace(b"}", b"{")):
        path.write_bytes(content)
        with pytest.raises(UnreadableFile, match=r"a\.npy is not a whole \.npy file of numbers \(.*Save it again"):
            read_mask(path)


def test_an_archive_is_no_mask(tmp_path):
    np.savez(tmp_path / "a.npz", mask=np.ones((2, 2)))
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(UnreadableFile, match=r"a\.npy is not a whole \.npy file"):
        read_mask(tmp_path / "a.npy")


def test_a_png_mask_is_foreground_where_any_colour_is_above_zero(tmp_path):
    on = np.zeros((4, 5), np.uint8)
    on[1:3, 2] = 1
    blue = np.zeros((4, 5, 3), np.uint8)
    blue[..., 2] = on
    indexed = Image.fromarray(on, "P")
    indexed.putpalette([0, 0, 0, 0, 0, 0])
    pictures = {
        "grey": Image.fromarray(on),
        "bilevel": Image.fromarray(on * 255).convert("1"),
        "rgb": Image.fromarray(blue),
        "index": indexed,
        "16 bit": Image.fromarray(on.astype(np.uint16)),
        "alpha": Image.fromarray(np.dstack([blue, np.full_like(on, 255)])),
        "grey alpha": Image.fromarray(np.dstack([on, np.full_like(on, 255)]), "LA"),
    }
    for name, picture in pictures.items():
        np.testing.assert_array_equal(read_mask(saved(tmp_path / f"{name}.PNG", picture, format="PNG")), on > 0, name)


def test_a_16_bit_colour_mask_is_refused(tmp_path):
    path = png_of(tmp_path / "a.png", 16, 2, np.ones((4, 5, 3), dtype=">u2"))
    with pytest.raises(UnreadableFile, match=r"a\.png is a 16-bit colour PNG, whose small values get lost"):
        read_mask(path)


def test_a_jpeg_is_no_mask(tmp_path):
    """Its artefacts would be foreground."""
    with pytest.raises(UnreadableFile, match=r"a\.jpg is no mask: it must be a \.npy or a \.png file"):
        read_mask(saved(tmp_path / "a.jpg", colours()))
    with pytest.raises(UnreadableFile, match=r"b\.png is not a whole PNG file"):
        read_mask(saved(tmp_path / "b.png", colours(), format="JPEG"))


def test_a_mask_needs_both_sides():
    with pytest.raises(UnusableMask, match="The mask has no foreground: none of its 6 pixels is above 0"):
        check_mask(np.zeros((2, 3), bool))
    with pytest.raises(UnusableMask, match="The mask is all foreground: each of its 6 pixels is above 0"):
        check_mask(np.ones((2, 3), bool))
    check_mask(np.eye(3, dtype=bool))


# Digests


def test_encoding_anew_without_loss_changes_no_digest(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    paths = [
        saved(tmp_path / "a.png", colours()),
        saved(tmp_path / "b.png", colours(), compress_level=0),
        saved(tmp_path / "c.png", np.rot90(colours()).copy(), exif=exif),
    ]
    assert len({pixel_digest(read_image(path)) for path in paths}) == 1


def test_a_mask_has_one_digest_whatever_its_file(tmp_path):
    mask = np.eye(5, 7, dtype=bool)
    np.save(tmp_path / "a.npy", np.asfortranarray(mask * 3.0))
    saved(tmp_path / "b.png", (mask * 255).astype(np.uint8))
    assert mask_digest(read_mask(tmp_path / "a.npy")) == mask_digest(read_mask(tmp_path / "b.png")) == mask_digest(mask)


def test_a_digest_tells_pixels_shape_and_type_apart():
    image = np.zeros((4, 6, 3), np.uint8)
    other = image.copy()
    other[0, 0, 0] = 1
    digests = {pixel_digest(image), pixel_digest(other), pixel_digest(image.reshape(6, 4, 3)), mask_digest(image > 0)}
    assert len(digests) == 4
    assert all(len(digest) == 64 for digest in digests)


def test_suffixes_are_those_of_the_readers():
    assert set(images.IMAGE_SUFFIXES) == {".jpg", ".jpeg", ".png"}
    assert set(images.MASK_SUFFIXES) == {".npy", ".png"}
