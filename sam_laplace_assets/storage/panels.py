"""Pictures that know what they were made from: PNG files whose `provenance` text holds their digest. version 1"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sam_laplace_assets.domain.plan import Course, Item, Plan, Record, data_version
from sam_laplace_assets.storage import files

PART = "png"
TEXT = "provenance"


class PanelStore:
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

    def finish(self, plan: Plan | Course, records: Mapping[str, Record], *, complete: bool) -> str:
        """Digest over what the pictures show."""
        return data_version(plan, records)

    def finished(self, plan: Plan | Course, records: Mapping[str, Record]) -> bool:
        """Always: there is nothing beside the items."""
        return True


def _sign(png: bytes, provenance: str) -> bytes:
    from PIL import Image, PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_text(TEXT, provenance)
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        picture.save(buffer, "PNG", pnginfo=text, optimize=True)
    return buffer.getvalue()


def _read(path: Path) -> Record | None:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            made_from: Any = picture.info[TEXT]
            picture.load()
    except (OSError, KeyError, SyntaxError, ValueError):
        return None
    parts: Mapping[str, str] = {PART: str(made_from)}
    return Record(parts, parts)
