"""Which pack heads and posteriors are judged on, as JSON. version 1

format, version   "validation_pack", 1
pack              its file, relative to this one
data_version      of the pack when it was named
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sam_laplace_assets.domain.plan import Course, Item, Plan, Record
from sam_laplace_assets.storage import files
from sam_laplace_assets.storage.pack import Pack
from sam_laplace_assets.storage.store import NotMade

VERSION = 1
PART = "pack"


class ValidationStore:
    """The name of one pack; the item's value is a `Pack`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def locate(self, item: Item) -> Path:
        """The file."""
        return self._path

    def records(self, items: Sequence[Item]) -> dict[str, Record]:
        """The pack that is named now."""
        if not self._path.exists():
            return {}
        named = files.read_json(self._path)
        return {item.key: _record(named) for item in items}

    def write(self, item: Item, parts: frozenset[str], value: Pack) -> Record:
        """Name a pack."""
        named = {"format": "validation_pack", "version": VERSION, "pack": value.path.name}
        named |= {"data_version": value.data_version}
        files.write_json(self._path, named)
        return _record(named)

    def finish(self, plan: Plan | Course, records: Mapping[str, Record], *, complete: bool) -> str:
        """The pack's own data version."""
        return next(iter(records.values())).contents[PART]

    def finished(self, plan: Plan | Course, records: Mapping[str, Record]) -> bool:
        """Always: there is nothing beside the items."""
        return True


def open_validation_pack(path: Path) -> Pack:
    """The pack that is named. Raises `NotMade`, or `PackRefused` if it is not the one that was named."""
    if not path.exists():
        raise NotMade(f"{path.name} is not there. Materialise validation_pack first.")
    named = files.read_json(path)
    pack = Pack.open(path.with_name(named["pack"]))
    if pack.data_version != named["data_version"]:
        raise NotMade(f"{pack.path.name} has changed since it became the validation pack. Materialise validation_pack.")
    return pack


def _record(named: Mapping[str, Any]) -> Record:
    content = {PART: str(named["data_version"])}
    return Record(content, content)
