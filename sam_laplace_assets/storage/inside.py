"""Names that a file or a key gives, before they become paths: none of them leads out of its folder."""

from pathlib import Path

LONGEST = 255
"""Bytes of a file name that file systems take."""


class LeadsOut(ValueError):
    """A name that would lead out of the folder that it is meant for."""


def below(folder: Path, name: str) -> Path:
    """The path of this relative name, with slashes, below a folder.

    Only the name is looked at: a link that its owner has put below the folder is followed.

    Raises:
        LeadsOut: it is absolute, empty, goes upwards or holds a null byte.
    """
    if not name or name.startswith("/") or "\0" in name or ".." in name.split("/"):
        raise LeadsOut(f"{name!r} is no path below {folder}. Make the file that names it again.")
    return folder / name


def plain(name: str) -> str:
    """The name itself, if it is that of one file or folder, such as a safe id or a run id.

    Raises:
        LeadsOut: it is empty, too long, `.` or `..`, or holds a slash or a null byte.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name or len(name.encode(errors="replace")) > LONGEST:
        raise LeadsOut(f"{name!r} is no plain name of a file or folder. Make the file that holds it again.")
    return name
