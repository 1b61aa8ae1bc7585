"""Small disks that are really full, and folders that really cannot be written to."""

import contextlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

BALLAST = ".ballast"


@dataclass(frozen=True)
class Disk:
    """A file system of its own at a folder."""

    folder: Path

    @property
    def free(self):
        """Bytes that may still be written."""
        state = os.statvfs(self.folder)
        return state.f_bavail * state.f_frsize

    @property
    def free_places(self):
        """Files that may still be made."""
        return os.statvfs(self.folder).f_favail

    def fill(self, *, leave):
        """Let only so many bytes be free."""
        self.empty()
        with (self.folder / BALLAST).open("wb") as ballast:
            if (size := self.free - leave) > 0:
                os.posix_fallocate(ballast.fileno(), 0, size)

    def fill_places(self, *, leave):
        """Let only so many files be made."""
        self.empty()
        (self.folder / BALLAST).mkdir()
        for number in range(self.free_places - leave):
            (self.folder / BALLAST / str(number)).touch()

    def empty(self):
        """Take out what it was filled with."""
        ballast = self.folder / BALLAST
        if ballast.is_dir():
            for path in ballast.iterdir():
                path.unlink()
            ballast.rmdir()
        ballast.unlink(missing_ok=True)

    def read_only(self):
        """Refuse every write."""
        mount("-o", "remount,ro", self.folder)

    def writable(self):
        """Take writes again."""
        mount("-o", "remount,rw", self.folder)


@contextlib.contextmanager
def small_disk(folder, *, size="64M", places=None):
    """A disk in memory at a folder, empty at first; skips where none can be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    mount("-t", "tmpfs", "-o", f"size={size}" + (f",nr_inodes={places}" if places else ""), "tmpfs", folder)
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def read_only(folder):
    """A folder with all that is in it, refusing every write."""
    mount("--bind", folder, folder)
    try:
        mount("-o", "remount,bind,ro", folder)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def mount(*arguments):
    """Call mount(8); skips where this machine refuses it."""
    try:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount(8) on this machine")
    if done.returncode:
        pytest.skip(f"no disk can be mounted on this machine: {done.stderr.strip()}")
