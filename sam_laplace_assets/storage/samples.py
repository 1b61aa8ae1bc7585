"""What lies below the roots of images and masks: samples, and every other file with the reason why it is none.

Folders are classes. Nothing is opened here, and nothing written.
"""

import errno
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sam_laplace_assets.domain.manifest import safe_id, why_no_file_name
from sam_laplace_assets.storage.images import IMAGE_SUFFIXES, MASK_SUFFIXES

_DEEPEST = 100
"""Folders below a root: the names of what lies deeper are too long anyway."""
_OUT = "a link out of the root: copy the file here, set the root above both, or allow it with data.allow_links_out"
_NO_TEXT, _CONTROL = re.compile(r"[\ud800-\udfff]"), re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_FAILURES = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN,
             errno.EREMOTEIO}  # fmt: skip
"""What a file system says that is away for a moment."""


class ListingFailed(OSError):
    """A file system failed while a folder was listed: what the list lacks may well be there."""


@dataclass(frozen=True)
class Found:
    """A sample, or a file that is none.

    Attributes:
        sample_id: "<class>/<stem>", its characters composed (NFC); of a stray file its whole path, in which what is no
            text is written as in Python.
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
    """A file below a root; a stray one has no sample to belong to."""

    sample_id: str
    path: str
    reason: str | None
    stray: bool = False


def list_samples(
    images_root: Path,
    masks_root: Path,
    *,
    images_key: str = "data.images_root",
    masks_key: str = "data.masks_root",
    allow_links_out: bool = False,
) -> list[Found]:
    """Pairs of an image and a mask under two roots, and every other file with the reason why it is refused.

    Class folders nest as deep as names of files allow. Hidden files and folders are passed over without a word. Links
    are followed; one that leads out of its root is refused unless it is allowed, one back to a folder that it stands in
    always. Every other file is named in just one place, whatever becomes of it while it is looked at.

    Args:
        images_root: `<class>/<stem>.{jpg,jpeg,png}`, extensions in any case.
        masks_root: `<class>/<stem>.{npy,png}`.
        images_key: name of the setting that `images_root` comes from.
        masks_key: likewise of `masks_root`.
        allow_links_out: whether links may lead out of the roots.

    Returns:
        Sorted by sample_id, then by their files.

    Raises:
        FileNotFoundError: a root is not there.
        ListingFailed: a file system failed; what could not be seen must not pass for gone.
    """
    for root, key in ((images_root, images_key), (masks_root, masks_key)):
        if not root.is_dir():
            raise FileNotFoundError(f"{key} is {root}, where there is no folder. Set {key} to the folder of classes.")
    images = list(_scan(images_root, IMAGE_SUFFIXES, "not an image: expected .jpg, .jpeg or .png", allow_links_out))
    masks = list(_scan(masks_root, MASK_SUFFIXES, "not a mask: expected .npy or .png", allow_links_out))
    found = [*_pairs(_by_sample(images), _by_sample(masks)), *_strays(images, masks)]
    return _refuse_shared_safe_ids(sorted(found, key=_order))


def _order(found: Found) -> tuple[str, str, str]:
    return found.sample_id, found.image_path or "", found.mask_path or ""


def _scan(root: Path, suffixes: tuple[str, ...], stray: str, allow_links_out: bool) -> Iterator[_File]:
    """Files below a root in the order of their paths."""
    home = root.resolve()
    for path, refusal in _walk(root, home, (home,), allow_links_out):
        name = path.relative_to(root).as_posix()
        if (unusable := _why_no_name(name)) is not None:
            readable = _in_words(name)
            yield _File(unicodedata.normalize("NFC", readable), readable, unusable, stray=True)
            continue
        composed = unicodedata.normalize("NFC", name)
        if path.suffix.lower() in suffixes:
            yield _File(composed[: -len(path.suffix)], name, refusal)
        else:
            yield _File(composed, name, refusal or stray, stray=True)


def _why_no_name(name: str) -> str | None:
    """What is wrong with a path that would break a line, a table or a path elsewhere."""
    if _NO_TEXT.search(name):
        return "its name is not valid UTF-8: rename it"
    if _CONTROL.search(name):
        return "its name holds control characters: rename it"
    return "its name holds a backslash: rename it" if "\\" in name else None


def _in_words(name: str) -> str:
    """A path as text that can be stored and shown; no two paths give one text."""
    escaped = name.replace("\\", "\\\\").encode("utf-8", "backslashreplace").decode()
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), escaped)


def _walk(
    folder: Path, home: Path, above: tuple[Path, ...], allow_links_out: bool
) -> Iterator[tuple[Path, str | None]]:
    """Files below a folder, and folders not to be entered, each with the reason if it is refused.

    Args:
        folder: as it was reached.
        home: the root, resolved.
        above: the folders entered on the way, resolved.
        allow_links_out: whether links may lead out of the root.
    """
    try:
        entries = sorted({*folder.iterdir()})  # network file systems may list a name twice while others are added
    except OSError as error:
        if error.errno in _FAILURES:
            raise ListingFailed(
                f"{folder} could not be listed ({error.strerror}). Whatever is below it would pass for gone, so "
                "nothing was scanned. See that its file system is there, then scan again."
            ) from error
        if len(above) == 1:
            raise
        yield folder, f"a folder that cannot be read ({error.strerror}): mend or remove it"
        return
    for path in entries:
        if path.name.startswith("."):
            continue
        target = Path(os.path.realpath(path)) if path.is_symlink() else above[-1] / path.name
        if not (allow_links_out or target.is_relative_to(home)):
            yield path, _OUT
        elif (kind := _kind(path)) != stat.S_IFDIR:
            yield path, None if kind == stat.S_IFREG else "no regular file, or a broken link: remove or restore it"
        elif target in above or home.is_relative_to(target):
            yield path, "a link back to a folder it stands in: remove it"
        elif len(above) > _DEEPEST:
            yield path, f"stands more than {_DEEPEST} folders deep: move it up"
        else:
            yield from _walk(path, home, (*above, target), allow_links_out)


def _kind(path: Path) -> int:
    """What lies at a path or where it links to, as `stat.S_IFMT` has it; 0 where nothing can be seen."""
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except OSError:
        return 0


def _by_sample(files: Iterable[_File]) -> dict[str, list[_File]]:
    grouped: dict[str, list[_File]] = {}
    for file in files:
        if not file.stray:
            grouped.setdefault(file.sample_id, []).append(file)
    return grouped


def _strays(images: Iterable[_File], masks: Iterable[_File]) -> Iterator[Found]:
    """Each file that belongs to no sample, by itself."""
    for file in images:
        if file.stray:
            yield Found(file.sample_id, file.sample_id.rpartition("/")[0], file.path, None, file.reason or "stray")
    for file in masks:
        if file.stray:
            yield Found(file.sample_id, file.sample_id.rpartition("/")[0], None, file.path, file.reason or "stray")


def _pairs(images: dict[str, list[_File]], masks: dict[str, list[_File]]) -> Iterator[Found]:
    for name in images.keys() | masks.keys():
        yield _pair(name, images.get(name, []), masks.get(name, []))


def _pair(sample_id: str, images: Sequence[_File], masks: Sequence[_File]) -> Found:
    class_name = sample_id.rpartition("/")[0]
    return Found(
        sample_id=sample_id,
        class_name=class_name,
        image_path=images[0].path if images else None,
        mask_path=masks[0].path if masks else None,
        reason=_why_refused(sample_id, images, masks),
    )


def _why_refused(sample_id: str, images: Sequence[_File], masks: Sequence[_File]) -> str | None:
    """What is wrong with the files of one sample id: all that must be named, else the first thing."""
    several = [f"two {what} of one stem: {', '.join(file.path for file in files)}"
               for files, what in ((images, "images"), (masks, "masks")) if len(files) > 1]  # fmt: skip
    if several:
        return "; ".join(several)
    for file in (*images, *masks):
        if file.reason:
            return file.reason
    if "/" not in sample_id:
        return "stands in no class folder: move it to <class>/<stem>"
    if not masks:
        return "image without mask: expected a .npy or .png of the same class and stem"
    if not images:
        return "mask without image: expected a .jpg, .jpeg or .png of the same class and stem"
    return why_no_file_name(sample_id)


def _refuse_shared_safe_ids(found: Sequence[Found]) -> list[Found]:
    """Two sample ids with one safe id, or one on a file system that ignores case, would share files: none is taken."""
    by_safe_id: dict[str, list[str]] = {}
    for one in found:
        if one.reason is None:
            lower = unicodedata.normalize("NFC", safe_id(one.sample_id).lower())
            by_safe_id.setdefault(lower, []).append(one.sample_id)
    shared = [names for names in by_safe_id.values() if len(names) > 1]
    reasons = {name: _why_shared(names) for names in shared for name in names}
    return [replace(one, reason=one.reason or reasons.get(one.sample_id)) for one in found]


def _why_shared(names: Sequence[str]) -> str:
    safe_ids = sorted({safe_id(name) for name in names})
    where = safe_ids[0] if len(safe_ids) == 1 else f"{safe_ids[0]}, where case is ignored"
    return f"one safe id, {where}, for {' and '.join(names)}: rename all but one"
