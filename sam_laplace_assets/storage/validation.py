"""Which pack heads and posteriors are judged on, as JSON. version 1

format, version   "validation_pack", 1
pack              its file, relative to this one
data_version      of the pack when it was named
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sam_laplace_assets.domain.plan import Item, Record
from sam_laplace_assets.storage import files, inside
from sam_laplace_assets.storage.pack import Pack
from sam_laplace_assets.storage.store import NotMade, OneItemStore

VERSION = 1
PART = "pack"


class ValidationStore(OneItemStore):
    """The name of one pack; the item's value is a `Pack`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def locate(self, item: Item) -> Path:
        """The file."""
        return self._path

    def records(self, items: Sequence[Item]) -> dict[str, Record]:
        """The pack that is named now."""
        try:
            record = _record(_read(self._path))
        except files.NewerFormat:
            raise
        except (FileNotFoundError, ValueError):  # not there or damaged: it is made again
            return {}
        return {item.key: record for item in items}

    def write(self, item: Item, parts: frozenset[str], value: Pack) -> Record:
        """Name a pack."""
        named = {"format": "validation_pack", "version": VERSION, "pack": value.path.name}
        named |= {"data_version": value.data_version}
        files.write_json(self._path, files.sealed(named))
        return _record(named)


def open_validation_pack(path: Path) -> Pack:
    """The pack that is named. Raises `NotMade`, or `PackRefused` if it is not the one that was named."""
    if not path.exists():
        raise NotMade(f"{path.name} is not there. Materialise validation_pack first.")
    named = _read(path)
    pack = Pack.open(inside.below(path.parent, inside.plain(named["pack"])))
    if pack.data_version != named["data_version"]:
        raise NotMade(f"{pack.path.name} has changed since it became the validation pack. Materialise validation_pack.")
    return pack


def _read(path: Path) -> dict[str, Any]:
    return files.read_sealed(path, version=VERSION)


def _record(named: Mapping[str, Any]) -> Record:
    content = {PART: str(named["data_version"])}
    return Record(content, content)
