"""Whether any image, mask or setting has changed, as far as names, sizes and times tell it: nothing is opened."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sam_laplace_assets.settings import Settings
from sam_laplace_assets.storage.project import named_splits, roots_of


@dataclass(frozen=True)
class Watched:
    """All that is given to a project, at one moment.

    Attributes:
        state: digest over paths, sizes and times; another file, size or time, another digest.
        changed: when the newest of these files and folders was written, moved or removed from, seconds since the epoch.
    """

    state: str
    changed: float


def watch(settings: Settings) -> Watched:
    """Look at the files of all splits, the settings file, and the single files that it names.

    The time is the file system's own (ctime), which a copy that keeps modification times does not set back.
    """
    state, changed = hashlib.sha256(), 0
    for path, found in _files(settings):
        state.update(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\n".encode(errors="backslashreplace"))
        changed = max(changed, found.st_ctime_ns)
    return Watched(state.hexdigest(), changed / 1e9)


def _files(settings: Settings) -> Iterator[tuple[str, os.stat_result]]:
    for root in _roots(settings):
        yield from _below(root, Path(os.path.realpath(root)) if settings.data.allow_links_out else None)
    named = (settings.source, settings.sam.checkpoint, settings.data.splits_file, settings.data.group_table)
    for path in filter(None, named):
        yield from _stat(path)


def _roots(settings: Settings) -> list[Path]:
    named = [roots_of(settings.data, split) for split in named_splits(settings.data)]
    base = (settings.data.images_root, settings.data.masks_root)
    return sorted({*base, *(root for one in named for root in (one.images_root, one.masks_root))})


def _below(root: Path, home: Path | None) -> Iterator[tuple[str, os.stat_result]]:
    """Every file and folder of a tree, in order; what is not there, or goes away meanwhile, is left out.

    A link is looked at, and gone into only where it may lead out of the root: within, its target is seen anyway.

    Args:
        root: where to begin.
        home: the root, resolved, where links may lead out of it; None where they may not.
    """
    left: list[Path | os.DirEntry[str]] = [root]
    outside: set[str] = set()
    while left:
        entry = left.pop()
        yield from _stat(entry)
        if entry is root or _is_entered(entry, home, outside):
            left += _entries(entry)


def _is_entered(entry: "Path | os.DirEntry[str]", home: Path | None, outside: set[str]) -> bool:
    """Whether an entry is a folder to be gone into: a link only if it leads out, to where no other one led before."""
    if not entry.is_symlink():
        return entry.is_dir()
    target = os.path.realpath(entry)
    if home is None or not entry.is_dir() or target in outside:
        return False
    outside.add(target)
    return not Path(target).is_relative_to(home) and not home.is_relative_to(target)


def _entries(folder: "Path | os.DirEntry[str]") -> "list[os.DirEntry[str]]":
    """What a folder holds, the last name first; nothing where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name, reverse=True)
    except OSError:
        return []


def _stat(entry: "Path | os.DirEntry[str]") -> Iterator[tuple[str, os.stat_result]]:
    try:
        yield os.fspath(entry), entry.stat()
    except OSError:
        return
