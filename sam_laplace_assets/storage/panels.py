"""Pictures that know what they were made from, as PNG files. version 1

Each has three PNG texts: `format`, "panel"; `version`; and `provenance`, the digest of what it was made from.
"""

import io
from collections.abc import Sequence
from pathlib import Path

from sam_laplace_assets.domain.plan import Item, Record
from sam_laplace_assets.storage import files
from sam_laplace_assets.storage.store import PlainStore

VERSION = 1
PART = "png"
PROVENANCE = "provenance"
FORMATS = ("PNG",)
"""What is looked at as a picture: Pillow would hand PostScript, whatever it is called, to a program that runs it."""


class PanelStore(PlainStore):
    """The pictures of one partition; an item's value is a PNG file's bytes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def locate(self, item: Item) -> Path:
        """The picture's file."""
        return self._folder / f"{item.key}.png"

    def records(self, items: Sequence[Item]) -> dict[str, Record]:
        """The pictures that are there."""
        found = ((item.key, _read(self.locate(item))) for item in items)
        return {key: record for key, record in found if record is not None}

    def write(self, item: Item, parts: frozenset[str], value: bytes) -> Record:
        """Store a picture with its provenance."""
        files.write_bytes(self.locate(item), _sign(value, item.parts[PART]))
        return Record(item.parts, dict(item.parts))


def _sign(png: bytes, provenance: str) -> bytes:
    from PIL import Image, PngImagePlugin

    text = PngImagePlugin.PngInfo()
    for name, value in {"format": "panel", "version": str(VERSION), PROVENANCE: provenance}.items():
        text.add_text(name, value)
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png), formats=FORMATS) as picture:
        picture.save(buffer, "PNG", pnginfo=text, optimize=True)
    return buffer.getvalue()


def _read(path: Path) -> Record | None:
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as picture:
            texts = {name: str(picture.info[name]) for name in ("version", PROVENANCE)}
            files.refuse_newer(path, texts["version"], version=VERSION)
            picture.load()
    except files.NewerFormat:
        raise
    except (OSError, KeyError, SyntaxError, ValueError):
        return None
    parts = {PART: texts[PROVENANCE]}
    return Record(parts, parts)
